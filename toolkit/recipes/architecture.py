"""A decoder in a few numbers: the rest of its configuration follows from them, from the tokenizer and from the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from toolkit.values import Range, check

if TYPE_CHECKING:
    from toolkit.models import TransformerConfig

__all__ = ["Architecture"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Shape of a decoder with random weights; the names are the hub's."""

    hidden_size: Annotated[int, Range(2)] = 256
    """Width of the residual stream, in channels; a multiple of the heads, and even for each."""
    num_hidden_layers: Annotated[int, Range(1)] = 4
    """Number of blocks, 1 or more."""
    num_attention_heads: Annotated[int, Range(1)] = 4
    """Number of query heads, 1 or more."""
    num_key_value_heads: Annotated[int, Range(1)] | None = None
    """Number of key and value heads, a divisor of the query heads; None has one for each."""
    intermediate_size: Annotated[int, Range(1)] | None = None
    """Width between the halves of the SwiGLU layer; None takes 8/3 of hidden_size, rounded up to a multiple of 32."""
    query_key_norm: bool = True
    """RMSNorm over the queries and keys of each head, which allows a higher learning rate."""
    tie_word_embeddings: bool = True
    """Whether the output head is the embedding, transposed."""

    def __post_init__(self) -> None:
        check(self)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"Architecture.hidden_size: {self.hidden_size} must be an even multiple of the {self.num_attention_heads} "
                f"heads; take {max(1, self.hidden_size // (2 * self.num_attention_heads)) * 2 * self.num_attention_heads}"
            )
        if self.num_key_value_heads is not None and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"Architecture.num_key_value_heads: {self.num_key_value_heads} must divide the {self.num_attention_heads} heads"
            )

    def config(self, vocab_size: int, context: int) -> TransformerConfig:
        """The whole configuration, for a tokenizer of `vocab_size` ids and rows of `context` tokens.

        >>> Architecture(hidden_size=256).config(2048, 128).intermediate_size
        704
        """
        from toolkit.models import TransformerConfig

        return TransformerConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or -(-8 * self.hidden_size // 96) * 32,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads or self.num_attention_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            max_position_embeddings=max(context, 2048),
            query_key_norm=self.query_key_norm,
            tie_word_embeddings=self.tie_word_embeddings,
        )
