"""Write what a training run does into its folder: one line a step."""

import resource
import sys
from typing import Any

import lightning
import torch

from toolkit.runs import Context, current

__all__ = ["Recorder", "run_context"]


def run_context(who: str) -> Context:
    """The run that this process belongs to; `ValueError` with the remedy when there is none."""
    context = current()
    if context is None:
        raise ValueError(f"{who} works inside a run: start the training with launch(train, on=InProcess()) or on=Local()")
    return context


class Recorder(lightning.Callback):
    """Record every scalar that a LightningModule's `training_step` returns or logs, one event line a step.

    `every` is in optimizer steps. Works in anyone's Trainer, inside `launch`.

    Example:
        def train():
            Trainer(max_steps=100, callbacks=[Recorder(), Control()]).fit(module, loader)
        run = launch(train, on=InProcess())
    """

    def __init__(self, *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.every = every
        self.latest: dict[str, float] = {}
        """What was written last."""
        self._last = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Say that the run is under way and how long it is."""
        controls = any(getattr(callback, "steers_run", False) for callback in trainer.callbacks)
        step = trainer.global_step  # of an earlier attempt what came after it does not count; all of it, from 0 on
        run_context("Recorder").events.write(
            "state",
            {"state": "running", "controls": controls, "total_steps": total_steps(trainer), "resumed": step or -1},
            step=step,
        )
        self._last = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the step's metrics, once an optimizer step."""
        step = trainer.global_step
        if step == self._last or step % self.every and step != trainer.max_steps:
            return
        self._last = step
        metrics = {**trainer.logged_metrics, **(outputs if isinstance(outputs, dict) else {})}
        scalars = {}
        for name, value in metrics.items():
            if isinstance(value, torch.Tensor):
                if value.numel() != 1:
                    continue
                value = value.item()
            if isinstance(value, (int, float)):
                scalars[name] = float(value)
        scalars.update(_memory())
        self.latest = scalars
        run_context("Recorder").events.write("metrics", scalars, step=step)


def total_steps(trainer: Any) -> int | None:
    """Optimizer steps that the trainer will make, None where epochs or time end it."""
    return trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None


def _memory() -> dict[str, float]:
    """Bytes of this process now and at most so far: allocated on the accelerator, else resident."""
    if torch.cuda.is_initialized():
        now, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return {"memory_bytes": float(now), "memory_peak_bytes": float(most)}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        with open("/proc/self/statm", "rb") as file:
            now = int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # no such file on this system
        now = most
    return {"memory_bytes": float(now), "memory_peak_bytes": float(max(now, most))}
