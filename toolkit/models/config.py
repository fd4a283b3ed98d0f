"""The shape of a decoder-only transformer. The field names are those of the hub's config.json (see `hub_config.py`).

What differs between Llama, Mistral, Qwen2 and Qwen3 is a handful of switches: biases, normalised queries and keys, a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.models.rope import LongRope, RopeScaling
from toolkit.values import Range, check

LayerType = Literal["full_attention", "sliding_attention"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Shape of a decoder-only transformer; the names are those of the hub's config.json."""

    vocab_size: Annotated[int, Range(1)] = 49152
    """Number of token ids, rows of the embedding."""
    hidden_size: Annotated[int, Range(1)] = 576
    """Width of the residual stream."""
    intermediate_size: Annotated[int, Range(1)] = 1536
    """Width between the two halves of the SwiGLU layer."""
    num_hidden_layers: Annotated[int, Range(1, 10_000)] = 30
    """Number of blocks."""
    num_attention_heads: Annotated[int, Range(1)] = 9
    """Number of query heads."""
    num_key_value_heads: Annotated[int, Range(1)] = 3
    """Number of key and value heads; divides the query heads."""
    head_dim: Annotated[int, Range(2)] = 64
    """Channels of one head, even; need not be hidden_size / heads."""
    max_position_embeddings: Annotated[int, Range(1)] = 8192
    """Longest context the weights were trained for, in tokens."""
    rms_norm_eps: Annotated[float, Range(0.0)] = 1e-5
    """Added to the mean square before the root."""
    rope_theta: Annotated[float, Range(0.0, exclusive_low=True)] = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Stretch of the rotary frequencies, None for none."""
    tie_word_embeddings: bool = True
    """The output head is the embedding, transposed."""
    query_key_value_bias: bool = False
    """Biases on the query, key and value projections (Qwen2, some Llamas)."""
    output_bias: bool = False
    """Bias on the attention's output projection."""
    mlp_bias: bool = False
    """Biases in the SwiGLU layer."""
    query_key_norm: bool = False
    """RMSNorm over each head's queries and keys before the rotation (Qwen3)."""
    sliding_window: Annotated[int, Range(1)] | None = None
    """A token attends to this many tokens, itself included; None for all before it."""
    layer_types: tuple[LayerType, ...] | None = None
    """Which blocks have the window, one word a block; None means every block, if there is a window."""
    initializer_range: Annotated[float, Range(0.0)] = 0.02
    """Standard deviation of random weights."""

    def __post_init__(self) -> None:
        check(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"TransformerConfig: num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"TransformerConfig.head_dim={self.head_dim}: rotary embeddings need an even number")
        self._check_windows()
        if isinstance(self.rope_scaling, LongRope) and len(self.rope_scaling.long_factors) != self.head_dim // 2:
            raise ValueError(
                f"TransformerConfig.rope_scaling: {len(self.rope_scaling.long_factors)} factors, "
                f"head_dim={self.head_dim} needs {self.head_dim // 2}"
            )

    def _check_windows(self) -> None:
        if self.layer_types is None:
            return
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"TransformerConfig.layer_types: {len(self.layer_types)} words for num_hidden_layers={self.num_hidden_layers}"
            )
        if self.sliding_window is None or len(set(self.layer_types)) < 2:
            raise ValueError(
                "TransformerConfig.layer_types: only for a sliding_window on some of the blocks; "
                "leave it None where all blocks are alike"
            )

    def window(self, layer: int) -> int | None:
        """Tokens that block `layer` attends to, itself included; None for all before it.

        >>> TransformerConfig(sliding_window=4).window(0)
        4
        """
        if self.layer_types is not None and self.layer_types[layer] == "full_attention":
            return None
        return self.sliding_window


def tensor_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, in the hub's order, without building it (and without torch).

    >>> tensor_shapes(TransformerConfig())["model.embed_tokens.weight"]
    (49152, 576)
    """
    c = config
    wide, narrow = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    linears = {
        "self_attn.q_proj": (wide, c.hidden_size, c.query_key_value_bias),
        "self_attn.k_proj": (narrow, c.hidden_size, c.query_key_value_bias),
        "self_attn.v_proj": (narrow, c.hidden_size, c.query_key_value_bias),
        "self_attn.o_proj": (c.hidden_size, wide, c.output_bias),
        "mlp.gate_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.up_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.down_proj": (c.hidden_size, c.intermediate_size, c.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for layer in range(c.num_hidden_layers):
        at = f"model.layers.{layer}"
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{at}.{name}.weight"] = (rows, columns)
            shapes |= {f"{at}.{name}.bias": (rows,)} if bias else {}
        if c.query_key_norm:
            shapes |= {f"{at}.self_attn.{name}.weight": (c.head_dim,) for name in ("q_norm", "k_norm")}
        shapes |= {f"{at}.{name}.weight": (c.hidden_size,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return shapes
