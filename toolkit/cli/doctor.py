"""`doctor`: what this machine can do, what keeps it from training, and how to get what is missing."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from toolkit.cli.answers import FAILED, OK, json_help, print_json, printable
from toolkit.cli.parser import completes

KEYS = ("ok", "findings")
FOUND = ("group", "name", "state", "found", "remedy")
MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}


def fill(parser: argparse.ArgumentParser) -> None:
    """Whether to start the two processes, and where runs are to lie."""
    parser.add_argument("--no-self-test", action="store_true", help="do not start the two worker processes (some seconds)")
    root = parser.add_argument("--root", type=Path, metavar="DIR", help="folder above runs/ (default: this project)")
    completes(root, "folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = (
        f"{json_help(KEYS)}; each finding has: {', '.join(FOUND)}\n"
        "exit status: 0 when nothing keeps this machine from training, else 1; a note is no problem"
    )
    parser.set_defaults(action=_examine)


def _examine(chosen: argparse.Namespace) -> int:
    from toolkit.doctor import examine

    if chosen.json:
        found = list(examine(chosen.root, self_test=not chosen.no_self_test))
        problems = sum(finding.state == "problem" for finding in found)
        print_json({"ok": not problems, "findings": [dataclasses.asdict(finding) for finding in found]})
        return FAILED if problems else OK
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    group, counts = "", dict.fromkeys(MARKS, 0)
    status = Console(stderr=True).status("looking") if sys.stderr.isatty() else None
    tell: Callable[[str], object] = status.update if status else lambda what: print(f"{what} ...", file=sys.stderr)
    if status:
        status.start()
    try:
        for finding in examine(chosen.root, self_test=not chosen.no_self_test, tell=tell):
            if finding.group != group:
                group = finding.group
                console.print(Text(f"\n{group}", style="bold") if any(counts.values()) else Text(group, style="bold"))
            word, colour = MARKS[finding.state]
            counts[finding.state] += 1
            line = Text("  ").append(f"{word:8}", style=colour).append(f"{finding.name:14} {printable(finding.found)}")
            console.print(line)
            if finding.remedy:
                console.print(Text(f"{'':26}-> {finding.remedy}", style="cyan"))
    finally:
        if status:
            status.stop()
    end = {0: "Nothing keeps this machine from training.", 1: "One problem keeps this machine from training."}
    console.print(Text(f"\n{end.get(counts['problem'], str(counts['problem']) + ' problems keep this machine from training.')}"))
    return FAILED if counts["problem"] else OK
