"""Where text comes from: five values, and the documents that they name.

A document is a prompt, which carries no loss, and a text, which does. Part of the documents is held out for evaluation: those
whose hash falls below the share, so that the same document is always on the same side, whatever else is added.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from toolkit.values import Range, check


class Document(NamedTuple):
    """One text to learn; `prompt` stands before it and carries no loss."""

    prompt: str
    text: str


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
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the files kept for evaluation; of a single file its last part."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines:
    """A file with one JSON object a line."""

    path: str
    """The file, relative to the working directory."""
    prompt: str | None = "prompt"
    """Key of the prompt, which carries no loss; None when there is none."""
    answer: str = "answer"
    """Key of the text to learn."""
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the lines kept for evaluation."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """A data set of the hub, by the `datasets` library."""

    name: str
    """Id of the data set, owner/name."""
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
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the rows kept for evaluation."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What `toolkit.data.save` stored."""

    path: str
    """The folder that `save` returned."""
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the documents kept for evaluation."""

    __post_init__ = check


SAVED_FILE = "documents.arrow"
"""Name of the Arrow stream in a folder that `save` made."""

Data = Manual | TextFiles | JsonLines | Hub | Saved


def documents(data: Data) -> tuple[list[Document], list[Document]]:
    """The documents to learn from and those held out, both in a fixed order.

    At least one document is held out unless `held_out` is 0; a single document is cut in two at the end of a line.
    ValueError, in one line, names the file, the line or the column that is missing, empty or unreadable.

    >>> train, held_out = documents(Manual())
    >>> len(train) + len(held_out) >= 70
    True
    """
    match data:
        case Manual():
            found = _manual()
        case TextFiles():
            found = _text_files(data.paths)
        case JsonLines():
            found = _json_lines(Path(data.path).expanduser(), data.prompt, data.answer)
        case Hub():
            found = _hub(data)
        case Saved():
            found = _saved(Path(data.path).expanduser())
        case _:
            raise TypeError(f"documents() takes Manual, TextFiles, JsonLines, Hub or Saved, not {type(data).__name__}")
    return split(found, data.held_out)


def split(found: Sequence[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    """Divide documents by their hashes; see `documents`."""
    if held_out == 0.0:
        return list(found), []
    if len(found) == 1:
        return _cut(found[0], held_out)
    shares = [_share(document) for document in found]
    threshold = max(held_out, min(shares))
    chosen = [share <= threshold for share in shares]
    if all(chosen):
        chosen[shares.index(max(shares))] = False
    kept = [document for document, out in zip(found, chosen, strict=True) if not out]
    return kept, [document for document, out in zip(found, chosen, strict=True) if out]


def _share(document: Document) -> float:
    """A number from 0 to 1 that depends on the document alone."""
    digest = hashlib.sha256(f"{len(document.prompt)}:{document.prompt}{document.text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _cut(document: Document, held_out: float) -> tuple[list[Document], list[Document]]:
    middle = max(1, int(len(document.text) * (1.0 - held_out)))
    at = document.text.find("\n", middle) + 1 or middle
    parts = [Document(document.prompt, document.text[:at]), Document(document.prompt, document.text[at:])]
    if not parts[1].text:
        raise ValueError("one document of one line cannot be divided: give more text, or held_out=0")
    return parts[:1], parts[1:]


def _manual() -> list[Document]:
    from pydoc_data.topics import topics

    return [Document("", topics[name]) for name in sorted(topics)]


def _text_files(patterns: Iterable[str]) -> list[Document]:
    found: list[Document] = []
    for pattern in patterns:
        paths = sorted(Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True))
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise ValueError(f"TextFiles: {pattern!r} matches no file")
        for path in paths:
            found.append(Document("", "".join(line for _, line in _lines(path))))
    if not found:
        raise ValueError("TextFiles: paths is empty")
    return found


def _json_lines(path: Path, prompt: str | None, answer: str) -> list[Document]:
    found: list[Document] = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        found.append(_document(row, prompt, answer, f"{path}, line {number}"))
    return found


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """Lines with their numbers, which an unreadable one is named by."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not data.strip():
        raise ValueError(f"{path} is empty")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None
    return enumerate(io.StringIO(text, newline="\n"), 1)  # splitlines() would also cut at U+2028 and form feeds


def _hub(data: Hub) -> list[Document]:
    import datasets

    try:
        rows = datasets.load_dataset(data.name, data.subset, revision=data.revision, split=data.split)
    except Exception as error:  # the client has dozens of classes for "cannot be reached" and "does not exist"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the hub data set {data.name!r} cannot be read ({reason}); Manual() works offline") from error
    return _rows(rows, data.prompt, data.answer, f"the hub data set {data.name!r}")


def _saved(path: Path) -> list[Document]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path / SAVED_FILE)) as file:
            table = pyarrow.ipc.open_stream(file).read_all()
        pairs = zip(table["prompt"].to_pylist(), table["text"].to_pylist(), strict=True)
    except (OSError, KeyError, pyarrow.ArrowInvalid):
        raise ValueError(f"Saved: {path} holds no saved data; toolkit.data.save makes such a folder") from None
    return [Document(prompt, text) for prompt, text in pairs]


def _rows(rows: Any, prompt: str | None, answer: str, where: str) -> list[Document]:
    for name in (prompt, answer):
        if name is not None and name not in rows.column_names:
            raise ValueError(f"{where} has no column {name!r}, only {', '.join(rows.column_names)}")
    if not len(rows):
        raise ValueError(f"{where} is empty")
    answers = rows[answer]
    prompts = rows[prompt] if prompt is not None else [""] * len(answers)
    pairs = enumerate(zip(prompts, answers, strict=True))
    return [_document({"p": p, "a": a}, "p", "a", f"{where}, row {i}") for i, (p, a) in pairs]


def _document(row: dict[str, Any], prompt: str | None, answer: str, where: str) -> Document:
    values = []
    for name in (prompt, answer):
        value = "" if name is None else row.get(name)
        if not isinstance(value, str):
            what = f"no key {name!r}, only {', '.join(row)}" if name not in row else f"{name!r} is not text"
            raise ValueError(f"{where}: {what}")
        values.append(value)
    return Document(*values)
