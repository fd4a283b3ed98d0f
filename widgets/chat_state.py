"""What a chat keeps of a conversation, and what of it the page is told: pure functions."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from toolkit.serve import Sampling
from widgets.view import harmless

__all__ = ["fit_to_save", "for_page", "has_template", "no_answer", "token_pieces", "with_changes"]

SAVED_CHARACTERS = 120_000
"""Of the conversation that the saved state holds: it stays under 200 kB; older turns lose their tokens first."""


def with_changes(sampling: Sampling, **changed: Any) -> Sampling:
    """`sampling` with other values of some fields. Raises ValueError for an unknown field or a value out of range."""
    unknown = set(changed) - {field.name for field in dataclasses.fields(sampling)}
    if unknown:
        raise ValueError(f"Sampling has no field {sorted(unknown)[0]!r}")
    return dataclasses.replace(sampling, **changed)


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer knows how its model is talked to."""
    try:
        return bool(tokenizer.chat_template)
    except (AttributeError, ValueError):
        return False


def no_answer(error: str) -> dict[str, Any]:
    """What stands in place of an answer that did not come."""
    nothing = {"text": "", "ids": [], "prompt": [], "tokens": [], "count": 0, "rate": 0.0, "step": None}
    return nothing | {"reason": "failed", "error": error}


def token_pieces(tokenizer: Any, ids: list[int], log_probs: list[float]) -> list[tuple[str, float]]:
    """The text that each token adds, and its probability; an unfinished character is shown by the token that ends it."""
    found: list[tuple[str, float]] = []
    told = 0
    for end, log_prob in enumerate(log_probs, 1):
        text = tokenizer.decode(ids[:end], special=True)
        whole = len(text.rstrip("\ufffd"))
        found.append((harmless(text[told:whole], 200), round(math.exp(log_prob), 4)))
        told = max(told, whole)
    return found


def for_page(turn: dict[str, Any]) -> dict[str, Any]:
    """What the page is told of a turn; an answer that is not there yet is None."""
    keep = ("tokens", "reason", "count", "error", "step")
    answers = [
        answer
        and {name: answer[name] for name in keep} | {"text": harmless(answer["text"], 20_000), "rate": round(answer["rate"], 1)}
        for answer in turn["answers"]
    ]
    return {"text": harmless(turn["text"], 20_000), "answers": answers}


def fit_to_save(shown: dict[str, Any]) -> dict[str, Any]:
    """The same, small enough to be saved: from the oldest turn on tokens go first, then the ends of texts."""

    def size() -> int:
        return len(json.dumps(shown["turns"]))

    for cut in (False, True):
        for turn in shown["turns"][:-1]:
            if size() <= SAVED_CHARACTERS:
                return shown
            turn["text"] = turn["text"][:80] + "…" if cut else turn["text"]
            for answer in filter(None, turn["answers"]):
                answer["tokens"] = []
                answer["text"] = answer["text"][:80] + "…" if cut else answer["text"]
    return shown
