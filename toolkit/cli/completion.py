"""`completion`: what makes bash, zsh or fish complete these commands, and what they then ask for at each Tab.

The shells know nothing by themselves: they hand over the words typed so far, and the answer is read from the same parsers
that read the commands. So it is never out of date.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.cli.answers import BadInput, json_help, print_json
from toolkit.cli.shells import PYTHON, SHELLS

KEYS = ("shell", "script")
MOST = 100
"""Runs that are offered, the newest."""
Word = tuple[str, str]
"""What may be typed, and what it means."""


def fill(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    lines = "\n".join(f"  {name:5} {shell.install.format(python=PYTHON)}" for name, shell in SHELLS.items())
    parser.description = f"{parser.description}\n\nto install it:\n{lines}"
    parser.add_argument("shell", nargs="?", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish (default: yours)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = json_help(KEYS)
    parser.set_defaults(action=_print)


def _print(chosen: argparse.Namespace) -> int:
    shell = chosen.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise BadInput(f"completion: say for which shell: {', '.join(SHELLS)}")
    script = SHELLS[shell].script()
    if chosen.json:
        print_json({"shell": shell, "script": script})
    else:
        print(script, end="")
    return 0


def answer(words: Sequence[str]) -> None:
    """Print what may stand in the place of the last of `words`: a line `:kind`, then `word<TAB>meaning` lines."""
    kind, found = candidates(words)
    print(f":{kind}")
    sys.stdout.writelines(f"{word}\t{meaning}\n" for word, meaning in found)


def candidates(words: Sequence[str]) -> tuple[str, list[Word]]:
    """The kind of what is wanted ("word", "file", "folder", "notebook") and the words that fit the last of `words`.

    >>> candidates(["runs", "sho"])
    ('word', [('show', 'state, newest metrics and checkpoints of a run')])
    """
    from toolkit.cli.main import parser_for

    *typed, prefix = words or [""]
    place = _Place(parser_for(typed))
    for word in typed:
        place.pass_over(word)
    kind, offered = place.options() if prefix.startswith("-") and place.waiting is None else place.values(typed)
    return kind, [(word, meaning) for word, meaning in offered if word.startswith(prefix)]


class _Place:
    """Where in the parsers the words typed so far have led."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser
        self.waiting: argparse.Action | None = None
        """The option whose value comes next."""
        self.position = 0
        """How many positional arguments of this parser were passed."""
        self.lost = False
        """Whether a word stood where only commands may."""

    def pass_over(self, word: str) -> None:
        """Go on behind one word."""
        if self.waiting is not None:
            self.waiting = None
        elif word.startswith("-"):
            action = self.parser._option_string_actions.get(word)
            self.waiting = action if action is not None and action.nargs != 0 else None
        else:
            below = _subparsers(self.parser)
            if word in below:
                self.parser, self.position = below[word], 0
            else:
                self.position += 1
                self.lost |= bool(below)

    def options(self) -> tuple[str, list[Word]]:
        """The flags of this parser."""
        shown = [action for action in self.parser._actions if action.option_strings and action.help != argparse.SUPPRESS]
        names = [(name, _line(action.help)) for action in shown for name in action.option_strings if name.startswith("--")]
        return "word", names

    def values(self, typed: Sequence[str]) -> tuple[str, list[Word]]:
        """What the next value, command or positional argument may be."""
        below = _subparsers(self.parser)
        if self.lost:
            return "word", []
        if self.waiting is None and below:
            helps = {choice.dest: choice.help for group in self.parser._actions if isinstance(group, argparse._SubParsersAction)
                     for choice in group._choices_actions}  # fmt: skip
            return "word", [(name, _line(helps.get(name))) for name in below]
        action = self.waiting or self._positional()
        if action is None:
            return "word", []
        wanted = getattr(action, "complete", None)
        if wanted in ("file", "folder", "notebook"):
            return wanted, []
        if wanted in ("run", "live", "over"):
            return "word", list(_runs(wanted, typed))
        return "word", [(str(choice), "") for choice in action.choices or wanted or ()]

    def _positional(self) -> argparse.Action | None:
        positional = [action for action in self.parser._actions if not action.option_strings]
        if self.position < len(positional):
            return positional[self.position]
        return positional[-1] if positional and positional[-1].nargs in ("+", "*") else None


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(groups[0].choices) if groups else {}


def _line(help_: str | None) -> str:
    return " ".join((help_ or "").replace("%%", "%").split())


def _runs(wanted: str, typed: Sequence[str]) -> Iterator[Word]:
    """The newest runs under the root that was typed, or this project's: all, those that live, or those that are over."""
    from toolkit.runs import runs
    from toolkit.runs.fields import DAMAGED

    root = typed[typed.index("--root") + 1] if "--root" in typed[:-1] else None
    for run in runs(root)[:MOST]:
        try:
            state, title = run.state, run.launched.get("title", "")
        except DAMAGED:
            if run.id not in typed and wanted == "run":
                yield run.id, "damaged"
            continue
        if run.id not in typed and (wanted == "run" or state.final == (wanted == "over")):
            yield run.id, " ".join(f"{state.name} {title}".split())

