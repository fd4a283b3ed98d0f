"""A vocabulary of one's own: byte-pair merges learned from the text that a model is to learn.

Source: Neural machine translation of rare words with subword units, Sennrich et al., arXiv:1508.07909, on bytes as in GPT-2;
the trainer is that of the `tokenizers` library. Any text can be written in it, as every byte has an id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from toolkit.values import Range, check

if TYPE_CHECKING:
    from pathlib import Path

    from toolkit.data import Text
    from toolkit.models import Tokenizer

__all__ = ["BPE", "trained"]

END = "<|endoftext|>"
MOST_CHARACTERS = 1 << 25
"""Of more text than this only the beginning is learned from: what follows hardly changes the merges."""
_TRAINER = 1  # part of the cache key: raise it when trained() makes something else


@dataclass(frozen=True, kw_only=True, slots=True)
class BPE:
    """A vocabulary of byte pairs that is learned from the recipe's own text."""

    vocab_size: Annotated[int, Range(257, 1_000_000)] = 2048
    """Largest number of token ids, 257 (bytes alone) or more; little text may give fewer."""

    __post_init__ = check


def trained(bpe: BPE, documents: Iterable[Text]) -> Tokenizer:
    """The tokenizer learned from `documents`, kept in the user's cache under a hash of both.

    >>> trained(BPE(vocab_size=300), [Document("", "to be or not to be")]).vocab_size <= 300
    True
    """
    from toolkit.data import Documents
    from toolkit.models import Tokenizer
    from toolkit.models.storage import build_once, cache_folder

    texts = list(_beginning(documents))
    digest = hashlib.sha256(f"{_TRAINER} {bpe.vocab_size} {Documents.of(texts).fingerprint}".encode())

    def make(folder: Path) -> None:
        _train(bpe, texts).save(folder)

    return Tokenizer.from_folder(build_once(cache_folder("models") / f"bpe-{digest.hexdigest()[:16]}", make))


def _train(bpe: BPE, documents: Iterable[Text]) -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from toolkit.models import Tokenizer

    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=bpe.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator((part for text in documents for part in _parts(text)), trainer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "add_prefix_space": False}
    return Tokenizer(rust, settings, where="the trained tokenizer")


def _beginning(documents: Iterable[Text]) -> Iterator[Text]:
    """The first documents, up to MOST_CHARACTERS together."""
    seen = 0
    for text in documents:
        yield text
        seen += sum(map(len, text))
        if seen >= MOST_CHARACTERS:
            return


def _parts(text: Text) -> list[str]:
    """What is written in a document or a conversation."""
    from toolkit.data import Document

    return [text.prompt, text.text] if isinstance(text, Document) else [str(turn.get("content", "")) for turn in text.turns]
