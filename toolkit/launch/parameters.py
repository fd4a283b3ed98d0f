"""The parameters of a notebook: the assignments in its cell tagged `parameters`, and the values that replace them."""

import argparse
import ast
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

Json = bool | int | float | str | list | dict | None
TYPES = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", type(None): "any"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One assignment of the parameters cell."""

    name: str
    """The variable's name."""
    type: str
    """bool, int, float, str, list, dict, or any (the default is None)."""
    default: Json
    """The value that the notebook itself assigns."""

    def check(self, value: Any) -> Json:
        """`value` as this parameter takes it; a whole number is welcome where a float is asked for.

        >>> Parameter(name="lr", type="float", default=0.1).check(1)
        1.0
        """
        if self.type == "float" and type(value) is int:
            value = float(value)
        if TYPES.get(type(value)) is None or self.type not in ("any", TYPES[type(value)]):
            raise TypeError(f"parameter {self.name} takes {self.type} (as in {self.default!r}), not {value!r}")
        literal(value)
        return value

    def parse(self, text: str) -> Json:
        """The value that `text` from a command line means for this parameter.

        >>> Parameter(name="fast", type="bool", default=False).parse("true")
        True
        """
        if self.type == "str":
            return text
        for read in (json.loads, ast.literal_eval):
            try:
                return self.check(read(text))
            except (ValueError, SyntaxError):
                continue
        if self.type == "any":
            return text
        raise TypeError(f"parameter {self.name} takes {self.type} (as in {self.default!r}), not {text!r}")


def tagged(cell: NotebookNode, tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def read_parameters(notebook: NotebookNode) -> dict[str, Parameter]:
    """The parameters of a notebook by name, in the order of the cell; empty without a cell tagged `parameters`.

    Only assignments of literals count: `steps = 40`, `steps: int = 40`.
    """
    found: dict[str, Parameter] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code" or not tagged(cell, "parameters"):
            continue
        for statement in ast.parse(cell.source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            value = getattr(statement, "value", None)
            if len(targets) != 1 or not isinstance(targets[0], ast.Name) or value is None:
                continue
            try:
                default = ast.literal_eval(value)
            except ValueError:
                continue
            if type(default) in TYPES:
                name = targets[0].id
                found[name] = Parameter(name=name, type=TYPES[type(default)], default=default)
    return found


def check_parameters(known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Json]:
    """`given` with every name and type checked; the error names the nearest parameter that there is."""
    return {name: _named(known, name).check(value) for name, value in given.items()}


def parse_parameters(known: Mapping[str, Parameter], assignments: Sequence[str]) -> dict[str, Json]:
    """The values of `name=value` texts from a command line."""
    values: dict[str, Json] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"a parameter is given as name=value, not {assignment!r}")
        values[name.strip()] = _named(known, name.strip()).parse(text)
    return values


def flags(defaults: Mapping[str, Json], arguments: Sequence[str] | None = None) -> dict[str, Json]:
    """The parameters as a command line gives them, one flag each; what exported scripts call.

    >>> flags({"steps": 40, "fast": False}, ["--steps", "4", "--fast"])
    {'steps': 4, 'fast': True}
    """
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    for name, default in defaults.items():
        parameter = Parameter(name=name, type=TYPES[type(default)], default=default)
        switch = {"nargs": "?", "const": True} if parameter.type == "bool" else {}
        text = f"{parameter.type}, by default {literal(default)}".replace("%", "%%")
        parser.add_argument(f"--{name}", type=parameter.parse, default=default, help=text, metavar="VALUE", **switch)
    return vars(parser.parse_args(arguments))


def _named(known: Mapping[str, Parameter], name: str) -> Parameter:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    has = ", ".join(known) or "none (no cell is tagged `parameters`)"
    raise ValueError(f"no parameter {name!r}: {meant}The notebook has {has}")


def literal(value: Json) -> str:
    """Python source of a JSON value; a float that has no literal is spelled out.

    >>> literal([1, "a", float("inf")])
    "[1, 'a', float('inf')]"
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if type(value) not in TYPES:
        raise TypeError(f"a parameter holds JSON values, not {value!r}")
    return repr(value)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key of a parameter is a string, not {key!r}")
    return repr(key)


def inject(notebook: NotebookNode, values: Mapping[str, Json]) -> None:
    """Put a cell with these values right after the parameters cell, in place of one that an earlier run left."""
    notebook.cells = [cell for cell in notebook.cells if not tagged(cell, "injected-parameters")]
    if not values:
        return
    source = "\n".join(["# Parameters of this job", *(f"{name} = {literal(value)}" for name, value in values.items())])
    cell = new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    if "id" in cell and not any("id" in other for other in notebook.cells):
        del cell["id"]  # a notebook of the older format, 4.4, has no cell ids
    places = [index for index, other in enumerate(notebook.cells) if tagged(other, "parameters")]
    notebook.cells.insert(places[-1] + 1 if places else 0, cell)
