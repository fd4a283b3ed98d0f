"""A low-rank product beside a linear layer: fused with it where that is a plain frozen one.

What thin products cost is memory traffic, so scaling and adding take no passes of their own.
Shapes: O output features, I input features, R rank, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["add_low_rank"]


def add_low_rank(
    x: Tensor, linear: Callable[[Tensor], Tensor], a_RI: Tensor, b_OR: Tensor, *, scale: float, dropout: float = 0.0
) -> Tensor:
    """linear(x) + scale (x a^T) b^T, computed in the dtype of `x` (..., I) -> (..., O).

    `dropout` zeroes features of `x` in the low-rank part alone, while `linear.training`.

    Example:
        y = add_low_rank(x, nn.Linear(8, 6).requires_grad_(False), a_RI, b_OR, scale=2.0)
    """
    dropping = dropout > 0 and getattr(linear, "training", False)
    if not dropping and _is_plain(linear) and not torch.is_autocast_enabled(x.device.type):
        return _FusedLowRank.apply(x, linear.weight, linear.bias, a_RI, b_OR, scale)
    y = linear(x)
    # The global generator, because activation checkpointing restores it when it runs the forward pass again.
    dropped = F.dropout(x, dropout) if dropping else x
    low_NR = F.linear(dropped.flatten(0, -2), a_RI.to(x.dtype))
    b_OR = b_OR.to(low_NR.dtype)
    return torch.addmm(y.flatten(0, -2).to(low_NR.dtype), low_NR, b_OR.T, alpha=scale).view_as(y).to(y.dtype)


def _is_plain(linear: object) -> bool:
    """Whether `linear` only multiplies by a frozen, ordinary weight, so that its product may be computed here."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight.data) is Tensor
        and not linear.weight.requires_grad
        and (linear.bias is None or not linear.bias.requires_grad)
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
    )


class _FusedLowRank(torch.autograd.Function):
    """x W^T + bias + scale (x a^T) b^T with W frozen.

    The low-rank part is added in place, forward and backward, and only x and x a^T are kept: no separate passes over
    memory for scaling and adding. The gradients of a and b are returned in their own dtype.
    """

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale):
        y = F.linear(x, weight_OI, bias_O)
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = (x_NI @ a_RI.to(x.dtype).T.contiguous()).mul_(scale)
        y.view(-1, y.shape[-1]).addmm_(low_NR, b_OR.to(x.dtype).T)
        ctx.scale = scale
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR, low_NR)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        x, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_NO = grad_y.reshape(-1, grad_y.shape[-1])
        grad_low_NR = (grad_NO @ b_OR.to(x.dtype)).mul_(ctx.scale)
        grad_x = grad_a_RI = grad_b_OR = None
        if ctx.needs_input_grad[0]:
            grad_NI = grad_NO @ weight_OI
            grad_x = grad_NI.addmm_(grad_low_NR, a_RI.to(x.dtype)).view_as(x)
        if ctx.needs_input_grad[3]:
            grad_a_RI = (grad_low_NR.T @ x.reshape(-1, x.shape[-1])).to(a_RI.dtype)
        if ctx.needs_input_grad[4]:
            # The thin matrix stands left: on CPUs this takes less than half the time of grad_NO.T @ low_NR.
            grad_b_OR = (low_NR.T @ grad_NO).T.to(b_OR.dtype).contiguous()
        return grad_x, None, None, grad_a_RI, grad_b_OR, None
