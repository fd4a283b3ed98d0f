"""Files that are on the disk when the call returns, and a safetensors writer that hashes while it writes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.manifest import DTYPES, RANK_STATE, CheckpointError, File, dtype_name

STEP = re.compile(r"step-(0|[1-9][0-9]*)(\.replaced)?")
_UNFINISHED = re.compile(r"step-[0-9]+\.(partial|removed)")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> File:
    """Write a safetensors file, durably, one tensor in memory at a time. Returns its size and hash."""
    # Widest values first: every tensor then starts at a multiple of its item size, as readers that map files expect.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        code, _ = DTYPES[dtype_name(tensor.dtype)]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hasher = hashlib.sha256()
    with open(path, "xb", opener=_private) as file:
        for block in (len(text).to_bytes(8, "little"), text):
            hasher.update(block)
            file.write(block)
        for name in order:
            if tensors[name].numel():
                block = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                hasher.update(block)
                file.write(block)
        _sync(file)
    return File(size=8 + len(text) + end, sha256=hasher.hexdigest())


def write_text(path: Path, text: str) -> File:
    """Write a text file, durably. Returns its size and hash."""
    data = text.encode()
    with open(path, "xb", opener=_private) as file:
        file.write(data)
        _sync(file)
    return File(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clean(folder: Path) -> None:
    """Remove what saves and removals that were cut off have left, and undo a replacement that was cut off."""
    for path in list(folder.iterdir()):
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)
        elif STEP.fullmatch(path.name) and path.name.endswith(".replaced"):
            whole = path.with_name(path.name.removesuffix(".replaced"))
            if whole.exists():
                shutil.rmtree(path)
            else:
                path.rename(whole)


def to_json(data: Any, what: str) -> tuple[str, dict[str, Tensor]]:
    """JSON text of nested data in which tensors are replaced by names, and the tensors by these names."""
    tensors: dict[str, Tensor] = {}

    def strip(item: Any) -> Any:
        if isinstance(item, Tensor):
            name = f"{RANK_STATE}{len(tensors)}"
            tensors[name] = item
            return {"$tensor": name}
        if isinstance(item, Mapping):
            if "$tensor" in item or not all(isinstance(key, str) for key in item):
                raise TypeError("keys must be strings other than '$tensor'")
            return {key: strip(value) for key, value in item.items()}
        return [strip(value) for value in item] if isinstance(item, list | tuple) else item

    try:
        return json.dumps(strip(data), allow_nan=False), tensors
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what} cannot be written as JSON and tensors: {error}") from None


def from_json(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `to_json` was given, with tuples as lists."""
    if isinstance(data, dict):
        if set(data) == {"$tensor"}:
            return tensors[data["$tensor"]]
        return {key: from_json(value, tensors) for key, value in data.items()}
    return [from_json(value, tensors) for value in data] if isinstance(data, list) else data


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
