"""Drafts: what stands in a form's controls, right or wrong, as JSON; written from a value, and read back into one.

int, float: the text as typed; literal: the number of the choice; tuple: a list; sites: a list of [pattern, draft];
value: {field: draft}; union: {"at": option, "of": {option: draft}}, where the drafts of options left behind stay; null is
None in a control of kind none, elsewhere what is missing. What is too long for a page stays in the kernel, and its draft is
{"kept": key, "about": text, "head": text}.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from dataclasses import field as with_default
from typing import Any

from toolkit.fields import Field, Sites, expected
from toolkit.values import load, spec
from widgets.form_schema import Shape
from widgets.view import harmless

__all__ = ["MISSING", "Draft", "Kept", "Problem", "Reader", "Writer", "put"]

Draft = Any
Path = tuple[str | int, ...]
Kept = dict[str, Any]
LONG = 8000
"""Characters of JSON above which a text or a list stays in the kernel."""


class _Missing:
    """What could not be read."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@dataclass(frozen=True)
class Problem:
    """What is wrong at one place."""

    path: Path
    """Leads there through the draft."""
    place: str
    """Names it: `$.adapters["*"].rank`."""
    reason: str
    """One line."""

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Writer:
    """Writes drafts of values of a shape."""

    shape: Shape
    """The type of the values."""
    kept: Kept
    """Takes what is too long for a page, by key."""

    def draft(self, value: Any, field: Field) -> Draft:
        """Draft of a value of `field`."""
        options = self.shape.options(field)
        if len(options) > 1:
            at = next(index for index, option in enumerate(options) if holds(option, value))
            return {"at": at, "of": {str(at): self.draft(value, options[at])}}
        match field.kind:
            case "int" | "float":
                return float.__repr__(value) if isinstance(value, float) else str(value)
            case "literal":
                return next(at for at, choice in enumerate(field.choices) if type(choice) is type(value) and choice == value)
            case "tuple":
                return self.keep([self.draft(item, field.item or field) for item in value], value)
            case "sites":
                return self.keep([[name, self.draft(item, field.item or field)] for name, item in value.items()], value)
            case "value":
                return {one.name: self.draft(getattr(value, one.name), one) for one in spec(field.type).fields}
        return self.keep(value, value) if field.kind == "str" else value

    def blank(self, field: Field) -> Draft:
        """Draft of a field that nobody filled in: its default, or its parts' defaults; what has none is missing."""
        if field.name and not field.required:
            return self.draft(field.default, field)
        options = self.shape.options(field)
        if len(options) > 1:
            return {"at": 0, "of": {"0": self.blank(options[0])}}
        if field.kind == "value":
            return {one.name: self.blank(one) for one in spec(field.type).fields}
        return None

    def keep(self, draft: Draft, value: Any) -> Draft:
        """`draft`, or, when it is too long for a page or no page could hold it, what stands for it there."""
        text = json.dumps(draft, ensure_ascii=False)
        try:
            fits = len(text.encode()) <= LONG
        except UnicodeEncodeError:  # half of a surrogate pair
            fits = False
        if fits:
            return draft
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.kept[key] = value
        head = value[:400] if isinstance(value, str) else repr(value[:20] if isinstance(value, tuple) else value)[:400]
        unit = "characters" if isinstance(value, str) else "items"
        return {"kept": key, "about": f"{len(value):,} {unit}", "head": harmless(head).encode("utf-8", "replace").decode()}

    def shorten(self, draft: Draft) -> Draft:
        """A draft that a page sent, with texts that are too long kept here."""
        if isinstance(draft, dict):
            return {name: self.shorten(inner) for name, inner in draft.items()}
        if isinstance(draft, list):
            return [self.shorten(inner) for inner in draft]
        return self.keep(draft, draft) if isinstance(draft, str) else draft


def holds(option: Field, value: Any) -> bool:
    """Whether `value` is one of this member of a union."""
    match option.kind:
        case "none":
            return value is None
        case "literal":
            return any(type(choice) is type(value) and choice == value for choice in option.choices)
        case "float":
            return isinstance(value, float)
        case "tuple":
            return isinstance(value, tuple)
        case "sites":
            return isinstance(value, Sites)
    return type(value) is {"bool": bool, "int": int, "str": str}.get(option.kind, option.type)


