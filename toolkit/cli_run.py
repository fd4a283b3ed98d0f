"""`run`: a recipe from flags, started and followed until it ends."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.cli import INTERRUPTED, program
from toolkit.flags import flags, from_flags
from toolkit.runs import Run, RunFailed
from toolkit.runs.files import plain
from toolkit.runs.state import State
from toolkit.values import field_of, load_root, spec

POLL_SECONDS = 0.2
LINE_SECONDS = 5.0
SHOWN = {"loss": "loss {:.3f}", "eval_loss": "held-out {:.3f}", "tokens_per_second": "{:,.0f} tokens/s"}


def fill_run(parser: argparse.ArgumentParser) -> None:
    """One subcommand a recipe, with a flag for each of its fields and for where it runs."""
    from toolkit.launch import Local
    from toolkit.recipes import Recipe

    recipes = parser.add_subparsers(metavar="RECIPE", title="recipes", required=True)
    for name, type_ in field_of(Recipe).classes.items():
        described = spec(type_).title
        recipe = recipes.add_parser(kebab(name), help=described, description=described)
        flags(recipe.add_argument_group("recipe"), type_)
        flags(recipe.add_argument_group("where"), Local)
        start = recipe.add_argument_group("start")
        start.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe.json to start from; flags change it")
        start.add_argument("--name", help="name of the run (default: made of the date and a word)")
        start.add_argument("--resume", action="store_true", help="go on with the run of this --name")
        start.add_argument("--root", type=Path, metavar="DIR", help="folder above runs/ (default: this project)")
        start.add_argument("--detach", action="store_true", help="return as soon as it is started")
        start.add_argument("--json", action="store_true", help="print JSON, one object a line")
        recipe.set_defaults(action=partial(_start, type_))


def kebab(name: str) -> str:
    """The name of a class as a command.

    >>> kebab("FineTune")
    'fine-tune'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _start(type_: type, chosen: argparse.Namespace) -> int:
    from toolkit.launch import Local, launch

    if chosen.resume and chosen.name is None:
        raise ValueError("--resume: needs --name, the run to go on with")
    base = None if chosen.recipe is None else _read_recipe(chosen.recipe, type_)
    recipe, on = from_flags(chosen, type_, base), from_flags(chosen, Local)
    run = launch(recipe, on=on, name=chosen.name, resume=chosen.resume, root=chosen.root)
    if chosen.json:
        print_json({"run": run.id, "folder": str(run.folder)})
    else:
        print(f"Run {run.id} in {run.folder}")
    if not chosen.detach:
        return follow(run, as_json=chosen.json)
    if not chosen.json:
        print(how_to(run))
    return 0


def _read_recipe(path: Path, type_: type) -> Any:
    try:
        return load_root(json.loads(path.read_text(encoding="utf-8")), type_)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--recipe {path}: {error}") from error


def how_to(run: Run) -> str:
    """What to type to watch and to stop a run."""
    return f"Watch it: {program()} runs watch {run.id}\nStop it and keep its work: {program()} runs stop {run.id}"


def print_json(data: Any) -> None:
    """Print one line of JSON; a float that JSON has no word for is a string."""
    print(json.dumps(plain(data), ensure_ascii=False, allow_nan=False), flush=True)


class Watch:
    """What a run has told so far: its newest metrics, and how long it will still take."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.metrics: dict[str, float] = {}
        self._seen = 0
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
                if "loss" in event["data"]:
                    self._last = (event["step"], event["time"])
                    self._first = self._first or self._last
        return state, events

    def line(self, state: State) -> str:
        """`step 12 of 40 · loss 2.931 · 301 tokens/s · 1 min 35 s left`."""
        parts = [str(state)]
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


def duration(seconds: float) -> str:
    """A duration in its two largest units.

    >>> duration(95)
    '1 min 35 s'
    """
    whole = math.ceil(seconds)
    for size, unit, smaller, part in ((3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {part}"
    return f"{whole} s"


def follow(run: Run, *, as_json: bool = False) -> int:
    """Show a run until it is over and return the exit status. An interrupt stops the watching, not the run."""
    show = _follow_json if as_json else _follow_terminal if sys.stdout.isatty() else _follow_lines
    try:
        show(Watch(run))
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
        ended = {"state": result.state, "metrics": result.metrics, "checkpoint": checkpoint, "seconds": result.seconds}
        print_json({"run": run.id, **ended})
    else:
        print(f"Run {run.id} {result.state} in {duration(result.seconds)}")
        print(f"Checkpoint: {checkpoint}" if checkpoint else f"Folder: {run.folder}")
    return 0


def _follow_json(watch: Watch) -> None:
    final = False
    while not final:
        state, events = watch.poll()
        for event in events:
            if event["kind"] == "metrics":
                print_json({"step": event["step"], **event["data"]})
        final = state.final
        time.sleep(0 if final else POLL_SECONDS)


def _follow_lines(watch: Watch) -> None:
    """For a pipe or a log: a line when the state changes, and every few seconds while steps are made."""
    said, due, final = ("", -1), 0.0, False
    while not final:
        state, events = watch.poll()
        for text in filter(None, map(_told, events)):
            print(text, flush=True)
        final, now = state.final, (state.name, state.step or 0)
        if now[0] != said[0] or (now != said and time.monotonic() >= due):
            print(watch.line(state), flush=True)
            said, due = now, time.monotonic() + LINE_SECONDS
        time.sleep(0 if final else POLL_SECONDS)


def _follow_terminal(watch: Watch) -> None:
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(bar_width=16), TextColumn("{task.description}", markup=False)) as progress:
        task, final = progress.add_task("starting", total=None), False
        while not final:
            state, events = watch.poll()
            for text in filter(None, map(_told, events)):
                progress.console.print(text, markup=False, highlight=False)
            progress.update(task, description=watch.line(state), completed=state.step or 0, total=state.total_steps)
            final = state.final
            time.sleep(0 if final else POLL_SECONDS)


def _told(event: dict[str, Any]) -> str | None:
    """What an event says in words: a message, or a text that the model wrote."""
    data = event["data"]
    if event["kind"] == "text":
        return str(data.get("text", ""))
    if event["kind"] == "sample":
        return f"step {event['step']} · {json.dumps(data.get('prompt'), ensure_ascii=False)} -> {data.get('text')}"
    return None
