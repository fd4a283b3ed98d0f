"""A source as a table: how many rows it has, and any of them as texts when asked for.

Only an index is held in memory (8 bytes a row), so a set may be larger than memory; small sets are kept once they were read.
"""

from __future__ import annotations

import codecs
import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int

from toolkit.data.rows import as_chat, converter, of_messages, parse_line
from toolkit.data.sources import SAVED_FILE, Document, Hub, JsonLines, Manual, Part, Saved, Text, TextFiles

Numbers = Int[np.ndarray, "D"]
LINE = 64 << 20
"""Bytes of a line, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows that can be read in any order."""

    rows: int
    """How many there are."""
    read: Callable[[Numbers], list[Text]]
    """The texts of the rows with these numbers, from 0. Raises ValueError that names a bad one."""
    where: Callable[[int], str]
    """The name of a row in an error."""


def table(data: Part) -> Table:
    """Open a source. ValueError, in one line, names the file or the column that is missing, empty or unreadable.

    >>> table(Manual()).rows >= 70
    True
    """
    match data:
        case Manual():
            return _manual()
        case TextFiles():
            return _text_files(files_of(data))
        case JsonLines():
            return _json_lines(data)
        case Hub():
            return _arrow(hub_rows(data, stream=False), data)
        case Saved():
            return _saved(data)
    raise TypeError(f"expected Manual, TextFiles, JsonLines, Hub or Saved, not {type(data).__name__}")


def files_of(data: TextFiles | JsonLines) -> list[Path]:
    """The files that a source names, those of one pattern in alphabetical order."""
    patterns = data.paths if isinstance(data, TextFiles) else (data.path,)
    found = []
    for pattern in patterns:
        name = str(Path(pattern).expanduser())
        paths = [Path(name)] if not glob.has_magic(name) or Path(name).is_file() else sorted(map(Path, _glob(name)))
        if not paths or (paths == [Path(name)] and not paths[0].exists()):
            raise ValueError(f"{type(data).__name__}: {pattern!r} matches no file")
        found += paths
    if not found:
        raise ValueError("TextFiles: paths is empty")
    return found


def _glob(pattern: str) -> list[str]:
    return [name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]


def read_bytes(path: Path) -> bytes:
    """Contents of a file that must not be empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not data.strip():
        raise ValueError(f"{path} is empty")
    return data


def decoded(data: bytes, path: Path, line: int = 1, *, whole: bool = True) -> str:
    """UTF-8 text of a part of a file that begins at `line`; one that is not `whole` may end within a character."""
    try:
        return codecs.utf_8_decode(data, "strict", whole)[0]
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None


def hub_rows(data: Hub, *, stream: bool) -> Any:
    """The `datasets` object of a hub source. ValueError names a column that it does not have."""
    import datasets

    rows = _from_hub(datasets.load_dataset, data, split=data.split, streaming=stream)
    if rows.column_names is not None:
        check_columns(data, rows.column_names)
    return rows


def hub_builder(data: Hub) -> Any:
    """What the hub knows of a data set, without its rows."""
    import datasets

    return _from_hub(datasets.load_dataset_builder, data)


def _from_hub(load: Callable[..., Any], data: Hub, **options: Any) -> Any:
    folder = Path(data.name).expanduser()
    name = str(folder) if folder.is_dir() else data.name
    try:
        return load(name, data.subset, revision=data.revision, **options)
    except Exception as error:  # the client has dozens of classes for "cannot be reached" and "does not exist"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the hub data set {data.name!r} cannot be read ({reason}); Manual() works offline") from error


def check_columns(data: Hub, columns: Sequence[str]) -> None:
    """Raise ValueError when a column that the source needs is not among these."""
    for name in [data.messages] if data.messages is not None else [data.prompt, data.answer]:
        if name is not None and name not in columns:
            raise ValueError(f"the hub data set {data.name!r} has no column {name!r}, only {', '.join(columns)}")


def _manual() -> Table:
    from pydoc_data.topics import topics

    names = sorted(topics)

    def read(numbers: Numbers) -> list[Text]:
        return [Document("", topics[names[i]]) for i in numbers]

    return Table(rows=len(names), read=read, where=lambda number: f"topic {names[number]!r}")


def _text_files(paths: Sequence[Path]) -> Table:
    def read(numbers: Numbers) -> list[Text]:
        return [Document("", decoded(read_bytes(paths[i]), paths[i])) for i in numbers]

    return Table(rows=len(paths), read=read, where=lambda i: str(paths[i]))


def _json_lines(data: JsonLines) -> Table:
    """The index: in which file each line that is not blank begins and ends."""
    paths = files_of(data)
    parts = [np.fromiter(_line_ends(path), dtype=np.int64) for path in paths]
    starts = [part[0::2] for part in parts]
    for path, found in zip(paths, starts):
        if not len(found):
            raise ValueError(f"{path} is empty")
    first = np.cumsum([0, *map(len, starts)])
    convert = converter(data)

    def where(number: int) -> str:
        file = int(np.searchsorted(first, number, side="right")) - 1
        return f"{paths[file]}, line {line_number(paths[file], int(starts[file][number - first[file]]))}"

    def read(numbers: Numbers) -> list[Text]:
        found: dict[int, Text] = {}
        for file in np.unique(np.searchsorted(first, numbers, side="right") - 1).tolist():
            here = np.sort(numbers[(numbers >= first[file]) & (numbers < first[file + 1])])
            with paths[file].open("rb") as source:
                for number in here.tolist():
                    begin, end = parts[file][2 * (number - first[file]) : 2 * (number - first[file]) + 2].tolist()
                    if source.tell() != begin:
                        source.seek(begin)
                    found[number] = line_text(source.read(end - begin), lambda number=number: where(number), convert)
        return [found[number] for number in numbers.tolist()]

    return Table(rows=int(first[-1]), read=read, where=where)


def line_text(line: bytes, where: Callable[[], str], convert: Any) -> Text:
    """The text of one JSON line; `where` is asked only when something is wrong, as counting lines takes time."""
    try:
        return convert(parse_line(line.decode(), ""), "")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where()}: not UTF-8 ({error.reason})") from None
    except ValueError as error:
        raise ValueError(f"{where()}{error}") from None


def line_number(path: Path, offset: int) -> int:
    """Number, from 1, of the line that begins at `offset`."""
    number = 1
    with path.open("rb") as source:
        while offset > 0:
            block = source.read(min(offset, 1 << 20))
            number += block.count(b"\n")
            offset -= len(block)
    return number


def lines_of(source: BinaryIO, path: Path, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Each line from where the file stands, and where it begins, up to those that begin at byte `end`.

    ValueError for one of more than 64 MiB: a file of another kind, without line breaks, may be larger than memory.
    """
    at = source.tell()
    while (end is None or at < end) and (line := source.readline(LINE)):
        if len(line) == LINE and not line.endswith(b"\n"):
            raise ValueError(f"{path}: the line at byte {at} is longer than {LINE >> 20} MiB; divide it into shorter ones")
        yield at, line
        at += len(line)


