"""GGUF files against `transformers`' own reader of them: the same weights, and the same tokens for the same text."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from tests.laws.test_gguf import FAMILIES, WIDE, converted, write_gguf
from tests.laws.test_models import built
from toolkit.models import Tokenizer, Transformer, TransformerConfig, load_model
from toolkit.models.byte_tokenizer import _letters

transformers.utils.logging.disable_progress_bar()
TEXTS = ["Hello there, it's 12345!  two\n\n spaces\tand\n", "naïve 日本語 🙂 don't WE'LL", "", "a<|end|>b", " x  y"]
LETTERS = _letters()
PAIRS = [tuple(pair.split()) for pair in ("Ġ t", "h e", "l l", "1 2", "12 3", "Ġt w", "' s", "Ċ Ċ", "he ll", "hell o")]
BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [*LETTERS, *(a + b for a, b in PAIRS), "<|end|>"],
    "tokenizer.ggml.token_type": [1] * (len(LETTERS) + len(PAIRS)) + [3],
    "tokenizer.ggml.merges": [" ".join(pair) for pair in PAIRS],
    "tokenizer.ggml.bos_token_id": len(LETTERS) + len(PAIRS),
    "tokenizer.ggml.eos_token_id": len(LETTERS) + len(PAIRS),
}
PIECES = ["▁", *"abcdefghijklmnopqrstuvwxyz,.!'0123456789HW", *"▁t he ll hello ell ▁a wo ▁two hell 12 ▁▁".split()]
SENTENCE_PIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES],
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(number) for number in range(len(PIECES))],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q4_0], ids=["F32", "Q4_0"])
def test_weights(name, kind, tmp_path):
    config = FAMILIES[name] if name != "qwen3" else replace(FAMILIES[name], head_dim=128)  # transformers reads no other there
    write_gguf(tmp_path / "m.gguf", built(config).float(), name, kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).state_dict()
    ours = converted(tmp_path / "m.gguf", tmp_path / "out").state_dict()
    for key, tensor in ours.items():
        want = theirs[key] if kind == Kind.F32 else theirs[key].bfloat16().float()
        assert torch.equal(tensor, want), key


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", BPE | {"tokenizer.ggml.pre": "llama-bpe"}),
        ("qwen2", BPE | {"tokenizer.ggml.pre": "qwen2"}),
        ("llama", SENTENCE_PIECE),
    ],
    ids=["llama-bpe", "qwen2", "sentencepiece"],
)
def test_tokenizers(family, settings, tmp_path):
    wide = WIDE | {"vocab_size": len(settings["tokenizer.ggml.tokens"])}
    model = built(TransformerConfig(**wide, query_key_value_bias=family == "qwen2")).float()
    write_gguf(tmp_path / "m.gguf", model, family, **settings)
    assert isinstance(converted(tmp_path / "m.gguf", tmp_path / "out"), Transformer)
    ours = Tokenizer.from_folder(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        if settings is not SENTENCE_PIECE or not text.startswith(" "):  # where transformers leaves SentencePiece's own space out
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ours.encode(text), special=True) == text
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_the_packaged_file_by_path_is_the_packaged_model():
    from toolkit.models.places import gguf_source

    path = gguf_source("smollm2-135m")
    assert isinstance(path, Path)
    one, other = (load_model(name, device="meta") for name in (str(path), "smollm2-135m"))
    assert isinstance(one, Transformer) and isinstance(other, Transformer) and one.config == other.config
