"""What differs between the recipes of runs: only those fields, by their path."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["differences", "flat"]


def differences(recipes: Sequence[Any]) -> dict[str, list[Any]]:
    """Path of each field in which these recipes (JSON) are not all alike -> what each says there, None where it has none.

    >>> differences([{"lr": 1, "plan": {"type": "Plan", "tp": 2}}, {"lr": 1, "plan": {"type": "Plan", "tp": 1}}])
    {'plan.tp': [2, 1]}
    """
    columns = [dict(flat(recipe)) for recipe in recipes]
    names = dict.fromkeys(name for column in columns for name in column)
    table = {name: [column.get(name) for column in columns] for name in names}
    return {name: values for name, values in table.items() if any(value != values[0] for value in values[1:])}


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
