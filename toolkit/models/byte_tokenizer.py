"""A tokenizer without training: one id a byte, for small models from random weights and for tests."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from toolkit.models.tokenizer import Tokenizer

END = "<|endoftext|>"


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 ends a text.

    >>> byte_tokenizer().encode("é")
    [195, 169]
    """
    rust = tokenizers.Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(_letters())}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "add_prefix_space": False}
    return Tokenizer(rust, settings, where="the byte tokenizer")


def _letters() -> list[str]:
    """The letter that the byte-level scheme writes for each byte: itself where it prints, else one from 256 on."""
    hidden = iter(range(256, 512))
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in prints else next(hidden)) for byte in range(256)]
