"""Rotary position embeddings and their stretching to longer contexts.

Source: RoFormer: enhanced transformer with rotary position embedding, Su et al., arXiv:2104.09864, eq. 34; the two halves
of a head are paired, as in the hub's checkpoints. The ways of stretching are cited with their values in `rope.py`.
Checkpoints were trained with frequencies in float32, so they are rounded here step by step as the hub's code rounds them.
Shapes: B rows (or 1), T tokens, C channels of a head, half = C / 2.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.models.config import TransformerConfig
from toolkit.models.rope import DynamicRope, LinearRope, Llama3Rope, LongRope, YarnRope


def inverse_frequencies(
    config: TransformerConfig, device: torch.device | None = None, *, length: int | Int[Tensor, ""] | None = None
) -> Float[Tensor, "half"]:
    """Angle per position of each channel pair, in float32 for every model type, as checkpoints were trained.

    `length` is the number of tokens of the longest row, on which dynamic and longrope depend; None is a short one.

    >>> inverse_frequencies(TransformerConfig(head_dim=4, rope_theta=100.0))
    tensor([1.0000, 0.1000])
    """
    exponent_half = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float() / config.head_dim
    frequency_half = 1.0 / config.rope_theta**exponent_half
    match config.rope_scaling:
        case None:
            return frequency_half
        case LinearRope(factor=factor):
            return frequency_half / factor
        case DynamicRope(factor=factor):
            context = config.max_position_embeddings
            longest = torch.as_tensor(context if length is None else length, device=device).clamp(min=context)
            base = config.rope_theta * ((factor * longest / context) - (factor - 1)) ** (config.head_dim / (config.head_dim - 2))
            return 1.0 / base**exponent_half
        case Llama3Rope() as scaling:
            return _llama3(frequency_half, scaling)
        case YarnRope() as scaling:
            return _yarn(config.rope_theta**exponent_half, scaling, config)
        case LongRope() as scaling:
            short_half = torch.tensor(scaling.short_factors, device=device)
            if length is None:
                return 1.0 / (short_half * config.rope_theta**exponent_half)
            long = torch.as_tensor(length, device=device) > scaling.original_context
            factor_half = torch.where(long, torch.tensor(scaling.long_factors, device=device), short_half)
            return 1.0 / (factor_half * config.rope_theta**exponent_half)


def _llama3(frequency_half: Tensor, scaling: Llama3Rope) -> Tensor:
    low, high, context = scaling.low_frequency_factor, scaling.high_frequency_factor, scaling.original_context
    wavelength_half = 2 * math.pi / frequency_half
    slow = wavelength_half > context / low
    kept = (context / wavelength_half - low) / (high - low)
    mixed_half = (1 - kept) * frequency_half / scaling.factor + kept * frequency_half
    between = ~(wavelength_half < context / high) & ~slow
    return torch.where(between, mixed_half, torch.where(slow, frequency_half / scaling.factor, frequency_half))


def _yarn(wavelength_half: Tensor, scaling: YarnRope, config: TransformerConfig) -> Tensor:
    def channel(turns: float) -> float:
        """Which channel turns so often within the original context."""
        reach = math.log(scaling.original_context / (turns * 2 * math.pi))
        return config.head_dim * reach / (2 * math.log(config.rope_theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    pairs_half = torch.arange(len(wavelength_half), dtype=torch.float32, device=wavelength_half.device)
    ramp_half = ((pairs_half - low) / (high + 0.001 * (low == high) - low)).clamp(0, 1)
    kept_half = 1 - ramp_half
    return 1.0 / (scaling.factor * wavelength_half) * (1 - kept_half) + 1.0 / wavelength_half * kept_half


def rotation(
    positions_BT: Int[Tensor, "rows T"], config: TransformerConfig, *, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows 1 T half"], Float[Tensor, "rows 1 T half"]]:
    """Cosine and sine of every position and channel pair, shared by all layers and heads.

    >>> rotation(torch.arange(3)[None], TransformerConfig(head_dim=4), dtype=torch.float32)[0].shape
    torch.Size([1, 1, 3, 2])
    """
    scaling = config.rope_scaling
    length = positions_BT.max() + 1 if isinstance(scaling, DynamicRope | LongRope) else None
    frequency_half = inverse_frequencies(config, positions_BT.device, length=length)
    angles = positions_BT[:, None, :, None].float() * frequency_half
    scale = scaling.scale if isinstance(scaling, YarnRope | LongRope) else 1.0
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(
    x_BHTC: Float[Tensor, "B H T C"], angles: tuple[Float[Tensor, "rows 1 T half"], Float[Tensor, "rows 1 T half"]]
) -> Float[Tensor, "B H T C"]:
    """Turn channel pair (c, c + C/2) of each head by its angle."""
    cos, sin = angles
    first, second = x_BHTC.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
