"""Following a run until it ends: a progress bar on a terminal, lines in a pipe, JSON for a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from toolkit.cli.answers import INTERRUPTED, OK, duration, print_json, printable, program
from toolkit.runs import Run, RunFailed
from toolkit.runs.state import State

POLL_SECONDS = 0.2
LINE_SECONDS = 5.0
SHOWN = {"loss": "loss {:.3f}", "eval_loss": "held-out {:.3f}", "tokens_per_second": "{:,.0f} tokens/s"}
ENDED = ("run", "state", "metrics", "checkpoint", "seconds")
"""Keys of the last line of JSON; of a run that failed: run, state, report."""


class Watch:
    """What a run has told so far: its newest metrics, and how long it will still take."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.metrics: dict[str, float] = {}
        self._seen = self._attempt = 0
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def poll(self) -> tuple[State, list[dict[str, Any]]]:
        """The state now and the events since the last call."""
        state = self.run.state  # Before the events: a final state is written after the last of them.
        events = self.run.events(self._seen)
        for event in events:
            self._seen = event["seq"]
            if event["kind"] == "metrics":
                self.metrics |= event["data"]
                if "loss" in event["data"] and event["step"] is not None:
                    self._last = (event["step"], event["time"])
                    again = event["attempt"] != self._attempt  # The time between two attempts is no time of steps.
                    self._first, self._attempt = self._last if again else self._first, event["attempt"]
        return state, events

    def line(self, state: State) -> str:
        """`step 12 of 40 · loss 2.931 · 301 tokens/s · 1 min 35 s left`."""
        parts = [printable(str(state))]
        for name, form in SHOWN.items():
            value = self.metrics.get(name)
            if isinstance(value, int | float):
                parts.append(form.format(value))
        left = self.seconds_left(state.total_steps)
        return " · ".join([*parts, *([] if left is None or state.final else [f"{duration(left)} left"])])

    def seconds_left(self, total_steps: int | None) -> float | None:
        """Time to the last step at the mean pace so far; None before the second step."""
        if not total_steps or self._first is None or self._last is None or self._first[0] >= self._last[0]:
            return None
        pace = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return max(0, total_steps - self._last[0]) * pace


def how_to(run: Run) -> str:
    """What to type to watch and to stop a run."""
    return f"Watch it: {program()} runs watch {run.id}\nStop it and keep its work: {program()} runs stop {run.id}"


def follow(run: Run, *, as_json: bool = False, show: Callable[[Watch], bool] | None = None) -> int:
    """Show a run until it is over and return the exit status. An interrupt stops the watching, not the run.

    `show` replaces what is shown on a terminal; it returns whether the run was followed to its end. Raises RunFailed.
    """
    on_terminal = sys.stdout.isatty()
    chosen = _follow_json if as_json else (show or _follow_terminal) if on_terminal else _follow_lines
    try:
        if not chosen(Watch(run)):
            print(f"Run {run.id} goes on: only the watching ended.\n{how_to(run)}")
            return OK
        result = run.wait()
    except KeyboardInterrupt:
        print(f"\nRun {run.id} goes on: only the watching ended.\n{how_to(run)}", file=sys.stderr)
        return INTERRUPTED
    except RunFailed:
        if as_json:
            print_json({"run": run.id, "state": run.state.name, "report": run.state.report})
        raise
    checkpoint = None if result.checkpoint is None else str(result.checkpoint)
    if as_json:
        print_json(dict(zip(ENDED, (run.id, result.state, result.metrics, checkpoint, result.seconds), strict=True)))
    else:
        print(f"Run {run.id} {result.state} in {duration(result.seconds)}")
        print(f"Checkpoint: {checkpoint}" if checkpoint else f"Folder: {run.folder}")
    return OK


def _follow_json(watch: Watch) -> bool:
    final = False
    while not final:
        state, events = watch.poll()
        for event in events:
            if event["kind"] == "metrics":
                print_json({"step": event["step"], **event["data"]})
        final = state.final
        time.sleep(0 if final else POLL_SECONDS)
    return True


def _follow_lines(watch: Watch) -> bool:
    """For a pipe or a log: a line when the state changes, and every few seconds while steps are made."""
    said, due, final = ("", -1), 0.0, False
    while not final:
        state, events = watch.poll()
        for text in filter(None, map(told, events)):
            print(text, flush=True)
        final, now = state.final, (state.name, state.step or 0)
        if now[0] != said[0] or (now != said and time.monotonic() >= due):
            print(watch.line(state), flush=True)
            said, due = now, time.monotonic() + LINE_SECONDS
        time.sleep(0 if final else POLL_SECONDS)
    return True


def _follow_terminal(watch: Watch) -> bool:
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(bar_width=16), TextColumn("{task.description}", markup=False)) as progress:
        task, final = progress.add_task("starting", total=None), False
        while not final:
            state, events = watch.poll()
            for text in filter(None, map(told, events)):
                progress.console.print(text, markup=False, highlight=False)
            progress.update(task, description=watch.line(state), completed=state.step or 0, total=state.total_steps)
            final = state.final
            time.sleep(0 if final else POLL_SECONDS)
    return True


def told(event: dict[str, Any]) -> str | None:
    """What an event says in words: a message, or a text that the model wrote."""
    data = event["data"]
    if event["kind"] == "text":
        return printable(str(data.get("text", "")))
    if event["kind"] == "sample":
        prompt = json.dumps(data.get("prompt"), ensure_ascii=False)
        return printable(f"step {event['step']} · {prompt} -> {data.get('text')}")
    return None
