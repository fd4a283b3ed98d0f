"""A GGUF file, written out once in the hub layout.

Format: the GGUF description in the ggml project's documentation. Its Llamas (Mistral is one of them) store the rows of the query
and key projections with the two halves of each head interleaved; here they are put back. Quantised weights become bfloat16,
others keep their type. Weights pass through memory a few rows at a time.
Left out: architectures other than those of the transformer here.
Shapes: O output features, I input features.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.models.config import TransformerConfig, tensor_shapes
from toolkit.models.gguf_header import GGUFHeader, GGUFTensor
from toolkit.models.hub_config import to_hub
from toolkit.models.rope import LinearRope, LongRope, RopeScaling, YarnRope
from toolkit.models.storage import say
from toolkit.models.weight_files import SINGLE

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_INTERLEAVED = ("llama", "mistral")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_CHUNK = 1 << 24
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def convert(path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and, if the file has one that is known, the tokenizer of `path` into `folder`.

    Raises ValueError for an architecture, quantisation type or tensor that is not supported, and for a file cut short.
    """
    from toolkit.models.gguf_tokenizer import known_tokenizer, read_tokenizer

    header = GGUFHeader(path)
    config = check_model(header)
    dtype = _dtype(header)
    say(f"{path.name}: converting once to {folder.parent} ({converted_bytes(header, config) / 1e6:,.0f} MB)")
    (folder / "config.json").write_text(json.dumps(_hub_config(config, header, dtype), indent=2))
    _write(folder / SINGLE, header, config, dtype)
    if known_tokenizer(header):
        read_tokenizer(header).save(folder)
    else:
        say(f"{path.name}: no tokenizer that can be read here; name another model's")


def check_model(header: GGUFHeader) -> TransformerConfig:
    """The shape of the model in a GGUF file. ValueError unless it has a known architecture, and all its tensors and no other."""
    family, path = header["general.architecture"], header.path
    if family not in ARCHITECTURES:
        raise ValueError(
            f"{path}: the architecture {family!r} is not supported, only {', '.join(ARCHITECTURES)}; "
            "convert the model to safetensors with the hub's libraries"
        )
    try:
        config = _config(header, family)
    except (TypeError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from None
    expected = tensor_shapes(config)
    names = {_hub_name(name, path): name for name in header.tensors if name != _ROPE_FACTORS}
    for name, shape in expected.items():
        found = header.tensors[names[name]].shape if name in names else None
        if found != shape:
            raise ValueError(f"{path}: {name} should have the shape {shape}, the file has {found or 'no such tensor'}")
    for name in names:
        if name not in expected:
            raise ValueError(f"{path}: the tensor {names[name]!r} has no place in this {family} model")
    _refuse_unknown_types(header)
    return config


def kinds(header: GGUFHeader) -> Counter[str]:
    """Bytes of each quantisation type, by name."""
    from gguf.constants import GGMLQuantizationType

    found: Counter[str] = Counter()
    for tensor in header.tensors.values():
        found[GGMLQuantizationType(tensor.kind).name] += tensor.size
    return found


def converted_bytes(header: GGUFHeader, config: TransformerConfig) -> int:
    """Size of the weights once converted."""
    numbers = sum(math.prod(shape) for shape in tensor_shapes(config).values())
    return numbers * (4 if _dtype(header) == "float32" else 2)


def _dtype(header: GGUFHeader) -> str:
    """float32 or float16 where every matrix is stored so, else bfloat16."""
    stored = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) > 1}
    return {frozenset({0}): "float32", frozenset({1}): "float16"}.get(frozenset(stored), "bfloat16")


def _setting(header: GGUFHeader, family: str, name: str, default: Any = None) -> Any:
    """A setting of the architecture; all that are read so are numbers above 0."""
    value = header.get(f"{family}.{name}", default)
    if value is None:
        raise ValueError(f"{header.path}: the setting '{family}.{name}' is missing")
    if isinstance(value, list):
        raise ValueError(f"{header.path}: {family}.{name} differs from block to block, which is not supported")
    if type(value) not in (int, float) or not value > 0:
        raise ValueError(f"{header.path}: {family}.{name}={value!r:.60} must be a number above 0; fetch the file again")
    return value


