"""Values as source text: written as imports and one expression, read without evaluating anything."""

from __future__ import annotations

import ast
import dataclasses
import math
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from toolkit.class_source import is_notebook_class
from toolkit.fields import NON_FINITE, NonFinite, is_value_class, short

LINE_WIDTH = 100


def read_text(text: str, path: str, wanted: str) -> Any:
    """JSON data of one expression made of literals and of calls with named fields; import lines before it are passed over.

    Raises ValueError with `path`, and with `wanted`, what is expected there, when `text` is not Python at all.
    """
    try:
        statements = ast.parse(text.strip()).body
        imports = [node for node in statements[:-1] if isinstance(node, ast.Import | ast.ImportFrom)]
        aliases = {name.asname: name.name for node in imports for name in node.names if name.asname}
        match statements[len(imports) :]:
            case [ast.Expr(expression)]:
                return _plain(expression, aliases, path)
        raise ValueError(f"{path}: expected one expression, after imports at most, got {short(text)}")
    except (SyntaxError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        raise ValueError(f"{path}: expected {wanted}, cannot read {short(text)}: {reason}") from None


def _plain(node: ast.expr, aliases: dict[str, str], path: str) -> Any:
    """JSON data of an expression made of literals and of calls with named fields only."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_plain(item, aliases, path) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _plain(operand, aliases, path)
            if type(number) in (int, float, NonFinite):
                return -number
        case ast.Call(func=ast.Name("float"), args=[ast.Constant(str(text))], keywords=[]) if text in NON_FINITE:
            return NON_FINITE[text]
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(word.arg for word in keywords):
            pairs = [(str(word.arg), _plain(word.value, aliases, path)) for word in keywords]
            return _unique([("type", aliases.get(name, name)), *pairs], path)
        case ast.Dict(keys=keys, values=values):
            patterns = [key.value if isinstance(key, ast.Constant) else None for key in keys]
            if all(isinstance(pattern, str) for pattern in patterns):
                items = [_plain(value, aliases, path) for value in values]
                return _unique(list(zip(map(str, patterns), items, strict=True)), path)
    got = short(ast.unparse(node))
    raise ValueError(f"{path}: expected a literal or a call with named fields such as LoRA(rank=8), got {got}")


def _unique(pairs: list[tuple[str, Any]], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in pairs:
        if name in found:
            raise ValueError(f"{path}: {short(name)} is given twice")
        found[name] = item
    return found


def source(value: Any, *, brief: bool = False) -> str:
    """Runnable source text of a value: import lines, an empty line and the expression.

    A name comes from the outermost package that offers it; a name that two classes share is imported under an alias.
    With `brief`, fields that hold their default are left out: easier to read, but it follows when a default changes.
    """
    names: dict[type, str] = {}
    expression = _text(value, names, brief)
    imported: dict[str, list[str]] = {}
    for type_, name in names.items():
        if not is_notebook_class(type_):
            alias = "" if name == type_.__name__ else f" as {name}"
            imported.setdefault(_public_module(type_), []).append(type_.__name__ + alias)
    lines = [f"from {module} import {', '.join(sorted(found))}" for module, found in sorted(imported.items())]
    return "\n".join([*lines, *([""] if lines else []), expression, ""])


def _is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return default is not dataclasses.MISSING and repr(getattr(value, field.name)) == repr(default)


def _public_module(type_: type) -> str:
    parts = type_.__module__.split(".")
    modules = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    offering = [module for module in modules if getattr(sys.modules.get(module), type_.__name__, None) is type_]
    return [*offering, type_.__module__][0]


def _text(value: Any, names: dict[type, str], brief: bool) -> str:
    """Expression of `value`, one line where it fits, else one item a line; adds the classes it meets to `names`."""
    if is_value_class(type(value)):
        type_ = type(value)
        if type_ not in names:
            same = sum(other.__name__ == type_.__name__ for other in names)
            names[type_] = f"{type_.__name__}_{same + 1}" if same else type_.__name__
        fields = [field for field in dataclasses.fields(value) if not (brief and _is_default(value, field))]
        items = [f"{field.name}={_text(getattr(value, field.name), names, brief)}" for field in fields]
        opening, closing = f"{names[type_]}(", ")"
    elif isinstance(value, Mapping):
        items = [f"{pattern!r}: {_text(item, names, brief)}" for pattern, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, tuple):
        items, opening, closing = [_text(item, names, brief) for item in value], "(", ",)" if len(value) == 1 else ")"
    else:
        infinite = isinstance(value, float) and not math.isfinite(value)
        return repr(NON_FINITE[float.__repr__(value)] if infinite else value)
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) <= LINE_WIDTH and "\n" not in line:
        return line
    body = textwrap.indent(",\n".join(items), "    ")
    return f"{opening}\n{body},\n{closing.lstrip(',')}"
