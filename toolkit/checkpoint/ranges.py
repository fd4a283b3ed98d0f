"""Which range of a whole tensor this process holds, and whether it is the one that saves it."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from toolkit.checkpoint.manifest import CheckpointError


def local_range(name: str, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(offset, shape) of this process's part; all of a plain tensor. Uneven and empty shards are those of `torch.chunk`."""
    offset, shape = [0] * tensor.dim(), list(tensor.shape)
    if isinstance(tensor, DTensor):
        coordinate = tensor.device_mesh.get_coordinate()
        if coordinate is None:
            raise CheckpointError(f"{name}: this process is not in the tensor's mesh; pass only tensors it holds")
        for axis, placement in enumerate(tensor.placements):
            if type(placement) is Shard:
                dim = placement.dim
                chunk = -(-shape[dim] // tensor.device_mesh.size(axis))
                start = min(chunk * coordinate[axis], shape[dim])
                offset[dim], shape[dim] = offset[dim] + start, min(chunk, shape[dim] - start)
            elif type(placement) is not Replicate:
                raise CheckpointError(f"{name}: placement {placement} is not saved; redistribute to Shard or Replicate")
        if tuple(shape) != tuple(tensor.to_local().shape):
            raise CheckpointError(f"{name}: holds {tuple(tensor.to_local().shape)} where its placements say {tuple(shape)}")
    return tuple(offset), tuple(shape)


def local_part(tensor: Tensor) -> Tensor:
    """The tensor in this process's memory: its shard, or the tensor itself."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def is_first_replica(tensor: DTensor) -> bool:
    """Whether this process is the first along every mesh axis on which the tensor is replicated."""
    coordinate = tensor.device_mesh.get_coordinate()
    return coordinate is not None and all(
        index == 0 for index, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate()
    )


def overlap(
    first: tuple[tuple[int, ...], tuple[int, ...]], second: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where two boxes (offset, shape) of one tensor overlap, as slices into the first and into the second; or None."""
    into_first, into_second = [], []
    for start, size, other_start, other_size in zip(*first, *second, strict=True):
        low, high = max(start, other_start), min(start + size, other_start + other_size)
        if low >= high:
            return None
        into_first.append(slice(low - start, high - start))
        into_second.append(slice(low - other_start, high - other_start))
    return tuple(into_first), tuple(into_second)
