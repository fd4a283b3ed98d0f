"""`runs`: list the run folders, look into one, steer it."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.cli import print_table
from toolkit.cli_run import follow, how_to, print_json
from toolkit.runs import Run, RunFailed, runs
from toolkit.runs.control import SETTINGS

COMMANDS = {
    "pause": "hold after the next step, with all its memory",
    "resume": "go on after a pause (a run that is over: restart)",
    "checkpoint": "save a checkpoint after the next step",
}


def fill_runs(parser: argparse.ArgumentParser) -> None:
    """The list by itself, and one action for each thing to do with a run."""
    parser.add_argument("--all", action="store_true", help="of every project of this user on this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder above runs/ (default: this project)")
    parser.set_defaults(action=_list)
    actions = parser.add_subparsers(metavar="ACTION", title="actions (without one: list the runs, newest first)")

    def add(name: str, help_: str, act: Callable[[Run, argparse.Namespace], int]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
        action.add_argument("run", metavar="RUN", help="id of the run, or its folder")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        action.add_argument("--root", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="folder above runs/")
        action.set_defaults(action=lambda chosen: act(Run.attach(chosen.run, root=chosen.root), chosen))
        return action

    add("show", "state, newest metrics and checkpoints of a run", _show)
    add("watch", "follow a run until it ends", lambda run, chosen: follow(run, as_json=chosen.json))
    tail = add("tail", "last lines that a rank printed", _tail)
    tail.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="number of lines (default: 50)")
    tail.add_argument("--rank", default="0", help='number of the rank, or "supervisor" (default: 0)')
    stop = add("stop", "end a run after the next step and keep its work", _stop)
    stop.add_argument("--no-save", action="store_true", help="without a checkpoint")
    stop.add_argument("--now", action="store_true", help="at once; what is in no checkpoint is lost")
    for name, text in COMMANDS.items():
        add(name, text, partial(_steer, name))
    change = add("set", "change a setting of a running training from the next step", _set)
    change.add_argument("setting", metavar="NAME", choices=SETTINGS, help=", ".join(SETTINGS))
    change.add_argument("value", metavar="VALUE", help="the new number")
    add("restart", "start a run that is over again, from its newest checkpoint", _restart)


def _list(chosen: argparse.Namespace) -> int:
    found = runs(chosen.root, all=chosen.all)
    if chosen.json:
        print_json([_described(run) for run in found])
    else:
        print(found)
    return 0


def _described(run: Run) -> dict[str, Any]:
    state = dataclasses.asdict(run.state)
    named = {"run": run.id, "state": state.pop("name"), "work": run.launched.get("title"), "folder": str(run.folder)}
    return named | state


def _show(run: Run, chosen: argparse.Namespace) -> int:
    columns = {name: column for name, column in run.metrics().items() if len(column[0])}
    newest = {name: (int(steps[-1]), float(values[-1])) for name, (steps, values) in columns.items()}
    kept = [(step, str(path), metrics) for step, path, metrics in run.checkpoints()]
    if chosen.json:
        metrics = {name: {"step": step, "value": value} for name, (step, value) in newest.items()}
        saved = [{"step": step, "folder": path, "metrics": metrics} for step, path, metrics in kept]
        print_json({**_described(run), "metrics": metrics, "checkpoints": saved})
        return 0
    state, launched = run.state, run.launched
    rows = [("run", run.id), ("state", str(state)), ("work", launched.get("title", ""))]
    rows.append(("processes", f"{launched.get('processes', 1)} on {', '.join(state.devices) or 'the CPU'}"))
    if state.started:
        rows.append(("started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.started))))
    rows += [("folder", str(run.folder))]
    rows += [(name, f"{value:.5g} at step {step}") for name, (step, value) in newest.items()]
    rows += [("checkpoint", path) for _, path, _ in kept]
    print_table(rows)
    if state.name in ("failed", "lost"):
        print(f"\n{RunFailed(run, state)}")
    return 0


def _tail(run: Run, chosen: argparse.Namespace) -> int:
    if chosen.rank != "supervisor" and not chosen.rank.isdecimal():
        raise ValueError(f'--rank: expected a number or "supervisor", got {chosen.rank}')
    text = run.logs(chosen.rank, lines=chosen.lines)
    if chosen.json:
        print_json({"run": run.id, "rank": chosen.rank, "lines": text.splitlines()})
    elif text:
        print(text)
    return 0


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
    run.restart()
    if chosen.json:
        print_json(_described(run))
    else:
        print(f"Run {run.id} starts again in {run.folder}\n{how_to(run)}")
    return 0
