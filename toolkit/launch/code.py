"""What a run is to do, in words that travel: `module:function` and JSON where that is enough, shipped code where not."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.runs.control import load_shipped, resolver
from toolkit.runs.files import read_owned
from toolkit.runs.shipping import ship

__all__ = ["describe", "find", "is_recipe", "load_shipped", "named", "resolver", "work_of"]


def is_recipe(work: Any) -> bool:
    """Whether `work` is a recipe value: a dataclass that says by `entry` which function trains it."""
    return dataclasses.is_dataclass(work) and not isinstance(work, type) and isinstance(getattr(type(work), "entry", None), str)


def describe(
    work: Any, arguments: tuple[Any, ...], folder: Path, *, travels: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What launch.json says about `work`, and recipe.json; what has to be shipped is written into `folder`.

    A function that stays in this process (`travels=False`) is named only.
    """
    if is_recipe(work):
        if arguments:
            raise TypeError(f"launch({type(work).__name__}(...)) takes no further arguments: a recipe holds them all")
        return _describe_recipe(work, folder)
    if not callable(work):
        raise TypeError(f"launch: expected a recipe or a function, got {type(work).__name__}")
    name = named(work)
    what = f"function {getattr(work, '__qualname__', repr(work))}"
    said: dict[str, Any] = {"title": name or what.removeprefix("function "), "entry": None, "loader": None, "loads": None}
    if name is not None and all(map(_is_json, arguments)):
        return said | {"function": name, "arguments": list(arguments)}, {"function": name}
    if not travels:
        return said, {"function": said["title"]}
    shipped = ship(folder, work, what=what, arguments=arguments)
    return said | {"shipped": shipped}, {"function": said["title"], "shipped": shipped}


def _describe_recipe(work: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from toolkit.values import dump_root

    data = dump_root(work)
    kind = type(work)
    return {
        "title": kind.__name__,
        "entry": kind.entry,
        "loader": getattr(kind, "loader", None),
        "loads": getattr(kind, "loads", None),
        "code": _ship_classes(work, folder),
    }, data


def _ship_classes(work: Any, folder: Path) -> dict[str, dict[str, str]]:
    """Ship the notebook classes inside a recipe: {name: {source: sha256, pickle: sha256}}."""
    from toolkit.class_source import code_of, notebook_classes

    return {
        name: {"source": code_of(type_), "pickle": ship(folder, type_, what=f"class {name}")}
        for name, type_ in notebook_classes(work).items()
    }


def named(function: Callable[..., Any]) -> str | None:
    """`module:function` if a fresh interpreter can import it under that name, else None."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__", "builtins") or "<" in path or getattr(sys.modules.get(module), "__file__", None) is None:
        return None
    try:
        return f"{module}:{path}" if find(f"{module}:{path}") is function else None
    except (ImportError, AttributeError):
        return None


def find(name: str) -> Any:
    """What `module:attribute.path` names."""
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def work_of(launched: dict[str, Any], folder: Path) -> Callable[[Any], Any]:
    """In a worker: the work as one function of the run's context."""
    if launched.get("entry"):
        train, recipe = find(launched["entry"]), json.loads(read_owned(folder / "recipe.json"))
        return lambda context: train(recipe, context)
    if launched.get("function"):
        function, arguments = find(launched["function"]), launched["arguments"]
    else:
        function, arguments = load_shipped(folder, launched["shipped"])
    return lambda context: function(*arguments)


def _is_json(value: Any) -> bool:
    """Whether JSON gives `value` back as it was."""
    if type(value) is list:
        return all(map(_is_json, value))
    if type(value) is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, str) or (type(value) is float and value - value == 0)
