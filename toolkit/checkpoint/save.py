"""Save a checkpoint: every process writes its shards, the folder appears whole or not at all.

`step-N.partial` is written and forced to disk, the manifest last, then renamed to `step-N`: a crash at any moment
leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from toolkit.checkpoint.files import clean, sync_folder, to_json, write_tensors, write_text
from toolkit.checkpoint.manifest import (
    MANIFEST,
    RANK_STATE,
    STATE,
    CheckpointError,
    Entry,
    File,
    Manifest,
    PeerFailed,
    Piece,
    dtype_name,
)
from toolkit.checkpoint.ranges import is_first_replica, local_part, local_range

T = TypeVar("T")


def save(
    folder: str | Path,
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    rank_state: Mapping[str, Any],
    rank: int,
    world_size: int,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write the checkpoint `folder/step-N` and return its path, on every process once it is complete.

    All `world_size` processes of `group` call this, at an optimizer step. `tensors` holds plain tensors, which are equal
    on all processes that have them and written by the first of these, and DTensors, each shard written once. `state` is
    JSON and the same everywhere (process 0's is written); `rank_state` is this process's own, JSON and tensors nested.
    A checkpoint of the same step is replaced. Raises CheckpointError on every process if one of them fails.

    >>> path = save(folder, step=3, tensors={"w": torch.ones(2)}, state={}, rank_state={}, rank=0, world_size=1)
    >>> path.name
    'step-3'
    """
    folder = Path(folder)
    partial = folder / f"step-{step}.partial"
    ranks = _Ranks(rank=rank, world_size=world_size, group=group, partial=partial)
    ranks.all_do(lambda: _begin(folder, partial) if rank == 0 else None)
    owned = ranks.all_do(lambda: _owned(tensors, ranks))
    ranks.all_do(lambda: _write_rank(partial, rank, owned, tensors, rank_state))
    ranks.all_do(lambda: _finish(partial, step, world_size, state) if rank == 0 else None)
    return folder / f"step-{step}"


def prune(folder: str | Path, keep: int, *, protect: Collection[int] = ()) -> list[Path]:
    """Remove all but the newest `keep` checkpoints and those of the steps in `protect`. Returns what was removed.

    Only one process calls this. A checkpoint without its files in full size counts as none: it never pushes out an
    older one that is whole.
    """
    from toolkit.checkpoint.check import complete, steps

    if keep < 1:
        raise ValueError(f"keep: expected at least 1, got {keep}")
    kept, removed = 0, []
    for step, path in steps(Path(folder)):
        if kept >= keep and step not in protect:
            aside = path.with_name(f"step-{step}.removed")
            path.rename(aside)
            shutil.rmtree(aside)
            removed.append(path)
        elif complete(path):
            kept += 1
    return removed


class _Ranks:
    """The processes that save together: a step that fails on one fails on all, with its rank named."""

    def __init__(self, *, rank: int, world_size: int, group: dist.ProcessGroup | None, partial: Path):
        self.rank, self.world_size, self.group, self.partial = rank, world_size, group, partial

    def share(self, number: int) -> list[int]:
        """Each process's number, by rank."""
        numbers = torch.zeros(self.world_size, dtype=torch.int64)
        numbers[self.rank] = number
        if self.world_size > 1:
            dist.all_reduce(numbers, group=self.group)
        return numbers.tolist()

    def all_do(self, work: Callable[[], T]) -> T:
        """Run `work` and wait for the others; CheckpointError if it failed anywhere."""
        results: list[T] = []
        error = None
        try:
            results.append(work())
        except (OSError, ValueError, TypeError, RuntimeError, KeyError) as caught:
            error = caught
        failed = [rank for rank, flag in enumerate(self.share(error is not None)) if flag]
        remedy = f"{self.partial.parent} keeps its earlier checkpoints"
        if failed and self.rank == 0:  # No rank writes any more: what there is of it only takes room.
            shutil.rmtree(self.partial, ignore_errors=True)
        if error is not None:
            raise CheckpointError(f"{self.partial}: rank {self.rank} could not save: {error}; {remedy}") from error
        if failed:
            raise PeerFailed(f"{self.partial}: rank {failed[0]} could not save, its log says why; {remedy}")
        return results[0]


