"""Bodies for the tests of the pool itself, and small ones that several tests share."""

import os
import time

import torch
import torch.distributed as distributed
from torch.distributed.device_mesh import init_device_mesh

from toolkit.runs import current


def place() -> dict[str, int]:
    """Where this body runs, as torch, the environment and the run's context see it."""
    context = current()
    return {
        "rank": distributed.get_rank(),
        "world": distributed.get_world_size(),
        "environment": int(os.environ["WORLD_SIZE"]),
        "context": context.world_size,
        "control": distributed.get_world_size(context.control_group),
        "threads": torch.get_num_threads(),
        "process": os.getpid(),
    }


def sum_of_ranks(*, shape: tuple[int, ...]) -> list[float]:
    """The sum over ranks of (rank + 1), reduced along each axis of a mesh in turn."""
    names = tuple(f"axis{index}" for index in range(len(shape)))
    mesh = init_device_mesh("cpu", tuple(shape), mesh_dim_names=names)
    value = torch.tensor([float(distributed.get_rank() + 1)])
    for name in names:
        distributed.all_reduce(value, group=mesh.get_group(name))
    return value.tolist()


def fails_on(*, failing: int) -> None:
    """One rank raises, the others wait for it in a collective."""
    if distributed.get_rank() == failing:
        raise ValueError(f"rank {failing} raised")
    distributed.barrier()


def fails_alone() -> None:
    """Every rank raises, and none hangs."""
    raise ValueError("all raised")


def crashes() -> None:
    """One rank dies without a word."""
    if distributed.get_rank() == 1:
        os._exit(9)
    time.sleep(600)
