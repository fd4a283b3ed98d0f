"""Rotary position embeddings and their stretching to longer contexts.

Source: RoFormer: enhanced transformer with rotary position embedding, Su et al., arXiv:2104.09864, eq. 34; the two halves
of a head are paired, as in the hub's checkpoints. Linear stretch: Chen et al., arXiv:2306.15595, eq. 4. llama3: the Llama 3
herd of models, arXiv:2407.21783, section 3.4.3, with the constants of its published configuration.
Shapes: B rows (or 1), T tokens, C channels of a head.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.models.config import TransformerConfig


def inverse_frequencies(config: TransformerConfig, device: torch.device | None = None) -> Float[Tensor, "half"]:
    """Angle per position of each channel pair, in float32 for every model type, as checkpoints were trained."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    rounds = scaling.original_context * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((rounds - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rotation(
    positions_BT: Int[Tensor, "rows T"], config: TransformerConfig, *, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows 1 T half"], Float[Tensor, "rows 1 T half"]]:
    """Cosine and sine of every position and channel pair, shared by all layers and heads."""
    angles = positions_BT[:, None, :, None].float() * inverse_frequencies(config, positions_BT.device)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x_BHTC: Float[Tensor, "B H T C"], angles: tuple[Float[Tensor, "rows 1 T half"], Float[Tensor, "rows 1 T half"]]
) -> Float[Tensor, "B H T C"]:
    """Turn channel pair (c, c + C/2) of each head by its angle."""
    cos, sin = angles
    first, second = x_BHTC.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
