"""What the JSON files of a run folder may hold: checked where they are read, so that nobody else has to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from toolkit.runs.files import read_json

__all__ = ["DAMAGED", "HOLDER", "LAUNCHED", "REPORT", "RESULT", "STATE", "checked", "fits", "read_object"]

DAMAGED = (ValueError, OSError)
"""What reading a run folder raises whose files are not what a run has written."""
LARGEST = 1 << 53
"""Whole numbers from here on are no longer exact in a series."""
LATEST = 1e12
"""Seconds since 1970 after which no clock is right: in 30,000 years."""

Fields = Mapping[str, str]
"""Name of a field -> what it holds, a key of `KINDS`, with " or null" where it may be empty."""

KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "a whole number": lambda value: type(value) is int and abs(value) < LARGEST,
    "a number": lambda value: type(value) in (int, float) and isfinite(value),
    "a time in seconds": lambda value: type(value) in (int, float) and abs(value) < LATEST,
    "true or false": lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
    "an object of text": lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
    "a list of text": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "a list of whole numbers": lambda value: isinstance(value, list) and all(KINDS["a whole number"](item) for item in value),
}
STATE: Fields = {
    "name": "text", "attempt": "a whole number", "step": "a whole number or null", "total_steps": "a whole number or null",
    "message": "text", "report": "an object or null", "since": "a time in seconds", "started": "a time in seconds",
    "controls": "true or false or null", "devices": "a list of text", "processes": "a list of whole numbers", "host": "text",
}  # fmt: skip
REPORT: Fields = {
    "rank": "a whole number", "signal": "text or null", "exit": "a whole number or null", "error": "text or null",
    "traceback": "text or null", "likely": "text or null", "remedy": "text or null", "tails": "an object of text or null",
    "stacks": "an object of text or null",
}  # fmt: skip
LAUNCHED: Fields = {
    "title": "text", "processes": "a whole number", "attempt": "a whole number", "time": "a time in seconds",
    "entry": "text or null", "loader": "text or null", "loads": "text or null", "restart": "text", "kernel": "an object or null",
}  # fmt: skip
RESULT: Fields = {"state": "text", "checkpoint": "text or null", "seconds": "a number"}
HOLDER: Fields = {
    "attempt": "a whole number", "host": "text", "boot": "text", "time": "a time in seconds", "monotonic": "a number",
    "pid": "a whole number", "start": "a whole number or null",
}  # fmt: skip


def fits(value: Any, kind: str) -> bool:
    """Whether a value is of a kind. `fits(None, "text or null")` is True."""
    bare = kind.removesuffix(" or null")
    return (value is None and bare != kind) or KINDS[bare](value)


def checked(data: Any, fields: Fields, where: str) -> dict[str, Any]:
    """`data` if it is an object whose `fields`, where it has them, are of their kinds.

    Raises ValueError, which names `where`, the field and what is expected. Other fields are not looked at.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object, got {_short(data)}")
    for name, kind in fields.items():
        if name in data and not fits(data[name], kind):
            raise ValueError(f"{where}: {name}: expected {kind}, got {_short(data[name])}")
    return data


def read_object(path: Path, fields: Fields) -> dict[str, Any]:
    """The JSON object in a file of a run folder after `checked`; empty when there is no such file."""
    return checked(read_json(path, {}), fields, str(path))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
