"""Store what lives in a notebook, so that a run in another process can name it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.sources import SAVED_FILE, Document, Saved
from toolkit.models.storage import build_once, cache_folder


def save(rows: Iterable[str | Mapping[str, Any] | Document], folder: str | Path | None = None) -> Saved:
    """Store documents as Arrow in a folder named by their content, below `folder` or the user's cache.

    A row is a text, a `Document`, or a mapping with "text", or with "prompt" and "answer"; a `datasets.Dataset` has such rows
    too, and `datasets.Dataset.from_file` reads what is written. The same documents give the same folder. Raises ValueError
    for an empty list and for a row with other keys.

    >>> save(["one text", "another"]).held_out
    0.1
    """
    documents = [_document(row, number) for number, row in enumerate(rows)]
    if not documents:
        raise ValueError("save: there is nothing to save")
    digest = hashlib.sha256()
    for part in (part for document in documents for part in document):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)

    def build(target: Path) -> None:
        import pyarrow

        table = pyarrow.table({"prompt": [d.prompt for d in documents], "text": [d.text for d in documents]})
        with pyarrow.OSFile(str(target / SAVED_FILE), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)

    parent = cache_folder("data") if folder is None else Path(folder)
    return Saved(path=str(build_once(parent / f"saved-{digest.hexdigest()[:16]}", build)))


def _document(row: Any, number: int) -> Document:
    if isinstance(row, str):
        return Document("", row)
    if isinstance(row, Document):
        return row
    if not isinstance(row, Mapping):
        raise ValueError(f"save: row {number} is {type(row).__name__}, not a text, a Document or a mapping")
    text = row.get("answer", row.get("text"))
    prompt = row.get("prompt", "")
    if not isinstance(text, str) or not isinstance(prompt, str):
        raise ValueError(f"save: row {number} needs texts 'text', or 'prompt' and 'answer', and has {', '.join(row)}")
    return Document(prompt, text)