@dataclass(frozen=True)
class Reader:
    """Reads drafts of a shape; the classes themselves judge, as everywhere. Nothing that a draft holds makes it raise."""

    shape: Shape
    """The type of the values."""
    kept: Kept
    """Holds what was too long for a page, by key."""
    problems: list[Problem] = with_default(default_factory=list)
    """What is wrong with the drafts that were read."""
    patterns: list[tuple[Path, tuple[str, ...], str | None]] = with_default(default_factory=list)
    """Of every `Sites` met: its path, its patterns, and the text of the nearest field `model` around it."""

    def value(self, draft: Draft) -> Any:
        """The value of a whole draft, or MISSING; then `problems` say why."""
        return self._read(draft, self.shape.field, (), "$", None)

    def _read(self, draft: Draft, field: Field, path: Path, place: str, model: str | None) -> Any:
        options = self.shape.options(field)
        if len(options) > 1:
            at = draft.get("at") if isinstance(draft, dict) else None
            if type(at) is not int or not 0 <= at < len(options) or not isinstance(draft.get("of"), dict):
                return self._wrong(path, place, f"expected {expected(field)}")
            return self._read(draft["of"].get(str(at)), options[at], (*path, "of", str(at)), place, model)
        if draft is None and field.kind != "none":
            return self._wrong(path, place, f"missing, expected {expected(field)}")
        if field.kind == "value" and isinstance(draft, dict):
            return self._value(draft, field, path, place, model)
        if isinstance(draft, dict):
            found = self.kept.get(str(draft.get("kept")), MISSING)
            fits = found is not MISSING and holds(field, found)
            return found if fits else self._wrong(path, place, f"expected {expected(field)}")
        if field.kind == "tuple" and isinstance(draft, list):
            item = field.item or field
            items = [self._read(inner, item, (*path, at), f"{place}[{at}]", model) for at, inner in enumerate(draft)]
            return MISSING if any(inner is MISSING for inner in items) else tuple(items)
        if field.kind == "sites" and isinstance(draft, list):
            return self._sites(draft, field.item or field, path, place, model)
        try:
            return load(_data(draft, field), field, path=place)
        except (ValueError, TypeError) as error:
            return self._wrong(path, place, str(error))

    def _sites(self, draft: list[Any], item: Field, path: Path, place: str, model: str | None) -> Any:
        pairs = [pair if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) else ["", None] for pair in draft]
        items: dict[str, Any] = {}
        sound = True
        for at, (pattern, inner) in enumerate(pairs):
            named = json.dumps(pattern, ensure_ascii=False)
            found = self._read(inner, item, (*path, at, 1), f"{place}[{named}]", model)
            if not pattern or pattern in items:
                reason = f"{named} is given twice" if pattern else "expected a pattern of module names, such as *.q_proj"
                self._wrong((*path, at, 0), place, reason)
                sound = False
            sound = sound and found is not MISSING
            items[pattern] = found
        self.patterns.append((path, tuple(pattern for pattern, _ in pairs), model))
        return Sites(items) if sound else MISSING

    def _value(self, draft: dict[str, Any], field: Field, path: Path, place: str, model: str | None) -> Any:
        fields = spec(field.type).fields
        if any(one.name == "model" for one in fields):
            model = _text_of(draft.get("model"))
        found = {
            one.name: self._read(draft.get(one.name), one, (*path, one.name), f"{place}.{one.name}", model) for one in fields
        }
        if any(one is MISSING for one in found.values()):
            return MISSING
        try:
            return field.type(**found)
        except (TypeError, ValueError, ArithmeticError) as error:
            name = field.type.__name__
            told = re.match(rf"{re.escape(name)}\.(\w+)[:= ]*(.*)", str(error), re.DOTALL)
            if told and told[1] in found:
                return self._wrong((*path, told[1]), f"{place}.{told[1]}", told[2])
            return self._wrong(path, place, str(error).removeprefix(f"{name}: "))

    def _wrong(self, path: Path, place: str, reason: str) -> _Missing:
        reason = " ".join(reason.removeprefix(f"{place}: ")[:LONG].split())
        self.problems.append(Problem(path, harmless(place[:200]), harmless(reason[:400])))
        return MISSING


def _data(draft: Draft, field: Field) -> Any:
    """JSON data of a leaf; a number that cannot be read stays text, which `load` refuses by name."""
    if field.kind == "literal":
        return field.choices[draft] if type(draft) is int and 0 <= draft < len(field.choices) else None
    if field.kind not in ("int", "float") or not isinstance(draft, str):
        return draft
    try:
        return int(draft) if field.kind == "int" else float(draft)
    except ValueError:
        pass
    try:
        found = float(draft)  # 1e6 is a whole number too
    except ValueError:
        return draft
    return int(found) if found.is_integer() else found


def _text_of(draft: Draft) -> str | None:
    """The text that stands in a control, also where the control is a union."""
    if isinstance(draft, dict) and isinstance(draft.get("of"), dict):
        draft = draft["of"].get(str(draft.get("at")))
    return draft if isinstance(draft, str) else None


def put(draft: Draft, path: list[str | int], node: Draft) -> Draft:
    """`draft` with another node at `path`, the rest shared. Raises LookupError or TypeError for a path that is not there."""
    if not path:
        return node
    first, *rest = path
    copy: Any = list(draft) if isinstance(draft, list) else dict(draft)
    copy[first] = put(copy[first], rest, node) if rest else node
    return copy