def _line_ends(path: Path) -> Iterator[int]:
    """Where each line that is not blank begins and ends, in turn."""
    try:
        with path.open("rb") as source:
            for at, line in lines_of(source, path):
                if not line.isspace():
                    yield at
                    yield at + len(line)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _arrow(rows: Any, data: Hub) -> Table:
    name, convert = f"the hub data set {data.name!r}", converter(data)
    if not len(rows):
        raise ValueError(f"{name} is empty")
    wanted = {data.messages} if data.messages is not None else {data.prompt, data.answer}
    rows = rows.select_columns([column for column in rows.column_names if column in wanted])

    def read(numbers: Numbers) -> list[Text]:
        columns = rows[numbers.tolist()]
        each = (dict(zip(columns, values)) for values in zip(*columns.values(), strict=True))
        return [convert(row, f"{name}, row {number}") for number, row in zip(numbers, each, strict=True)]

    return Table(rows=len(rows), read=read, where=lambda number: f"{name}, row {number}")


def saved_columns(data: Saved) -> Any:
    """The Arrow table of a folder that `save` made, mapped into memory."""
    import pyarrow

    path = Path(data.path).expanduser()
    try:
        with pyarrow.memory_map(str(path / SAVED_FILE)) as file:
            columns = pyarrow.ipc.open_stream(file).read_all()
    except (OSError, pyarrow.ArrowInvalid):
        raise ValueError(f"Saved: {path} holds no saved data; toolkit.data.save makes such a folder") from None
    if not {"prompt", "text"} <= set(columns.column_names) or not len(columns):
        raise ValueError(f"Saved: {path} holds no saved data; toolkit.data.save makes such a folder")
    return columns


def _saved(data: Saved) -> Table:
    columns = saved_columns(data)

    def read(numbers: Numbers) -> list[Text]:
        found = columns.take(numbers).to_pydict()
        messages = found.get("messages") or [None] * len(numbers)
        each = zip(numbers.tolist(), found["prompt"], found["text"], messages, strict=True)
        return [saved_text(prompt, text, said, data, number) for number, prompt, text, said in each]

    return Table(rows=len(columns), read=read, where=lambda number: f"{data.path}, row {number}")


def saved_text(prompt: str, text: str, messages: str | None, data: Saved, number: int) -> Text:
    """The text of one saved row."""
    where = f"{data.path}, row {number}"
    if messages is not None:
        return of_messages(messages, where)
    if data.chat and not prompt:
        raise ValueError(f"{where}: chat=True needs a prompt in every row, and this one has none")
    return as_chat(Document(prompt, text)) if data.chat else Document(prompt, text)
