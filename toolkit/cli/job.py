"""`job`: run what `export` made."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.answers import BadInput, json_help, print_json
from toolkit.cli.parser import completes


def fill(parser: argparse.ArgumentParser) -> None:
    """`job run DIR`."""
    actions = parser.add_subparsers(metavar="ACTION", title="actions", required=True)
    run = actions.add_parser(
        "run",
        help="run a bundle here and follow it",
        description="Run a bundle here and follow it, cell by cell.",
        epilog=json_help(("line",), "each line of its report as one object") + ", and at the end one with: status",
    )
    completes(run.add_argument("folder", type=Path, metavar="DIR", help="the bundle that export made"), "folder")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="replace a parameter; repeatable")
    out = run.add_argument("--out", type=Path, metavar="DIR", help="also copy the executed notebook and its page there")
    completes(out, "folder")
    run.add_argument("--json", action="store_true", help="print JSON, one object a line")
    run.set_defaults(action=_run)


def _run(chosen: argparse.Namespace) -> int:
    from toolkit.launch.bundle import read_job
    from toolkit.launch.notebook import run_job
    from toolkit.launch.parameters import parse_parameters

    try:
        parameters = parse_parameters(read_job(chosen.folder).parameters, chosen.set)
    except TypeError as error:
        raise BadInput(f"--set: {error}") from error
    if not chosen.json:
        return run_job(chosen.folder, parameters=parameters, out=chosen.out)
    status = run_job(chosen.folder, parameters=parameters, out=chosen.out, echo=lambda line: print_json({"line": line}))
    print_json({"status": status})
    return status
