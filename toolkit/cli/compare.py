"""`runs compare`: what differs between the recipes of runs, what came of each, and from which step on they part."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from toolkit.cli.answers import BadInput, print_json, print_table, printable
from toolkit.cli.chart import Curve, letters
from toolkit.cli.parser import completes, nearest
from toolkit.runs import Run
from toolkit.runs.differences import differences
from toolkit.runs.files import read_json

KEYS = ("runs", "recipe", "metrics", "parts_at")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HEIGHT = 14
POINTS = 10_000_000
"""Steps that are compared one by one: all that a run has."""
LOWER = ("loss", "seconds", "memory", "perplexity", "norm")
"""A metric whose name holds one of these is best where it is lowest; any other where it is highest."""
JUDGED = ("loss", "perplexity", "accuracy", "reward", "score")
"""Metrics whose best value the table shows beside the last; JSON has it of all."""
MISSING = "-"


def fill(parser: argparse.ArgumentParser) -> None:
    """Two runs or more."""
    completes(parser.add_argument("runs", nargs="+", metavar="RUN", help="ids of runs, or their folders"), "run")
    parser.add_argument("--metric", default="loss", metavar="NAME", help="what is drawn and followed step by step")
    parser.set_defaults(action=_compare)


def _compare(chosen: argparse.Namespace) -> int:
    from toolkit.cli.runs import attach

    if not 2 <= len(chosen.runs) <= len(LETTERS):
        raise BadInput(f"compare: expected 2 to {len(LETTERS)} runs, got {len(chosen.runs)}")
    runs = [attach(name, chosen.root) for name in chosen.runs]
    curves = [{name: _listed(column) for name, column in run.metrics(max_points=POINTS).items()} for run in runs]
    names = sorted({name for found in curves for name in found})
    if names and chosen.metric not in names:
        raise BadInput(f"--metric: no run has {chosen.metric!r}{nearest(chosen.metric, names)}; there are {', '.join(names)}")
    differs = differences([read_json(run.folder / "recipe.json", {}) for run in runs])
    table = {name: [summary(name, found.get(name)) for found in curves] for name in names}
    drawn = [found.get(chosen.metric, ([], [])) for found in curves]
    part = [first_difference(drawn[0], other) for other in drawn[1:]]
    if chosen.json:
        described = [{"run": run.id, "state": run.state.name, "folder": str(run.folder)} for run in runs]
        print_json({"runs": described, "recipe": differs, "metrics": table, "parts_at": [None, *part]})
        return 0
    _print(runs, differs, table, chosen.metric, drawn, part)
    return 0


def summary(name: str, curve: Curve | None) -> dict[str, float] | None:
    """Last and best value of a metric, and the step of each; None where the run has none."""
    points = [(value, step) for step, value in zip(*curve) if value == value] if curve else []
    if not points or not curve:
        return None
    best = min(points) if any(word in name for word in LOWER) else max(points, key=lambda point: (point[0], -point[1]))
    return {"last": curve[1][-1], "step": curve[0][-1], "best": best[0], "best_step": best[1]}


def first_difference(one: Curve, other: Curve) -> int | None:
    """First step, of those that both have, at which two curves are not equal bit for bit; None where there is none.

    >>> first_difference(([1, 2, 3], [4.0, 3.0, 2.0]), ([1, 2, 3], [4.0, 3.0, 2.5]))
    3
    """
    values = dict(zip(*other))
    pairs = ((step, value, values[step]) for step, value in zip(*one) if step in values)
    return next((int(step) for step, a, b in pairs if a != b and (a == a or b == b)), None)


def _listed(column: tuple[Any, Any]) -> Curve:
    steps, values = column
    return steps.tolist(), values.tolist()


def _print(
    runs: list[Run],
    differs: dict[str, list[Any]],
    table: dict[str, list[Any]],
    metric: str,
    drawn: list[Curve],
    part: list[int | None],
) -> None:
    head = ["", *LETTERS[: len(runs)]]
    rows = [head, ["run", *(run.id for run in runs)], ["state", *(printable(run.state.name) for run in runs)]]
    rows += [[printable(path), *(printable(str(MISSING if value is None else value)) for value in values)]
             for path, values in differs.items()]  # fmt: skip
    rows += [[f"{printable(name)}, {which}", *(_cell(found, which) for found in columns)]
             for name, columns in table.items() for which in ("last", "best")
             if which == "last" or any(word in name for word in JUDGED)]  # fmt: skip
    print_table(rows)
    if not differs:
        print("The recipes are equal.")
    for letter, (curve, step) in zip(LETTERS[1:], zip(drawn[1:], part)):
        common = len(set(drawn[0][0]) & set(curve[0]))
        where = f"from step {step} on" if step is not None else f"nowhere: all {common} common steps are equal bit for bit"
        print(f"{metric} of A and {letter} differ {where}" if common else f"A and {letter} have no step of {metric} in common")
    if any(len(curve[0]) for curve in drawn):
        width = _width()
        print(f"\n{metric}")
        print("\n".join(line.rstrip() for line in letters(dict(zip(LETTERS, drawn)), width=width, height=HEIGHT)))


def _cell(found: dict[str, float] | None, which: str) -> str:
    if found is None:
        return MISSING
    step = found["step"] if which == "last" else found["best_step"]
    return f"{found[which]:.5g} at step {step:g}"


def _width() -> int:
    import shutil

    return max(40, min(120, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else 80
