"""Bodies that save on some ranks and load on others."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.distributed.fsdp_bodies import build
from toolkit.checkpoint import CheckpointError, load_into, read_manifest, read_rank_state, read_state, save, verify
from toolkit.parallel import Plan, apply_fsdp, mesh


def filled(plan: dict[str, int], *, start: float) -> dict[str, Tensor]:
    """A sharded model's parameters and a second moment for each, and plain tensors; `start` decides every value."""
    model = build(dtype="float32", adapted=True)
    apply_fsdp(model, mesh(Plan(**plan), "cpu"))
    tensors: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        size = parameter.numel()
        values = torch.arange(size).reshape(parameter.shape).float() + start * (index + 1)
        moment = distribute_tensor(values.double() * 2, parameter.device_mesh, parameter.placements)
        with torch.no_grad():
            parameter.copy_(distribute_tensor(values, parameter.device_mesh, parameter.placements))
        tensors |= {name: parameter, f"optim.exp_avg_sq.{name}": moment, f"optim.step.{name}": torch.tensor(start)}
    return tensors | {"buffer": torch.full((2, 2), start).bfloat16()}


def place() -> dict[str, int]:
    return {"rank": dist.get_rank(), "world_size": dist.get_world_size()}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write(*, folder: str, plan: dict[str, int], step: int = 5) -> str:
    rank_state = {"rng": torch.full((4,), dist.get_rank(), dtype=torch.uint8), "rank": dist.get_rank()}
    path = save(Path(folder), step=step, tensors=filled(plan, start=7.0), state={"tokens": 11}, rank_state=rank_state, **place())
    verify(path)
    manifest = read_manifest(path)
    # Each value lies in one place, although replicas hold it several times.
    for entry in manifest.tensors.values():
        assert entry.covered() and len({piece.offset for piece in entry.pieces}) == len(entry.pieces)
    return str(path)


def read(*, path: str, plan: dict[str, int]) -> dict[str, object]:
    """Fill tensors of this plan from the checkpoint; whether all are as they were saved, and the states."""
    found, expected = filled(plan, start=0.0), filled(plan, start=7.0)
    load_into(Path(path), found)
    same = all(torch.equal(local(tensor), local(expected[name])) for name, tensor in found.items())
    saved_ranks = read_manifest(Path(path)).world_size
    own = [read_rank_state(Path(path), rank) for rank in range(saved_ranks)]
    empty = sum(local(tensor).numel() == 0 for tensor in found.values())
    return {
        "same": same,
        "state": read_state(Path(path)),
        "ranks": [[state["rank"], *state["rng"].tolist()] for state in own],
        "empty": empty,
    }


def unequal_plain_tensors(*, folder: str) -> dict[str, list[str]]:
    """Ranks that hold different plain tensors, as pipeline stages do: each is written by the first that has it."""
    rank = dist.get_rank()
    mine = {"everywhere": torch.ones(2), f"stage.{rank // 2}": torch.full((3,), float(rank // 2)), f"own.{rank}": torch.ones(1)}
    path = save(Path(folder), step=1, tensors=mine, state={}, rank_state={}, **place())
    again = {name: torch.zeros_like(tensor) for name, tensor in mine.items()}
    load_into(path, again, strict=False)
    assert all(torch.equal(again[name], mine[name]) for name in mine)
    entries = read_manifest(path).tensors
    return {name: [piece.file for piece in entry.pieces] for name, entry in entries.items()}


def other_placements(*, folder: str) -> bool:
    """Shards on dim 1, on two mesh axes, and replicas: saved and loaded with placements that differ."""
    devices = mesh(Plan(dp_replicate=2, dp_shard=2), "cpu")["dp_replicate", "dp_shard"]
    whole = torch.arange(35.0).reshape(5, 7)
    rows, columns, all_ = Shard(0), Shard(1), Replicate()
    layouts = [[all_, columns], [rows, columns], [columns, columns], [rows, rows], [all_, all_]]
    path = None
    for number, layout in enumerate(layouts):
        tensors = {"w": distribute_tensor(whole, devices, layout)}
        path = save(Path(folder), step=number, tensors=tensors, state={}, rank_state={}, **place())
        for other in layouts:
            found = distribute_tensor(torch.zeros(5, 7), devices, other)
            load_into(path, {"w": found})
            if not torch.equal(found.full_tensor(), whole):
                return False
        plain = {"w": torch.zeros(5, 7)}
        load_into(path, plain)
        if not torch.equal(plain["w"], whole):
            return False
    return True


def failures(*, folder: str) -> list[str]:
    """What every rank is told when one cannot save; the next save works."""
    rank = dist.get_rank()
    attempts = [
        {"tensors": {"w": torch.ones(2)}, "rank_state": {"bad": print} if rank == 1 else {}},
        {"tensors": {"w": torch.ones(2, dtype=torch.float64 if rank == 1 else torch.float32)}, "rank_state": {}},
        {"tensors": {"w": torch.ones(2 + rank)}, "rank_state": {}},
    ]
    messages = []
    for step, attempt in enumerate(attempts):
        try:
            save(Path(folder), step=step, state={}, **attempt, **place())
            messages.append("nothing was refused")
        except CheckpointError as error:
            messages.append(str(error))
    save(Path(folder), step=9, tensors={"w": torch.ones(2)}, state={}, rank_state={}, **place())
    return messages
