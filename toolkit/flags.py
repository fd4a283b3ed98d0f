"""Command-line flags of a value class: `flags` adds one a field to a parser, `from_flags` builds the value from them.

A scalar is given plainly, anything else as the text that `repr` prints; the fields of a nested value can also be given
one by one: `--steps 40 --adapters '{"*.q_proj": LoRA(rank=4)}' --plan 'Plan(dp_shard=2)' --plan.cp 2 --no-compile`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from toolkit.fields import Field, either, expected
from toolkit.values import load, parse, spec

DESTINATION = "value:"
METAVARS = {"int": "N", "float": "X", "str": "TEXT", "tuple": "LIST", "sites": "PATTERNS", "value": "VALUE"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One flag, in plain data: what a parser needs to know of a field when its class is not imported."""

    path: str
    """Name of the field, "plan.cp" for one of a value inside."""
    metavar: str | None
    """What stands for its value in the help; None for a switch."""
    help: str
    """Text of the help."""
    choices: tuple[str, ...] = ()
    """Words that a shell may complete."""


def flags(parser: argparse._ActionsContainer, type_: type) -> None:
    """Add to `parser` one flag for each field of the value class `type_` and of the values in it (`--plan.cp`)."""
    add_flags(parser, flags_of(type_))


def flags_of(type_: type, prefix: str = "") -> list[Flag]:
    """The flags of a value class. `[flag.path for flag in flags_of(Plan)]`"""
    found = []
    for field in spec(type_).fields:
        path = prefix + field.name
        metavar = None if field.kind == "bool" else _metavar(field)
        choices = tuple(str(choice) for option in (field, *field.options) for choice in option.choices)
        found.append(Flag(path=path, metavar=metavar, help=_help(field), choices=choices))
        for nested in [] if prefix else _nested(field):
            found += flags_of(nested, f"{path}.")
    return found


def add_flags(parser: argparse._ActionsContainer, found: Iterable[Flag]) -> None:
    """Add flags to `parser`; `from_flags` reads what they were given."""
    for flag in found:
        names = list(dict.fromkeys([_flag(flag.path), f"--{flag.path}"]))
        given: dict[str, Any] = {"dest": DESTINATION + flag.path, "default": argparse.SUPPRESS}
        given |= {"action": argparse.BooleanOptionalAction} if flag.metavar is None else {"metavar": flag.metavar}
        for number, name in enumerate(names):
            action = parser.add_argument(name, help=argparse.SUPPRESS if number else flag.help, **given)
            action.complete = flag.choices  # type: ignore[attr-defined]


def from_flags(namespace: argparse.Namespace, type_: type, base: Any = None) -> Any:
    """Value of `type_` from parsed flags, on top of the value `base` where given. Raises ValueError naming the flag.

    >>> parser = argparse.ArgumentParser()
    >>> flags(parser, Plan)
    >>> from_flags(parser.parse_args(["--dp-shard", "2"]), Plan).world_size
    2
    """
    prefix = len(DESTINATION)
    given = {name[prefix:]: item for name, item in vars(namespace).items() if name.startswith(DESTINATION)}
    return _value(given, type_, base, "")


def _value(given: dict[str, Any], type_: type, base: Any, prefix: str) -> Any:
    fields = {}
    for field in spec(type_).fields:
        path = prefix + field.name
        if path in given:
            fields[field.name] = read_flag(field, given[path], _flag(path))
        for nested in _nested(field):
            if any(name.startswith(f"{path}.") for name in given):
                inner = fields.get(field.name, field.default if base is None else getattr(base, field.name))
                inner = inner if isinstance(inner, nested) else None
                fields[field.name] = _value(given, nested, inner, f"{path}.")
        if field.required and base is None and field.name not in fields:
            raise ValueError(f"{_flag(path)}: missing, expected {expected(field)}")
    try:
        return type_(**fields) if base is None else dataclasses.replace(base, **fields)
    except ValueError as error:  # `FineTune.batch_tokens: ...`
        name, _, text = str(error).removeprefix(f"{type_.__name__}.").partition(": ")
        known = any(field.name == name for field in spec(type_).fields)
        raise ValueError(f"{_flag(prefix + name)}: {text}" if known else str(error)) from error


def _flag(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def read_flag(field: Field, text: str | bool, place: str) -> Any:
    """Value of `field` from the text of a flag. Raises ValueError that begins with `place`."""
    if not isinstance(text, str) or field.kind == "str":
        return load(text, field, path=place)
    literals = [choice for option in (field, *field.options) for choice in option.choices if str(choice) == text]
    if literals:
        return literals[0]
    kinds = {option.kind for option in field.options or (field,)}
    if "none" in kinds and text.lower() in ("none", "null"):
        return None
    if "bool" in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind, number in (("int", int), ("float", float)):
        if kind in kinds:
            try:
                return load(number(text), field, path=place)
            except ValueError as error:
                if str(error).startswith(place):
                    raise
    if kinds & {"tuple", "sites", "value"} and ("str" not in kinds or re.match(r"\s*([\w.]+\(|[\[({])", text)):
        return parse(text, field, path=place)
    return load(text, field, path=place)


def _nested(field: Field) -> list[type]:
    """Class whose fields get flags of their own: of a value, or of a value or nothing."""
    members = [option for option in field.options or (field,) if option.kind != "none"]
    return [members[0].type] if [member.kind for member in members] == ["value"] else []


def _metavar(field: Field) -> str:
    if field.kind == "literal":
        return f"{{{','.join(map(str, field.choices))}}}"
    return METAVARS.get(field.kind) or "|".join(dict.fromkeys(map(_metavar, field.options))) or "NONE"


def _help(field: Field) -> str:
    names = [name for option in (field, *field.options) for name in (option.item or option).classes]
    names = list(dict.fromkeys(names))
    members = f"One of {either(names)}." if len(names) > 1 else ""
    default = field.default if isinstance(field.default, str) else repr(field.default)
    end = "(required)" if field.required else f"(default: {default})" if default else ""
    return " ".join([*field.help.split(), members, end]).replace("%", "%%")
