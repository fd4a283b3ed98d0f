"""The manifest of a checkpoint: which ranges of which tensors lie in which file, and every file's size and hash.

A checkpoint is a folder `step-N`. The manifest is written last, so a folder that has one was complete when it was
written; `check.py` tells whether it still is. Every name read from it is confined to the checkpoint's own folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

MANIFEST = "manifest.json"
STATE = "state.json"
SCHEMA = 1
RANK_STATE = "rank_state/"
"""Prefix, in a rank's file, of the tensors that belong to the rank itself and not to the model."""

DTYPES: dict[str, tuple[str, torch.dtype]] = {
    name: (code, getattr(torch, name))
    for name, code in {
        "float64": "F64",
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "int64": "I64",
        "int32": "I32",
        "int16": "I16",
        "int8": "I8",
        "uint8": "U8",
        "bool": "BOOL",
        "complex64": "C64",
    }.items()
}
"""Name here to (name in safetensors files, dtype)."""

_FILE_NAME = re.compile(r"rank-(0|[1-9][0-9]{0,8})\.(safetensors|json)|state\.json")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read: the message names the file and what to do."""


class PeerFailed(CheckpointError):
    """A checkpoint that another rank could not write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A box of a tensor that lies in one file, under the tensor's name."""

    file: str
    offset: tuple[int, ...]
    """First index of the box in each dim of the whole tensor."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A whole tensor: its shape, its dtype by name, and the pieces that it consists of."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]

    def covered(self) -> bool:
        """Whether the pieces have as many values as the tensor."""
        return sum(math.prod(piece.shape) for piece in self.pieces) == math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What `manifest.json` says."""

    step: int
    world_size: int
    tensors: Mapping[str, Entry]
    files: Mapping[str, File]

    def text(self) -> str:
        """The file's text; it holds the hash of its own content."""
        body = {"schema": SCHEMA, **asdict(self)}
        return json.dumps({**body, "sha256": digest(body)}, indent=1)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32; CheckpointError for a dtype that safetensors files cannot hold."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"tensors of {dtype} cannot be saved; convert to one of {', '.join(DTYPES)}")
    return name


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint folder `path`; CheckpointError if there is none or it is damaged."""
    file = regular_file(path, MANIFEST)
    try:
        data = json.loads(file.read_bytes())
        claimed = data.pop("sha256")
        if data.get("schema") != SCHEMA:
            raise CheckpointError(f"{file}: schema {data.get('schema')!r}, expected {SCHEMA}; use the version that wrote it")
        if claimed != digest(data):
            raise CheckpointError(f"{file} was changed after it was written; use an older checkpoint")
        return _parse(data)
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error}); use an older checkpoint") from None


def regular_file(path: Path, name: str) -> Path:
    """The file of that name directly inside the checkpoint; CheckpointError if it is missing, a link or anything else."""
    if name != MANIFEST and not _FILE_NAME.fullmatch(name):
        raise CheckpointError(f"{path / MANIFEST} names the file {name!r}, which is none of a checkpoint; do not load it")
    file = path / name
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: the checkpoint is not complete; use an older checkpoint") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{file} is no regular file; do not load it")
    return file


def digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content, in whatever order its keys stand."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parse(data: Mapping[str, Any]) -> Manifest:
    """The manifest in these data, with every name and number checked."""
    tensors = {}
    for name, entry in data["tensors"].items():
        pieces = tuple(
            Piece(file=piece["file"], offset=_sizes(piece["offset"]), shape=_sizes(piece["shape"])) for piece in entry["pieces"]
        )
        tensors[name] = Entry(shape=_sizes(entry["shape"]), dtype=entry["dtype"], pieces=pieces)
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} has the unknown dtype {entry['dtype']!r}")
        for piece in pieces:
            ends = [start + size for start, size in zip(piece.offset, piece.shape, strict=True)]
            if any(end > size for end, size in zip(ends, tensors[name].shape, strict=True)):
                raise ValueError(f"a piece of {name} lies outside the tensor")
            if piece.file not in data["files"]:
                raise ValueError(f"{name} lies in {piece.file!r}, which is not listed under files")
    files = {}
    for name, file in data["files"].items():
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"it names the file {name!r}, which is none of a checkpoint")
        files[name] = File(size=_size(file["size"]), sha256=str(file["sha256"]))
    return Manifest(step=_size(data["step"]), world_size=_size(data["world_size"]), tensors=tensors, files=files)


def _size(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"expected a whole number, got {number!r}")
    return number


def _sizes(numbers: list[int]) -> tuple[int, ...]:
    return tuple(map(_size, numbers))
