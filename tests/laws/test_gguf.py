"""Laws of GGUF files: what gguf's own writer wrote is the same model here, and what cannot be read is said in one line."""

import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from tests.laws.test_models import SMALL, built, close, tokens
from toolkit.models import (
    LinearRope,
    Llama3Rope,
    LongRope,
    Transformer,
    TransformerConfig,
    YarnRope,
    inspect_model,
    inspect_tokenizer,
    load_model,
    load_tokenizer,
)
from toolkit.models.gguf_file import convert, uninterleave
from toolkit.models.gguf_header import GGUFHeader
from toolkit.models.rotary import inverse_frequencies
from toolkit.models.weight_files import read_headers

WIDE = SMALL | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 96}
FAMILIES = {
    "llama": TransformerConfig(**WIDE, tie_word_embeddings=False),
    "llama, biases": TransformerConfig(**WIDE, query_key_value_bias=True, output_bias=True, mlp_bias=True),
    "llama, linear": TransformerConfig(**WIDE, rope_scaling=LinearRope(factor=2.0)),
    "mistral": TransformerConfig(**WIDE, sliding_window=5),
    "qwen2": TransformerConfig(**WIDE, query_key_value_bias=True, rope_theta=1e6),
    "qwen2, yarn": TransformerConfig(
        **WIDE, query_key_value_bias=True, rope_scaling=YarnRope(factor=4.0, original_context=32), tie_word_embeddings=False
    ),
    "qwen3": TransformerConfig(**WIDE | {"num_key_value_heads": 4}, query_key_norm=True, rms_norm_eps=1e-6),
}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, model: Transformer, family: str, kind: Kind = Kind.F32, **settings: object) -> None:
    """A GGUF file as llama.cpp's converter lays it out; matrices as `kind`, vectors as float32."""
    c, writer = model.config, gguf.GGUFWriter(path, family)
    writer.add_vocab_size(c.vocab_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    if c.sliding_window is not None:
        writer.add_sliding_window(c.sliding_window)
    if isinstance(c.rope_scaling, LinearRope | YarnRope):
        writer.add_rope_scaling_type(
            gguf.RopeScalingType.LINEAR if isinstance(c.rope_scaling, LinearRope) else gguf.RopeScalingType.YARN
        )
        writer.add_rope_scaling_factor(c.rope_scaling.factor)
        if isinstance(c.rope_scaling, YarnRope):
            writer.add_rope_scaling_orig_ctx_len(c.rope_scaling.original_context)
    for name, value in settings.items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, int(value))  # type: ignore[call-overload]
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
        weight = tensor.float().numpy()
        if heads and family in ("llama", "mistral"):
            weight = weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        for ours, theirs in NAMES.items():
            name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", name)
        if weight.ndim == 1 or kind == Kind.F32:
            writer.add_tensor(name, np.ascontiguousarray(weight))
        else:
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(path: Path, folder: Path) -> Transformer:
    """The model of a GGUF file, without going through the user's cache."""
    folder.mkdir()
    convert(path, folder)
    model = load_model(str(folder), dtype="float32")
    assert isinstance(model, Transformer)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_is_the_same_model(name, tmp_path):
    config = FAMILIES[name]
    model = built(config).float()
    write_gguf(tmp_path / "m.gguf", model, name.partition(",")[0])
    again = converted(tmp_path / "m.gguf", tmp_path / "out")
    assert again.config == TransformerConfig(**{f: getattr(config, f) for f in config.__slots__} | {"initializer_range": 0.02})
    assert {one.dtype for one in read_headers(tmp_path / "out").values()} == {"float32"}
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_0, Kind.Q5_1, Kind.Q4_0, Kind.Q4_1])
def test_quantised_weights_are_what_gguf_says_they_are(kind, tmp_path):
    model = built(FAMILIES["llama"]).float()
    write_gguf(tmp_path / "m.gguf", model, "llama", kind)
    again = converted(tmp_path / "m.gguf", tmp_path / "out").state_dict()
    kept = torch.float16 if kind == Kind.F16 else torch.bfloat16
    for key, tensor in model.state_dict().items():
        exact = tensor if tensor.ndim == 1 else torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind))
        assert torch.equal(again[key], exact.to(kept).float()), key
    found = {one.dtype for one in read_headers(tmp_path / "out").values()}
    assert found == {str(kept).removeprefix("torch.")}


