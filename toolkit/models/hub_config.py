"""A transformer's config from and to the hub's config.json.

Both spellings of the rotary settings are read (`rope_parameters`, and the older `rope_theta` with `rope_scaling`) and both are
written, so that older and newer libraries read what is saved. What a config.json leaves out has the value that the hub's own
classes give it. A config.json that asks for what this transformer does not compute is refused with the name of what it asks for.
"""

from __future__ import annotations

from typing import Any

from toolkit.models.config import LayerType, TransformerConfig
from toolkit.models.rope import DynamicRope, LinearRope, Llama3Rope, LongRope, RopeScaling, YarnRope

# What a config.json may say with no effect on this model's mathematics is not looked at; these it must say so.
_REQUIRED = {"hidden_act": ("silu",), "attention_dropout": (0, 0.0), "pretraining_tp": (1,), "partial_rotary_factor": (1, 1.0)}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Families that this transformer computes: `model_type` in config.json, and the hub's class."""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
_COMMON = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Field of the value -> name in the hub's dictionary.
_LLAMA3 = {"low_frequency_factor": "low_freq_factor", "high_frequency_factor": "high_freq_factor"}
_LONG = {"short_factors": "short_factor", "long_factors": "long_factor"}
_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
_CONTEXTS = ("max_position_embeddings", "original_max_position_embeddings")
_INTEGERS = (*_SIZES, *_CONTEXTS, "num_key_value_heads", "head_dim", "sliding_window", "max_window_layers")
_NUMBERS = ("rms_norm_eps", "initializer_range", "rope_theta", "partial_rotary_factor", "factor", *_LLAMA3.values(), *_YARN)
_LISTS = {"layer_types": str, **dict.fromkeys(_LONG.values(), (int, float))}


def from_hub(data: dict[str, Any], *, where: str = "config.json") -> TransformerConfig:
    """Read the contents of a hub config.json; `where` is named in errors.

    Raises ValueError for an architecture, activation or rotary scaling that this transformer does not have.

    >>> from_hub({"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 8,
    ...           "num_hidden_layers": 1, "num_attention_heads": 2}).head_dim
    2
    """
    family = data.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(f"{where}: model_type {family!r} is not supported, only {', '.join(ARCHITECTURES)}")
    data = {**_COMMON, **_DEFAULTS[family], **data}
    for name, allowed in _REQUIRED.items():
        if data.get(name) is not None and data[name] not in allowed:
            raise ValueError(f"{where}: {name}={data[name]!r:.60} is not supported, only {allowed[0]!r}")
    missing = [name for name in _SIZES if data.get(name) is None]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")
    try:
        return _config(data, family)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{where}: {error}") from None


def _config(data: dict[str, Any], family: str) -> TransformerConfig:
    _check_kinds(data)
    heads = data["num_attention_heads"]
    rope = _rope(data)
    window, layer_types = _windows(data, family)
    bias = bool(data.get("attention_bias", False))
    return TransformerConfig(
        **{name: data[name] for name in _SIZES},
        num_key_value_heads=data.get("num_key_value_heads") or heads,
        head_dim=data.get("head_dim") or data["hidden_size"] // (heads or 1),
        max_position_embeddings=data["max_position_embeddings"],
        rms_norm_eps=data["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta") or 10000.0),
        rope_scaling=_scaling(rope, data),
        tie_word_embeddings=bool(data["tie_word_embeddings"]),
        query_key_value_bias=family == "qwen2" or bias,
        output_bias=bias and family != "qwen2",
        mlp_bias=family == "llama" and bool(data.get("mlp_bias", False)),
        query_key_norm=family == "qwen3",
        sliding_window=window,
        layer_types=layer_types,
        initializer_range=data["initializer_range"],
    )


def _check_kinds(values: dict[str, Any]) -> None:
    """Raise ValueError, naming the key, for a value of another kind than its name stands for; None counts as left out."""
    for name, value in values.items():
        if name in _INTEGERS and type(value) not in (int, type(None)):
            raise ValueError(f"{name}={value!r:.60} must be a whole number")
        if name in _NUMBERS and type(value) not in (int, float, type(None)):
            raise ValueError(f"{name}={value!r:.60} must be a number")
        if name in _LISTS and value is not None:
            if not isinstance(value, list) or not all(isinstance(one, _LISTS[name]) for one in value):
                raise ValueError(f"{name} must be a list of {'words' if _LISTS[name] is str else 'numbers'}")


