"""Parallelism: a Plan is data, a mesh is built from it, and apply_* functions change a model for it."""

from toolkit.parallel.apply import apply_fsdp, find_blocks
from toolkit.parallel.mesh import data_rank, mesh
from toolkit.parallel.plan import AXES, DRIVEN, Plan, refuse

__all__ = ["AXES", "DRIVEN", "Plan", "apply_fsdp", "data_rank", "find_blocks", "mesh", "refuse"]