def _config(header: GGUFHeader, family: str) -> TransformerConfig:
    setting = partial(_setting, header, family)
    heads, width = setting("attention.head_count"), setting("embedding_length")
    head_dim = setting("attention.key_length", setting("rope.dimension_count", width // heads))
    for name in ("rope.dimension_count", "attention.value_length"):
        if setting(name, head_dim) != head_dim:
            raise ValueError(f"{header.path}: {family}.{name}={setting(name)} is not supported, only the head size {head_dim}")
    if f"{family}.attention.sliding_window_pattern" in header.settings:
        raise ValueError(f"{header.path}: a sliding window on some blocks only is not supported in GGUF files")
    context = setting("context_length")
    embedding = header.tensors.get("token_embd.weight")
    return TransformerConfig(
        vocab_size=embedding.shape[0] if embedding is not None and embedding.shape else 1,
        hidden_size=width,
        intermediate_size=setting("feed_forward_length"),
        num_hidden_layers=setting("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=setting("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=context,
        # The file stores float32: 1e-5 comes back as 9.99999974e-06. The shortest decimal of that float32 is meant.
        rms_norm_eps=_shortest(setting("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(setting("rope.freq_base", 10000.0)),
        rope_scaling=_scaling(header, family, context),
        tie_word_embeddings="output.weight" not in header.tensors,
        query_key_value_bias="blk.0.attn_q.bias" in header.tensors,
        output_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_up.bias" in header.tensors,
        query_key_norm=family == "qwen3",
        sliding_window=header.get(f"{family}.attention.sliding_window") or None,
    )


def _shortest(number: float) -> float:
    return float(str(np.float32(number)))


def _scaling(header: GGUFHeader, family: str, context: int) -> RopeScaling | None:
    if _ROPE_FACTORS in header.tensors:  # Llama 3's stretch is stored as one divisor for each frequency
        factors = header.tensors[_ROPE_FACTORS]
        if len(factors.shape) != 1 or not factors.shape[0]:
            raise ValueError(f"{header.path}: {_ROPE_FACTORS} has the shape {factors.shape}, not one number for each frequency")
        _refuse_unknown_types(header)
        divisors = tuple(_rows(header, factors, 0, factors.shape[0])[:, 0].tolist())
        return LongRope(short_factors=divisors, long_factors=divisors, original_context=context, attention_factor=1.0)
    kind = header.get(f"{family}.rope.scaling.type", "none")
    if kind == "none":
        return None
    setting = partial(_setting, header, family)
    factor = _shortest(setting("rope.scaling.factor", 1.0))
    if kind == "linear":
        return LinearRope(factor=factor)
    if kind == "yarn":
        original = setting("rope.scaling.original_context_length", context)
        yarn = YarnRope(factor=factor, original_context=original)
        scale = setting("rope.scaling.attn_factor", 1.0)
        return yarn if scale == 1 else YarnRope(factor=factor, original_context=original, attention_factor=scale * yarn.scale)
    raise ValueError(f"{header.path}: rotary scaling {kind!r} is not supported, only none, linear, yarn and {_ROPE_FACTORS}")


def _hub_config(config: TransformerConfig, header: GGUFHeader, dtype: str) -> dict[str, Any]:
    ids = {
        f"{short}_token_id": header.get(f"tokenizer.ggml.{long}_token_id")
        for short, long in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return to_hub(config, dtype=dtype) | {name: value for name, value in ids.items() if value is not None}


def _hub_name(name: str, path: Path) -> str:
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    if kind in ("weight", "bias"):
        if stem in _TOP:
            return f"{_TOP[stem]}.{kind}"
        if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _BLOCK:
            return f"model.layers.{int(parts[1])}.{_BLOCK[parts[2]]}.{kind}"
    raise ValueError(f"{path}: the tensor {name!r} has no place in a model of this kind")


def _refuse_unknown_types(header: GGUFHeader) -> None:
    from gguf import dequantize
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, tensor in header.tensors.items():
        kind = GGMLQuantizationType(tensor.kind)
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except RuntimeError:
            raise ValueError(f"{header.path}: the tensor {name} is stored as {kind.name}, which gguf cannot dequantise") from None


def _write(path: Path, header: GGUFHeader, config: TransformerConfig, dtype: str) -> None:
    """A safetensors file, in the order of the model, without the whole model in memory at any time."""
    import torch

    names = {_hub_name(name, header.path): name for name in header.tensors if name != _ROPE_FACTORS}
    shapes, at = tensor_shapes(config), 0
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        size = math.prod(shape) * (4 if dtype == "float32" else 2)
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, name in enumerate(shapes, 1):
            for chunk in _chunks(header, header.tensors[names[name]], config):
                file.write(torch.from_numpy(chunk).to(getattr(torch, dtype)).view(torch.uint8).numpy().data)
            if number % 100 == 0:
                say(f"{header.path.name}: {number} of {len(shapes)} tensors")


def _chunks(header: GGUFHeader, tensor: GGUFTensor, config: TransformerConfig) -> Iterator[np.ndarray]:
    """The rows of a tensor in the hub's order, dequantised, a few at a time."""
    part = tensor.name.split(".")[-2]
    interleaved = header["general.architecture"] in _INTERLEAVED and part in ("attn_q", "attn_k")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}[part] if interleaved else 0
    rows = tensor.shape[0]
    if interleaved:
        yield uninterleave(_rows(header, tensor, 0, rows), heads)
        return
    step = max(1, _CHUNK * rows // math.prod(tensor.shape))
    for first in range(0, rows, step):
        yield _rows(header, tensor, first, min(first + step, rows))


def uninterleave(weight_OI: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows 0, 2, 4, ... of a head become its first half, rows 1, 3, 5, ... its second."""
    pairs = weight_OI.reshape(num_heads, -1, 2, weight_OI.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight_OI.shape)


def _rows(header: GGUFHeader, tensor: GGUFTensor, first: int, last: int) -> np.ndarray:
    """Rows `first` to `last` as float32; each number of a vector is a row."""
    from gguf import dequantize
    from gguf.constants import GGMLQuantizationType

    width = tensor.size // tensor.shape[0]  # no quantised block reaches into the next row
    raw = np.memmap(header.path, np.uint8, "r", tensor.offset + first * width, ((last - first), width))
    return np.array(dequantize(raw, GGMLQuantizationType(tensor.kind)), np.float32)
