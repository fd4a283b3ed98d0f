"""The shape of a decoder-only transformer, and its translation from and to the hub's config.json.

The field names are the hub's, so that a config.json reads the same here. What differs between Llama, Mistral, Qwen2 and
Qwen3 is a handful of switches (biases, normalised queries and keys, a window); a config.json that asks for anything else
is refused with the name of what it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from toolkit.values import Range, check


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context of pre-training."""

    kind: Literal["linear", "llama3"] = "linear"
    """linear divides every frequency; llama3 divides only the slow ones, with a smooth transition."""
    factor: Annotated[float, Range(1.0)] = 1.0
    """Stretch, at least 1."""
    low_frequency_factor: Annotated[float, Range(0.0, exclusive_low=True)] = 1.0
    """llama3: wavelengths above original context / this are divided whole."""
    high_frequency_factor: Annotated[float, Range(0.0, exclusive_low=True)] = 4.0
    """llama3: wavelengths below original context / this are kept."""
    original_context: Annotated[int, Range(1)] = 8192
    """llama3: context of pre-training, in tokens."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Shape of a decoder-only transformer; the names are those of the hub's config.json."""

    vocab_size: Annotated[int, Range(1)] = 49152
    """Number of token ids, rows of the embedding."""
    hidden_size: Annotated[int, Range(1)] = 576
    """Width of the residual stream."""
    intermediate_size: Annotated[int, Range(1)] = 1536
    """Width between the two halves of the SwiGLU layer."""
    num_hidden_layers: Annotated[int, Range(1)] = 30
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


# What a config.json may say with no effect on this model's mathematics is not looked at; these it must say so.
_REQUIRED = {"hidden_act": ("silu",), "attention_dropout": (0, 0.0), "pretraining_tp": (1,)}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def from_hub(data: dict[str, Any], *, where: str = "config.json") -> TransformerConfig:
    """Read the contents of a hub config.json; `where` is named in errors.

    Raises ValueError for an architecture, activation or rotary scaling that this transformer does not have.

    >>> from_hub({"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 8,
    ...           "num_hidden_layers": 1, "num_attention_heads": 2}).head_dim
    2
    """
    family = data.get("model_type")
    if family not in _ARCHITECTURES:
        raise ValueError(f"{where}: model_type {family!r} is not supported, only {', '.join(_ARCHITECTURES)}")
    for name, allowed in _REQUIRED.items():
        if data.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {name}={data[name]!r} is not supported, only {allowed[0]!r}")
    missing = [name for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers") if name not in data]
    missing += ["num_attention_heads"] if "num_attention_heads" not in data else []
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")
    heads = data["num_attention_heads"]
    rope = data.get("rope_parameters") or {}
    bias = bool(data.get("attention_bias", False))
    return TransformerConfig(
        vocab_size=data["vocab_size"],
        hidden_size=data["hidden_size"],
        intermediate_size=data["intermediate_size"],
        num_hidden_layers=data["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=data.get("num_key_value_heads") or heads,
        head_dim=data.get("head_dim") or data["hidden_size"] // heads,
        max_position_embeddings=data.get("max_position_embeddings", 2048),
        rms_norm_eps=data.get("rms_norm_eps", 1e-6),
        rope_theta=data.get("rope_theta") or rope.get("rope_theta", 10000.0),
        rope_scaling=_rope_scaling(data.get("rope_scaling") or rope, where),
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        query_key_value_bias=family == "qwen2" or bias,
        output_bias=bias and family != "qwen2",
        mlp_bias=bool(data.get("mlp_bias", False)),
        query_key_norm=family == "qwen3",
        sliding_window=_sliding_window(data, family, where),
        initializer_range=data.get("initializer_range", 0.02),
    )


def _rope_scaling(data: dict[str, Any], where: str) -> RopeScaling | None:
    kind = data.get("rope_type", data.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=data["factor"])
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=data["factor"],
            low_frequency_factor=data["low_freq_factor"],
            high_frequency_factor=data["high_freq_factor"],
            original_context=data["original_max_position_embeddings"],
        )
    raise ValueError(f"{where}: rotary scaling {kind!r} is not supported, only default, linear and llama3")


def _sliding_window(data: dict[str, Any], family: str, where: str) -> int | None:
    if family == "llama" or (family != "mistral" and not data.get("use_sliding_window", False)):
        return None
    window = data.get("sliding_window")
    kinds = set(data.get("layer_types") or ())
    if window is None or kinds == {"full_attention"}:
        return None
    if family != "mistral" and not kinds:
        kinds = {"sliding_attention"} if data.get("max_window_layers", 28) == 0 else {"mixed"}
    if kinds - {"sliding_attention"}:
        raise ValueError(f"{where}: a sliding window on some layers only is not supported")
    return window


def to_hub(config: TransformerConfig, *, dtype: str = "bfloat16") -> dict[str, Any]:
    """The config.json under which the hub's libraries build the same model.

    Raises ValueError for a combination that no hub architecture has (for example Qwen3's norms with Qwen2's biases).
    """
    c = config
    family = _family(c)
    data: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "dtype": dtype,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "use_cache": True,
    }
    for name in (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "max_position_embeddings rms_norm_eps tie_word_embeddings initializer_range"
    ).split():
        data[name] = getattr(c, name)
    if c.rope_scaling is not None:
        data["rope_scaling"] = _rope_to_hub(c.rope_scaling)
    if family in ("llama", "qwen3"):
        data["attention_bias"] = c.output_bias
    if family == "llama":
        data["mlp_bias"] = c.mlp_bias
    if family == "mistral":
        data["sliding_window"] = c.sliding_window
    if family in ("qwen2", "qwen3"):
        data["use_sliding_window"] = c.sliding_window is not None
        data["sliding_window"] = c.sliding_window
        data["max_window_layers"] = 0 if c.sliding_window is not None else c.num_hidden_layers
    return data


def _family(c: TransformerConfig) -> str:
    if c.query_key_norm and not c.mlp_bias and c.query_key_value_bias == c.output_bias:
        return "qwen3"
    if c.query_key_value_bias and not (c.output_bias or c.mlp_bias or c.query_key_norm):
        return "qwen2"
    if c.sliding_window is not None and not (c.query_key_value_bias or c.output_bias or c.mlp_bias or c.query_key_norm):
        return "mistral"
    if c.query_key_value_bias == c.output_bias and not c.query_key_norm and c.sliding_window is None:
        return "llama"
    raise ValueError(f"no hub architecture has this combination: {c}")


def _rope_to_hub(scaling: RopeScaling) -> dict[str, Any]:
    data: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        data["low_freq_factor"] = scaling.low_frequency_factor
        data["high_freq_factor"] = scaling.high_frequency_factor
        data["original_max_position_embeddings"] = scaling.original_context
    return data
