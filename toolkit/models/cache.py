"""Keys and values of the tokens seen so far, in memory taken once.

Shapes: B rows, K key and value heads, S capacity in tokens, C channels of a head, T new tokens.
"""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """Room for `capacity` tokens a row, in every layer.

    All rows hold `length` tokens; a shorter row is padded on its left, and its documents tell padding from text. The memory is
    taken when a layer first writes, in the type that it writes.

    >>> cache = KVCache(16)
    >>> first = model(torch.tensor([[5, 6, 7]]), cache=cache)
    >>> second = model(torch.tensor([[8]]), cache=cache)
    >>> cache.length
    4
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys_BKSC: list[Tensor] = []
        """One tensor a layer."""
        self.values_BKSC: list[Tensor] = []
        """One tensor a layer."""
        self.documents_BS: Tensor | None = None
        """Document of each token; None while every row is one document."""

    def append(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> Tensor | None:
        """Count the tokens of one forward; returns the documents of all tokens held, the new ones included.

        Without `documents_BT` the new tokens belong to the document of the last one held.
        """
        start, self.length = self.length, self.length + tokens_BT.shape[1]
        if self.length > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens a row, not for {self.length}")
        if documents_BT is None and self.documents_BS is None:
            return None
        if self.documents_BS is None:
            self.documents_BS = tokens_BT.new_zeros(tokens_BT.shape[0], self.capacity)
        last_B1 = self.documents_BS[:, max(start - 1, 0) : max(start, 1)]
        self.documents_BS[:, start : self.length] = last_B1 if documents_BT is None else documents_BT
        return self.documents_BS[:, : self.length]

    def extend(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values at the end; returns views of all that it holds."""
        if layer == len(self.keys_BKSC):
            rows, heads, _, channels = k_BKTC.shape
            self.keys_BKSC.append(k_BKTC.new_empty(rows, heads, self.capacity, channels))
            self.values_BKSC.append(v_BKTC.new_empty(rows, heads, self.capacity, channels))
        keys_BKSC, values_BKSC = self.keys_BKSC[layer], self.values_BKSC[layer]
        start = self.length - k_BKTC.shape[2]
        keys_BKSC[:, :, start : self.length] = k_BKTC
        values_BKSC[:, :, start : self.length] = v_BKTC
        return keys_BKSC[:, :, : self.length], values_BKSC[:, :, : self.length]

    def select(self, rows_R: Tensor, *, capacity: int | None = None) -> KVCache:
        """A cache of the rows with these numbers, each as often as it is named: samples of one prompt share its prefill."""
        chosen = KVCache(self.capacity if capacity is None else capacity)
        chosen.length = self.length
        chosen.keys_BKSC = [self._rows(keys, rows_R, chosen.capacity) for keys in self.keys_BKSC]
        chosen.values_BKSC = [self._rows(values, rows_R, chosen.capacity) for values in self.values_BKSC]
        if self.documents_BS is not None:
            chosen.documents_BS = self.documents_BS.new_zeros(len(rows_R), chosen.capacity)
            chosen.documents_BS[:, : self.length] = self.documents_BS[rows_R, : self.length]
        return chosen

    def _rows(self, held_BKSC: Tensor, rows_R: Tensor, capacity: int) -> Tensor:
        _, heads, _, channels = held_BKSC.shape
        new_RKSC = held_BKSC.new_empty(len(rows_R), heads, capacity, channels)
        new_RKSC[:, :, : self.length] = held_BKSC[rows_R, :, : self.length]
        return new_RKSC
