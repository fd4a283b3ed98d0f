"""Flags of value classes: each gives its field, help comes from the docstrings, and an error names the flag."""

import argparse
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from toolkit.flags import flags, from_flags
from toolkit.values import Range, Sites, check


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    size: Annotated[int, Range(1)] = 1
    """Size, 100% of it."""
    two_words: float = 0.5

    def __post_init__(self) -> None:
        check(self)
        if self.size == 13:
            raise ValueError(f"Part.size: {self.size} is unlucky")


@dataclass(frozen=True, kw_only=True, slots=True)
class Everything:
    name: str
    """What it is called."""
    count: Annotated[int, Range(1)] | None = 4
    rate: float = 0.1
    flag: bool = False
    maybe: bool | None = None
    mode: Literal["fast", "exact", 3] = "fast"
    names: tuple[str, ...] = ()
    parts: Sites[Part] = Sites({})  # noqa: RUF009 (Sites is immutable)
    part: Part = Part()
    other: Part | None = None
    either: str | Part = "text"

    __post_init__ = check


def read(*arguments: str, base: Any = None) -> Any:
    parser = argparse.ArgumentParser()
    flags(parser, Everything)
    return from_flags(parser.parse_args(arguments), Everything, base)


GIVEN = {
    "plain scalars": (["--count", "5", "--rate", "1e-3", "--mode", "exact"], {"count": 5, "rate": 1e-3, "mode": "exact"}),
    "nothing": (["--count", "None"], {"count": None}),
    "infinity": (["--rate=-inf"], {"rate": -float("inf")}),
    "literal number": (["--mode", "3"], {"mode": 3}),
    "on": (["--flag"], {"flag": True}),
    "off": (["--no-flag"], {"flag": False}),
    "a bool or nothing": (["--maybe", "false"], {"maybe": False}),
    "text of repr": (["--names", "('a', 'b')"], {"names": ("a", "b")}),
    "patterns": (["--parts", '{"*.q": Part(size=2)}'], {"parts": {"*.q": Part(size=2)}}),
    "a value": (["--part", "Part(size=3)"], {"part": Part(size=3)}),
    "one field of a value": (["--part.two-words", "1"], {"part": Part(two_words=1)}),
    "underscores": (["--part.two_words", "1"], {"part": Part(two_words=1)}),
    "a value and a field of it": (["--part.size", "2", "--part", "Part(two_words=2)"], {"part": Part(size=2, two_words=2)}),
    "a field of no value yet": (["--other.size", "2"], {"other": Part(size=2)}),
    "text beside a value": (["--either", "some (text)"], {"either": "some (text)"}),
    "a value beside text": (["--either", "Part(size=2)"], {"either": Part(size=2)}),
}


@pytest.mark.parametrize(("arguments", "fields"), GIVEN.values(), ids=GIVEN)
def test_a_flag_gives_its_field(arguments: list[str], fields: dict[str, Any]) -> None:
    assert read("--name", "a", *arguments) == Everything(name="a", **fields)
    base = Everything(name="base", rate=7.0, part=Part(two_words=9))
    found = read(*arguments, base=base)
    assert found.name == "base"
    assert {name for name in fields if getattr(found, name) != getattr(base, name)} <= set(fields)


def test_flags_change_a_base_field_by_field() -> None:
    base = Everything(name="base", part=Part(two_words=9))
    assert read("--part.size", "2", base=base) == Everything(name="base", part=Part(size=2, two_words=9))
    assert read(base=base) == base


WRONG = {
    "missing": ([], "--name: missing, expected text"),
    "not a number": (["--count", "x"], '--count: expected an integer of at least 1 or null, got "x"'),
    "out of range": (["--count", "0"], "--count: expected an integer of at least 1, got 0"),
    "literal": (["--mode", "slow"], '--mode: expected "fast", "exact" or 3, got "slow"'),
    "inside a value": (["--parts", '{"*.q": Part(size=0)}'], '--parts["*.q"].size: expected an integer of at least 1'),
    "inside a nested flag": (["--part.size", "0"], "--part.size: expected an integer of at least 1, got 0"),
    "refused by the class": (["--part.size", "13"], "--part.size: 13 is unlucky"),
    "no value": (["--part", "Part(size"], "--part: expected Part, cannot read"),
    "a list without brackets": (["--names", "Hello world"], "--names: expected a list (each item text), cannot read"),
    "hostile": (["--part", '__import__("os").system("true")'], "--part: expected a literal or a call"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_flag_is_named(arguments: list[str], message: str) -> None:
    name = ["--name", "a"] if arguments else []
    with pytest.raises(ValueError, match="^--") as caught:
        read(*name, *arguments)
    assert str(caught.value).startswith(message)


def test_help_has_docstrings_defaults_and_no_duplicates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--name TEXT What it is called. (required)" in text
    assert "--part.size N Size, 100% of it. (default: 1)" in text
    assert "--part.two-words X (default: 0.5)" in text
    assert "two_words" not in text.replace("Part(size=1, two_words=0.5)", "")
