"""Keys and values of the rows that are being continued, and the attention of one new token a row to them.

The samples of a prompt are neighbours, and its keys and values are held once for all of them: one product reads them for the
whole group, where a copy in each row would be read from memory at every step. Memory is taken once, and written by index.
Source: Hydragen, Juravsky et al., arXiv:2402.05099, section 3.2; here both parts come under one softmax.
Left out: sharing after rows were dropped, on CUDA and in narrow types; there every row holds its prompt.

Shapes: P prompts, J samples of each, R rows, H query heads, K key and value heads, G = H / K, C channels of a head, N key
heads of all rows, S tokens.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from toolkit.models.cache import KVCache

EXACT = (torch.float32, torch.float64)
"""Types that sum in their own precision; the others are summed in float32 inside a kernel."""


class Held:
    """What the rows attend to: each of `prompts` continued `group` times, with room for `room` further tokens a row.

    >>> held = Held(cache, heads=config.num_attention_heads, group=8, room=64)
    >>> held.grow()                                               # before the first layer of a step
    >>> y_RI = held.attend(0, q_RHC, k_RKC, v_RKC, window=None)   # writes k and v, then attends to all
    """

    def __init__(self, prompts: KVCache, *, heads: int, group: int, room: int) -> None:
        like = prompts.keys_BKSC[0]
        self.heads = heads
        num_prompts, self.num_keys, _, self.channels = like.shape
        self.rows, self.group, self.room = num_prompts * group, group, room
        self.exact = not like.is_cuda and like.dtype in EXACT
        self.length = 0
        """Tokens that each row holds for itself."""
        self.prompts: KVCache | None = prompts
        """What the rows of a group hold together; None once every row holds all it attends to."""
        self.padding_PS: Tensor | None = None
        if prompts.documents_BS is not None:
            documents_PS = prompts.documents_BS[:, : prompts.length]
            self.padding_PS = documents_PS != documents_PS[:, -1:]
        if group > 1 and self.exact:
            self.keys_NSC, self.values_NSC = (
                [like.new_empty(self.rows * self.num_keys, room, self.channels) for _ in prompts.keys_BKSC] for _ in range(2)
            )
            self._mask_NS = None if self.padding_PS is None else self._mask(self.padding_PS, like)
        else:
            self._spread(torch.arange(num_prompts, device=like.device).repeat_interleave(group), None)
        self._buffers()

    def keep(self, rows_R: Int[Tensor, "R"]) -> None:
        """Go on with these rows alone, in this order."""
        if self.prompts is not None:
            self._spread(rows_R // self.group, rows_R % self.group)
        else:
            split = (self.rows, self.num_keys)
            self.keys_NSC = [keys.unflatten(0, split)[rows_R].flatten(0, 1) for keys in self.keys_NSC]
            self.values_NSC = [values.unflatten(0, split)[rows_R].flatten(0, 1) for values in self.values_NSC]
            if self._mask_NS is not None:
                self._mask_NS = self._mask_NS.unflatten(0, split)[rows_R].flatten(0, 1)
            self.rows = len(rows_R)
        self._buffers()

    def grow(self) -> None:
        """Count one more token in every row."""
        if self.length == self.room:
            raise ValueError(f"no room for more than {self.room} tokens a row")
        self.length += 1

    def attend(
        self,
        layer: int,
        q_RHC: Float[Tensor, "R H C"],
        k_RKC: Float[Tensor, "R K C"],
        v_RKC: Float[Tensor, "R K C"],
        *,
        window: int | None,
    ) -> Float[Tensor, "R I"]:
        """Write the new keys and values of one layer, and mix the values of the last `window` tokens; I = H * C."""
        keys_NSC, values_NSC = self.keys_NSC[layer], self.values_NSC[layer]
        for held_NSC, new_RKC in ((keys_NSC, k_RKC), (values_NSC, v_RKC)):
            held_PKJSC = held_NSC.view(-1, self.num_keys, self.group, self.room, self.channels)
            held_PKJSC.select(3, self.length - 1).copy_(self._by_prompt(new_RKC))
        shared = 0 if self.prompts is None else self.prompts.length
        first = 0 if window is None else max(0, shared + self.length - window)
        own = slice(max(0, first - shared), self.length)
        q_PKJGC = self._by_prompt(q_RHC.view(self.rows, self.num_keys, -1, self.channels))
        k_NSC, v_NSC = keys_NSC[:, own], values_NSC[:, own]
        if not self.exact:
            return self._in_one_kernel(q_PKJGC.flatten(0, 2), k_NSC, v_NSC, own)
        if self.prompts is None:
            mask_NS = None if self._mask_NS is None else self._mask_NS[:, own]
            mixed_NGC = self._mix(q_PKJGC.reshape(-1, *q_PKJGC.shape[3:]), k_NSC, v_NSC, mask_NS)
            return mixed_NGC.view(self.rows, -1)
        return self._mix_shared(layer, q_PKJGC, k_NSC, v_NSC, slice(min(first, shared), shared))

    def _mix(self, q_NGC: Tensor, k_NSC: Tensor, v_NSC: Tensor, mask_NS: Tensor | None) -> Tensor:
        scores_NGS = self._score(q_NGC, k_NSC, mask_NS, self._scores)
        chance_NGS = torch.softmax(scores_NGS, -1, out=_shaped(self._chances, scores_NGS.shape))
        return torch.bmm(chance_NGS, v_NSC, out=self._mixed_NGC)

    def _mix_shared(self, layer: int, q_PKJGC: Tensor, k_NSC: Tensor, v_NSC: Tensor, seen: slice) -> Tensor:
        """The prompt's part for a whole group at once, the row's own part, one softmax over both."""
        assert self.prompts is not None
        q_PKJGC = q_PKJGC.contiguous()
        num_prompts, num_keys, group, shared_heads, channels = q_PKJGC.shape
        whole = (num_prompts * num_keys, group * shared_heads)
        k_MSC = self.prompts.keys_BKSC[layer].flatten(0, 1)[:, seen]
        v_MSC = self.prompts.values_BKSC[layer].flatten(0, 1)[:, seen]
        mask_MS = None if self._mask_NS is None else self._mask_NS[:, seen]
        before = self._score(q_PKJGC.view(*whole, channels), k_MSC, mask_MS, self._scores)
        own_NGS = self._score(q_PKJGC.view(-1, shared_heads, channels), k_NSC, None, self._own)
        cut, total = before.shape[2], before.shape[2] + own_NGS.shape[2]
        both = _shaped(self._both, (*own_NGS.shape[:2], total))
        torch.cat((before.view(*own_NGS.shape[:2], cut), own_NGS), -1, out=both)
        chance_NGS = torch.softmax(both, -1, out=_shaped(self._chances, both.shape))
        torch.bmm(chance_NGS.view(*whole, total)[..., :cut], v_MSC, out=self._mixed_NGC.view(*whole, channels))
        self._mixed_NGC.baddbmm_(chance_NGS[..., cut:], v_NSC)
        return self._mixed_NGC.view(q_PKJGC.shape).transpose(1, 2).reshape(self.rows, -1)

    def _score(self, q_NGC: Tensor, k_NSC: Tensor, mask_NS: Tensor | None, buffer: Tensor) -> Tensor:
        out_NGS = _shaped(buffer, (*q_NGC.shape[:2], k_NSC.shape[1]))
        start, beta = (self._nothing, 0) if mask_NS is None else (mask_NS[:, None], 1)
        return torch.baddbmm(start, q_NGC, k_NSC.transpose(1, 2), beta=beta, alpha=self.channels**-0.5, out=out_NGS)

    def _in_one_kernel(self, q_NGC: Tensor, k_NSC: Tensor, v_NSC: Tensor, own: slice) -> Tensor:
        split = (self.rows, self.num_keys)
        mask = None if self._mask_NS is None else self._mask_NS[:, own].unflatten(0, split)[:, :1, None]
        q, k, v = (part.unflatten(0, split) for part in (q_NGC, k_NSC, v_NSC))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(self.rows, -1)

    def _by_prompt(self, x_RK: Tensor) -> Tensor:
        """[R, K, ...] as [P, K, J, ...]: the rows of a group stand inside each key head."""
        return x_RK.view(-1, self.group, *x_RK.shape[1:]).transpose(1, 2)

    def _spread(self, prompts_R: Tensor, samples_R: Tensor | None) -> None:
        """Give each row its own copy of its prompt."""
        prompts = self.prompts
        assert prompts is not None
        start, total = prompts.length, prompts.length + self.length

        def rows(prompt_PKSC: Tensor, own_NSC: Tensor | None) -> Tensor:
            new_RKSC = prompt_PKSC.new_empty(len(prompts_R), self.num_keys, start + self.room, self.channels)
            new_RKSC[:, :, :start] = prompt_PKSC[prompts_R, :, :start]
            if own_NSC is not None:
                own_PKJSC = own_NSC.unflatten(0, (-1, self.num_keys, self.group))
                new_RKSC[:, :, start:total] = own_PKJSC[prompts_R, :, samples_R, : self.length]
            return new_RKSC.flatten(0, 1)

        nothing = [None] * len(prompts.keys_BKSC)
        keys, values = (nothing, nothing) if samples_R is None else (self.keys_NSC, self.values_NSC)
        self.keys_NSC = [rows(*pair) for pair in zip(prompts.keys_BKSC, keys, strict=True)]
        self.values_NSC = [rows(*pair) for pair in zip(prompts.values_BKSC, values, strict=True)]
        self.rows, self.group, self.room, self.length, self.prompts = len(prompts_R), 1, start + self.room, total, None
        self._mask_NS = None if self.padding_PS is None else self._mask(self.padding_PS[prompts_R], self.keys_NSC[0])

    def _mask(self, padding_PS: Tensor, like: Tensor) -> Tensor:
        """Minus infinity where padding stands, 0 after it, for every key head."""
        mask_PS = like.new_zeros(len(padding_PS), padding_PS.shape[1] + (0 if self.prompts is not None else self.room))
        mask_PS[:, : padding_PS.shape[1]].masked_fill_(padding_PS, float("-inf"))
        return mask_PS.repeat_interleave(self.num_keys, 0)

    def _buffers(self) -> None:
        like = self.keys_NSC[0]
        total = self.room + (0 if self.prompts is None else self.prompts.length)
        self._scores, self._own, self._both, self._chances = (like.new_empty(self.rows * self.heads * total) for _ in range(4))
        self._mixed_NGC = like.new_empty(self.rows * self.num_keys, self.heads // self.num_keys, self.channels)
        self._nothing = like.new_zeros(1, 1, 1)


def _shaped(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)
