"""torch's optimizers that need whole matrices, over parameters that FSDP2 has cut into parts.

Muon: An optimizer for hidden layers in neural networks, Jordan et al., 2024; Muon is Scalable for LLM Training, Liu et al.,
arXiv:2502.16982. Adafactor, Shazeer and Stern, arXiv:1804.04235. On plain tensors both make torch's own step, bit for bit.
Every process gathers a matrix, does the same to it and keeps its part: the result does not depend on the number of parts.
Left out: sharing the iterations out over the processes.
Shapes: O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

__all__ = ["WholeAdafactor", "WholeMuon", "orthogonal"]


class WholeMuon(torch.optim.Muon):
    """`torch.optim.Muon`; the momentum stays cut, and only the update is gathered.

    `exact` iterates in the parameters' own type instead of bfloat16.
    """

    def __init__(self, params: Any, *, exact: bool = False, **options: Any) -> None:
        super().__init__(params, **options)
        self.exact = exact

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step over every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(state["momentum_buffer"], group["momentum"]) if group["nesterov"] else state["momentum_buffer"]
        update_OI = whole(update)
        kept = update_OI if self.exact else update_OI.bfloat16()
        moved_OI = orthogonal(kept, group["ns_steps"], group["ns_coefficients"], group["eps"])
        size = 0.2 * max(parameter.shape) ** 0.5  # makes the root mean square of the update that of AdamW's
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(part(moved_OI.to(parameter.dtype), parameter), alpha=-group["lr"] * size)


class WholeAdafactor(torch.optim.Adafactor):
    """`torch.optim.Adafactor`; every process holds the small state of whole matrices."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step over every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options = {name: group[name] for name in self.defaults}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stand_in = nn.Parameter(whole(parameter.detach()))
                    stand_in.grad = whole(parameter.grad)
                    one = torch.optim.Adafactor([stand_in], **options)
                    state = self.state[parameter]
                    state.update({name: whole(value) for name, value in state.items()})  # as read from a checkpoint, it is cut
                    one.state[stand_in] = state
                    one.step()
                    parameter.copy_(part(stand_in.detach(), parameter))
        return loss


def orthogonal(
    matrix_OI: Float[Tensor, "O I"], iterations: int, coefficients: tuple[float, float, float], eps: float
) -> Float[Tensor, "O I"]:
    """The matrix with its singular values moved towards 1, by a quintic Newton-Schulz iteration in its own type.

    >>> orthogonal(torch.diag(torch.tensor([3.0, 1.0])), 5, (3.4445, -4.775, 2.0315), 1e-7).diag() > 0.6
    tensor([True, True])
    """
    a, b, c = coefficients
    tall = matrix_OI.shape[0] > matrix_OI.shape[1]
    x = matrix_OI.T if tall else matrix_OI
    x = x / x.norm().clamp(min=eps)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; every process that shares it must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that all have, cut as `like` is; no communication."""
    if not isinstance(like, DTensor):
        return tensor
    everywhere = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(tensor, like.device_mesh, everywhere, run_check=False).redistribute(placements=like.placements)
