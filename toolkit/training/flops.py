"""How many multiplications a training step needs, and how many the device could make: model FLOPs utilisation.

Source: PaLM, Chowdhery et al., arXiv:2204.02311, appendix B. Counted are the matrix products of the model as it is written,
attention over the whole row included (no discount for the causal half or for document borders), and no recomputation.
Backward, a matrix costs as much again for the gradient of its input, if something before it trains, and as much again for its
own, if it trains itself: beside a frozen model with adapters that is two thirds of full training.
Left out: attention of layers without a `q_proj`, sliding windows, what an adapter does besides multiplying by its matrices;
in the first block that trains, the attention's backward counts whole, also where only some of its inputs train.
Shapes: O rows and I columns of a matrix, T tokens of a row, N tokens, K positions with a target.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

__all__ = ["Work", "peak", "work_of"]

STAGES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}
"""Order of the layers inside a block; one with another name comes first."""
GPUS = {
    **dict.fromkeys(("H100", "H200", "GH200"), 989e12),
    **dict.fromkeys(("B200", "GB200"), 2250e12),
    **dict.fromkeys(("A100", "A800"), 312e12),
    "H100 PCIe": 756e12,
    **dict.fromkeys(("H100 NVL", "H200 NVL"), 835e12),
    "L40": 181e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "A10G": 70e12,
}
"""Dense bfloat16 products a second that the makers state, by words of the device's name; the longest that fits counts."""
SIDE = 768
SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """FLOPs of forward and backward together; a multiplication with its addition counts as two."""

    token: float
    """For each token of a row, in the blocks."""
    target: float
    """For each position with a target, in the output head."""

    def step(self, tokens: float, targets: float) -> float:
        """FLOPs of a step over so many tokens, of which `targets` carry a loss."""
        return tokens * self.token + targets * self.target


def work_of(model: nn.Module, context: int) -> Work:
    """Count a decoder's FLOPs for rows of `context` tokens, from the shapes of its parameters and from what trains.

    >>> shape = dict(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=4)
    >>> model = Transformer(TransformerConfig(vocab_size=16, num_hidden_layers=1, **shape))
    >>> work_of(model, context=4).target  # 2 x 16 x 8 forward, twice that backward
    768.0
    """
    tables = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    vocabulary = max((table.shape[0] for table in tables.values()), default=0)
    trained = [_place(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    first = min(trained, default=(1 << 30, 0))
    token, target = 0.0, 0.0
    heads = 0
    for name, matrix in model.named_parameters():
        if matrix.ndim < 2 or id(matrix) in tables:
            continue
        once = 2.0 * matrix.numel()
        follows = name.endswith("_OR")  # the second matrix of an adapter, whose input is what the first gave
        cost = once * (1 + (first < _place(name) or follows) + matrix.requires_grad)
        if matrix.shape[0] == vocabulary and _place(name)[0] == 1 << 29:
            heads, target = heads + 1, target + cost
        else:
            token += cost
    if not heads:  # the head is the embedding, transposed
        table = max(tables.values(), key=lambda one: one.shape[0], default=None)
        target = 0.0 if table is None else 2.0 * table.numel() * (1 + bool(trained) + table.requires_grad)
    for name, module in model.named_modules():
        queries = getattr(module, "q_proj", None)
        if queries is not None:
            forward = 4.0 * context * queries.out_features
            token += forward * (1 + 2 * (first <= _place(f"{name}.q_proj")))
    return Work(token=token, target=target)


def peak(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOPs a second that the device can make in products of `dtype`, and where the number is from.

    For a known GPU in bfloat16 or float16 what its maker states, else the best of a tenth of a second of products here.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        known = stated(name)
        if known is not None:
            return known, f"stated for {name}"
    kind = str(dtype).removeprefix("torch.")
    return _measured(device, dtype, torch.get_num_threads()), f"measured here with {kind} matrix products"


def stated(name: str) -> float | None:
    """What the maker states for the GPU of this name, in FLOPs a second; None for one that is not listed.

    >>> stated("NVIDIA A100-SXM4-80GB"), stated("NVIDIA RTX A1000")
    (312000000000000.0, None)
    """
    known = max((words for words in GPUS if re.search(rf"\b{words}\b", name)), key=len, default=None)
    return None if known is None else GPUS[known]


@cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    side = SIDE if device.type == "cpu" else 8 * SIDE
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        product = matrix @ matrix
        if device.type != "cpu":
            product[0, 0].item()  # waits for it
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best


def _place(name: str) -> tuple[int, int]:
    """Where a parameter stands in the order of the forward pass: block, and stage inside it."""
    parts = name.split(".")
    block = next((int(part) for part in parts if part.isdecimal()), None)
    if block is None:
        return (-1 if any("embed" in part or part in ("wte", "wpe") for part in parts) else 1 << 29, 0)
    return block, next((STAGES[part] for part in parts if part in STAGES), -1)
