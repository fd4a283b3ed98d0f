"""What differs between the recipes of runs: only those fields, by their path, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.runs.differences import differences as fields_that_differ
from widgets.view import GAP, compact, harmless

__all__ = ["differences", "short_names"]

MOST_FIELDS = 60
LONGEST = 160


def differences(recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields in which these recipes (JSON) are not all alike: [{"field", "values"}], values in the order of the runs.

    A field that a recipe does not have is a dash there.

    Example:
        differences([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}])  # [{"field": "lr", "values": ["0.1", "0.2"]}]
    """
    unlike = list(fields_that_differ(recipes).items())[:MOST_FIELDS]
    return [{"field": harmless(name, 120), "values": [_text(value) for value in values]} for name, values in unlike]


def _text(value: Any) -> str:
    if value is None:
        return GAP
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return compact(value, 6) if 0 < abs(value) < 1e-4 else f"{value:g}"
    if isinstance(value, tuple):
        return harmless(", ".join(map(str, value)) or "none", LONGEST)
    return harmless(str(value), LONGEST)


def short_names(ids: Sequence[str]) -> list[str]:
    """What tells runs apart in little room: the last word of each id where these differ, else the whole id.

    >>> short_names(["20260102-030405-amber", "20260102-040506-mint"])
    ['amber', 'mint']
    """
    words = [harmless(name, 40).rpartition("-")[2] for name in ids]
    return words if len(set(words)) == len(words) and all(words) else [harmless(name, 40) for name in ids]
