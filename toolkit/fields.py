"""Fields of value classes: what a type annotation means to a form, to the command line and to the reader of values."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """Legal range of a number: `rank: Annotated[int, Range(1)] = 8`. Both ends belong to it unless said otherwise."""

    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False


class Sites(Mapping[str, T], Generic[T]):
    """Immutable ordered mapping, pattern of module names -> value; equal to a dict with the same items in order.

    >>> Sites({"*.q_proj": 8, "*.v_proj": 4})["*.q_proj"]
    8
    """

    __slots__ = ("_items",)
    _items: dict[str, T]

    def __init__(self, items: Mapping[str, T] | None = None) -> None:
        object.__setattr__(self, "_items", dict(items or {}))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Sites is immutable: cannot set {name!r}; build a new one from a dict")

    def __getitem__(self, pattern: str) -> T:
        return self._items[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return tuple(self.items()) == tuple(other.items()) if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type, tuple[dict[str, T]]]:
        return Sites, (self._items,)


class NonFinite(float):
    """An infinity or NaN whose repr is source text, `float("inf")`."""

    __slots__ = ()
    __str__ = float.__repr__

    def __repr__(self) -> str:
        return f'float("{float.__repr__(self)}")'


NON_FINITE = {name: NonFinite(name) for name in ("inf", "-inf", "nan")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One form field, or one type inside it: an option of a union, the item of a tuple or of `Sites`."""

    kind: str
    """bool, int, float, str, none, literal, tuple, sites, value or union."""
    type: Any
    """The annotation; for kind `value` the class."""
    name: str = ""
    """Name of the dataclass field, empty inside a union, tuple or `Sites`."""
    help: str = ""
    """Docstring under the field."""
    default: Any = None
    """Default value, None where `required`."""
    required: bool = False
    """Whether the field has no default."""
    low: float | None = None
    """Smallest legal number."""
    high: float | None = None
    """Largest legal number."""
    exclusive_low: bool = False
    """Whether `low` itself is illegal."""
    choices: tuple[Any, ...] = ()
    """Legal values of a literal."""
    options: tuple[Field, ...] = ()
    """Members of a union."""
    item: Field | None = None
    """Type of the items of a tuple or of `Sites`."""

    @property
    def classes(self) -> dict[str, type]:
        """Value classes that may stand here, by name."""
        members = self.options or (self,)
        return {member.type.__name__: member.type for member in members if member.kind == "value"}


@cache
def field_of(annotation: Any) -> Field:
    """Nameless field for an annotation. Raises TypeError for a type that a value class may not use.

    >>> field_of(int | None).kind
    'union'
    """
    annotation = getattr(annotation, "__value__", annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = [item for item in arguments[1:] if isinstance(item, Range)]
        return _bounded(field_of(arguments[0]), bounds[0]) if bounds else field_of(arguments[0])
    if annotation is None or annotation is type(None):
        return Field(kind="none", type=annotation)
    if annotation in (bool, int, float, str):
        return Field(kind=annotation.__name__, type=annotation)
    if origin is Literal:
        return Field(kind="literal", type=annotation, choices=arguments)
    if origin is tuple and arguments[1:] == (...,):
        return Field(kind="tuple", type=annotation, item=field_of(arguments[0]))
    if origin is Sites:
        return Field(kind="sites", type=annotation, item=field_of(arguments[0]))
    if origin in (typing.Union, types.UnionType):
        options = sorted(map(field_of, arguments), key=lambda option: option.kind != "literal")
        return _distinct(Field(kind="union", type=annotation, options=tuple(options)))
    if is_value_class(annotation):
        return Field(kind="value", type=annotation)
    raise TypeError(
        f"{annotation!r} cannot be the type of a field: expected bool, int, float, str, None, Literal, "
        "tuple[T, ...], Sites[T], a frozen dataclass or a union of these"
    )


def is_value_class(type_: Any) -> bool:
    """Whether `type_` is a frozen dataclass."""
    return isinstance(type_, type) and getattr(getattr(type_, "__dataclass_params__", None), "frozen", False)


def _bounded(field: Field, bounds: Range) -> Field:
    if field.kind in ("int", "float"):
        return dataclasses.replace(field, low=bounds.low, high=bounds.high, exclusive_low=bounds.exclusive_low)
    numbers = [option for option in field.options if option.kind in ("int", "float")]
    if not numbers:
        raise TypeError(f"{bounds} bounds a number, not {field.type!r}")
    options = tuple(_bounded(option, bounds) if option in numbers else option for option in field.options)
    return dataclasses.replace(field, options=options)


def _distinct(field: Field) -> Field:
    """`field`, a union, once it is sure that JSON tells its members apart."""
    marks = [option.type.__name__ if option.kind == "value" else option.kind for option in field.options]
    if "str" in marks or any(name in option.choices for option in field.options for name in NON_FINITE):
        marks.append("float")  # In JSON a non-finite float is text.
    for mark in marks:
        if marks.count(mark) > 1:
            raise TypeError(f"{field.type!r}: JSON cannot tell two members of this union apart ({mark})")
    return field


def expected(field: Field) -> str:
    """What a field accepts, for an error message: `an integer of at least 1`."""
    match field.kind:
        case "int" | "float":
            low = f"{'above' if field.exclusive_low else 'of at least'} {_bound(field.low)}" if field.low is not None else ""
            high = f"of at most {_bound(field.high)}" if field.high is not None else ""
            bounds = " and ".join(bound for bound in (low, high) if bound)
            return f"{'an integer' if field.kind == 'int' else 'a number'} {bounds}".rstrip()
        case "literal":
            return either(json.dumps(choice) for choice in field.choices)
        case "tuple" | "sites":
            inner = expected(field.item) if field.item else ""
            return f"a list (each item {inner})" if field.kind == "tuple" else f"an object from patterns to {inner}"
        case "union":
            return either(map(expected, field.options))
        case "value":
            return field.type.__name__
    return {"bool": "true or false", "str": "text", "none": "null"}[field.kind]


def _bound(number: float) -> str:
    """A whole bound without a point: typing gives equal annotations back as one, so that 0 may come as 0.0."""
    return str(int(number)) if number == int(number) else str(number)


def either(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def short(data: Any) -> str:
    """`data` as an error message quotes it."""
    text = json.dumps(data, ensure_ascii=False) if data is None or type(data) in (str, bool) else repr(data)
    return text if len(text) <= 80 else f"{text[:77]}..."
