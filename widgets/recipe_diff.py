"""What differs between the recipes of runs: only those fields, by their path, as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from widgets.view import GAP, compact, harmless

__all__ = ["differences", "flat", "short_names"]

MOST_FIELDS = 60
LONGEST = 160


def differences(recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields in which these recipes (JSON) are not all alike: [{"field", "values"}], values in the order of the runs.

    A field that a recipe does not have is a dash there.

    Example:
        differences([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}])  # [{"field": "lr", "values": ["0.1", "0.2"]}]
    """
    columns = [dict(flat(recipe)) for recipe in recipes]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, [column.get(name) for column in columns]) for name in names]
    unlike = [(name, values) for name, values in rows if any(value != values[0] for value in values[1:])]
    return [{"field": harmless(name, 120), "values": [_text(value) for value in values]} for name, values in unlike[:MOST_FIELDS]]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, scalar) of everything in a recipe: `adapters["*.q_proj"]` is the class, `adapters["*.q_proj"].rank` its field."""
    if isinstance(value, Mapping) and value:
        is_value = "type" in value or not path
        for name, item in value.items():
            if is_value and name in ("type", "schema"):
                if name == "type":
                    yield path or "recipe", str(item)
            elif is_value:
                yield from flat(item, f"{path}.{name}" if path else str(name))
            else:
                yield from flat(item, f"{path}[{json.dumps(name)}]")
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for index, item in enumerate(value):
            yield from flat(item, f"{path}[{index}]")
    else:
        yield path, tuple(value) if isinstance(value, list) else value


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
