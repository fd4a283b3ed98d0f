"""Load a checkpoint into tensors of any sharding: each process reads the ranges that overlap with what it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.checkpoint.files import from_json
from toolkit.checkpoint.manifest import (
    RANK_STATE,
    STATE,
    CheckpointError,
    Manifest,
    dtype_name,
    read_manifest,
    regular_file,
)
from toolkit.checkpoint.ranges import local_part, local_range, overlap


@torch.no_grad()
def load_into(path: str | Path, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Fill `tensors` in place from the checkpoint folder `path`.

    Plain tensors are filled whole and DTensors shard by shard, whatever the sharding was when they were saved; the
    processes do not talk to one another. Shapes and dtypes must be those that were saved. A tensor that the checkpoint
    has not is always an error; with `strict` so is one that only the checkpoint has. The bytes are not verified here:
    `newest` and `verify` do that. Nothing is written before all names, shapes and dtypes have been compared.

    >>> load_into(path, {"w": weight}, strict=False)
    """
    path = Path(path)
    manifest = read_manifest(path)
    _compare(path, manifest, tensors, strict)
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for name, tensor in tensors.items():
            wanted = local_range(name, tensor)
            target = local_part(tensor)
            filled = 0
            for piece in manifest.tensors[name].pieces:
                both = overlap(wanted, (piece.offset, piece.shape))
                if both is None:
                    continue
                if piece.file not in files:
                    files[piece.file] = stack.enter_context(_open(path, piece.file))
                source = _stored(files[piece.file], path / piece.file, name, piece.shape, target.dtype)
                into, of = both
                target[into].copy_(source[of])
                filled += target[into].numel()
            if filled != math.prod(wanted[1]):
                raise CheckpointError(f"{path}: {name} has {filled} of the {math.prod(wanted[1])} values needed here")


def read_state(path: str | Path) -> dict[str, Any]:
    """The state that all processes share, as it was saved, and `step`."""
    return _read_json(Path(path), STATE)


def read_rank_state(path: str | Path, rank: int) -> dict[str, Any]:
    """The state of one process as it was saved, tensors on the CPU, tuples as lists; CheckpointError beyond its ranks."""
    path = Path(path)
    world_size = read_manifest(path).world_size
    if not 0 <= rank < world_size:
        raise CheckpointError(f"{path} was saved by {world_size} processes and has no rank {rank}; start that one afresh")
    with _open(path, f"rank-{rank}.safetensors") as file:
        own = {name: file.get_tensor(name).clone() for name in file.keys() if name.startswith(RANK_STATE)}
    return from_json(_read_json(path, f"rank-{rank}.json"), own)


def _compare(path: Path, manifest: Manifest, tensors: Mapping[str, Tensor], strict: bool) -> None:
    """Raise CheckpointError unless the checkpoint has these tensors, in these shapes and dtypes."""
    missing = [name for name in tensors if name not in manifest.tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {_some(missing)}: it was saved for another model or recipe")
    unasked = [name for name in manifest.tensors if name not in tensors]
    if strict and unasked:
        raise CheckpointError(f"{path} also has {_some(unasked)}; load with strict=False to leave these out")
    for name, tensor in tensors.items():
        entry = manifest.tensors[name]
        if (entry.shape, entry.dtype) != (tuple(tensor.shape), dtype_name(tensor.dtype)):
            raise CheckpointError(
                f"{path}: {name} is {entry.dtype} {entry.shape}, but here {dtype_name(tensor.dtype)} {tuple(tensor.shape)}; "
                "build the model as it was saved"
            )


def _open(path: Path, name: str) -> Any:
    """The safetensors file, mapped: only what is copied is read."""
    file = regular_file(path, name)
    try:
        return safe_open(file, framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({error}); use an older checkpoint") from None


def _stored(file: Any, place: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """One stored piece, which must be what the manifest says."""
    try:
        stored = file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{place}: {name}: {error}; use an older checkpoint") from None
    if tuple(stored.shape) != shape or stored.dtype != dtype:
        raise CheckpointError(f"{place}: {name} is not as the manifest says; use an older checkpoint")
    return stored


def _read_json(path: Path, name: str) -> dict[str, Any]:
    file = regular_file(path, name)
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); use an older checkpoint") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is damaged (no JSON object); use an older checkpoint")
    return data


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
