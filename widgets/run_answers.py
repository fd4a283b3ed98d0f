"""What a monitor answers to its page: commands, and what is sent only when it is looked at (logs, ranks, finer points)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.runs import Run, runs
from toolkit.runs.control import SETTINGS
from widgets.run_logs import log_path, read_page
from widgets.view import harmless

if TYPE_CHECKING:
    from widgets.run_monitor import RunMonitor
    from widgets.watched_run import WatchedRun

__all__ = ["Answers"]

MOST_PAGES = 4
"""Pages that may follow a log or the ranks at a time; of more, those that asked last."""
RANKS_EVERY = 1.0
"""Seconds between two tables of the ranks."""
MOST_CHOICES = 30
WHOLE = {"max_steps", "log_every", "checkpoint_every"}
"""Settings that are whole numbers."""
COMMANDS = ("pause", "resume", "checkpoint", "stop", "kill", "restart", "set")


class Answers:
    """Hears the messages of one monitor's pages. A message is {"kind", "run", ...}; text and numbers in it are not trusted."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor
        self._stopped: set[tuple[str, int]] = set()
        self._followed: dict[str, dict[str, Any]] = {}
        self._shown: dict[str, tuple[int | None, float]] = {}

    def receive(self, message: dict[str, Any]) -> None:
        """Do what a page asks, and send the answer."""
        kind = message.get("kind")
        if kind == "since":
            self._monitor.send_whole()
        elif kind == "choices":
            self._monitor.send({"kind": "choices", "runs": self._choices()})
        elif kind == "add":
            self._answer("add", lambda: self._monitor.add(Run.attach(str(message.get("id")), self._root())))
        elif kind == "leave":
            self._followed.pop(str(message.get("page")), None)
            self._monitor.gone_from(str(message.get("page")))
        elif kind == "hello":
            if message.get("page") is not None:
                self._monitor.pages.add(str(message["page"])[:40])
            self._monitor.send({"kind": "here"})
        elif (one := self._named(message.get("run"))) is not None:
            self._about(one, str(kind), message)

    def _about(self, one: WatchedRun, kind: str, message: dict[str, Any]) -> None:
        if kind == "command":
            name = str(message.get("name"))
            self._answer(name, lambda: self._command(one, name, message))
        elif kind == "samples":
            step = message.get("step")
            self._monitor.send({"kind": kind, "run": one.key, "step": step, "samples": one.follower.samples_at(step)[:20]})
        elif kind == "range":
            first, last = message.get("first"), message.get("last")
            if isinstance(first, (int, float)) and isinstance(last, (int, float)) and math.isfinite(first + last):
                said = {"first": first, "last": last, "page": message.get("page")}
                points = {name: pair for each in self._monitor.watched for name, pair in each.points_between(first, last).items()}
                self._monitor.send({"kind": kind, **said, "points": points})
        elif kind in ("logs", "ranks"):
            page = str(message.get("page"))
            self._followed.pop(page, None)
            self._shown.pop(page, None)
            self._followed[page] = message
            for old in list(self._followed)[:-MOST_PAGES]:
                del self._followed[old]
            self.push()

    def push(self) -> None:
        """Send to each page that follows a log or the ranks what is new of it."""
        for page, wanted in list(self._followed.items()):
            one = self._named(wanted.get("run"))
            if one is None or one.gone:
                continue
            mark, (shown, at) = self._mark(one, wanted), self._shown.get(page, (None, 0.0))
            if mark == shown or (wanted["kind"] == "ranks" and time.monotonic() - at < RANKS_EVERY):
                continue
            self._shown[page] = mark, time.monotonic()
            said = {name: wanted.get(name) for name in ("kind", "run", "rank", "words", "page")}
            if wanted["kind"] == "ranks":
                found: dict[str, Any] = {"ranks": one.ranks()}
            else:
                found = read_page(self._log(one, wanted), str(wanted.get("words") or "")[:200])
            self._monitor.send({**said, **found})

    def _mark(self, one: WatchedRun, wanted: dict[str, Any]) -> int:
        """What changes when there is something new to send: the last step of the ranks, or the size of the log."""
        if wanted["kind"] == "ranks":
            return one.rank_step
        place = self._log(one, wanted)
        return place.stat().st_size if place.is_file() else 0

    @staticmethod
    def _log(one: WatchedRun, wanted: dict[str, Any]) -> Path:
        rank = wanted.get("rank")
        known = rank == "supervisor" or (isinstance(rank, int) and 0 <= rank < one.processes)
        return log_path(one.run.folder, rank if known and rank is not None else 0)

    def _answer(self, name: str, act: Callable[[], object]) -> None:
        """Send an empty text, or why it was refused."""
        text = ""
        try:
            act()
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            text = f"{name}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        self._monitor.send({"kind": "answer", "name": name, "text": harmless(text, 400)})

    def _command(self, one: WatchedRun, name: str, message: dict[str, Any]) -> None:
        """Pass a command on."""
        if name not in COMMANDS:
            raise ValueError("no such command")
        if one.gone:
            raise RuntimeError("the run's folder is gone")
        attempt, run = one.state.attempt, one.run
        if name == "stop" and (one.key, attempt) in self._stopped:  # A second stop kills: too near a double click.
            raise RuntimeError("asked already, it ends after the step it is at")
        if name == "restart":
            run.restart(step=_step(message.get("step")))
        elif name == "set":
            one.own.add(run.set(*_setting(message)))
        else:
            one.own.add(getattr(run, name)())
        if name == "stop":
            self._stopped.add((one.key, attempt))
        self._monitor.look()

    def _named(self, key: Any) -> WatchedRun | None:
        return next((one for one in self._monitor.watched if one.key == key), None)

    def _root(self) -> str:
        return os.fspath(self._monitor.run.folder.parent.parent)

    def _choices(self) -> list[dict[str, str]]:
        """The newest runs beside the first one, without those that are shown."""
        shown = {one.run.folder for one in self._monitor.watched}
        found = [run for run in runs(self._root()) if run.folder not in shown][:MOST_CHOICES]
        return [{"id": run.id, "text": harmless(f"{run.id}: {run.state}", 160)} for run in found]


def _setting(message: dict[str, Any]) -> tuple[str, float]:
    name, value = message.get("setting"), message.get("value")
    if name not in SETTINGS:
        raise ValueError(f"{name!r}: expected one of {', '.join(SETTINGS)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number")
    return name, int(value) if name in WHOLE and value == int(value) else value


def _step(step: Any) -> int | None:
    if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
        raise TypeError(f"step: expected a whole number, got {step!r}")
    return step
