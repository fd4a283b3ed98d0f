"""What an adapter is: the record of a site, the tensors of a method, and the functions a method has.

A method is a frozen dataclass (see `lora.py` for the shortest one). The host in `host.py` owns every side effect; any
class that satisfies `AdapterLike`, also one written in a notebook cell, works in `adapt()`.
Shapes: O output features, I input features of the weight that is adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One weight that is adapted: where it stands in the model and its shape."""

    path: str
    """Module path in the model that was given to `adapt()`, such as `model.layers.3.self_attn.q_proj`."""
    index: int
    """Ordinal of the site in this `adapt()` call, in the order of the model's modules."""
    layer: int | None
    """Number of the block that holds the site (the first number in the path), None outside every block."""
    shape: tuple[int, int]
    """(O, I) of the weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """The tensors of one site (or those that sites share): what is trained, and what stays as drawn."""

    trained: Mapping[str, Tensor] = field(default_factory=dict)
    """Name to tensor. The name ends in the dims, and that is the sharding rule: `b_OR` is cut on O, `a_RI` on I."""
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    """Name to tensor, kept as buffers: saved with the model, never trained."""

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of that name, trained or frozen."""
        return self.trained[name] if name in self.trained else self.frozen[name]


@runtime_checkable
class AdapterLike(Protocol):
    """The functions of a method: pure, tensors in and tensors out, randomness from the generator only.

    Two members are required. A method may also have:

    `init_shared(sites, *, gradients=None, generator) -> Params`
        once an `adapt()` call for all sites that name this value (pools, shared factors, global draws); the result is
        `shared` of the other functions. Its tensors live once, in `adapter_shared` at the root of the model.
    `apply(x, linear, params, shared) -> y`
        a faster form of `linear` with the merged weight; `linear(x)` is the base layer, quantised or not. Without it
        the host computes with `merge`.
    `in_place: ClassVar[bool]`
        True for a method that trains entries of the base weight itself; `adapt()` refuses those it cannot undo.
    `starts_as_base: ClassVar[bool]`
        False for a method that, as published, does not start as the base model; the laws in the tests follow it.
    `peft: ClassVar[PeftFormat]`
        how the method is written in PEFT's folder layout, used by `save_adapter` and `load_adapter`.

    A schedule over adapters wraps a value (`CoTo(inner=LoRA())`) and has `active(step, state, sites, *, generator) ->
    {site: multiplier}` and `update(state, scores, losses) -> state`; it drives `Adapted.multiplier`. A method that moves
    its own selection has `reselect(params, grads, moments) -> (params, moments)`.
    """

    def init(self, site: Site, weight_OI: Tensor, shared: Params | None, *, generator: Generator) -> Params:
        """Draw the tensors of one site on the generator's device; the host moves them to where the weight lies."""
        ...

    def merge(
        self, site: Site, weight_OI: Tensor, bias_O: Tensor | None, params: Params, shared: Params | None
    ) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of one ordinary linear layer that computes the same, in the dtype of `weight_OI`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PeftFormat:
    """How a method is written in PEFT's folder layout; one object a method, compared by identity."""

    kind: str
    """`peft_type` of `adapter_config.json`, such as LORA."""
    names: Mapping[str, str]
    """Our tensor name to the last part of the key in the file: `{"a_RI": "lora_A.weight"}`."""
    write: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Methods by module path to the method's own fields of the configuration."""
    read: Callable[[Mapping[str, Any], str], AdapterLike]
    """Configuration and module path to the method of that site; ValueError for what cannot be represented."""
