"""apply_fsdp: cut a model's parameters over the data-parallel processes, one unit a block (FSDP2).

Source: PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, Zhao et al., arXiv:2304.11277; the code is
`torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def apply_fsdp(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    param_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
    blocks: Sequence[nn.Module] | None = None,
) -> nn.Module:
    """Shard `model` in place over the axes dp_replicate and dp_shard of a mesh made by `mesh()`. Returns the model.

    Each transformer block is one unit, what is left (embeddings, last norm, head: also when tied) is the root unit.
    `blocks` names the units where `find_blocks` would choose others. Gradients are **sums** over all data-parallel
    ranks, not means: divide the loss by the number of target tokens of the whole global batch. `param_dtype` is the
    dtype of gathered parameters and of the computation; gradients are then summed, and kept, in the parameters' own.
    `reshard_after_forward=False` keeps gathered parameters until backward: a third less traffic, more memory.
    Adapt first, then shard. Build the optimizer afterwards, its parameters are DTensors.

    Raises ValueError for a parameter that two units would own, and for trained parameters of two dtypes in one unit.
    """
    units = list(find_blocks(model) if blocks is None else blocks)
    dtypes = _trained_dtypes(model, units)
    replicated = mesh["dp_replicate"].size() > 1
    data_mesh = mesh["dp_replicate", "dp_shard"] if replicated else mesh["dp_shard"]
    for unit in [*units, model]:
        policy = MixedPrecisionPolicy(
            param_dtype=param_dtype,
            reduce_dtype=dtypes[unit] if param_dtype is not None else None,
            cast_forward_inputs=param_dtype is not None,
        )
        fully_shard(unit, mesh=data_mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # A factor alone asks for a pre-multiplied sum, which gloo does not have.
            module.set_force_sum_reduction_for_comms(True)
    return model


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the members of its outermost `nn.ModuleList`s that hold parameters.

    A model without such a list has no blocks and becomes one unit.

    >>> [type(block).__name__ for block in find_blocks(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])}))]
    ['Linear']
    """
    found: list[nn.Module] = []

    def walk(module: nn.Module, inside_list: bool) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                walk(child, inside_list or isinstance(child, nn.ModuleList))
            elif inside_list:
                found.extend([child] if any(True for _ in child.parameters()) else [])
            else:
                walk(child, False)

    walk(model, isinstance(model, nn.ModuleList))
    return found


def _trained_dtypes(model: nn.Module, units: Sequence[nn.Module]) -> dict[nn.Module, torch.dtype | None]:
    """The one dtype that each unit and the root train, None if nothing; ValueError for units that FSDP cannot have."""
    names = {module: name for name, module in model.named_modules()}
    owner: dict[nn.Parameter, nn.Module] = {}
    for unit in units:
        if unit not in names:
            raise ValueError(f"blocks: a {type(unit).__name__} is no part of the model")
        for parameter in unit.parameters():
            if owner.setdefault(parameter, unit) is not unit:
                _refuse_shared(model, parameter)
    inside = tuple(f"{names[unit]}." for unit in units)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if owner.setdefault(parameter, model) is not model and not name.startswith(inside):
            _refuse_shared(model, parameter)
    dtypes: dict[nn.Module, torch.dtype | None] = dict.fromkeys([*units, model])
    for parameter, unit in owner.items():
        if parameter.requires_grad and dtypes[unit] not in (None, parameter.dtype):
            place = names[unit] or "the root"
            raise ValueError(f"{place} trains parameters of {dtypes[unit]} and of {parameter.dtype}; use one dtype")
        if parameter.requires_grad:
            dtypes[unit] = parameter.dtype
    return dtypes


def _refuse_shared(model: nn.Module, parameter: nn.Parameter) -> None:
    names = [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]
    raise ValueError(f"{' and '.join(names)} are one parameter in two units; name blocks= so that one unit holds both")
