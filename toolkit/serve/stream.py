"""One continuation as it grows: its tokens, the text that can be shown already, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from toolkit.models.tokenizer import Tokenizer

Reason = Literal["stop", "length", "cancelled"]


@dataclass(slots=True)
class Stream:
    """Grows by `push`."""

    tokenizer: Tokenizer
    """Turns tokens into text."""
    stop: tuple[str, ...]
    """Texts that end it."""
    tokens: list[int] = field(default_factory=list)
    """Token ids so far."""
    log_probs: list[float] = field(default_factory=list)
    """Of each token, in nats."""
    reason: Reason = "length"
    """Why it ended; "length" while it has not."""
    spoken: int = 0
    """Characters that `push` has returned."""
    cut: int | None = None
    """Where a stop text begins."""

    @property
    def text(self) -> str:
        return self.tokenizer.decode(self.tokens)[: self.cut]

    def push(self, token: int, log_prob: float, *, ended: bool, full: bool, speak: bool) -> str:
        """Add a token, an end token or the last allowed one; returns the text that can be shown now and was not before."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        if ended:
            self.reason = "stop"
        if not (self.stop or speak):
            return ""
        text = self.tokenizer.decode(self.tokens)
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.reason, self.cut = "stop", min(found)
        whole = text[: self.cut] if self.reason == "stop" or full else text[: _shown(text, self.stop)]
        piece, self.spoken = whole[self.spoken :], max(self.spoken, len(whole))
        return piece


def _shown(text: str, stop: tuple[str, ...]) -> int:
    """Length of the part that is certain: no unfinished character, no beginning of a stop text at its end."""
    end = len(text.rstrip("\ufffd"))
    held = [size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])]
    return min(end, len(text) - max(held, default=0))
