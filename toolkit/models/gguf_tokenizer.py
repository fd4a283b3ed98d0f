"""The tokenizer inside a GGUF file, as the hub's libraries have it.

Two kinds cover the models here: byte-level BPE ("gpt2"; what cuts a text into words is named by `tokenizer.ggml.pre`, and its
pattern is the one in the tokenizer.json of that family) and SentencePiece's BPE ("llama"; scores instead of merges, unknown
characters as bytes). Left out: unigram, WordPiece and RWKV's.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from toolkit.models.gguf_header import GGUFHeader
from toolkit.models.tokenizer import Tokenizer

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    "llama-bpe": rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_LETTERS}|\p{{N}}|{_REST}",
}
_PLAIN = ("default", "gpt-2", "smollm")
_SPECIAL, _ADDED = 3, 4  # token types "control" and "user defined" in the file
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def has_tokenizer(header: GGUFHeader) -> bool:
    """Whether the file holds any tokenizer."""
    return "tokenizer.ggml.model" in header.settings


def known_tokenizer(header: GGUFHeader) -> bool:
    """Whether the file holds a tokenizer that can be read here."""
    model, cut = header.get("tokenizer.ggml.model"), header.get("tokenizer.ggml.pre", "default")
    return model == "llama" or (model == "gpt2" and cut in (*_PATTERNS, *_PLAIN))


def check_tokenizer(header: GGUFHeader) -> int:
    """Number of token ids. Raises ValueError for a file without a tokenizer, or with one of another kind."""
    if not has_tokenizer(header):
        raise ValueError(f"{header.path} holds no tokenizer; name that of another model")
    if not known_tokenizer(header):
        kind = (header["tokenizer.ggml.model"], header.get("tokenizer.ggml.pre"))
        known = ", ".join(("llama", *_PATTERNS, *_PLAIN))
        raise ValueError(f"{header.path}: the tokenizer {kind} is not supported, only {known}; name that of another model")
    tokens = header["tokenizer.ggml.tokens"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{header.path}: tokenizer.ggml.tokens must be a list of texts; fetch the file again")
    return len(tokens)


def read_tokenizer(header: GGUFHeader) -> Tokenizer:
    """The file's tokenizer. Raises ValueError as `check_tokenizer` does, and for one without an end token."""
    check_tokenizer(header)
    tokens: list[str] = header["tokenizer.ggml.tokens"]
    rust = _byte_level(header, tokens) if header["tokenizer.ggml.model"] == "gpt2" else _sentence_piece(header, tokens)
    kinds = header.get("tokenizer.ggml.token_type", [])
    for wanted, special in ((_SPECIAL, True), (_ADDED, False)):
        found = [token for token, kind in zip(tokens, kinds, strict=False) if kind == wanted]
        rust.add_tokens([AddedToken(token, special=special, normalized=False) for token in found])
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"add_prefix_space": False, "model_max_length": header[f"{header['general.architecture']}.context_length"]}
    for name, long in _IDS.items():
        number = header.get(f"tokenizer.ggml.{long}_token_id")
        if number is not None and number < len(tokens):
            settings[name] = tokens[number]
    if header.get("tokenizer.ggml.add_bos_token", False) and "bos_token" in settings:
        start = settings["bos_token"]
        number = header["tokenizer.ggml.bos_token_id"]
        rust.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, number)]
        )
    template = header.get("tokenizer.chat_template")
    if template is not None:
        settings["chat_template"] = template
    return Tokenizer(rust, settings, where=str(header.path))


def _byte_level(header: GGUFHeader, tokens: list[str]) -> tokenizers.Tokenizer:
    merges = [tuple(pair.split(" ", 1)) for pair in header["tokenizer.ggml.merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    cut = header.get("tokenizer.ggml.pre", "default")
    rust = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut == "llama-bpe"))
    if cut == "qwen2":
        rust.normalizer = normalizers.NFC()
    if cut in _PATTERNS:
        first = [pre_tokenizers.Split(Regex(_PATTERNS[cut]), "isolated")]
    else:
        first = [pre_tokenizers.Digits(individual_digits=True)] if cut == "smollm" else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut not in _PATTERNS)
    rust.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    rust.decoder = decoders.ByteLevel()
    return rust


def _sentence_piece(header: GGUFHeader, tokens: list[str]) -> tokenizers.Tokenizer:
    """Pairs merge in the order of their result's score, which is what SentencePiece's BPE does without a list of merges."""
    scores: list[float] = header["tokenizer.ggml.scores"]
    vocab = {token: number for number, token in enumerate(tokens)}
    pairs: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                pairs.append((-score, vocab[left], vocab[right], (left, right)))
    pairs.sort(key=lambda pair: pair[0])
    unknown = header.get("tokenizer.ggml.unknown_token_id", 0)
    model = models.BPE(
        vocab=vocab, merges=[pair for *_, pair in pairs], unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True
    )
    rust = tokenizers.Tokenizer(model)
    prefix = header.get("tokenizer.ggml.add_space_prefix", True)
    rust.normalizer = normalizers.Sequence([*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")])
    tail = [decoders.Strip(" ", 1, 0)] if prefix else []
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    return rust
