"""Value classes with a field of every kind, for the tests of values."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from toolkit.values import Range, Sites, check


@dataclass(frozen=True, kw_only=True, slots=True)
class Scalars:
    """Every kind of plain field.

    A second paragraph.
    """

    flag: bool = False
    """Whether it is so."""
    count: Annotated[int, Range(1)] = 8
    """Number of things,
    1 or more."""
    digits: Annotated[int, Range(0, 9)] = 0
    ratio: Annotated[float, Range(0, 1, exclusive_low=True)] = 1
    """Share, above 0 and up to 1."""
    number: float = float("inf")
    text: str = 'it\'s "quoted"\n'
    mode: Literal["fast", "exact", 3, True] = "fast"

    kind: ClassVar[str] = "not a field"
    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class Optional_:
    size: "int | None" = None
    rate: Annotated[float | None, Range(0.0)] = None
    both: Literal["auto"] | int | float = "auto"
    flag: bool | None = None
    names: tuple[str, ...] | None = ()

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrapper:
    inner: "Method" = Scalars()
    code: tuple[tuple[Annotated[int, Range(0)], ...], ...] = ()

    __post_init__ = check


Method = Scalars | Optional_ | Wrapper


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    name: str
    """What it is called."""
    methods: Sites[Method] = Sites({"*": Scalars()})  # noqa: RUF009 (Sites is immutable)
    layers: tuple[Method, ...] = (Scalars(), Wrapper())
    sizes: Sites[int] | Wrapper | None = None
    fallback: Scalars = dataclasses.field(default_factory=Scalars)

    __post_init__ = check


def executed(text: str, **names: Any) -> dict[str, Any]:
    """Names that exist once `text` has run."""
    exec(text, names)  # noqa: S102 (text of this file, or of our own `source`)
    return names
