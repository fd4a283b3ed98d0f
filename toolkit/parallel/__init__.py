"""Parallelism: a Plan is data, a mesh is built from it, and apply_* functions change a model for it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.parallel.plan import AXES, DRIVEN, Plan, refuse

if TYPE_CHECKING:
    from toolkit.parallel.apply import apply_fsdp as apply_fsdp
    from toolkit.parallel.apply import find_blocks as find_blocks
    from toolkit.parallel.device_mesh import data_rank as data_rank
    from toolkit.parallel.device_mesh import mesh as mesh

_HOME = {"apply_fsdp": "apply", "data_rank": "device_mesh", "find_blocks": "apply", "mesh": "device_mesh"}
__all__ = ["AXES", "DRIVEN", "Plan", "refuse", *_HOME]


def __getattr__(name: str) -> Any:
    """Import on first use: a plan is needed where torch is not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
