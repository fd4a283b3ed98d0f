"""argparse whose complaints are one line, name the nearest word that would fit, and where the help is."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from toolkit.cli.answers import BadInput


class Parser(argparse.ArgumentParser):
    """A parser of one command, and of the commands below it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            self.error(f"unknown argument {flag}{nearest(flag, self._option_string_actions)}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            kind = str(action.metavar or action.dest).lower()
            self.error(f"unknown {kind} {value!r}" + (nearest(value, choices) or f": expected one of {', '.join(choices)}"))

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command of the toolkit."""

    help: str
    """One line for the list of commands."""
    fill: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments, and `action`, when it is the one that was chosen."""


def nearest(word: str, known: Any) -> str:
    """`, did you mean --steps?`, or nothing where no known word is near.

    >>> nearest("rnu", ["run", "export"])
    ', did you mean run?'
    """
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def completes(action: argparse.Action, what: str) -> argparse.Action:
    """Note what the shell may complete for an argument: "run", "file", "folder" or "notebook"."""
    action.complete = what  # type: ignore[attr-defined]
    return action
