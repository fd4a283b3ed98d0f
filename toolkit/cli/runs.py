"""`runs`: list the run folders, look into one, steer it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.clean import folder_size
from toolkit.cli import clean, compare, tail, watch
from toolkit.cli.answers import NoRun, json_help, print_json, print_table, printable
from toolkit.cli.follow import ENDED, follow, how_to
from toolkit.cli.parser import completes, nearest
from toolkit.runs import Run, RunFailed, RunInactive, runs
from toolkit.runs.amounts import size
from toolkit.runs.control import SETTINGS
from toolkit.runs.fields import DAMAGED
from toolkit.runs.rewind import aside as set_aside
from toolkit.runs.roots import known_roots, root_of
from toolkit.runs.state import State

COMMANDS = {
    "pause": "hold after the next step, with all its memory",
    "resume": "go on after a pause (a run that is over: restart)",
    "checkpoint": "save a checkpoint after the next step",
}
LISTED = ("run", "state", "work", "folder", *(name for name in State.__dataclass_fields__ if name != "name"))
SHOWN = (*LISTED, "metrics", "checkpoints", "aside")
TOLD = ("run", "command", "n")


def fill(parser: argparse.ArgumentParser) -> None:
    """The list by itself, and one action for each thing to do with a run."""
    parser.add_argument("--all", action="store_true", help="of every project of this user on this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")
    root = parser.add_argument("--root", type=Path, metavar="DIR", help="folder above runs/ (default: this project)")
    completes(root, "folder")
    parser.epilog = json_help(LISTED, "a list of objects")
    parser.set_defaults(action=_list)
    actions = parser.add_subparsers(metavar="ACTION", title="actions (without one: list the runs, newest first)")
    listing = _action(actions, "list", "the list of runs, newest first, as without an action", LISTED, "a list of objects")
    listing.add_argument("--all", action="store_true", default=argparse.SUPPRESS, help="of every project of this user")
    listing.set_defaults(action=_list)
    add = partial(_with_run, actions)
    add("show", "state, newest metrics and checkpoints of a run", SHOWN, _show)
    watching = add("watch", "live charts of a run until it ends; keys steer it", ENDED, _watch)
    watching.add_argument("--plain", action="store_true", help="one progress line instead of charts")
    tail.fill(add("tail", "last lines that a rank printed", tail.KEYS, tail.tail))
    stop = add("stop", "end a run after the next step and keep its work", TOLD, _stop, "live")
    stop.add_argument("--no-save", action="store_true", help="without a checkpoint")
    stop.add_argument("--now", action="store_true", help="at once; what is in no checkpoint is lost")
    for name, text in COMMANDS.items():
        add(name, text, TOLD, partial(_steer, name), "live")
    change = add("set", "change a setting of a running training from the next step", TOLD, _set, "live")
    change.add_argument("setting", metavar="NAME", choices=SETTINGS, help=", ".join(SETTINGS))
    change.add_argument("value", metavar="VALUE", help="the new number")
    restart = add("restart", "start a run that is over again, from its newest checkpoint", LISTED, _restart, "over")
    restart.add_argument("--step", type=int, metavar="N", help="from the checkpoint of this step; newer ones are set aside")
    compare.fill(_action(actions, "compare", "what differs between runs, and what came of it", compare.KEYS))
    clean.fill(_action(actions, "clean", "end orphaned processes and remove old runs; shows what it would do", clean.KEYS))


def _action(actions: Any, name: str, text: str, keys: tuple[str, ...], what: str = "one object") -> argparse.ArgumentParser:
    description = f"{text[0].upper()}{text[1:]}."
    action = actions.add_parser(name, help=text, description=description, epilog=json_help(keys, what))
    action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    root = action.add_argument("--root", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="folder above runs/")
    completes(root, "folder")
    return action


def _with_run(
    actions: Any,
    name: str,
    text: str,
    keys: tuple[str, ...],
    act: Callable[[Run, argparse.Namespace], int],
    which: str = "run",
) -> argparse.ArgumentParser:
    action = _action(actions, name, text, keys)
    completes(action.add_argument("run", metavar="RUN", help="id of the run, or its folder"), which)

    def perform(chosen: argparse.Namespace) -> int:
        run = attach(chosen.run, chosen.root)
        try:
            return act(run, chosen)
        except RunInactive as error:
            raise NoRun(str(error)) from error

    action.set_defaults(action=perform)
    return action


def attach(name: str, root: Path | None) -> Run:
    """The run of this id or folder. Raises NoRun, with the nearest id there is."""
    try:
        return Run.attach(name, root=root)
    except FileNotFoundError as error:
        if os.sep in name:
            raise NoRun(str(error)) from error
        near = nearest(name, [run.id for run in runs(root)])
        others = "" if root or len(known_roots()) < 2 else ", nor in any other project of yours"
        text = f"no run {name!r} under {root or root_of()}{others}{near or '; `runs --all` lists what there is'}"
        raise NoRun(text) from error


def _list(chosen: argparse.Namespace) -> int:
    found = runs(chosen.root, all=chosen.all)
    if chosen.json:
        print_json([_described(run) for run in found])
    else:
        print(printable(str(found)))
    return 0


def _described(run: Run) -> dict[str, Any]:
    work = None
    try:
        work = run.launched.get("title")
        state = dataclasses.asdict(run.state)
    except DAMAGED as error:
        state = dataclasses.asdict(State(name="damaged", message=" ".join(str(error).split())))
    return {"run": run.id, "state": state.pop("name"), "work": work, "folder": str(run.folder)} | state


def _show(run: Run, chosen: argparse.Namespace) -> int:
    columns = {name: column for name, column in run.metrics().items() if len(column[0])}
    newest = {name: (int(steps[-1]), float(values[-1])) for name, (steps, values) in columns.items()}
    kept = [(step, str(path), metrics) for step, path, metrics in run.checkpoints()]
    aside = [(str(path), folder_size(path)) for path in set_aside(run.folder)]
    if chosen.json:
        metrics = {name: {"step": step, "value": value} for name, (step, value) in newest.items()}
        saved = [{"step": step, "folder": path, "metrics": metrics} for step, path, metrics in kept]
        others = [{"folder": path, "bytes": bytes_} for path, bytes_ in aside]
        print_json({**_described(run), "metrics": metrics, "checkpoints": saved, "aside": others})
        return 0
    state, launched = run.state, run.launched
    rows = [("run", run.id), ("state", printable(str(state))), ("work", printable(launched.get("title", "")))]
    rows.append(("processes", f"{launched.get('processes', 1)} on {', '.join(state.devices) or 'the CPU'}"))
    if state.started:
        rows.append(("started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.started))))
    rows += [("folder", str(run.folder))]
    rows += [(printable(name), f"{value:.5g} at step {step}") for name, (step, value) in newest.items()]
    rows += [("checkpoint", path) for _, path, _ in kept]
    rows += [("set aside", f"{path}, {size(bytes_)}; runs clean --aside removes it") for path, bytes_ in aside]
    print_table(rows)
    if state.name in ("failed", "lost"):
        print(f"\n{printable(str(RunFailed(run, state)))}")
    return 0


def _watch(run: Run, chosen: argparse.Namespace) -> int:
    return follow(run, as_json=chosen.json, show=None if chosen.plain else watch.show)


def _sent(run: Run, chosen: argparse.Namespace, command: str, number: int) -> int:
    if chosen.json:
        print_json({"run": run.id, "command": command, "n": number})
    else:
        print(f"Told run {run.id}: {command}" + ("" if command == "kill" else ", after the next step"))
    return 0


def _stop(run: Run, chosen: argparse.Namespace) -> int:
    command = "kill" if chosen.now else "stop"
    return _sent(run, chosen, command, run.kill() if chosen.now else run.stop(save=not chosen.no_save))


def _steer(command: str, run: Run, chosen: argparse.Namespace) -> int:
    return _sent(run, chosen, command, getattr(run, command)())


def _set(run: Run, chosen: argparse.Namespace) -> int:
    try:
        value = int(chosen.value) if chosen.value.isdecimal() else float(chosen.value)
    except ValueError:
        raise ValueError(f"{chosen.setting}: expected a number, got {chosen.value!r}") from None
    return _sent(run, chosen, f"set {chosen.setting} {value}", run.set(chosen.setting, value))


def _restart(run: Run, chosen: argparse.Namespace) -> int:
    run.restart(chosen.step)
    if chosen.json:
        print_json(_described(run))
    else:
        print(f"Run {run.id} starts again in {run.folder}\n{how_to(run)}")
    return 0
