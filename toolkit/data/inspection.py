"""A quick look at a source before anything starts: it is there, it can be read, and its first rows are what they should be."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from toolkit.data.rows import converter
from toolkit.data.sources import SAVED_FILE, Data, Hub, JsonLines, Manual, Mixture, Part, Saved, TextFiles
from toolkit.data.tables import (
    check_columns,
    decoded,
    files_of,
    hub_builder,
    hub_rows,
    line_text,
    lines_of,
    read_bytes,
    saved_columns,
    saved_text,
    table,
)
from toolkit.values import check

_FIRST_ROWS, _FIRST_FILES, _FIRST_BYTES = 64, 64, 1 << 20
_SMALL_BYTES = 8 << 20
"""Files that are no larger together are read whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What a quick look at a source tells."""

    documents: int | None
    """Number of texts, None where counting them would mean to read everything."""
    files: int
    """Number of files."""
    bytes: int | None
    """Size of the files, None where the hub does not say."""
    chat: bool
    """Whether the model's chat template is needed."""

    __post_init__ = check


def inspect_data(data: Data) -> DataFacts:
    """Look at a source without reading it whole, in well under a second for what lies on this machine.

    Every file must be there and not be empty; files of 8 MiB or less together are read whole, of others the first 64 rows, or
    the first MiB of the first 64 files.
    Nothing is tokenised; torch is loaded only by `datasets`, for a set whose columns must be looked up in its rows. Raises
    ValueError, in one line that names the file, line or column.

    >>> inspect_data(Manual()).documents
    79
    """
    if isinstance(data, Mixture):
        facts = [inspect_data(part) for part in data.parts]
        documents = [one.documents for one in facts if one.documents is not None]
        sizes = [one.bytes for one in facts if one.bytes is not None]
        return DataFacts(
            documents=sum(documents) if len(documents) == len(facts) else None,
            files=sum(one.files for one in facts),
            bytes=sum(sizes) if len(sizes) == len(facts) else None,
            chat=any(one.chat for one in facts),
        )
    match data:
        case Manual():
            texts = table(data)
            return DataFacts(documents=texts.rows, files=1, bytes=None, chat=False)
        case TextFiles():
            return _text_files(data)
        case JsonLines():
            return _json_lines(data)
        case Hub():
            return _hub(data)
        case Saved():
            return _saved(data)
    raise TypeError(f"inspect_data() takes a source of text, not {type(data).__name__}")


def needs_chat(data: Part) -> bool:
    """Whether a source goes through the model's chat template; `save` alone knows it of what it stored."""
    return not isinstance(data, Manual | TextFiles) and bool(data.chat or getattr(data, "messages", None))


def _text_files(data: TextFiles) -> DataFacts:
    paths = files_of(data)
    size = _size_of(paths)
    small = size <= _SMALL_BYTES
    for path in paths if small else paths[:_FIRST_FILES]:
        _begins_as_text(path, _SMALL_BYTES if small else _FIRST_BYTES)
    if len(paths) == 1 and data.held_out and not data.stream and size < _FIRST_BYTES:
        from toolkit.data.reading import documents

        documents(data)  # a single line cannot be divided
    return DataFacts(documents=len(paths), files=len(paths), bytes=size, chat=False)


def _begins_as_text(path: Path, most: int) -> None:
    with _opened(path) as file:
        begin, whole = file.read(most), not file.read(1)
    if begin.isspace():
        read_bytes(path)
    decoded(begin, path, whole=whole)


def _json_lines(data: JsonLines) -> DataFacts:
    paths = files_of(data)
    size = _size_of(paths)
    convert = converter(data)
    small = size <= _SMALL_BYTES
    for path in paths if small else paths[:_FIRST_FILES]:
        seen = 0
        with _opened(path) as file:
            for number, (_, line) in enumerate(lines_of(file, path), 1):
                if not line.isspace():
                    line_text(line, lambda number=number: f"{path}, line {number}", convert)  # noqa: B023 (asked at once)
                    seen += 1
                if seen == _FIRST_ROWS and not small:
                    break
        if not seen:
            raise ValueError(f"{path} is empty")
        if seen == 1 == len(paths) and data.held_out:
            from toolkit.data.reading import documents

            documents(data)  # a single conversation, or a text of one line, cannot be divided
    return DataFacts(documents=None, files=len(paths), bytes=size, chat=needs_chat(data))


def _hub(data: Hub) -> DataFacts:
    """By what the hub knows of the set; its first rows are fetched only where that leaves the columns open."""
    split, name, convert = data.split.partition("[")[0], f"the hub data set {data.name!r}", converter(data)
    info = hub_builder(data).info
    known = (info.splits or {}).get(split)
    if info.splits and known is None and "+" not in split:
        raise ValueError(f"{name} has no split {split!r}, only {', '.join(info.splits)}")
    if info.features is not None:
        check_columns(data, list(info.features))
    else:
        rows = list(islice(hub_rows(dataclasses.replace(data, split=split), stream=True), _FIRST_ROWS))
        if not rows:
            raise ValueError(f"{name} is empty")
        for number, row in enumerate(rows):
            convert(row, f"{name}, row {number}")
    return DataFacts(
        documents=known.num_examples if known and split == data.split else None,
        files=1,
        bytes=known.num_bytes if known and split == data.split else None,
        chat=needs_chat(data),
    )


def _saved(data: Saved) -> DataFacts:
    columns = saved_columns(data)
    first = columns.slice(0, _FIRST_ROWS).to_pydict()
    messages = first.get("messages") or [None] * len(first["text"])
    for number, (prompt, text, said) in enumerate(zip(first["prompt"], first["text"], messages, strict=True)):
        saved_text(prompt, text, said, data, number)
    size = os.path.getsize(Path(data.path).expanduser() / SAVED_FILE)
    chat = data.chat or any(said is not None for said in messages)
    return DataFacts(documents=len(columns), files=1, bytes=size, chat=chat)


def _size_of(paths: list[Path]) -> int:
    total = 0
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not size:
            raise ValueError(f"{path} is empty")
        total += size
    return total


def _opened(path: Path):  # noqa: ANN202
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
