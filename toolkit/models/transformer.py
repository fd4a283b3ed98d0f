"""A decoder-only transformer of the Llama kind, whole and readable; its parameters carry the hub's names.

Source: LLaMA, Touvron et al., arXiv:2302.13971; RoFormer, Su et al., arXiv:2104.09864, eq. 34; GQA, Ainslie et al.,
arXiv:2305.13245; GLU variants, Shazeer, arXiv:2002.05202, eq. 6; RMSNorm, Zhang and Sennrich, arXiv:1910.07467, eq. 4.
Left out: dropout, mixtures of experts. Nothing here knows about parallelism.
Shapes: B rows, T new tokens, S tokens that are attended to, D width, H query heads, K key and value heads, C channels of a
head, F width of the feed-forward layer, V vocabulary, N chosen positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.models.cache import KVCache
from toolkit.models.config import TransformerConfig
from toolkit.models.rotary import rotate, rotation


class RMSNorm(nn.Module):
    """x / root(mean square) * weight, with the statistics in float32 under narrower types."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with shared key and value heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.query_key_value_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.query_key_value_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.query_key_value_bias)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.output_bias)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.query_key_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.query_key_norm else None

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "B T D"]:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHC = self.q_proj(x_BTD).view(heads)
        k_BTKC = self.k_proj(x_BTD).view(heads)
        v_BKTC = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHC, k_BTKC = self.q_norm(q_BTHC), self.k_norm(k_BTKC)
        q_BHTC = rotate(q_BTHC.transpose(1, 2), angles)
        k_BKTC = rotate(k_BTKC.transpose(1, 2), angles)
        causal = mask is None and x_BTD.shape[1] > 1
        if cache is not None:
            k_BKTC, v_BKTC = cache.extend(layer, k_BKTC, v_BKTC)
        if x_BTD.shape[1] == 1:
            # One new token: the queries that share a key head stand in the place of tokens, so no key is repeated.
            q_BHTC = q_BHTC.view(q_BHTC.shape[0], k_BKTC.shape[1], -1, self.head_dim)
        shared = q_BHTC.shape[1] // k_BKTC.shape[1]
        if shared > 1 and mask is not None and q_BHTC.is_cuda:
            # CUDA's fast kernels take shared heads or a mask, not both.
            k_BKTC, v_BKTC = k_BKTC.repeat_interleave(shared, 1), v_BKTC.repeat_interleave(shared, 1)
            shared = 1
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, attn_mask=mask, is_causal=causal, enable_gqa=shared > 1)
        return self.o_proj(y_BHTC.reshape(heads[0], -1, heads[1], self.head_dim).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """Attention, then the feed-forward layer, each normalised before and added to the stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), angles, mask, cache, self.layer)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embedding, blocks and last norm: what the hub calls `model`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        # Not drawn here: on the meta device torch would import seconds' worth of Python for a draw that is thrown away.
        empty_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty_VD, freeze=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        documents_BT: Int[Tensor, "B T"] | None = None,
        positions_BT: Int[Tensor, "rows T"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        x_BTD = self.embed_tokens(tokens_BT)
        start = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = document_positions(tokens_BT, documents_BT, start)
        angles = rotation(positions_BT, self.config, dtype=x_BTD.dtype)
        documents_BS = documents_BT if cache is None else cache.append(tokens_BT, documents_BT)
        windows = [self.config.window(layer) for layer in range(len(self.layers))]
        masks = {
            window: attention_mask(tokens_BT.shape[1], documents_BS, start=start, window=window, like=x_BTD)
            for window in dict.fromkeys(windows)
        }
        for block, window in zip(self.layers, windows, strict=True):
            x_BTD = block(x_BTD, angles, masks[window], cache)
        return self.norm(x_BTD)


class Transformer(nn.Module):
    """A decoder-only language model.

    With a tied head there is no `lm_head`: the head multiplies by the embedding itself, so that nothing has to be tied
    again after a move from the meta device, and the state dict has the hub's names and no other. There are no buffers.

    >>> model = Transformer(TransformerConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
    ...                                       num_attention_heads=2, num_key_value_heads=1, head_dim=4))
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 16])
    """

    def __init__(self, config: TransformerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not self.model.norm.weight.is_meta:
            self.reset_parameters(seed)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks in order: the units that sharding and activation checkpointing wrap."""
        return self.model.layers

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Fill the parameters at random, the same for the same seed; global random state is not touched."""
        device = self.model.norm.weight.device
        generator = torch.Generator(device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        *,
        documents_BT: Int[Tensor, "B T"] | None = None,
        positions_BT: Int[Tensor, "rows T"] | None = None,
        cache: KVCache | None = None,
        where_BT: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"] | Float[Tensor, "N V"]:
        """Logits of the next token at every position, or, with `where_BT`, at the N chosen ones (row after row).

        `documents_BT` numbers the document of each token: equal numbers stand next to each other, attention stays inside
        a document and positions start again at 0. Without it a row is one document. `positions_BT` overrides the
        positions. With a `cache` the tokens are appended to it, and attend to what it holds.
        """
        x_BTD = self.hidden(tokens_BT, documents_BT=documents_BT, positions_BT=positions_BT, cache=cache)
        return self.head(x_BTD if where_BT is None else x_BTD[where_BT])

    def hidden(
        self,
        tokens_BT: Int[Tensor, "B T"],
        *,
        documents_BT: Int[Tensor, "B T"] | None = None,
        positions_BT: Int[Tensor, "rows T"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The normalised output of the last block; arguments as in `forward`."""
        return self.model(tokens_BT, documents_BT, positions_BT, cache)

    def head(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of hidden states."""
        return F.linear(x, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)


def document_positions(
    tokens_BT: Int[Tensor, "B T"], documents_BT: Int[Tensor, "B T"] | None, start: int = 0
) -> Int[Tensor, "rows T"]:
    """Distance of each token from the start of its document; `start` tokens stand before these in the cache."""
    steps_1T = torch.arange(start, start + tokens_BT.shape[1], device=tokens_BT.device)[None]
    if documents_BT is None:
        return steps_1T
    if start:
        raise ValueError("documents_BT with tokens already in the cache: give positions_BT too")
    starts_BT = torch.zeros_like(documents_BT)
    starts_BT[:, 1:] = steps_1T[:, 1:] * (documents_BT[:, 1:] != documents_BT[:, :-1])
    return steps_1T - starts_BT.cummax(1).values


def attention_mask(
    num_new: int,
    documents_BS: Int[Tensor, "B S"] | None,
    *,
    start: int,
    window: int | None,
    like: Tensor,
) -> Float[Tensor, "rows 1 T S"] | None:
    """0 where attention is allowed, minus infinity elsewhere; None where plain causal attention is meant.

    The last `num_new` of the S = start + num_new tokens ask. Built once a forward, in the type of `like`: a boolean mask
    would be converted in every layer. A mask costs time, so there is none for rows that hold one document.
    """
    total = start + num_new
    if documents_BS is not None and not (documents_BS[:, 1:] != documents_BS[:, :-1]).any():
        documents_BS = None
    if window is not None and total <= window:
        window = None
    if documents_BS is None and window is None and (start == 0 or num_new == 1):
        return None
    key_S = torch.arange(total, device=like.device)
    query_T = key_S[start:, None]
    allowed = key_S <= query_T
    if window is not None:
        allowed = allowed & (query_T - key_S < window)
    allowed = allowed[None]
    if documents_BS is not None:
        allowed = allowed & (documents_BS[:, start:, None] == documents_BS[:, None, :])
    zeros = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(allowed, zeros, float("-inf"))[:, None]
