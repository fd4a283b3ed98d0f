"""The command line: start and follow runs, list and steer them, export a notebook, run a job, list what is implemented.

Exit status: 0 done, 1 the run failed, 2 bad input (one line on the error stream), 130 interrupted. Each command imports
what it needs when it is chosen, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import toolkit

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
Action = Callable[[argparse.Namespace], int]


class BadInput(ValueError):
    """Arguments that cannot be understood; the message is what the user reads."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line and name the nearest flag of the subcommand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"unknown argument {flag}" + (f", did you mean {near[0]}?" if near else ""))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command of the toolkit."""

    help: str
    """One line for the list of commands."""
    fill: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments, and `action`, when it is the one that was chosen."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `main(["systems", "--json"])`"""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        namespace = _parser(arguments).parse_args(arguments)
        status = namespace.action(namespace)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), BAD_INPUT)
    except ValueError as error:
        return _complain(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RuntimeError as error:
        if not type(error).__module__.startswith("toolkit."):
            raise
        return _complain(str(error), FAILED if type(error).__name__ == "RunFailed" else BAD_INPUT)


def _complain(text: str, status: int) -> int:
    """Bad input gets one line; the report of a failed run keeps its own."""
    print(f"{program()}: {text if status == FAILED else ' '.join(text.split())}", file=sys.stderr)
    return status


def program() -> str:
    """What the user typed to get here, for texts that say what to type next."""
    return "scalebook" if Path(sys.argv[0]).name == "scalebook" else "python -m toolkit"


def _parser(arguments: Sequence[str]) -> Parser:
    parser = Parser(prog=program(), description=toolkit.__doc__)
    parser.set_defaults(action=lambda namespace: print(parser.format_help(), end="") or 0)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help, description=f"{command.help}.")
        if name == chosen:
            command.fill(subparser)
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    from toolkit.cli_run import fill_run

    fill_run(parser)


def _runs(parser: argparse.ArgumentParser) -> None:
    from toolkit.cli_runs import fill_runs

    fill_runs(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="the notebook")
    parser.add_argument("--to", default="local", metavar="PLACE", help="where the job is to run (default: local)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    parser.set_defaults(action=_export_notebook)


def _export_notebook(chosen: argparse.Namespace) -> int:
    from toolkit.launch.bundle import export

    bundle = export(chosen.notebook, to=chosen.to, out=chosen.out)
    print(f"{bundle}\nRun it: {program()} job run {bundle}")
    return 0


def _job(parser: argparse.ArgumentParser) -> None:
    run = parser.add_subparsers(metavar="ACTION", title="actions", required=True).add_parser(
        "run", help="run a bundle here and follow it", description="Run a bundle here and follow it, cell by cell."
    )
    run.add_argument("folder", type=Path, metavar="DIR", help="the bundle that export made")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="replace a parameter; repeatable")
    run.add_argument("--out", type=Path, metavar="DIR", help="also copy the executed notebook and its page there")
    run.set_defaults(action=_run_job)


def _run_job(chosen: argparse.Namespace) -> int:
    from toolkit.launch.bundle import read_job
    from toolkit.launch.notebook import run_job
    from toolkit.launch.parameters import parse_parameters

    try:
        parameters = parse_parameters(read_job(chosen.folder).parameters, chosen.set)
    except TypeError as error:
        raise BadInput(f"--set: {error}") from error
    return run_job(chosen.folder, parameters=parameters, out=chosen.out)


def _systems(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON list")
    parser.add_argument("--family", metavar="NAME", help="only this family")
    parser.set_defaults(action=_list_systems)


def _list_systems(chosen: argparse.Namespace) -> int:
    from toolkit.systems import read_systems

    found = [system for system in read_systems() if chosen.family in (None, system["family"])]
    if chosen.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    columns = ("key", "family", "arxiv", "module", "title")
    print_table([columns, *([str(system[column]) for column in columns] for system in found)])
    return 0


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


COMMANDS = {
    "run": Command(help="Start a recipe and follow it", fill=_run),
    "runs": Command(help="List runs, look into one, steer it", fill=_runs),
    "export": Command(help="Make a batch job of a notebook", fill=_export),
    "job": Command(help="Run an exported notebook", fill=_job),
    "systems": Command(help="List the published systems that are implemented", fill=_systems),
}
