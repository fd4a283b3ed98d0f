"""`systems`: what is implemented."""

from __future__ import annotations

import argparse
import json

from toolkit import systems
from toolkit.cli.answers import BadInput, json_help, print_table
from toolkit.cli.parser import nearest


def fill(parser: argparse.ArgumentParser) -> None:
    """All of them, or one family."""
    parser.add_argument("--json", action="store_true", help="one JSON list")
    parser.add_argument("--family", metavar="NAME", help="only this family")
    parser.epilog = json_help(tuple(systems.System.__annotations__), "a list of objects")
    parser.set_defaults(action=_list)


def _list(chosen: argparse.Namespace) -> int:
    known = systems.read_systems()
    families = sorted({system["family"] for system in known})
    if chosen.family not in (None, *families):
        raise BadInput(f"--family: unknown {chosen.family!r}{nearest(chosen.family, families)}; there are {', '.join(families)}")
    found = [system for system in known if chosen.family in (None, system["family"])]
    if chosen.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    columns = ("key", "family", "arxiv", "module", "title")
    print_table([columns, *([str(system[column]) for column in columns] for system in found)])
    return 0
