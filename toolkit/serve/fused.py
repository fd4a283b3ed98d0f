"""One decoding step of the reference transformer with few and large products, in memory taken once.

A step for one token a row is short, so what costs is everything but the weights: separate products for queries, keys and
values, a fresh output for each operation (above 128 KiB the allocator maps and unmaps pages), a mask, a repeated head. Here
queries, keys and values come from one product, gate and up from another; every large result goes into a buffer that stays; the
residual is added inside the product (`addmm_`); attention is that of `held.py`.

The weights of fused projections are copied side by side, anew at every `generate`: they are those of the model at that
moment, however it was trained in between. That costs the memory of the q, k, v, gate and up projections once more, and
about the time of one decoding step. In float32 and float64 a projection with an adapter is merged into a copy of its own or
the fused one; under narrower types merging would round the adapter away, and its module is called instead.

Shapes: R rows, D width, H query heads, K key and value heads, Q = H + K or H + 2 K, C channels of a head, F width of the
feed-forward layer, I inputs and O outputs of a projection, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.models.cache import KVCache
from toolkit.models.rope import DynamicRope, LongRope
from toolkit.models.rotary import rotation
from toolkit.models.transformer import Attention, Block, Decoder, RMSNorm, SwiGLU, Transformer
from toolkit.serve.held import EXACT, Held

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (Decoder, Block, Attention, SwiGLU, RMSNorm, nn.Embedding, nn.ModuleList)


def can_fuse(model: nn.Module) -> bool:
    """Whether the blocks are the reference transformer's own, whole and unwatched: not sharded, wrapped, compiled or hooked.

    The projections may be anything, such as an adapter beside a linear layer.
    """
    if not isinstance(model, Transformer) or type(model.model) is not Decoder:
        return False
    if type(model).forward is not Transformer.forward or type(model).hidden is not Transformer.hidden:
        return False
    decoder = model.model
    weight = decoder.norm.weight
    if weight.dtype not in (*EXACT, torch.bfloat16, torch.float16) or torch.is_autocast_enabled(weight.device.type):
        return False
    blocks: list[Any] = list(decoder.layers)
    own = [decoder, decoder.embed_tokens, decoder.layers, decoder.norm, *blocks]
    for block in blocks:
        if type(block) is not Block or type(block.self_attn) is not Attention or type(block.mlp) is not SwiGLU:
            return False
        attention, norms = block.self_attn, (block.input_layernorm, block.post_attention_layernorm)
        own += [attention, block.mlp, *norms, *(n for n in (attention.q_norm, attention.k_norm) if n is not None)]
    for module in own:
        if type(module) not in _PLAIN or any(getattr(module, hooks) for hooks in _HOOKS):
            return False
        for parameter in module.parameters(recurse=False):
            if type(parameter) is not nn.Parameter or (parameter.dtype, parameter.device) != (weight.dtype, weight.device):
                return False
    return True


class FusedDecoder:
    """Computes what `model(tokens, cache=cache)` does for one new token a row, faster.

    Continues each of `prompts` `group` times by at most `room` tokens. Only for models that `can_fuse` accepts, and only
    until their weights change.

    >>> decoder = FusedDecoder(model, cache, group=8, room=63)
    >>> logits_RV = decoder.step(tokens_R, lengths_R)
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, prompts: KVCache, *, group: int, room: int) -> None:
        self.model = model
        self.config = model.config
        self.layers = [_Layer(block) for block in model.model.layers]
        self._held = Held(prompts, heads=model.config.num_attention_heads, group=group, room=room)
        self._cos_sin: tuple[Tensor, Tensor] | None = None
        if not isinstance(model.config.rope_scaling, DynamicRope | LongRope):  # theirs depend on the longest row
            self._cos_sin = self._angles(torch.arange(prompts.length + room, device=model.model.norm.weight.device))
        self._buffers()

    def keep(self, rows_R: Int[Tensor, "R"]) -> None:
        """Go on with these rows alone."""
        self._held.keep(rows_R)
        self._buffers()

    def _buffers(self) -> None:
        c, rows, like = self.config, self._held.rows, self.model.model.norm.weight
        queries, keys = c.num_attention_heads, c.num_key_value_heads
        heads_RQC = like.new_empty(rows, queries + 2 * keys, c.head_dim)
        turned_RQC = like.new_empty(rows, queries + keys, c.head_dim)
        self._wide_RO = like.new_empty(rows, 2 * c.intermediate_size)
        # Views are made once, too: a step has hundreds.
        self._heads_RO = heads_RQC.flatten(1)
        self._straight_RHC, self._straight_RKC, self._v_RKC = heads_RQC.tensor_split((queries, queries + keys), 1)
        self._q_RHC, self._k_RKC = turned_RQC.tensor_split((queries,), 1)
        self._halves = (*heads_RQC[:, : queries + keys].chunk(2, -1), *turned_RQC.chunk(2, -1))
        self._gate_RF, self._up_RF = self._wide_RO.chunk(2, 1)

    @torch.inference_mode()
    def step(self, tokens_R: Int[Tensor, "R"], positions_R: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to every row, at these positions; returns the logits of the next."""
        decoder = self.model.model
        self._held.grow()
        x_RD = decoder.embed_tokens(tokens_R)
        angles = self._angles(positions_R) if self._cos_sin is None else tuple(table[positions_R] for table in self._cos_sin)
        for number, layer in enumerate(self.layers):
            self._attend(x_RD, layer, number, angles)
            layer.gate_up(_norm(x_RD, layer.block.post_attention_layernorm), self._wide_RO)
            layer.down.add_to(x_RD, F.silu(self._gate_RF, inplace=True).mul_(self._up_RF))
        return self.model.head(_norm(x_RD, decoder.norm))

    def _angles(self, positions_R: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotation(positions_R[:, None], self.config, dtype=self.model.model.norm.weight.dtype)
        return cos[:, 0], sin[:, 0]

    def _attend(self, x_RD: Tensor, layer: _Layer, number: int, angles: tuple[Tensor, ...]) -> None:
        attention = layer.block.self_attn
        layer.query_key_value(_norm(x_RD, layer.block.input_layernorm), self._heads_RO)
        if attention.q_norm is not None and attention.k_norm is not None:
            self._straight_RHC.copy_(_norm(self._straight_RHC, attention.q_norm))
            self._straight_RKC.copy_(_norm(self._straight_RKC, attention.k_norm))
        _turn(self._halves, angles)
        mixed_RI = self._held.attend(number, self._q_RHC, self._k_RKC, self._v_RKC, window=self.config.window(number))
        layer.output.add_to(x_RD, mixed_RI)


class _Layer:
    """A block and the fused copies of its projections."""

    def __init__(self, block: Any) -> None:
        self.block = block
        attention, mlp = block.self_attn, block.mlp
        self.query_key_value = _Product((attention.q_proj, attention.k_proj, attention.v_proj))
        self.output = _Sum(attention.o_proj)
        self.gate_up = _Product((mlp.gate_proj, mlp.up_proj))
        self.down = _Sum(mlp.down_proj)


class _Product:
    """Projections of one input as one product, or, where one of them has no plain weight, each by its own module."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        pairs = [_weight_and_bias(module) for module in modules]
        self.weight_IO: Tensor | None = None
        self.bias_O: Tensor | None = None
        found = [pair for pair in pairs if pair is not None]
        if len(found) == len(pairs):
            self.weight_IO = torch.cat([weight for weight, _ in found]).t()
            biases = [bias for _, bias in found]
            if any(bias is not None for bias in biases):
                zeros = [weight.new_zeros(weight.shape[0]) if bias is None else bias for weight, bias in found]
                self.bias_O = torch.cat(zeros)

    def __call__(self, x_RI: Tensor, out_RO: Tensor) -> Tensor:
        if self.weight_IO is None:
            return torch.cat([module(x_RI) for module in self.modules], 1, out=out_RO)
        if self.bias_O is None:
            return torch.mm(x_RI, self.weight_IO, out=out_RO)
        return torch.addmm(self.bias_O, x_RI, self.weight_IO, out=out_RO)


class _Sum:
    """x += module(y), inside the product for a layer with a plain weight and no bias."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        pair = _weight_and_bias(module)
        self.weight_IO = None if pair is None or pair[1] is not None else pair[0].t()

    def add_to(self, x_RO: Tensor, y_RI: Tensor) -> None:
        if self.weight_IO is None:
            x_RO.add_(self.module(y_RI))
        else:
            x_RO.addmm_(y_RI, self.weight_IO)


def _weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """What a plain layer, or one with an adapter that can be merged exactly, multiplies by; None where only a call is right."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return None
    layer: Any = module
    base = getattr(layer, "base", None) if hasattr(layer, "merged") else layer
    if type(base) is not nn.Linear or any(getattr(base, hooks) for hooks in _HOOKS):
        return None
    if any(type(parameter) is not nn.Parameter for parameter in module.parameters()):
        return None  # a piece of a sharded one
    if base is module:
        return base.weight, base.bias
    if getattr(layer, "multiplier", None) == 0:  # switched off: exactly the base, in any dtype
        return base.weight, base.bias
    return layer.merged() if base.weight.dtype in EXACT else None


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def _turn(halves: tuple[Tensor, ...], angles: tuple[Tensor, ...]) -> None:
    """Rotary positions of one token a row, as `rotate` computes them; the last two `halves` take the result."""
    first, second, new_first, new_second = halves
    cos, sin = angles
    torch.mul(first, cos, out=new_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=new_second).addcmul_(first, sin)
