"""From a Plan to a DeviceMesh with named axes, and the place of this process in it."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from toolkit.parallel.plan import AXES, Plan


def mesh(plan: Plan, device_type: str) -> DeviceMesh:
    """The mesh of all processes with the axes pp, dp_replicate, dp_shard, cp, tp, always all five and in this order.

    Axes of size 1 stay, so that `mesh["dp_shard"]` can be written whatever the plan is. `device_type` is "cpu" or "cuda".
    Raises ValueError if the plan does not need exactly the processes that there are.

    >>> mesh(Plan(), "cpu").mesh_dim_names
    ('pp', 'dp_replicate', 'dp_shard', 'cp', 'tp')
    """
    if not dist.is_initialized():
        raise ValueError("mesh() needs a process group, also for one process: start through toolkit.launch")
    if plan.world_size != dist.get_world_size():
        raise ValueError(f"{plan!r} needs {plan.world_size} processes, there are {dist.get_world_size()}")
    return init_device_mesh(device_type, tuple(getattr(plan, axis) for axis in AXES), mesh_dim_names=AXES)


def data_rank(mesh: DeviceMesh) -> tuple[int, int]:
    """Which share of the data this process sees, and how many shares there are.

    Ranks that differ only in pp, cp or tp get the same share.
    """
    replica, shard = mesh.get_local_rank("dp_replicate"), mesh.get_local_rank("dp_shard")
    return replica * mesh["dp_shard"].size() + shard, mesh["dp_replicate"].size() * mesh["dp_shard"].size()
