"""Store what lives in a notebook, so that a run in another process can name it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data.rows import of_messages
from toolkit.data.sources import SAVED_FILE, Conversation, Document, Saved, Text
from toolkit.models.storage import build_once, cache_folder


def save(
    rows: Iterable[str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Text],
    folder: str | Path | None = None,
    *,
    messages: str = "messages",
) -> Saved:
    """Store documents as Arrow in a folder named by their content, below `folder` or the user's cache.

    A row is a text, a `Document`, a `Conversation`, a list of messages `{"role": ..., "content": ...}`, or a mapping with such a
    list under `messages`, with "text", or with "prompt" and "answer". A `datasets.Dataset` has such rows too, and
    `datasets.Dataset.from_file` reads what is written. The same documents give the same folder. Raises ValueError for an
    empty list, a row with other keys, or a full disk.

    >>> save(["one text", "another"]).held_out
    0.1
    """
    if isinstance(rows, str | Mapping):
        raise ValueError(f"save: expected rows, got a single {type(rows).__name__}; put it into a list")
    texts = [_text(row, number, messages) for number, row in enumerate(rows)]
    if not texts:
        raise ValueError("save: there is nothing to save")
    digest = hashlib.sha256()
    for part in (part for text in texts for part in (type(text).__name__, *text)):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)

    def build(target: Path) -> None:
        import pyarrow

        columns = {
            "prompt": [text.prompt if isinstance(text, Document) else "" for text in texts],
            "text": [text.text if isinstance(text, Document) else "" for text in texts],
            "messages": [text.messages if isinstance(text, Conversation) else None for text in texts],
        }
        table = pyarrow.table({name: pyarrow.array(column, pyarrow.string()) for name, column in columns.items()})
        with pyarrow.OSFile(str(target / SAVED_FILE), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)

    parent = cache_folder("data") if folder is None else Path(folder).expanduser()
    return Saved(path=str(build_once(parent / f"saved-{digest.hexdigest()[:16]}", build)))


def _text(row: Any, number: int, messages: str) -> Text:
    if isinstance(row, str):
        return Document("", row)
    if isinstance(row, Document | Conversation):
        return row
    if isinstance(row, Sequence):
        return of_messages(list(row), f"save: row {number}")
    if not isinstance(row, Mapping):
        raise ValueError(f"save: row {number} is {type(row).__name__}, not a text, a Document, messages or a mapping")
    if row.get(messages) is not None:
        return of_messages(row[messages], f"save: row {number}: {messages!r}")
    text = row.get("answer", row.get("text"))
    prompt = row.get("prompt", "")
    if not isinstance(text, str) or not isinstance(prompt, str):
        needed = f"{messages!r}, texts 'text', or 'prompt' and 'answer'"
        raise ValueError(f"save: row {number} needs {needed}, and has {', '.join(map(str, row)) or 'nothing'}")
    return Document(prompt, text)