def _begin(folder: Path, partial: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    clean(folder)
    partial.mkdir(mode=0o700)


def _owned(tensors: Mapping[str, Tensor], ranks: _Ranks) -> list[str]:
    """The tensors that this process writes: its DTensor shards, and plain tensors that no lower rank has."""
    for name in tensors:
        if name.startswith((RANK_STATE, "__")):
            raise ValueError(f"a tensor may not be named {name!r}")
    plain = sorted(name for name, tensor in tensors.items() if not isinstance(tensor, DTensor))
    shards = [name for name, tensor in tensors.items() if isinstance(tensor, DTensor) and is_first_replica(tensor)]
    text = json.dumps(plain)
    digests = ranks.share(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
    if len(set(digests)) == 1:
        return (plain if ranks.rank == 0 else []) + shards
    (ranks.partial / f"rank-{ranks.rank}.names").write_text(text, encoding="utf-8")
    ranks.share(0)
    lower = set()
    for rank in range(ranks.rank):
        lower.update(json.loads((ranks.partial / f"rank-{rank}.names").read_text(encoding="utf-8")))
    return [name for name in plain if name not in lower] + shards


def _write_rank(partial: Path, rank: int, owned: list[str], tensors: Mapping[str, Tensor], rank_state: Mapping[str, Any]) -> None:
    """This process's tensors and state, and an index of them for process 0."""
    text, own = to_json(rank_state, "rank_state")
    name_of_file = f"rank-{rank}.safetensors"
    entries, parts = {}, dict(own)
    for name, tensor in tensors.items():
        offset, shape = local_range(name, tensor)
        pieces = ()
        if name in owned and 0 not in shape:
            parts[name] = local_part(tensor)
            pieces = (Piece(file=name_of_file, offset=offset, shape=shape),)
        entries[name] = asdict(Entry(shape=tuple(tensor.shape), dtype=dtype_name(tensor.dtype), pieces=pieces))
    files = {
        name_of_file: asdict(write_tensors(partial / name_of_file, parts)),
        f"rank-{rank}.json": asdict(write_text(partial / f"rank-{rank}.json", text)),
    }
    (partial / f"rank-{rank}.index").write_text(json.dumps({"tensors": entries, "files": files}), encoding="utf-8")


def _finish(partial: Path, step: int, world_size: int, state: Mapping[str, Any]) -> None:
    """Put the indexes of all processes together, write the manifest and let the checkpoint appear."""
    if state.get("step", step) != step:
        raise ValueError(f"state says step {state['step']}, saved is step {step}")
    text, own = to_json({**state, "step": step}, "state")
    if own:
        raise ValueError("state holds tensors; put them into tensors or rank_state")
    files = {STATE: write_text(partial / STATE, text)}
    entries: dict[str, Entry] = {}
    for rank in range(world_size):
        index = json.loads((partial / f"rank-{rank}.index").read_text(encoding="utf-8"))
        files |= {name: File(**file) for name, file in index["files"].items()}
        for name, data in index["tensors"].items():
            pieces = tuple(Piece(file=p["file"], offset=tuple(p["offset"]), shape=tuple(p["shape"])) for p in data["pieces"])
            entry = Entry(shape=tuple(data["shape"]), dtype=data["dtype"], pieces=pieces)
            known = entries.setdefault(name, Entry(shape=entry.shape, dtype=entry.dtype, pieces=()))
            if (known.shape, known.dtype) != (entry.shape, entry.dtype):
                raise ValueError(f"{name} is {known.dtype} {known.shape} on one rank, {entry.dtype} {entry.shape} on rank {rank}")
            entries[name] = Entry(shape=entry.shape, dtype=entry.dtype, pieces=known.pieces + pieces)
    for name, entry in entries.items():
        if not entry.covered():
            raise ValueError(f"{name}: the ranks together hold another number of values than its shape {entry.shape}")
    for path in [*partial.glob("rank-*.index"), *partial.glob("rank-*.names")]:
        path.unlink()
    manifest = Manifest(step=step, world_size=world_size, tensors=entries, files=files)
    write_text(partial / MANIFEST, manifest.text())
    sync_folder(partial)
    target = partial.with_suffix("")
    replaced = target.with_suffix(".replaced")
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    sync_folder(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)
