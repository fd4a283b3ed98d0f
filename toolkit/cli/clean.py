"""`runs clean`: what would go, and with `--yes` its going."""

from __future__ import annotations

import argparse
import re
from functools import partial
from typing import Any

from toolkit.clean import Candidate, Choice, asides, remove, survey
from toolkit.cli.answers import BadInput, print_json, print_table, program
from toolkit.launch.leftovers import end, leftovers
from toolkit.runs.amounts import size
from toolkit.runs.listing import age
from toolkit.runs.state import FINAL

KEYS = ("done", "bytes", "processes", "runs", "aside")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
BYTES = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
GONE = ("removed", "would remove")
EXAMPLE = """\
Without --yes nothing is done. Processes that a run has left behind are always looked for; a run goes only when it is
over and fits everything that is asked for. A live run is never touched, and no link is followed. Checkpoints that
`runs restart --step` has set aside stay in a run that stays, unless --aside is given.

example:
  runs clean --state failed --older 2w --yes
"""


def fill(parser: argparse.ArgumentParser) -> None:
    """What to ask for, and whether to do it."""
    parser.description = f"{parser.description}\n\n{EXAMPLE}"
    parser.add_argument("--older", type=partial(_quantity, units=SECONDS, what="a time such as 30d, 12h or 2w"),
                        metavar="TIME", help="runs that ended at least so long ago: 30d, 12h, 2w")  # fmt: skip
    parser.add_argument("--larger", type=partial(_quantity, units=BYTES, what="a size such as 500M or 1G"),
                        metavar="SIZE", help="runs whose folder has at least this size: 500M, 1G")  # fmt: skip
    parser.add_argument("--keep", type=int, default=0, metavar="N", help="the N newest runs stay")
    parser.add_argument("--state", action="append", default=[], choices=FINAL, metavar="STATE",
                        help=f"only runs in this state, repeatable: {', '.join(FINAL)}")  # fmt: skip
    parser.add_argument("--aside", action="store_true", help="also checkpoints that were set aside, of runs that stay")
    parser.add_argument("--yes", action="store_true", help="do it")
    parser.set_defaults(action=_clean)


def _quantity(text: str, *, units: dict[str, int], what: str) -> float:
    """A number with its unit, in the unit of one. argparse names the flag."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]?)(?:i?B)?", text)
    unit = found[2] if found else ""
    unit = unit.upper() if units is BYTES else unit.lower()
    if found is None or unit not in units:
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return float(found[1]) * units[unit]


def _clean(chosen: argparse.Namespace) -> int:
    if chosen.keep < 0:
        raise BadInput(f"--keep: expected 0 or more, got {chosen.keep}")
    larger = None if chosen.larger is None else int(chosen.larger)
    choice = Choice(older=chosen.older, larger=larger, keep=chosen.keep, states=tuple(chosen.state))
    orphans = leftovers(chosen.root)
    found = survey(chosen.root, choice)
    processes = [(each, end(each) if chosen.yes else False) for each in orphans]
    runs = [(each, _removed(each, chosen.yes)) for each in found]
    aside = [(each, _removed(each, chosen.yes)) for each in asides(found, chosen.aside)]
    freed = sum(each.bytes for each, (what, _) in [*runs, *aside] if what in GONE)
    if chosen.json:
        told = [
            {"pid": each.pid, "run": each.run, "command": each.command, "reason": each.reason, "ended": ended}
            for each, ended in processes
        ]
        both = ([_plain(*pair) for pair in found] for found in (runs, aside))
        print_json(dict(zip(KEYS, (chosen.yes, freed, told, *both), strict=True)))
        return 0
    for each, ended in processes:
        what = ("ended" if ended else "could not be ended") if chosen.yes else "would be ended"
        print(f"Process {each.pid} of run {each.run}: {each.reason}; {what}")
    shown = [(each, what, why) for each, (what, why) in [*runs, *aside] if what != "stays" or not each.kept]
    if shown:
        rows = [(_name(each), each.state, age(each.age), size(each.bytes), f"{what}{why}") for each, what, why in shown]
        print_table([("run", "state", "ended", "size", ""), *rows])
    going, gone = (sum(what in GONE for _, (what, _) in pairs) for pairs in (runs, aside))
    stay = len(runs) - going
    rest = f" {_count(stay, 'run')} stay{'s' * (stay == 1)}." if stay else ""
    offered = [each.bytes for each, (what, _) in aside if what not in GONE]
    if offered and not chosen.aside:
        rest += f" {_count(len(offered), 'checkpoint')} set aside in them ({size(sum(offered))}): --aside lets them go."
    what = [_count(going, "run"), *([_count(gone, "checkpoint")] if gone else []), _count(len(processes), "process", "es")]
    _conclude(f"{', '.join(what[:-1])} ({size(freed)}) and {what[-1]}" if going or gone or processes else "", rest,
              done=chosen.yes, asked=choice.chooses or not stay)  # fmt: skip
    return 0


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural * (number != 1)}"


def _conclude(what: str, rest: str, *, done: bool, asked: bool) -> None:
    if done:
        print((f"Removed {what}." if what else "Nothing to clean up.") + rest)
    elif what:
        print(f"Would remove {what}. Nothing was done yet: the same with --yes does it.{rest}")
    else:
        how = "" if asked else f" Say which may go: {program()} runs clean --older 30d"
        print(f"Nothing to clean up.{rest}{how}")


def _removed(found: Candidate, really: bool) -> tuple[str, str]:
    """What was done with a run, or would be, and why not."""
    if found.kept:
        return "stays", f": {found.kept}"
    if not really:
        return "would remove", ""
    why = remove(found)
    return ("stays", f": {why}") if why else ("removed", "")


def _run(found: Candidate) -> str:
    return found.folder.parents[1].name if found.state == "aside" else found.folder.name


def _name(found: Candidate) -> str:
    return f"{_run(found)}/{found.folder.name}" if found.state == "aside" else found.folder.name


def _plain(found: Candidate, done: tuple[str, str]) -> dict[str, Any]:
    what, why = done
    return {
        "run": _run(found),
        "folder": str(found.folder),
        "state": found.state,
        "age_seconds": round(found.age),
        "bytes": found.bytes,
        "what": what,
        "why": why.removeprefix(": "),
    }
