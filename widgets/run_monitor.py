"""The live view of run folders: state, progress, charts, ranks, samples, logs, checkpoints, and the commands that fit.

It holds no training logic: it reads the folders in a thread of its own, so that it stays live while a cell blocks or
awaits, and sends the commands that `Run` has. A second monitor, another notebook or a restarted kernel sees the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import anywidget
import traitlets
from IPython import get_ipython
from IPython.display import display

from toolkit.runs import Run
from widgets import run_facts
from widgets.recipe_diff import differences, short_names
from widgets.run_answers import Answers
from widgets.twin import Twin, picture, twin_html
from widgets.view import harmless, module, style
from widgets.watched_run import UNSHOWN, WatchedRun

__all__ = ["RunMonitor"]

SAVED_POINTS = 3600
"""Points of all series together that the saved state holds: it stays under 200 kB."""
QUICK, SLOW, RESTING = 0.1, 1.0, 2.0
"""Seconds between two looks at the folders: while things happen, while nothing does, and when every run is over."""
KEEP_EVERY = 10.0
"""Seconds between two updates of what a saved notebook holds."""
MOST_RUNS = 8
_newest: WeakValueDictionary[tuple[Path, ...], RunMonitor] = WeakValueDictionary()
"""Of the monitors of the same runs the one made last; a cell that is run again leaves the others behind, which then sleep."""


class RunMonitor(anywidget.AnyWidget):
    """Watch runs and steer them: `RunMonitor(run)`, `RunMonitor(id)` for one that another kernel started, or several.

    Several runs lie over one another in the charts, and the fields in which their recipes differ stand in a table. The
    monitor follows the folders until `close()` is called: a run that is over may be resumed by anyone. Beside the live
    view a static picture, table and text are displayed, which a saved notebook keeps. Once there is a newer monitor of the
    same runs, one that no page shows does nothing until a page shows it again.

    Raises FileNotFoundError for what is not a run, ValueError for none or for more than 8.

    Example:
        run = launch(recipe)
        RunMonitor(run)
        RunMonitor([run, "20260102-030405-amber"])
    """

    _esm = module("run_monitor.js")
    _css = style("vendor/uplot/uPlot.min.css", "view.css", "run_monitor.css", "run_panels.css")
    status = traitlets.Dict(read_only=True).tag(sync=True)
    """{"runs": [...]}: of each its state, step, time left, commands that fit; small, sent whenever it changes."""
    details = traitlets.Dict(read_only=True).tag(sync=True)
    """Chart groups; by run its samples, marks, commands, checkpoints, failure; what differs: sent when one of them changes."""
    series = traitlets.Dict(read_only=True).tag(sync=True)
    """{"seq", "points"}: a thin copy of the series for a view without a kernel; messages carry the rest."""

    def __init__(self, *runs: Run | str | Path | Iterable[Run | str | Path]) -> None:
        self._guard, self._awake, self._closed = threading.RLock(), False, False  # first: a failure below ends in `close`
        self._ending, self._wake, self._shell = threading.Event(), threading.Event(), get_ipython()
        given = [one for some in runs for one in ([some] if isinstance(some, (Run, str, Path)) else some)]
        found = {run.folder: run for run in map(_run, given)}
        if not 1 <= len(found) <= MOST_RUNS:
            raise ValueError(f"RunMonitor: expected 1 to {MOST_RUNS} runs, got {len(found)}")
        self.watched = [WatchedRun(run, str(key)) for key, run in enumerate(found.values())]
        self._place, self._sent = tuple(found), 0
        self._answers, self._twin = Answers(self), Twin()
        self._kept, self._published, self._opened = 0.0, False, False
        self.pages: set[str] = set()
        """Pages that show this monitor, by the names that they give themselves."""
        super().__init__()
        self.on_msg(self._receive)
        self._look()
        self._opened = True
        self._keep()
        older, _newest[self._place] = _newest.get(self._place), self
        self._rise()
        if older is not None:
            older.left_behind()

    @property
    def run(self) -> Run:
        """The first of the runs."""
        return self.watched[0].run

    def add(self, run: Run | str | Path) -> None:
        """Lay one more run over the others. Raises ValueError where there are 8 already."""
        added = _run(run)
        with self._guard:
            self._be_awake()
            if any(one.run.folder == added.folder for one in self.watched):
                return
            if len(self.watched) >= MOST_RUNS:
                raise ValueError(f"RunMonitor shows {MOST_RUNS} runs already: open a second one")
            self.watched.append(WatchedRun(added, str(len(self.watched))))
            self._look()
            self._keep()

    def close(self) -> None:
        """Stop following and remove the live view; the runs go on."""
        with self._guard:
            self._closed = True
            self._sleep()
        super().close()

    def _rise(self) -> None:
        """Follow the folders from now on."""
        with self._guard:
            if self._awake or self._closed:
                return
            self._awake, self._ending = True, threading.Event()
            threading.Thread(target=self._watch, args=(self._ending,), name=f"monitor of {self.run.id}", daemon=True).start()
            if self._shell is not None:
                self._shell.events.register("post_run_cell", self._after_cell)

    def _sleep(self) -> None:
        """Let the thread end and every cell pass, and keep no numbers."""
        with self._guard:
            if not self._awake:
                return
            self._awake = False
            self._ending.set()
            self._wake.set()
            if self._shell is not None:
                with suppress(ValueError):
                    self._shell.events.unregister("post_run_cell", self._after_cell)
            for one in self.watched:
                one.follower.forget()

    def left_behind(self) -> None:
        """There is a newer monitor of the same runs: sleep, and ask whether a page still shows this one, which wakes it."""
        with self._guard:
            self.pages.clear()
            self._sleep()
        if not self._closed:
            self.send({"kind": "who"})

    def gone_from(self, page: str) -> None:
        """A page shows this monitor no longer."""
        self.pages.discard(page)
        if not self.pages and _newest.get(self._place) is not self:
            self._sleep()

    def look(self) -> None:
        """Look at the folders now, not only when it is time."""
        self._look()
        self._wake.set()

    def _after_cell(self, *_: Any) -> None:
        """At the end of every cell what the notebook holds is brought up to date; once more when every run is over."""
        with self._guard, self._telling():
            moved, over = self._look(), all(one["final"] for one in self.status["runs"])
            if moved or not (over and self._published):
                self._keep()
                self._twin.update_in_cell(*self._static())
            self._published = over

    def _ipython_display_(self) -> None:
        data, metadata = self._repr_mimebundle_() or ({}, {})
        display(data, metadata=metadata, raw=True)
        with self._guard:
            self._be_awake()
            self._twin.show(*self._static())

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        if (found := super()._repr_mimebundle_(**kwargs)) is not None:
            found[0]["text/plain"] = f"RunMonitor({', '.join(repr(one.run.id) for one in self.watched)})"
        return found

    def _be_awake(self) -> None:
        if not self._awake and not self._closed:
            self._look()
            self._rise()

    def _watch(self, ending: threading.Event) -> None:
        """Look at the folders: soon while things happen, seldom while nothing does or looking is dear."""
        pause, was_over = QUICK, False
        while True:
            self._wake.wait(pause)
            if ending.is_set():
                return
            self._wake.clear()
            began, moved, over, spent = time.monotonic(), False, False, 0.0
            with self._telling():
                moved = self._look()
                spent = time.monotonic() - began
                over = all(one["final"] for one in self.status["runs"]) and not moved
                if over != was_over or (not over and began - self._kept > KEEP_EVERY):
                    self._keep()
                was_over = over
            rests = over or _newest.get(self._place) is not self
            pause = RESTING if rests else min(SLOW, max(QUICK if moved else pause * 1.3, 4 * spent))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong inside is the runs' message, and the next look may do better: a thread that ends tells nobody."""
        try:
            yield
        except OSError:  # a folder that is being removed, or a machine that does not answer
            pass
        except Exception as error:
            message = {"message": harmless(UNSHOWN.format(type(error).__name__, error), 300)}
            self._set("status", {"runs": [one | message for one in self.status.get("runs", ())]})

    def _look(self) -> bool:
        """Read what is new and send it to the page; whether anything was new."""
        with self._guard:
            pieces = [one.read() for one in self.watched]
            moved = self._set("status", {"runs": [one.status() for one in self.watched]})
            names = short_names([one.run.id for one in self.watched])
            if moved or any(piece.told for piece in pieces):
                moved |= self._set("details", self._details(names))
            if any(piece.since == 0 and piece.seq for piece in pieces):
                if self._opened:
                    self.send_whole()
                else:
                    self._sent += 1  # No page is there yet: it begins with the trait `series`, and asks.
                moved = True
            elif any(piece.points for piece in pieces):
                self._send_points(self._sent, {name: pair for piece in pieces for name, pair in piece.points.items()})
                moved = True
            self._answers.push()
            return moved

    def _details(self, names: list[str]) -> dict[str, Any]:
        metrics = dict.fromkeys(name for one in self.watched for name in one.follower.series)
        alone = len(self.watched) == 1
        return {
            "groups": run_facts.chart_groups(metrics),
            "runs": {one.key: one.details() | {"name": name} for one, name in zip(self.watched, names, strict=True)},
            "differences": [] if alone else differences([one.recipe() for one in self.watched]),
        }

    def send_whole(self) -> None:
        """Send every series anew."""
        self._send_points(0, {name: pair for one in self.watched for name, pair in one.points().items()})

    def _send_points(self, since: int, points: dict[str, Any]) -> None:
        self._sent += 1
        self.send({"kind": "series", "since": since, "seq": self._sent, "points": points})

    def _receive(self, _: Any, message: Any, buffers: Any) -> None:
        if isinstance(message, dict):
            with self._guard:
                if message.get("kind") != "leave":
                    self._be_awake()
                self._answers.receive(message)

    def _keep(self) -> None:
        """Bring what a saved notebook holds up to date."""
        with self._guard:
            self._kept = time.monotonic()
            charted = [one["name"] for group in self.details["groups"] for one in group["series"]]
            most = max(20, min(400, SAVED_POINTS // max(1, len(charted) * len(self.watched))))
            points = {name: pair for one in self.watched for name, pair in one.points(most, charted).items()}
            self._set("series", {"seq": self._sent, "points": points})
            if self._twin.displayed:
                self._twin.update(*self._static())

    def _set(self, name: str, value: dict[str, Any]) -> bool:
        if getattr(self, name) == value:
            return False
        self.set_trait(name, value)
        return True

    def _static(self) -> tuple[str, str]:
        """HTML and text of the static twin."""
        groups, several = self.details["groups"], len(self.watched) > 1
        names = [self.details["runs"][one.key]["name"] for one in self.watched]
        texts = [run_facts.summary(one.state, groups, one.follower) for one in self.watched]
        tables = [run_facts.rows(groups, one.follower) for one in self.watched]
        series = {f"{one.key}:{metric}": pair for one in self.watched for metric, pair in one.follower.series.items()}
        lines = [(group, group["series"][:1] if several else group["series"]) for group in groups]
        drawn = [group | {"series": [self._line(one, line) for one in self.watched for line in some]} for group, some in lines]
        marks = [] if several else [mark["step"] for mark in self.details["runs"]["0"]["marks"]]
        columns, rows = run_facts.COLUMNS, tables[0]
        if several:
            columns, rows = ("", *names), run_facts.compared(self.details["differences"], tables)
            texts = [f"{name}: {text}" for name, text in zip(names, texts, strict=True)]
        title, text = ", ".join(one.run.id for one in self.watched), " ".join(texts)
        return twin_html(title, text, picture(drawn, series, marks), columns, rows), f"{title}: {text}"

    def _line(self, one: WatchedRun, line: dict[str, Any]) -> dict[str, Any]:
        label = self.details["runs"][one.key]["name"] if len(self.watched) > 1 else line["label"]
        return line | {"name": f"{one.key}:{line['name']}", "label": label}


def _run(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run.attach(run)
