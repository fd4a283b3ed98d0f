"""Where text comes from: six values, and what they are read into.

Nothing is read here, so that a form, a command line or a recipe can name these without loading anything heavy.
Manual, TextFiles and JsonLines are read by Scalebook itself: 399 MiB of JSON lines a second against 143 through the
`datasets` library, errors that name the line, and no second copy in a cache. Hub and Saved are Arrow tables of that library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from toolkit.values import Range, check


class Document(NamedTuple):
    """One text to learn; `prompt` stands before it and carries no loss."""

    prompt: str
    text: str


class Conversation(NamedTuple):
    """Messages for the model's chat template; only what the assistant says carries a loss."""

    messages: str
    """The list of `{"role": ..., "content": ...}` as JSON text, so that it can be hashed, compared and stored."""

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The messages, as a template takes them."""
        return json.loads(self.messages)


Text = Document | Conversation
"""What one row of a data set becomes."""


def conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """A conversation from its messages.

    >>> conversation([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]).turns[1]["content"]
    '4'
    """
    return Conversation(json.dumps(list(messages), ensure_ascii=False, separators=(",", ":")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Manual:
    """CPython's own reference manual, which comes with every Python: 79 topics, 0.5 million characters."""

    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the topics kept for evaluation, 0 to 0.9."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFiles:
    """UTF-8 text files, one document each."""

    paths: tuple[str, ...]
    """Files or patterns such as "docs/**/*.md", relative to the working directory."""
    stream: bool = False
    """Tokenise while training and store nothing whole: for more text than fits; files are then read in pieces of 1 MiB."""
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the files kept for evaluation; of a single file its last part."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines:
    """Files with one JSON object a line."""

    path: str
    """The file, or a pattern such as "rows/*.jsonl", relative to the working directory."""
    prompt: str | None = "prompt"
    """Key of the prompt, which carries no loss; None when there is none."""
    answer: str = "answer"
    """Key of the text to learn."""
    messages: str | None = None
    """Key of a list of {"role", "content"} for the model's chat template; prompt and answer are then not read."""
    chat: bool = False
    """Put prompt and answer into the model's chat template, as turns of a user and an assistant."""
    stream: bool = False
    """Tokenise while training and store nothing whole: for more text than fits."""
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the lines kept for evaluation."""

    def __post_init__(self) -> None:
        check(self)
        _check_chat(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """A data set of the hub, or a folder of data files, by the `datasets` library."""

    name: str
    """Id of the data set, owner/name, or a folder."""
    revision: str | None = None
    """Commit, tag or branch; None for the newest."""
    subset: str | None = None
    """Configuration of the data set, None for its default."""
    split: str = "train"
    """Split to read, also a slice such as train[:1000]."""
    prompt: str | None = None
    """Column of the prompt, which carries no loss; None when there is none."""
    answer: str = "text"
    """Column of the text to learn."""
    messages: str | None = None
    """Column with lists of {"role", "content"} for the model's chat template; prompt and answer are then not read."""
    chat: bool = False
    """Put prompt and answer into the model's chat template, as turns of a user and an assistant."""
    stream: bool = False
    """Fetch and tokenise while training and store nothing whole: for more text than fits."""
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the rows kept for evaluation."""

    def __post_init__(self) -> None:
        check(self)
        _check_chat(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What `toolkit.data.save` stored."""

    path: str
    """The folder that `save` returned."""
    chat: bool = False
    """Put prompts and texts into the model's chat template, as turns of a user and an assistant."""
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the documents kept for evaluation."""

    __post_init__ = check


Part = Manual | TextFiles | JsonLines | Hub | Saved
"""A single source of text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Several sources, read in fixed proportions: after any number of rows no part is a row off its share.

    A part that is read through begins again while others last.
    """

    parts: tuple[Part, ...]
    """The sources; each holds out its own share for evaluation."""
    weights: tuple[Annotated[float, Range(0, exclusive_low=True)], ...] | None = None
    """Tokens from each part in proportion to one another, in any unit; None takes each part as often as it is large."""

    def __post_init__(self) -> None:
        check(self)
        if not self.parts:
            raise ValueError("Mixture.parts: it is empty; name at least one source")
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ValueError(f"Mixture.weights: {len(self.weights)} weights for {len(self.parts)} parts; give one each, or None")
        if self.weights is None and any(getattr(part, "stream", False) for part in self.parts):
            raise ValueError("Mixture.weights: nobody knows how large a stream is; give each part a weight")
        if self.weights is not None and not sum(self.weights) < float("inf"):
            raise ValueError(f"Mixture.weights: expected finite numbers, got {self.weights}")


Data = Manual | TextFiles | JsonLines | Hub | Saved | Mixture


def part_names(data: Mixture) -> tuple[str, ...]:
    """A short name for each part of a mixture, such as a file's without its ending; a second one of a name has a number.

    >>> part_names(Mixture(parts=(Manual(), JsonLines(path="a/talk.jsonl"), JsonLines(path="b/talk.jsonl"))))
    ('Manual', 'talk', 'talk 2')
    """
    names: list[str] = []
    for part in data.parts:
        match part:
            case Manual():
                place = ""
            case TextFiles(paths=paths):
                place = paths[0] if paths else ""
            case JsonLines(path=place) | Saved(path=place) | Hub(name=place):
                pass
        words = (Path(piece).stem for piece in reversed(Path(place).parts) if not set(piece) & set("*?["))
        name = next(words, "")[:40] or type(part).__name__
        names.append(next(one for one in chain([name], (f"{name} {n}" for n in count(2))) if one not in names))
    return tuple(names)

SAVED_FILE = "documents.arrow"
"""Name of the Arrow stream in a folder that `save` made."""


def _check_chat(data: JsonLines | Hub) -> None:
    name = type(data).__name__
    if data.messages is not None and data.chat:
        raise ValueError(f"{name}.chat: messages={data.messages!r} goes through the chat template anyway; leave chat out")
    if data.chat and data.prompt is None:
        raise ValueError(f"{name}.chat: an answer to no prompt is no conversation; name the prompt")
