"""The flags of every recipe, kept as plain data, so that help, typing errors and completion need not wait for torch.

The classes themselves bring their libraries with them, which takes seconds; the flags are read from them once and stored
in the user's cache, under a digest of every source file's size and date.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toolkit
from toolkit.flags import Flag, flags_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What the command line knows of a recipe without importing it."""

    name: str
    """Name of its class."""
    title: str
    """First line of its docstring."""
    flags: tuple[Flag, ...]
    """One for each field."""

    @property
    def type(self) -> type:
        """The class; importing it takes seconds."""
        with Waiting("reading the recipes"):
            return _classes()[self.name]


def recipes() -> dict[str, Recipe]:
    """Every recipe by the name of its command. `recipes()["fine-tune"].title`"""
    digest = _digest()
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalebook" / "command-line.json"
    try:
        stored = json.loads(path.read_bytes())
        if stored["digest"] == digest:
            return {kebab(found["name"]): _recipe(found) for found in stored["recipes"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # It is made anew.
    with Waiting("reading the recipes (once)"):
        from toolkit.values import spec

        made = [
            Recipe(name=name, title=spec(type_).title, flags=tuple(flags_of(type_))) for name, type_ in _classes().items()
        ]
    _store(path, {"digest": digest, "recipes": [dataclasses.asdict(recipe) for recipe in made]})
    return {kebab(recipe.name): recipe for recipe in made}


def kebab(name: str) -> str:
    """The name of a class as a command.

    >>> kebab("FineTune")
    'fine-tune'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


class Waiting:
    """Say on a terminal what takes so long, while the block runs. `with Waiting("reading the recipes"): ...`"""

    def __init__(self, what: str) -> None:
        self._what, self._status = what, None

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(self._what)
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _classes() -> dict[str, type]:
    from toolkit.recipes import Recipe as union
    from toolkit.values import field_of

    return field_of(union).classes


def _recipe(stored: dict[str, Any]) -> Recipe:
    flags = tuple(Flag(**{**flag, "choices": tuple(flag["choices"])}) for flag in stored["flags"])
    return Recipe(name=stored["name"], title=stored["title"], flags=flags)


def _store(path: Path, data: Any) -> None:
    from toolkit.runs.files import replace_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, data, sync=False)
    except OSError:
        pass  # Without a cache it only takes longer.


def _digest() -> str:
    home = Path(toolkit.__file__).parent
    marks = [sys.version, *sorted(_marks(str(home)))]
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()


def _marks(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _marks(entry.path)
            elif entry.name.endswith(".py"):
                found = entry.stat()
                yield f"{entry.path} {found.st_size} {found.st_mtime_ns}"
