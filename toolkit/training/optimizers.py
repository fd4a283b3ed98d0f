"""Optimizers of torch as values, over the sharded parameters of a model.

`optimizer.make(named_parameters)` returns one or two torch optimizers with parameter groups that say by `decays` whether
weight decay is for them: matrices decay, and vectors (norms, biases, gains) do not. The rate and the decay are set anew at
every step by `LanguageModule`. Nothing here imports torch before it is asked to make one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from toolkit.values import Range, check

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["SGD", "Adafactor", "AdamW", "Muon", "Optimizer"]

Momentum = Annotated[float, Range(0, 0.9999)]
Epsilon = Annotated[float, Range(0, exclusive_low=True)]
NAMED_EDGES = ("embed", "lm_head", "wte", "wpe")
"""What names the matrices at a model's two ends: tables of rows, not maps between hidden states."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2)."""

    beta1: Momentum = 0.9
    """Memory of the mean of the gradients, 0 to 0.9999."""
    beta2: Momentum = 0.95
    """Memory of the mean of their squares, 0 to 0.9999."""
    eps: Epsilon = 1e-8
    """Added to the root of the mean square, above 0."""
    fused: bool = True
    """Whether one kernel makes the whole step, the fastest; else one operation after the other, which rounds otherwise."""

    __post_init__ = check

    def make(self, named: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        """The torch optimizer over these parameters.

        >>> [group["decays"] for group in AdamW().make(dict(nn.Linear(2, 2).named_parameters()))[0].param_groups]
        [True, False]
        """
        import torch

        options = {"betas": (self.beta1, self.beta2), "eps": self.eps, "fused": self.fused, "foreach": not self.fused}
        return [torch.optim.AdamW(groups(named), weight_decay=0.0, **options)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: Momentum = 0.9
    """Memory of the earlier gradients, 0 to 0.9999; 0 keeps no state."""
    nesterov: bool = False
    """Whether to look ahead along the momentum; needs one above 0."""

    def __post_init__(self) -> None:
        check(self)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD.nesterov: needs a momentum above 0")

    def make(self, named: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        """The torch optimizer over these parameters."""
        import torch

        return [torch.optim.SGD(groups(named), lr=0.0, momentum=self.momentum, nesterov=self.nesterov)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Adafactor:
    """Adam with the second moments of a matrix as one row and one column (Shazeer and Stern, arXiv:1804.04235).

    Hardly any memory for state. Each process gathers one matrix at a time, as the row and the column are those of all of it.
    """

    beta2_decay: Annotated[float, Range(-1, 0)] = -0.8
    """Power of the step by which the memory of the second moments grows, -1 to 0."""
    eps: Epsilon = 1e-3
    """Smallest size of a parameter that the relative step is a part of, above 0."""
    threshold: Annotated[float, Range(0, exclusive_low=True)] = 1.0
    """Largest root mean square of an update before the rate, above 0."""

    __post_init__ = check

    def make(self, named: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        """The torch optimizer over these parameters."""
        from toolkit.training.whole import WholeAdafactor

        options = {"beta2_decay": self.beta2_decay, "eps": (None, self.eps), "d": self.threshold}
        return [WholeAdafactor(groups(named), weight_decay=0.0, **options)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon:
    """Momentum whose matrices are made orthogonal (Jordan et al., 2024), and AdamW for what is no hidden matrix.

    AdamW trains vectors, embeddings and the head. An update is scaled to the size that AdamW's has (Liu et al.,
    arXiv:2502.16982, eq. 4), so that one learning rate serves both. Each process gathers one matrix at a time.
    """

    momentum: Momentum = 0.95
    """Memory of the earlier gradients, 0 to 0.9999."""
    nesterov: bool = True
    """Whether to look ahead along the momentum."""
    iterations: Annotated[int, Range(1, 20)] = 5
    """Newton-Schulz iterations, 1 to 20."""
    exact: bool = False
    """Whether to iterate in the parameters' own number format instead of bfloat16: slower."""
    others: AdamW = AdamW()
    """What trains the rest."""

    __post_init__ = check

    def make(self, named: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        """The torch optimizers over these parameters: Muon, then AdamW where something is left for it.

        Raises ValueError when there is no hidden matrix.
        """
        from toolkit.training.whole import WholeMuon

        hidden = {name: one for name, one in named.items() if one.ndim == 2 and not any(edge in name for edge in NAMED_EDGES)}
        if not hidden:
            raise ValueError("Muon: nothing that trains is a hidden matrix; take AdamW")
        options = {"momentum": self.momentum, "nesterov": self.nesterov, "ns_steps": self.iterations}
        made = WholeMuon(
            groups(hidden), weight_decay=0.0, adjust_lr_fn="match_rms_adamw", exact=self.exact, **options
        )
        rest = {name: parameter for name, parameter in named.items() if name not in hidden}
        return [made, *(self.others.make(rest) if rest else [])]


Optimizer = AdamW | SGD | Adafactor | Muon
"""The closed union of the optimizers."""


def groups(named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer: matrices, which decay, then vectors, which do not; none is empty."""
    matrices = [parameter for parameter in named.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in named.values() if parameter.ndim < 2]
    made: list[dict[str, Any]] = [{"params": matrices, "decays": True}, {"params": vectors, "decays": False}]
    return [group for group in made if group["params"]]
