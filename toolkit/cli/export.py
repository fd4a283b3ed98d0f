"""`export`: a notebook becomes a batch job."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.answers import json_help, print_json, program
from toolkit.cli.parser import completes

KEYS = ("bundle", "run")


def fill(parser: argparse.ArgumentParser) -> None:
    """The notebook, where it is to run, and the folder of the bundle."""
    completes(parser.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="the notebook"), "notebook")
    parser.add_argument("--to", default="local", metavar="PLACE", help="where the job is to run (default: local)")
    completes(parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the bundle"), "folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = json_help(KEYS)
    parser.set_defaults(action=_export)


def _export(chosen: argparse.Namespace) -> int:
    from toolkit.launch.bundle import export

    bundle = export(chosen.notebook, to=chosen.to, out=chosen.out)
    command = f"{program()} job run {bundle}"
    if chosen.json:
        print_json({"bundle": bundle, "run": command})
    else:
        print(f"{bundle}\nRun it: {command}")
    return 0
