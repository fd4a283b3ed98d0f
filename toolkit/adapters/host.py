"""The one host of all adapters: replaces linear layers by `Adapted`, and puts them back.

Everything with an effect is here: module surgery, freezing, merging, switching off. The methods are values (`lora.py`).
Shapes: O output features, I input features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from toolkit.adapters.api import AdapterLike, Params, Site
from toolkit.adapters.sites import Target, find_targets

SHARED = "adapter_shared"
"""Name, at the root of the model, of the module list that holds what sites share."""


class Adapted(nn.Module):
    """A linear layer and the adapter beside it.

    State-dict names: `base.weight`, `base.bias`, and one name for each tensor of the method (`a_RI`, `b_OR`). What is
    trained is a parameter, what the method froze is a buffer. `multiplier` scales the change that the adapter makes: 1
    while training, 0 is the base model (the adapter then takes no part in the graph: its gradients are None).
    """

    def __init__(self, base: nn.Linear, method: AdapterLike, site: Site, params: Params, shared: nn.Module | None):
        super().__init__()
        self.base = base
        self.method = method
        self.site = site
        self.multiplier = 1.0
        # In a tuple, so that it is not registered here too: its tensors belong to the root of the model only.
        self._shared = (shared,)
        for name, tensor in params.trained.items():
            self.register_parameter(name, nn.Parameter(tensor))
        for name, tensor in params.frozen.items():
            self.register_buffer(name, tensor)

    @property
    def params(self) -> Params:
        """The adapter's tensors by name, without the base layer."""
        return _params_of(self)

    @property
    def shared(self) -> Params | None:
        """What this site shares with others, None for most methods."""
        (module,) = self._shared
        return None if module is None else _params_of(module)

    @property
    def weight(self) -> Tensor:
        """The weight this layer acts with, differentiable: code that reads `layer.weight` still computes the right thing."""
        return self.merged()[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias this layer acts with."""
        return self.merged()[1]

    @property
    def in_features(self) -> int:
        return self.site.shape[1]

    @property
    def out_features(self) -> int:
        return self.site.shape[0]

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the ordinary layer that computes the same."""
        weight_OI, bias_O = self.base.weight, self.base.bias
        if self.multiplier == 0:
            return weight_OI, bias_O
        new_OI, new_O = self.method.merge(self.site, weight_OI, bias_O, self.params, self.shared)
        if self.multiplier == 1:
            return new_OI, new_O
        new_OI = torch.lerp(weight_OI, new_OI, self.multiplier)
        if new_O is not None:
            new_O = torch.lerp(torch.zeros_like(new_O) if bias_O is None else bias_O, new_O, self.multiplier)
        return new_OI, new_O

    def forward(self, x: Tensor) -> Tensor:
        if self.multiplier == 0:
            return self.base(x)
        apply = getattr(self.method, "apply", None)
        if apply is None:
            return F.linear(x, *self.merged())
        y = apply(x, self.base, self.params, self.shared)
        return y if self.multiplier == 1 else torch.lerp(self.base(x), y, self.multiplier)

    def extra_repr(self) -> str:
        return repr(self.method) if self.multiplier == 1 else f"{self.method!r}, multiplier={self.multiplier}"


class _Shared(nn.Module):
    """The tensors that the sites of one method value share."""

    def __init__(self, params: Params):
        super().__init__()
        for name, tensor in params.trained.items():
            self.register_parameter(name, nn.Parameter(tensor))
        for name, tensor in params.frozen.items():
            self.register_buffer(name, tensor)


def adapt(model: nn.Module, adapters: Mapping[str, AdapterLike], *, seed: int = 0, dtype: torch.dtype | None = None) -> nn.Module:
    """Put adapters beside the linear layers that the patterns name, in place, and freeze all other parameters.

    A pattern is matched against module paths as a file name is (`*.q_proj`; `*` also crosses dots). It is an error if a
    pattern names no linear layer, if two name the same one, if the model is adapted already (all patterns go into one
    call) or if it is sharded already (adapt first: adapters attached later would train unsynchronised).

    What is drawn depends on `seed` and the module's path only, not on device, order or the other patterns. Trained
    tensors are kept in `dtype`; by default float32 beside a base in half precision, else the dtype of the base: small
    updates are then not lost to rounding, and the computation still runs in the dtype of the activations. Beside a
    weight on the meta device they are made on the CPU. Returns the model.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> model = adapt(model, {"0": LoRA(rank=2)})
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['0.a_RI', '0.b_OR']
    """
    if any(isinstance(module, Adapted) for module in model.modules()):
        raise ValueError("the model has adapters already: name all patterns in one adapt() call, or merge_() it first")
    return attach(model, find_targets(model, adapters), seed=seed, dtype=dtype)


def attach(
    model: nn.Module,
    targets: list[Target],
    *,
    seed: int,
    dtype: torch.dtype | None,
    values: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> nn.Module:
    """Do what `adapt` says to targets that are already chosen; `values` (by path, then name) replace what was drawn."""
    for target in targets:
        _refuse(target)
    shared = _make_shared(targets, seed, dtype)
    made: list[tuple[Target, Adapted]] = []
    for target in targets:
        weight_OI, site, owner = target.linear.weight, target.site, shared.get(target.method)
        generator = _generator(seed, site.path)
        drawn = target.method.init(site, weight_OI.detach(), None if owner is None else _params_of(owner), generator=generator)
        params = _placed(drawn, weight_OI, dtype)
        adapted = Adapted(target.linear, target.method, site, params, owner)
        if values is not None:
            fill(adapted, values[site.path])
        made.append((target, adapted))
    model.requires_grad_(False)
    for target, adapted in made:
        for path in target.paths:
            _set_module(model, path, adapted)
    if shared:
        model.add_module(SHARED, nn.ModuleList(shared.values()))
    return model


@torch.no_grad()
def fill(adapted: Adapted, values: Mapping[str, Tensor]) -> None:
    """Copy values into the trained tensors; ValueError unless names and shapes are the same."""
    expected = {name: tuple(tensor.shape) for name, tensor in adapted.params.trained.items()}
    given = {name: tuple(tensor.shape) for name, tensor in values.items()}
    if expected != given:
        raise ValueError(f"{adapted.site.path}: {adapted.method!r} has the tensors {expected}, given were {given}")
    for name, tensor in values.items():
        adapted.params.trained[name].copy_(tensor)


def merge_(model: nn.Module) -> nn.Module:
    """Write every adapter into its base weight and take the wrappers off, in place. Returns the model.

    The merged weight keeps the base's dtype; parameters stay frozen. A weight that another module uses too (a tied
    embedding) is refused before anything is changed: merging would change both.
    """
    found: dict[Adapted, list[str]] = {}
    users: dict[int, set[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Adapted):
            found.setdefault(module, []).append(path)
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), set()).add(path or "the model")
    if not found:
        raise ValueError("nothing to merge: the model has no adapters")
    for module, paths in found.items():
        others = users[id(module.base.weight)] - {f"{path}.base" for path in paths}
        if others:
            raise ValueError(f"{paths[0]}: its weight is also that of {', '.join(sorted(others))}; merging changes both")
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise ValueError(f"{paths[0]} is sharded: merge a model with whole tensors, loaded without a plan")
    for module, paths in found.items():
        merged = _merge_one(module)
        for path in paths:
            _set_module(model, path, merged)
    if hasattr(model, SHARED):
        delattr(model, SHARED)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model computes as its base does: every multiplier is 0, and is put back at the end."""
    modules = [module for module in model.modules() if isinstance(module, Adapted)]
    before = [module.multiplier for module in modules]
    try:
        for module in modules:
            module.multiplier = 0.0
        yield model
    finally:
        for module, multiplier in zip(modules, before, strict=True):
            module.multiplier = multiplier


@torch.no_grad()
def _merge_one(module: Adapted) -> nn.Linear:
    """The base layer with the adapter inside."""
    weight_OI, bias_O = module.merged()
    base = module.base
    if weight_OI is not base.weight:
        base.weight.data = weight_OI.detach()
    if bias_O is not None and bias_O is not base.bias:
        base.bias = nn.Parameter(bias_O.detach(), requires_grad=False)
    return base


def _refuse(target: Target) -> None:
    """Raise for what an adapter cannot be put beside."""
    path, linear, method = target.site.path, target.linear, target.method
    if any(isinstance(parameter, DTensor) for parameter in linear.parameters()):
        raise ValueError(f"{path} is sharded already: call adapt() before apply_fsdp(), or its adapter trains unsynchronised")
    if getattr(method, "in_place", False):
        raise ValueError(f"{path}: {type(method).__name__} trains the base weight in place, which adapt() does not undo")


def _make_shared(targets: list[Target], seed: int, dtype: torch.dtype | None) -> dict[AdapterLike, nn.Module]:
    """Run `init_shared` once for each distinct value that has one, over all its sites."""
    groups: dict[AdapterLike, list[Target]] = {}
    for target in targets:
        groups.setdefault(target.method, []).append(target)
    made: dict[AdapterLike, nn.Module] = {}
    for method, members in groups.items():
        init_shared = getattr(method, "init_shared", None)
        if init_shared is not None:
            generator = _generator(seed, f"shared {method!r}")
            params = init_shared([target.site for target in members], generator=generator)
            made[method] = _Shared(_placed(params, members[0].linear.weight, dtype))
    return made


def _params_of(module: nn.Module) -> Params:
    """A module's own parameters and buffers, not those of its children."""
    return Params(
        trained={name: tensor for name, tensor in module._parameters.items() if tensor is not None},
        frozen={name: tensor for name, tensor in module._buffers.items() if tensor is not None},
    )


def _placed(params: Params, weight: Tensor, dtype: torch.dtype | None) -> Params:
    """The tensors where the weight lies (the CPU if that is nowhere), floating ones in the dtype that is kept."""
    device = torch.device("cpu") if weight.is_meta else weight.device
    kept = dtype or (torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32)

    def place(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, kept if tensor.is_floating_point() else tensor.dtype)

    return Params(
        trained={name: place(tensor) for name, tensor in params.trained.items()},
        frozen={name: place(tensor) for name, tensor in params.frozen.items()},
    )


def _generator(seed: int, place: str) -> Generator:
    """A CPU generator of its own for each place: what is drawn does not depend on the order of the sites."""
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