def test_the_header_is_what_gguf_reads(tmp_path):
    write_gguf(tmp_path / "m.gguf", built(FAMILIES["qwen3"]).float(), "qwen3", Kind.Q8_0, words=["a", "é", ""], numbers=[1, 2])
    header, reader = GGUFHeader(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    assert header.settings == {name: one.contents() for name, one in reader.fields.items() if not name.startswith("GGUF.")}
    assert {name: (one.shape, one.kind, one.offset, one.size) for name, one in header.tensors.items()} == {
        one.name: (tuple(one.shape.tolist())[::-1], int(one.tensor_type), int(one.data_offset), int(one.n_bytes))
        for one in reader.tensors
    }


def test_llama3s_stretch_comes_as_divisors(tmp_path):
    config = TransformerConfig(**WIDE, rope_theta=500.0, rope_scaling=Llama3Rope(original_context=32))
    plain = TransformerConfig(**WIDE, rope_theta=500.0)
    divisors = (inverse_frequencies(plain) / inverse_frequencies(config)).numpy()
    model = built(config).float()
    write_gguf(tmp_path / "m.gguf", model, "llama", **{"rope_freqs.weight": divisors})
    again = converted(tmp_path / "m.gguf", tmp_path / "out")
    assert isinstance(again.config.rope_scaling, LongRope)
    row = tokens(2, 40)
    close(again(row), model(row), 1e-5)


def test_interleaved_rows_are_put_back():
    weight = torch.arange(2 * 8 * 3.0).view(16, 3)
    stored = weight.view(2, 2, 4, 3).transpose(1, 2).reshape(16, 3)  # how the file's writer interleaves two halves
    assert np.array_equal(uninterleave(stored.numpy(), 2), weight.numpy())


def test_a_file_by_name_is_inspected_before_it_is_converted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "m.gguf"
    model = built(FAMILIES["qwen2"]).float()
    write_gguf(path, model, "qwen2", Kind.Q8_0)
    before = inspect_model(str(path))
    assert (before.kind, before.family, before.native, before.dtype) == ("gguf", "qwen2", True, "Q8_0")
    assert (before.max_context, before.vocab_size, before.has_tokenizer) == (64, 96, False)
    assert before.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert not list((tmp_path / "cache/scalebook/models").iterdir())
    with pytest.raises(ValueError, match=r"m\.gguf holds no tokenizer; name that of another model"):
        inspect_tokenizer(str(path))
    assert isinstance(load_model(str(path)), Transformer)
    after = inspect_model(str(path))
    assert (after.kind, after.dtype, after.num_parameters) == ("gguf", "bfloat16", before.num_parameters)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_tokenizer(str(path))


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: _cut(path, 300), "its header ends early"),
        (lambda path: _cut(path, path.stat().st_size - 40), "m.gguf is not whole: the tensor output.weight ends at"),
        (lambda path: path.write_bytes(b"PK" + path.read_bytes()[2:]), "does not begin with the letters GGUF"),
        (lambda path: path.write_bytes(path.read_bytes()[:4] + b"\x09" + path.read_bytes()[5:]), "GGUF version 9"),
        (lambda path: path.write_bytes(b""), "m.gguf"),
        (lambda path: write_gguf(path, built(FAMILIES["llama"]), "gemma2"), "the architecture 'gemma2' is not supported, only"),
        (lambda path: write_gguf(path, built(FAMILIES["qwen3"]), "qwen2"), "attn_q_norm.weight' has no place in this qwen2"),
        (lambda path: write_gguf(path, built(FAMILIES["llama"]), "qwen3"), "q_norm.weight should have the shape"),
        (
            lambda path: write_gguf(path, built(FAMILIES["llama"]), "llama", **{"extra.weight": np.zeros(3, np.float32)}),
            "the tensor 'extra.weight' has no place",
        ),
        (
            lambda path: write_gguf(path, built(FAMILIES["llama"]), "llama", **{"llama.rope.scaling.type": "longrope"}),
            "rotary scaling 'longrope' is not supported",
        ),
    ],
    ids=[
        *("short header", "short data", "no magic", "version", "empty", "architecture", "surplus norms"),
        *("missing norms", "surplus tensor", "rope"),
    ],
)
def test_a_bad_file_is_one_clear_line(damage, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "m.gguf"
    write_gguf(path, built(FAMILIES["llama"]), "llama")
    damage(path)
    for read in (inspect_model, load_model):
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            read(str(path))
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)
    assert [one.name for one in (tmp_path / "cache/scalebook/models").iterdir() if one.is_dir()] == []


def text(value: str) -> bytes:
    """As the file has it: its size, then its bytes."""
    return struct.pack("<Q", len(value)) + value.encode()


U32, TEXT, LIST = struct.pack("<I", 4), struct.pack("<I", 8), struct.pack("<I", 9)
HEADS, STRETCH = "llama.attention.head_count", "llama.rope.scaling.factor"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.alignment", U32 + struct.pack("<I", 0), "is damaged: general.alignment=0 must be a number of bytes"),
        ("general.alignment", TEXT + text("32"), "is damaged: general.alignment='32' must be a number of bytes"),
        ("words", LIST + (LIST + struct.pack("<Q", 1)) * 5000, "is damaged: words nests arrays more than 8 deep"),
        ("words", struct.pack("<I", 77), "words has a value of the type number 77"),
        (HEADS, U32 + struct.pack("<I", 0), f"{HEADS}=0 must be a number above 0"),
        (HEADS, TEXT + text("4"), f"{HEADS}='4' must be a number above 0"),
        (HEADS, struct.pack("<If", 6, 4.5), "num_attention_heads"),
        (STRETCH, TEXT + text("x"), f"{STRETCH}='x' must be a number above 0"),
        (STRETCH, struct.pack("<If", 6, 0.5), "factor"),
        ("tokenizer.ggml.tokens", U32 + struct.pack("<I", 7), "tokenizer.ggml.tokens must be a list of texts"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_a_crafted_setting_is_one_line_that_names_it(key, value, message, tmp_path, monkeypatch):
    """A header without tensors; what follows it is never reached."""
    sound: dict[str, bytes] = {
        "general.architecture": TEXT + text("llama"), "tokenizer.ggml.model": TEXT + text("llama"),
        "llama.rope.scaling.type": TEXT + text("linear"), "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", 6, 1e-5),
        **{f"llama.{name}": U32 + struct.pack("<I", 8) for name in
           ("attention.head_count", "embedding_length", "context_length", "feed_forward_length", "block_count")},
    }  # fmt: skip
    entries = sound | {key: value}
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(text(name) + one for name, one in entries.items())
    path = tmp_path / "m.gguf"
    path.write_bytes(header)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        (inspect_tokenizer if key.startswith("tokenizer") else inspect_model)(str(path))
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_types_that_gguf_cannot_dequantise_are_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from toolkit.models.gguf_file import _refuse_unknown_types

    with pytest.raises(ValueError, match=r"token_embd\.weight is stored as I32"):
        _refuse_unknown_types(GGUFHeader(tmp_path / "m.gguf"))


