"""The live view of a run folder: state, progress, charts, samples, failures, and the commands that fit the state.

It holds no training logic: it reads the folder in a thread of its own, so that it stays live while a cell blocks or
awaits, and sends the commands that `Run` has. A second monitor, another notebook or a restarted kernel sees the same.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython import get_ipython
from IPython.display import display

from toolkit.runs import Run
from widgets import run_facts
from widgets.follow import Follower, Piece
from widgets.twin import Twin, picture, twin_html
from widgets.view import module, style

__all__ = ["RunMonitor"]

SAVED_POINTS = 3600
"""Points of all series together that the saved state holds: it stays under 200 kB."""
QUICK, SLOW = 0.2, 1.0
"""Seconds between two looks at the folder, while things happen and while nothing does."""
KEEP_EVERY = 10.0
"""Seconds between two updates of what a saved notebook holds."""


class RunMonitor(anywidget.AnyWidget):
    """Watch a run and steer it: `RunMonitor(run)`, or `RunMonitor(id)` for one that another kernel started.

    It follows the folder until the run is final or `close()` is called. Beside the live view a static picture, table
    and text are displayed, which a saved notebook keeps.

    Example:
        run = launch(recipe)
        RunMonitor(run)
    """

    _esm = module("run_monitor.js")
    _css = style("vendor/uplot/uPlot.min.css", "view.css", "run_monitor.css")
    status = traitlets.Dict(read_only=True).tag(sync=True)
    """State, step, time left, commands that fit: small, sent whenever it changes."""
    details = traitlets.Dict(read_only=True).tag(sync=True)
    """Charts, samples, marks of commands, failure: sent when one of them changes."""
    series = traitlets.Dict(read_only=True).tag(sync=True)
    """{"seq", "points"}: a thin copy of the series for a view without a kernel; messages carry the rest."""

    def __init__(self, run: Run | str | Path) -> None:
        self.run = run if isinstance(run, Run) else Run.attach(run)
        self._follower = Follower(self.run.folder)
        self._twin = Twin()
        self._guard = threading.RLock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._kept = 0.0
        self._stopped = 0
        self._shell = get_ipython()
        super().__init__()
        self.on_msg(self._receive)
        self._look()
        self._keep()
        self._follow()

    def close(self) -> None:
        """Stop following and remove the live view; the run goes on."""
        self._closing.set()
        super().close()

    def _after_cell(self, *_: Any) -> None:
        """At the end of every cell what the notebook holds is brought up to date, until the run is final."""
        if not self._closing.is_set():
            with self._guard, suppress(OSError):
                self._look()
                self._keep()
                self._twin.update_in_cell(*self._static())
        if self._shell is not None and (self._closing.is_set() or self.status["final"]):
            self._shell.events.unregister("post_run_cell", self._after_cell)

    def _ipython_display_(self) -> None:
        data, metadata = self._repr_mimebundle_() or ({}, {})
        display(data, metadata=metadata, raw=True)
        with self._guard:
            self._twin.show(*self._static())

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is not None:
            found[0]["text/plain"] = f"RunMonitor({self.run.id!r})"
        return found

    def _follow(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name=f"monitor of {self.run.id}", daemon=True)
            self._thread.start()
        if self._shell is not None:
            self._shell.events.register("post_run_cell", self._after_cell)

    def _watch(self) -> None:
        """Look at the folder until the run is final: soon while things happen, seldom while nothing does or looking is dear."""
        pause = QUICK
        while not self._closing.wait(pause):
            began = time.monotonic()
            try:
                moved = self._look()
                if began - self._kept > KEEP_EVERY:
                    self._keep()
            except OSError as error:
                return self._unreadable(error)
            if self.status["final"] and not moved:
                return self._keep()
            spent = time.monotonic() - began
            pause = min(SLOW, max(QUICK if moved else pause * 1.3, 4 * spent))

    def _unreadable(self, error: OSError) -> None:
        message = f"the run folder cannot be read any more: {error}"
        self._set("status", {**self.status, "message": message, "allowed": [], "summary": message})

    def _look(self) -> bool:
        """Read what is new and send it to the page; whether anything was new."""
        with self._guard:
            state = self.run.state
            piece = self._follower.read()
            moved = self._set("status", run_facts.status(self.run.id, state, self._follower, time.time()))
            if moved or piece.told:
                moved |= self._set("details", run_facts.details(state, self._follower, self.run.logs))
            if piece.points or piece.seq != piece.since:
                self._send_piece(piece)
                moved = True
            return moved

    def _send_piece(self, piece: Piece) -> None:
        self.send({"kind": "series", "since": piece.since, "seq": piece.seq, "points": piece.points})

    def _receive(self, _: Any, message: Any, buffers: Any) -> None:
        """A message of the page: it missed a piece, or a button was pressed."""
        kind = message.get("kind") if isinstance(message, dict) else None
        if kind == "since":
            with self._guard:
                self._send_piece(Piece(0, self._follower.seq, self._follower.points()))
        elif kind == "command":
            self.send({"kind": "answer", "text": self._command(str(message.get("name")))})

    def _command(self, name: str) -> str:
        """Pass a command on; an empty text, or why it was refused."""
        if name not in ("pause", "resume", "checkpoint", "stop", "restart"):
            return f"{name}: no such command"
        attempt = self.status["attempt"]
        if name == "stop" and self._stopped == attempt:
            return "stop: asked already, it ends after the step it is at"  # A second stop kills: too near a double click.
        try:
            getattr(self.run, name)()
        except (OSError, RuntimeError, ValueError) as error:
            return f"{name}: {error}"
        if name == "stop":
            self._stopped = attempt
        self._look()
        self._follow()
        return ""

    def _keep(self) -> None:
        """Bring what a saved notebook holds up to date."""
        with self._guard:
            self._kept = time.monotonic()
            charted = [one["name"] for group in self.details["groups"] for one in group["series"]]
            points = self._follower.points(max(20, min(400, SAVED_POINTS // max(1, len(charted)))), charted)
            self._set("series", {"seq": self._follower.seq, "points": points})
            self._twin.update(*self._static())

    def _set(self, name: str, value: dict[str, Any]) -> bool:
        if getattr(self, name) == value:
            return False
        self.set_trait(name, value)
        return True

    def _static(self) -> tuple[str, str]:
        """HTML and text of the static twin."""
        state, follower = self.run.state, self._follower
        groups = run_facts.chart_groups(follower.series)
        text = run_facts.summary(state, groups, follower)
        marks = [mark["step"] for mark in self.details["marks"]]
        columns = ("Metric", "First", "Latest", "Lowest", "Highest")
        drawing = picture(groups, follower.series, marks)
        return twin_html(self.run.id, text, drawing, columns, run_facts.rows(groups, follower)), f"{self.run.id}: {text}"
