"""Plan: how many processes train one model, and along which axes the work is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from toolkit.values import Range, check

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""The axes of the device mesh in their fixed order, outermost first: neighbours on the last axis talk most."""

DRIVEN = ("dp_replicate", "dp_shard")
"""The axes that training here can divide the work along."""

_WORDS = {
    "pp": "pipeline stages",
    "dp_replicate": "replicas",
    "dp_shard": "shards",
    "cp": "parts of each sequence",
    "tp": "parts of each weight",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How the work is divided: one number of parts for each axis; their product is the number of processes."""

    dp_replicate: Annotated[int, Range(1)] = 1
    """Data-parallel replicas, 1 or more: each holds a whole (sharded) copy and sees other data."""
    dp_shard: Annotated[int, Range(1)] = 1
    """Data-parallel shards, 1 or more: parameters, gradients and optimizer state are cut into so many parts."""
    cp: Annotated[int, Range(1)] = 1
    """Context parallel, 1 or more: each sequence is cut into so many parts."""
    tp: Annotated[int, Range(1)] = 1
    """Tensor parallel, 1 or more: the weights of a layer are cut into so many parts."""
    pp: Annotated[int, Range(1)] = 1
    """Pipeline parallel, 1 or more: the blocks of the model are cut into so many stages."""
    ep: Annotated[int, Range(1)] = 1
    """Expert parallel, 1 or more: a divisor of dp_shard x cp x tp, not a factor of the number of processes."""

    def __post_init__(self) -> None:
        check(self)
        inside = self.dp_shard * self.cp * self.tp
        if inside % self.ep:
            raise ValueError(
                f"Plan.ep: {self.ep} must divide dp_shard x cp x tp = {self.dp_shard} x {self.cp} x {self.tp} = {inside}"
            )

    @property
    def world_size(self) -> int:
        """Number of processes: the product of all axes but `ep`."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def data_ranks(self) -> int:
        """Number of shares that the data is divided into: dp_replicate x dp_shard."""
        return self.dp_replicate * self.dp_shard

    def describe(self) -> str:
        """One line for people.

        >>> Plan(dp_replicate=2, dp_shard=2).describe()
        '4 processes: 2 replicas x 2 shards'
        """
        parts = [f"{getattr(self, axis)} {_WORDS[axis]}" for axis in AXES if getattr(self, axis) > 1]
        text = f"{self.world_size} process{'es' if self.world_size > 1 else ''}"
        if parts:
            text += ": " + " x ".join(parts)
        if self.ep > 1:
            text += f", experts spread over {self.ep} of them"
        return text


def refuse(plan: Plan) -> None:
    """Raise ValueError if training here cannot drive this plan, with the axis and what to use for it."""
    planned = [axis for axis in ("cp", "tp", "pp", "ep") if getattr(plan, axis) > 1]
    if planned:
        asked = " and ".join(f"{axis}={getattr(plan, axis)}" for axis in planned)
        raise ValueError(
            f"{plan!r}: {asked} is a valid plan, but nothing here divides the work along {' or '.join(planned)} yet; "
            f"use {' and '.join(DRIVEN)}, for example Plan(dp_shard={max(plan.world_size, plan.ep)})"
        )
