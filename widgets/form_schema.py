"""What a form's page needs to know of a type, as JSON: its controls, and the classes whose fields may appear.

A control is {kind, expected, ...}; kind as in `toolkit.fields.Field`. A value control names its class, and the table of
classes holds each once, so that types may contain themselves. Defaults and blanks are drafts (`form_draft.py`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from toolkit.fields import Field, Sites, expected, is_value_class
from toolkit.values import notebook_classes, spec
from widgets.view import harmless

__all__ = ["Shape", "schema", "shape_of"]

LONGEST_HELP = 600
MEMBER = "(member)"
"""Name of a field that is one member of a choice already."""
SECRET = re.compile(r"(^|_)(password|passwd|secret|credential|(api|access|private|secret)_key|(api|auth|access|hub|hf)_token)s?$")
KINDS = {"none": "None", "bool": "yes or no", "int": "whole number", "float": "number", "str": "text", "tuple": "list"}


@dataclass(frozen=True)
class Shape:
    """What a form offers."""

    field: Field
    """The type of its value."""
    also: Mapping[Any, tuple[type, ...]]
    """Classes from notebook cells, by the type beside which they stand."""

    def options(self, field: Field) -> tuple[Field, ...]:
        """What may stand at `field`: the members of a union, then notebook classes; the field alone if it is no choice."""
        if field.name == MEMBER:
            return (field,)
        made = [Field(kind="value", type=class_) for class_ in self.also.get(field.type, ())]
        members = [*(field.options or (field,)), *(one for one in made if one.type not in field.classes.values())]
        # A class may be the whole type of a field, so that it stands both for the choice and for one member of it.
        return tuple(replace(one, name=MEMBER, required=True) for one in members) if len(members) > 1 else (field,)


def shape_of(field: Field, value: Any = None) -> Shape:
    """The shape of `field` with the notebook classes inside `value`. Raises ValueError for a field that is a secret."""
    also: dict[Any, tuple[type, ...]] = {}
    for beside, class_ in _made(field, value, frozenset(notebook_classes(value).values())):
        also[beside] = tuple(dict.fromkeys([*also.get(beside, ()), class_]))
    shape = Shape(field, also)
    for class_ in _classes(shape):
        for one in spec(class_).fields:
            if SECRET.search(one.name) and any(option.kind == "str" for option in (one, *one.options)):
                place = f"{class_.__name__}.{one.name}"
                raise ValueError(f"{place}: a secret cannot stand in a form, since the notebook saves what is in it")
    return shape


def schema(shape: Shape, draft: Any, blank: Any) -> dict[str, Any]:
    """{"root", "classes"}: the control of the whole, and {key: {name, title, help, fields}} of all classes in it.

    `draft(value, field)` and `blank(field)` write defaults as drafts.
    """
    classes = {}
    for class_ in _classes(shape):
        described = spec(class_)
        fields = []
        for one in described.fields:
            default = blank(one) if one.required else draft(one.default, one)
            entry = {"name": one.name, "help": _help(one.help), "required": one.required, "default": default}
            fields.append(entry | {"control": _control(shape, one)})
        text = described.help.partition("\n\n")[2]
        classes[_key(class_)] = {"name": described.name, "title": _help(described.title), "help": _help(text), "fields": fields}
    return {"root": _control(shape, shape.field), "classes": classes}


def _control(shape: Shape, field: Field) -> dict[str, Any]:
    options = shape.options(field)
    if len(options) > 1:
        return {"kind": "union", "expected": expected(field), "options": [_control(shape, option) for option in options]}
    found: dict[str, Any] = {"kind": field.kind, "expected": expected(field), "label": KINDS.get(field.kind, "")}
    match field.kind:
        case "int" | "float":
            found |= {"low": _finite(field.low), "high": _finite(field.high), "exclusive": field.exclusive_low}
            found["start"] = start(field)
        case "literal":
            found["choices"] = [str(choice) for choice in field.choices]
        case "tuple" | "sites":
            assert field.item
            found["item"] = _control(shape, field.item)
            found["label"] = KINDS["tuple"] if field.kind == "tuple" else "patterns"
        case "value":
            found |= {"class": _key(field.type), "label": field.type.__name__}
    return found


def start(field: Field) -> str:
    """Number with which a control begins that is chosen from a union or added to a list."""
    if field.low is None:
        return "0" if field.high is None or field.high >= 0 else f"{field.high:g}"
    low = int(field.low) if field.low == int(field.low) else field.low
    if not field.exclusive_low:
        return str(low)
    return str(low + 1) if field.high is None or field.high >= low + 1 else repr(float(field.high))


def _key(class_: type) -> str:
    return f"{class_.__module__}:{class_.__qualname__}"


def _help(text: str) -> str:
    text = " ".join(harmless(inspect.cleandoc(text[: 4 * LONGEST_HELP])).split())
    return text if len(text) <= LONGEST_HELP else f"{text[:LONGEST_HELP]} …"


def _finite(bound: float | None) -> float | None:
    return bound if bound is None or abs(bound) < float("inf") else None


def _classes(shape: Shape) -> list[type]:
    """Every class that may appear in the form, each once."""
    found: dict[type, None] = {}

    def visit(field: Field) -> None:
        for option in shape.options(field):
            if option.item:
                visit(option.item)
            if option.kind == "value" and option.type not in found:
                found[option.type] = None
                for one in spec(option.type).fields:
                    visit(one)

    visit(shape.field)
    return list(found)


def _made(field: Field, value: Any, made: frozenset[type]) -> Iterator[tuple[Any, type]]:
    """(type of the field that holds it, class) for each notebook class inside `value`."""
    if type(value) in made and type(value) not in field.classes.values():
        yield field.type, type(value)
    if is_value_class(type(value)):
        for one in spec(type(value)).fields:
            yield from _made(replace(one, name=""), getattr(value, one.name), made)
    elif isinstance(value, Sites | tuple):
        item = next((option.item for option in (field, *field.options) if option.item), None)
        for one in value.values() if isinstance(value, Sites) else value:
            if item:
                yield from _made(item, one, made)
