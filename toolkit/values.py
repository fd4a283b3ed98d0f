"""Values: a frozen dataclass <-> form specification, source text and JSON.

A value class is `@dataclass(frozen=True, kw_only=True, slots=True)` with `__post_init__ = check`. Its fields are bool,
int, float, str, None, Literal, `tuple[T, ...]`, `Sites[T]`, another value class, or a union of these; numbers may carry
a `Range`. One reader, `_read`, serves the constructor (`check`), JSON (`load`) and text (`parse`, which turns text into
JSON data first), so all three accept the same values and their errors name the place. What is read is never evaluated.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from toolkit.class_source import class_source, code_of, field_docstrings, is_notebook_class, notebook_classes, remember_code
from toolkit.fields import NON_FINITE, Field, Range, Sites, either, expected, field_of, is_value_class, short
from toolkit.source_text import read_text, source

__all__ = [
    "Field",
    "Range",
    "Sites",
    "Spec",
    "check",
    "class_source",
    "code_of",
    "dump",
    "dump_root",
    "field_of",
    "load",
    "load_root",
    "notebook_classes",
    "parse",
    "source",
    "spec",
]

Resolver = Callable[[str, str], type]
SCHEMA = 1
NOTEBOOK = "notebook:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """What a form, a command line or a test strategy needs to know of a value class."""

    name: str
    """Name of the class."""
    title: str
    """First line of its docstring, else its name."""
    help: str
    """Its docstring."""
    fields: tuple[Field, ...]
    """Its fields in order of declaration; a field that holds values names their classes only: ask `spec` of them."""


@cache
def spec(type_: type) -> Spec:
    """Specification of a value class; `field_of` describes any other annotation. Raises TypeError for what is neither.

    >>> spec(Plan).fields[0].name
    'dp_replicate'
    """
    if not is_value_class(type_):
        raise TypeError(f"expected a frozen dataclass, got {type_!r}")
    generated = (type_.__doc__ or "").startswith(f"{type_.__name__}(")
    text = "" if generated else inspect.cleandoc(type_.__doc__ or "")
    title = text.partition("\n")[0] or type_.__name__
    hints, docstrings = typing.get_type_hints(type_, include_extras=True), field_docstrings(type_)
    fields = [_described(type_, field, hints[field.name], docstrings) for field in dataclasses.fields(type_)]
    return Spec(name=type_.__name__, title=title, help=text, fields=tuple(fields))


def _described(type_: type, field: dataclasses.Field[Any], annotation: Any, docstrings: dict[str, str]) -> Field:
    place = f"{type_.__name__}.{field.name}"
    if field.name in ("type", "schema") or (field.name == "code" and is_notebook_class(type_)):
        raise TypeError(f"{place}: the JSON form of values needs this name for itself")
    described = field_of(annotation)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    required = default is dataclasses.MISSING
    default = None if required else _read(described, default, place)
    help_ = docstrings.get(field.name, "")
    return dataclasses.replace(described, name=field.name, help=help_, default=default, required=required)


# ---- reading ---------------------------------------------------------------------------------------------------------


def check(self: Any) -> None:
    """Validate and convert the fields of a value; assigned in its class as `__post_init__ = check`.

    A dict becomes `Sites`, a list a tuple, an int in a float field a float. Raises ValueError with the class, the
    field, what was expected and what came.
    """
    for field in spec(type(self)).fields:
        value = getattr(self, field.name)
        read = _read(field, value, f"{type(self).__name__}.{field.name}")
        if read is not value:
            object.__setattr__(self, field.name, read)


def load(data: Any, type_: Any, *, path: str = "$", notebook: Resolver | None = None) -> Any:
    """Value of `type_` (an annotation or a `Field`) from JSON data.

    `notebook(name, sha256)` gives the class of `{"type": "notebook:<name>", "code": <sha256>}`. Raises ValueError that
    names the path: `$.adapters["*.q_proj"].rank: expected an integer of at least 1, got -3`.
    """
    try:
        return _read(_as_field(type_), data, path, notebook or _no_notebook)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None


def load_root(data: Any, union: Any, notebook: Resolver | None = None) -> Any:
    """Value from a whole JSON document, `{"schema": 1, "type": ..., ...}`. Raises ValueError as `load` does."""
    if not isinstance(data, Mapping):
        raise ValueError(f'$: expected an object with "schema" and "type", got {short(data)}')
    if type(data.get("schema")) is not int or data["schema"] != SCHEMA:
        raise ValueError(f"$.schema: expected {SCHEMA}, got {short(data.get('schema'))}")
    return load({name: item for name, item in data.items() if name != "schema"}, union, notebook=notebook)


def parse(text: str, type_: Any, *, path: str = "$") -> Any:
    """Value of `type_` (an annotation or a `Field`) from the text that `repr` or `source` gives. Raises ValueError.

    >>> parse('{"*.q_proj": 8}', Sites[int])
    {'*.q_proj': 8}
    """
    field = _as_field(type_)
    return load(read_text(text, path, expected(field)), field, path=path)


def _as_field(type_: Any) -> Field:
    return type_ if isinstance(type_, Field) else field_of(type_)


def _no_notebook(name: str, code: str) -> type:
    raise ValueError(f"{name} was written in a notebook; what holds it loads only inside the run that wrote it")


def _read(field: Field, data: Any, place: str, notebook: Resolver | None = None) -> Any:
    """`data` as a value of `field`. Without `notebook` data is made of Python values, with it of JSON."""
    if field.kind == "union":
        field = _member(field, data, notebook)
    if field.classes:
        if type(data) is field.type or (is_value_class(type(data)) and is_notebook_class(type(data))):
            return data
        if notebook and isinstance(data, Mapping):
            return _build(field.classes, data, place, notebook)
    elif field.item and field.kind == "tuple" and isinstance(data, tuple | list):
        return tuple([_read(field.item, item, f"{place}[{index}]", notebook) for index, item in enumerate(data)])
    elif field.item and field.kind == "sites" and isinstance(data, Mapping):
        items = {}
        for pattern, item in data.items():
            if not isinstance(pattern, str) or not pattern:
                raise ValueError(f"{place}: expected patterns that are text, got {short(pattern)}")
            items[pattern] = _read(field.item, item, f"{place}[{json.dumps(pattern, ensure_ascii=False)}]", notebook)
        return Sites(items)
    elif field.kind == "float" and (type(data) is int or _fits(field, data, notebook)):
        number = _float(data)
        if number is not None and _within(field, number):
            return number
    elif _fits(field, data, notebook) and _within(field, data):
        return {"int": int, "str": str.__str__}.get(field.kind, lambda same: same)(data)
    raise ValueError(f"{place}: expected {expected(field)}, got {short(data)}")


def _member(field: Field, data: Any, notebook: Resolver | None) -> Field:
    """Member of a union that has the outer shape of `data`, else the union itself."""
    fitting = [option for option in field.options if _fits(option, data, notebook)]
    floats = [option for option in field.options if option.kind == "float" and type(data) is int]
    return [*fitting, *floats, field][0]


def _fits(field: Field, data: Any, notebook: Resolver | None) -> bool:
    """Whether `data` has the outer shape of `field`."""
    is_object = notebook is not None and _is_object(data)
    match field.kind:
        case "none":
            return data is None
        case "bool":
            return isinstance(data, bool)
        case "int":
            return isinstance(data, int) and not isinstance(data, bool)
        case "float":
            return isinstance(data, float) or (notebook is not None and isinstance(data, str) and data in NON_FINITE)
        case "str":
            return isinstance(data, str)
        case "literal":
            return any(type(data) is type(choice) and data == choice for choice in field.choices)
        case "tuple":
            return isinstance(data, tuple | list)
        case "sites":
            return isinstance(data, Mapping) and not is_object
        case "value":
            return type(data) is field.type or (is_object and data["type"] == field.type.__name__)
    return False


def _is_object(data: Any) -> bool:
    return isinstance(data, Mapping) and isinstance(data.get("type"), str)


def _build(classes: dict[str, type], data: Mapping[str, Any], place: str, notebook: Resolver) -> Any:
    """Value from a JSON object whose "type" is one of `classes` or a notebook class."""
    arguments = dict(data)
    name = arguments.pop("type", None)
    if not isinstance(name, str):
        raise ValueError(f"{place}.type: expected {either(classes)}, got {short(name)}")
    if name.startswith(NOTEBOOK):
        type_ = _notebook_class(classes, name.removeprefix(NOTEBOOK), arguments.pop("code", None), place, notebook)
    elif name in classes:
        type_ = classes[name]
    else:
        raise ValueError(f"{place}: unknown type {short(name)}, expected {either(classes)}{_nearest(name, classes)}")
    known = {field.name: field for field in spec(type_).fields}
    for name, item in arguments.items():
        if name not in known:
            hint = _nearest(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise ValueError(f"{place}.{name}: {type_.__name__} has no such field{hint}")
        arguments[name] = _read(known[name], item, f"{place}.{name}", notebook)
    for name, field in known.items():
        if field.required and name not in arguments:
            raise ValueError(f"{place}.{name}: missing, expected {expected(field)}")
    try:
        return type_(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _notebook_class(classes: dict[str, type], name: str, code: Any, place: str, notebook: Resolver) -> type:
    if not isinstance(code, str):
        raise ValueError(f"{place}.code: expected the sha256 of the notebook class {name}, got {short(code)}")
    known = classes.get(name)
    if known is not None and is_notebook_class(known) and code_of(known) == code:
        return known
    try:
        found = notebook(name, code)
    except (LookupError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    remember_code(found, code)
    return found


def _float(data: Any) -> float | None:
    """A plain float, the one object of a non-finite float, or None for an integer that no float holds."""
    if isinstance(data, str):
        return NON_FINITE[data]
    try:
        number = float(data)
    except OverflowError:
        return None
    return number if math.isfinite(number) else NON_FINITE[float.__repr__(number)]


def _within(field: Field, number: Any) -> bool:
    above = field.low is None or (number > field.low if field.exclusive_low else number >= field.low)
    return above and (field.high is None or number <= field.high)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


# ---- writing ---------------------------------------------------------------------------------------------------------


def dump(value: Any) -> dict[str, Any]:
    """JSON data of a value: `{"type": "LoRA", "rank": 8}`; non-finite floats are the strings "inf", "-inf", "nan".

    >>> load(dump(Plan(dp_shard=2)), Plan)
    Plan(dp_replicate=1, dp_shard=2, cp=1, tp=1, pp=1, ep=1)
    """
    if not is_value_class(type(value)):
        raise TypeError(f"expected a value (a frozen dataclass), got {short(value)}")
    return _dump(value)


def dump_root(value: Any) -> dict[str, Any]:
    """JSON data of a whole document: `{"schema": 1, "type": ..., ...}`."""
    return {"schema": SCHEMA, **dump(value)}


def _dump(value: Any) -> Any:
    if is_value_class(type(value)):
        type_ = type(value)
        head = {"type": type_.__name__}
        if is_notebook_class(type_):
            head = {"type": NOTEBOOK + type_.__name__, "code": code_of(type_)}
        return head | {field.name: _dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {pattern: _dump(item) for pattern, item in value.items()}
    if isinstance(value, tuple):
        return [_dump(item) for item in value]
    return float.__repr__(value) if isinstance(value, float) and not math.isfinite(value) else value
