"""Who answers in a chat: a model of this kernel, a model by name, or a run at one of its checkpoints.

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


@dataclass(kw_only=True)
class Speaker:
    """A name and an engine, which is made at the first use."""

    name: str
    make: Callable[[], Engine]
    state: str = "ready"
    """ready, loading, writing or failed."""
    _engine: Engine | None = None
    _lock: Any = field(default_factory=Lock)

    def engine(self) -> Engine:
        """The engine; the first call loads the model, which takes a while."""
        with self._lock:
            if self._engine is None:
                self._engine = self.make()
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
        return Speaker(name=name or who.id, make=lambda: _of_run(who, None, tokenizer))
    if isinstance(who, tuple) and len(who) == 2 and isinstance(who[0], Run):
        run, step = who
        shown = f"step {step}" if isinstance(step, int) else str(step)
        return Speaker(name=name or f"{run.id}, {shown}", make=lambda: _of_run(run, step, tokenizer))
    if isinstance(who, str):
        return Speaker(name=name or who, make=lambda: _of_name(who, tokenizer))
    if hasattr(who, "generate") and hasattr(who, "score"):
        return Speaker(name=name or "engine", make=lambda: cast("Engine", who))
    if hasattr(who, "named_parameters"):
        if tokenizer is None:
            raise ValueError('Chat: a model needs its tokenizer; say Chat(model, tokenizer="smollm2-135m")')
        return Speaker(name=name or "model", make=lambda: _engine(who, tokenizer))
    raise TypeError(f"Chat: {type(who).__name__} cannot speak; give a model, a name, an Engine, a Run or (run, step)")


def _engine(model: Any, tokenizer: Any) -> Engine:
    from toolkit.models import load_tokenizer
    from toolkit.serve import Engine

    return Engine(model, load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer)


def _of_name(name: str, tokenizer: Any) -> Engine:
    from toolkit.models import load_model

    return _engine(load_model(name), tokenizer or name)


def _of_run(run: Run, step: int | str | None, tokenizer: Any) -> Engine:
    """The run's model: at a checkpoint, or (None) as it is now, for which a living run is asked to write one."""
    if step is None:
        _write_checkpoint(run)
    recipe, kept = run.recipe, run.folder / "tokenizer"
    own = str(kept) if kept.is_dir() else getattr(recipe, "tokenizer", None) or getattr(recipe, "model", None)
    if tokenizer is None and not isinstance(own, str):
        raise ValueError(f"Chat: run {run.id} names no tokenizer; say Chat(run, tokenizer=...)")
    return _engine(run.load("last" if step is None else step), tokenizer or own)


def _write_checkpoint(run: Run) -> None:
    try:
        before = {path for _, path, _ in run.checkpoints()}
        at = run.state.step
        if any(step == at for step, _, _ in run.checkpoints()):
            return
        run.checkpoint()
    except RunInactive:
        return  # it is over: its newest checkpoint is what it came to
    until = time.monotonic() + PATIENCE
    while run.alive and time.monotonic() < until:
        if {path for _, path, _ in run.checkpoints()} - before:
            return
        time.sleep(0.1)
