"""Who answers in a chat: a model of this kernel, a model by name, or a run, at one of its checkpoints or as it is now.

Nothing is loaded before the first message: a name stands at once, its engine comes when it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from toolkit.runs import Run, RunInactive

if TYPE_CHECKING:
    from toolkit.serve import Engine

__all__ = ["Speaker", "speakers"]

PATIENCE = 60.0
"""Seconds to wait for a running or paused run to write the checkpoint that it is asked for."""


def _as_it_is() -> None:
    """What does not move has no step."""


@dataclass(kw_only=True)
class Speaker:
    """A name and an engine, which is made at the first use, and again once what it is made from has moved on."""

    name: str
    """By which a conversation knows it."""
    make: Callable[[int | None], Engine]
    """Makes the engine, from the step that `newest` gave."""
    newest: Callable[[], int | None] = _as_it_is
    """Step that a run has come to, asked before each message; None for what does not move."""
    state: str = "ready"
    """ready, loading, writing or failed."""
    step: int | None = None
    """What the engine was made from."""
    _engine: Engine | None = None
    _lock: Any = field(default_factory=Lock)

    @property
    def shown(self) -> str:
        """The name, and of a run as it is now the step at which it answers: "run, step 30"."""
        return self.name if self.step is None else f"{self.name}, step {self.step}"

    def engine(self, *, newest: bool = False) -> Engine:
        """The engine that answered last; with `newest` that of the step that a run has come to. Loading takes a while.

        Raises RuntimeError where a living run does not write the checkpoint that it is asked for.
        """
        with self._lock:
            if newest or self._engine is None:
                step = self.newest()
                if self._engine is None or step != self.step:
                    self._engine = None  # two models at once may be more than fits
                    self._engine, self.step = self.make(step), step
            return self._engine


def speakers(given: Sequence[Any], tokenizer: Any = None) -> list[Speaker]:
    """Speakers for models, names, engines, runs, pairs (run, step), or one mapping of names to any of these.

    `tokenizer` (a `Tokenizer` or a name) is needed for a bare module. Raises ValueError for what cannot speak, TypeError for
    another type.

    >>> [one.name for one in speakers([{"before": "smollm2-135m", "after": (run, "best")}])]
    ['before', 'after']
    """
    named = [pair for one in given for pair in (one.items() if isinstance(one, Mapping) else [(None, one)])]
    if not named:
        raise ValueError('Chat: nobody to talk to; give a model, a name such as "smollm2-135m", or a run')
    found = [_speaker(who, name, tokenizer) for name, who in named]
    for place, one in enumerate(found):
        if any(one.name == other.name for other in found[:place]):
            one.name = f"{one.name} ({place + 1})"
    return found


def _speaker(who: Any, name: str | None, tokenizer: Any) -> Speaker:
    if isinstance(who, Run):
        return Speaker(name=name or who.id, make=lambda at: _of_run(who, at, tokenizer), newest=lambda: _newest_step(who))
    if isinstance(who, tuple) and len(who) == 2 and isinstance(who[0], Run):
        run, step = who
        shown = f"step {step}" if isinstance(step, int) else str(step)
        return Speaker(name=name or f"{run.id}, {shown}", make=lambda _: _of_run(run, step, tokenizer))
    if isinstance(who, str):
        return Speaker(name=name or who, make=lambda _: _of_name(who, tokenizer))
    if hasattr(who, "generate") and hasattr(who, "score"):
        return Speaker(name=name or "engine", make=lambda _: cast("Engine", who))
    if hasattr(who, "named_parameters"):
        if tokenizer is None:
            raise ValueError('Chat: a model needs its tokenizer; say Chat(model, tokenizer="smollm2-135m")')
        return Speaker(name=name or "model", make=lambda _: _engine(who, tokenizer))
    raise TypeError(f"Chat: {type(who).__name__} cannot speak; give a model, a name, an Engine, a Run or (run, step)")


def _engine(model: Any, tokenizer: Any) -> Engine:
    from toolkit.models import load_tokenizer
    from toolkit.serve import Engine

    return Engine(model, load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer)


def _of_name(name: str, tokenizer: Any) -> Engine:
    from toolkit.models import load_model

    return _engine(load_model(name), tokenizer or name)


def _of_run(run: Run, step: int | str | None, tokenizer: Any) -> Engine:
    """The run's model at a checkpoint; None: at the newest one, which there may not be."""
    recipe, kept = run.recipe, run.folder / "tokenizer"
    own = str(kept) if kept.is_dir() else getattr(recipe, "tokenizer", None) or getattr(recipe, "model", None)
    if tokenizer is None and not isinstance(own, str):
        raise ValueError(f"Chat: run {run.id} names no tokenizer; say Chat(run, tokenizer=...)")
    return _engine(run.load("last" if step is None else step), tokenizer or own)


def _newest_step(run: Run) -> int | None:
    """Step of the newest checkpoint, None without one. A run that goes on is first asked to write one.

    Raises RuntimeError where it does not.
    """
    before = [step for step, _, _ in run.checkpoints()]
    if run.state.step in before:
        return max(before)
    try:
        number = run.checkpoint()
    except RunInactive:  # it is over, or obeys nothing: its newest checkpoint is what it came to
        return max(before, default=None)
    until = time.monotonic() + PATIENCE
    while run.alive:
        now = [step for step, _, _ in run.checkpoints()]
        answer = run.acknowledgement(number)
        if max(now, default=-1) > max(before, default=-1) or (answer is not None and "error" not in answer):
            return max(now, default=None)
        if answer is not None:
            raise RuntimeError(_refusal(run, f"refused to write a checkpoint: {answer['error']}"))
        if time.monotonic() > until:
            why = f"is {run.state.name} and did not write the checkpoint that it was asked for {PATIENCE:.0f} s ago"
            raise RuntimeError(_refusal(run, why))
        time.sleep(0.1)
    return max((step for step, _, _ in run.checkpoints()), default=None)


def _refusal(run: Run, why: str) -> str:
    steps = [step for step, _, _ in run.checkpoints()]
    remedy = f'Chat((run, "last")) talks to it at step {max(steps)}' if steps else "say it again once it trains"
    return f"run {run.id} {why}; {remedy}"
