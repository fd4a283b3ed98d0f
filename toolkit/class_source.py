"""Source text of value classes: help under their fields, and the identity of classes written in notebook cells."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import itertools
import linecache
import sys
import textwrap
from typing import Any

_CODES: dict[type, str] = {}


def class_source(type_: type) -> str:
    """Source text of a class with its decorators, also of one defined in a notebook cell. Raises OSError if unknown."""
    try:
        return inspect.getsource(type_)
    except (OSError, TypeError):
        if type_.__module__ != "__main__":
            raise
    for cell in reversed(_cells()):
        try:
            nodes = list(ast.walk(ast.parse(cell)))
        except (SyntaxError, ValueError):
            continue
        for node in reversed(nodes):
            if isinstance(node, ast.ClassDef) and node.name == type_.__name__ and _annotated(node) == _annotated(type_):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                return "\n".join(cell.splitlines()[first - 1 : node.end_lineno]) + "\n"
    raise OSError(f"the source of {type_.__name__} is not known: define it in a notebook cell or in a module")


def _cells() -> list[str]:
    """Texts of the executed cells, the latest last: IPython's history, before it what IPython gave to linecache."""
    entries = [entry for entry in list(linecache.cache.values()) if len(entry) == 4 and entry[1] is None]
    return ["".join(entry[2]) for entry in entries] + list(vars(sys.modules["__main__"]).get("In", ()))


def _annotated(of: type | ast.ClassDef) -> list[str]:
    if isinstance(of, type):
        return list(inspect.get_annotations(of))
    targets = [statement.target for statement in of.body if isinstance(statement, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def field_docstrings(type_: type) -> dict[str, str]:
    """Text under each field of a dataclass, own and inherited; nothing for a class whose source cannot be found."""
    found: dict[str, str] = {}
    for owner in reversed([base for base in type_.__mro__ if dataclasses.is_dataclass(base)]):
        try:
            definition = ast.parse(textwrap.dedent(class_source(owner))).body[0]
        except (OSError, TypeError, ValueError, SyntaxError):
            continue
        for statement, following in itertools.pairwise(getattr(definition, "body", ())):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


def is_notebook_class(type_: type) -> bool:
    """Whether a class was written in a notebook cell (or script), here or in the process that sent it."""
    return type_.__module__ == "__main__" or type_ in _CODES


def code_of(type_: type) -> str:
    """sha256 of the source text of a notebook class: JSON holds it in place of the code. Raises OSError if unknown."""
    if type_ not in _CODES:
        _CODES[type_] = hashlib.sha256(class_source(type_).encode()).hexdigest()
    return _CODES[type_]


def remember_code(type_: type, code: str) -> None:
    """Note the sha256 of a notebook class that came from another process, where its source cannot be found."""
    _CODES[type_] = code


def notebook_classes(value: Any) -> dict[str, type]:
    """Notebook classes among the values inside `value`, by name, in order of appearance."""
    found: dict[str, type] = {}
    for type_ in _classes_inside(value):
        if is_notebook_class(type_) and found.setdefault(type_.__name__, type_) is not type_:
            raise ValueError(f"two notebook classes are named {type_.__name__}: run the cells of this value again")
    return found


def _classes_inside(value: Any) -> list[type]:
    if dataclasses.is_dataclass(value):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return [type(value), *itertools.chain.from_iterable(map(_classes_inside, inner))]
    inner = list(value.values()) if hasattr(value, "values") else value if isinstance(value, tuple | list) else ()
    return list(itertools.chain.from_iterable(map(_classes_inside, inner)))