def _rope(data: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings as one dictionary, `rope_theta` included, whichever way they were spelled."""
    found = [data.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    for one in found:
        if not isinstance(one, dict) or any(isinstance(value, dict) for value in one.values()):
            raise ValueError("rotary settings that differ from layer to layer are not supported")
        _check_kinds(one)
    rope = found[0] or found[1]
    theta = rope.get("rope_theta") or data.get("rope_theta") or found[1].get("rope_theta")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported, only 1.0")
    return {**rope, "rope_theta": theta}


def _scaling(rope: dict[str, Any], data: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    context = data.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    context = context or data["max_position_embeddings"]
    given = {name: value for name, value in rope.items() if value is not None}
    if kind in ("linear", "dynamic", "llama3", "yarn") and "factor" not in given:
        if kind != "yarn":
            raise ValueError(f"rotary scaling {kind!r} without a factor")
        given["factor"] = data["max_position_embeddings"] / context
    factor = float(given.get("factor", 1.0))
    match kind:
        case "default":
            return None
        case "linear":
            return LinearRope(factor=factor)
        case "dynamic":
            return DynamicRope(factor=factor)
        case "llama3":
            named = {field: float(given[name]) for field, name in _LLAMA3.items() if name in given}
            return Llama3Rope(factor=factor, original_context=context, **named)
        case "yarn":
            named = {name: float(given[name]) for name in _YARN if name in given}
            return YarnRope(factor=factor, original_context=context, truncate=bool(given.get("truncate", True)), **named)
        case "longrope":
            named = {field: tuple(map(float, given.get(name, ()))) for field, name in _LONG.items()}
            factor = float(given.get("factor", data["max_position_embeddings"] / context))
            return LongRope(
                factor=max(factor, 1.0), original_context=context, attention_factor=given.get("attention_factor"), **named
            )
    raise ValueError(f"rotary scaling {kind!r} is not supported, only default, linear, dynamic, llama3, yarn, longrope")


def _windows(data: dict[str, Any], family: str) -> tuple[int | None, tuple[LayerType, ...] | None]:
    """Size of the window, and which blocks have it where not all do."""
    window = data.get("sliding_window")
    if family == "llama" or window is None:
        return None, None
    kinds: list[LayerType] | None = data.get("layer_types")
    if family == "mistral":
        if kinds and "full_attention" in kinds:
            raise ValueError("layer_types of a mistral model must all be 'sliding_attention' beside sliding_window")
        return window, None
    if not data.get("use_sliding_window", False):
        return None, None
    layers = data["num_hidden_layers"]
    if kinds is None:
        first = data.get("max_window_layers")
        first = 28 if first is None else first
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    strange = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if strange:
        raise ValueError(f"layer_types names {strange[0]!r}, only full_attention and sliding_attention are supported")
    if "sliding_attention" not in kinds:
        return None, None
    return window, tuple(kinds) if "full_attention" in kinds else None


def to_hub(config: TransformerConfig, *, dtype: str = "bfloat16") -> dict[str, Any]:
    """The config.json under which the hub's libraries build the same model.

    Raises ValueError for a combination that no hub architecture has (for example Qwen3's norms with Qwen2's biases).
    """
    c = config
    family = family_of(c)
    rope = _rope_to_hub(c.rope_scaling)
    data: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "dtype": dtype,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "rope_parameters": {**rope, "rope_theta": c.rope_theta},
        "use_cache": True,
    }
    for name in (
        *_SIZES,
        *("num_key_value_heads", "head_dim", "max_position_embeddings"),
        *("rms_norm_eps", "tie_word_embeddings", "initializer_range"),
    ):
        data[name] = getattr(c, name)
    if c.rope_scaling is not None:
        data["rope_scaling"] = rope
    if family in ("llama", "qwen3"):
        data["attention_bias"] = c.output_bias
    if family == "llama":
        data["mlp_bias"] = c.mlp_bias
    if family == "mistral":
        data["sliding_window"] = c.sliding_window
    if family in ("qwen2", "qwen3"):
        layers = range(c.num_hidden_layers)
        slides = [c.window(layer) is not None for layer in layers]
        data["use_sliding_window"] = c.sliding_window is not None
        data["sliding_window"] = c.sliding_window
        data["max_window_layers"] = next((layer for layer in layers if slides[layer]), c.num_hidden_layers)
        data["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return data


def family_of(config: TransformerConfig) -> str:
    """The hub's family (llama, mistral, qwen2, qwen3) that has this shape. Raises ValueError if none has.

    >>> family_of(TransformerConfig())
    'llama'
    """
    c = config
    if c.query_key_norm and not c.mlp_bias and c.query_key_value_bias == c.output_bias:
        return "qwen3"
    if c.query_key_value_bias and not (c.output_bias or c.mlp_bias or c.query_key_norm):
        return "qwen2"
    plain = not (c.query_key_value_bias or c.output_bias or c.mlp_bias or c.query_key_norm)
    if c.sliding_window is not None and plain and c.layer_types is None:
        return "mistral"
    if c.query_key_value_bias == c.output_bias and not c.query_key_norm and c.sliding_window is None:
        return "llama"
    raise ValueError(f"no hub architecture has this combination: {c}")


def _rope_to_hub(scaling: RopeScaling | None) -> dict[str, Any]:
    match scaling:
        case None:
            return {"rope_type": "default"}
        case LinearRope():
            return {"rope_type": "linear", "factor": scaling.factor}
        case DynamicRope():
            return {"rope_type": "dynamic", "factor": scaling.factor}
        case Llama3Rope():
            data: dict[str, Any] = {name: getattr(scaling, field) for field, name in _LLAMA3.items()}
            kind = "llama3"
        case YarnRope():
            data = {name: getattr(scaling, name) for name in _YARN if getattr(scaling, name)}
            data["truncate"] = scaling.truncate
            kind = "yarn"
        case LongRope():
            data = {name: list(getattr(scaling, field)) for field, name in _LONG.items()}
            data |= {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
            kind = "longrope"
    return {
        "rope_type": kind,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        **data,
    }
