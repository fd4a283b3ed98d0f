"""Measure held-out loss and show samples while a run trains."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from toolkit.runs.files import plain, restore
from toolkit.training.recorder import run_context

__all__ = ["Evaluate", "gathered"]


@contextmanager
def gathered(model: nn.Module, *, reshard_after_forward: bool = True) -> Iterator[nn.Module]:
    """Keep what the first forward gathers, so that many forwards without gradients gather each unit once.

    `reshard_after_forward` is what the blocks return to. Needs memory for the whole model on every rank.

    Example:
        with gathered(model), torch.no_grad():
            text = Engine(model, tokenizer).generate(["def "], Sampling(max_tokens=32)).texts[0]
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield model
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(reshard_after_forward and unit is not model, recurse=False)


Batches = Callable[[], Iterable[dict[str, Tensor]]]
"""What yields the held-out micro-batches, anew at each call."""


class Evaluate(lightning.Callback):
    """Record `eval_loss` before the first step, every `every` optimizer steps and after the last; and samples.

    `batches()` yields this rank's held-out micro-batches, as many on every rank; None shows samples only. A mapping has such a
    function for each part of the text: `eval_loss` is then that of all tokens together, and `eval_loss/<part>` each part's.
    `sample(model, prompt)` returns the continuation of one prompt; it must be deterministic, because all ranks run it
    together. With `patience` the training ends once so many measurements in a row have found no new lowest loss; where it
    stands in this is kept in checkpoints, so that a resumed run ends at the same step.

    Example:
        Evaluate(every=20, batches=lambda: held_out_batches(packed, micro_sequences=4, rank=0, ranks=1))
    """

    def __init__(
        self,
        *,
        every: int,
        batches: Batches | Mapping[str, Batches] | None,
        prompts: Sequence[str] = (),
        sample: Callable[[nn.Module, str], str] | None = None,
        patience: int | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        if patience is not None and (patience < 1 or batches is None):
            raise ValueError(f"patience={patience} must be at least 1 measurement, and needs held-out text")
        self.every = every
        self.batches = batches
        self.prompts = tuple(prompts)
        self.sample = sample
        self.patience = patience
        self.latest: dict[str, float] = {}
        self.lowest = float("inf")
        """Lowest held-out loss so far."""
        self.without = 0
        """Measurements since then."""
        self._last = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure where training starts from."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)
        self._last = trainer.global_step
        self._end_if_over(trainer)  # resumed from where it had ended

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when it is time."""
        step = trainer.global_step
        if step != self._last and (step % self.every == 0 or step == trainer.max_steps):
            self._last = step
            self._measure(trainer, pl_module)
            self._end_if_over(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the latest held-out loss beside the weights, so that the best checkpoint can be named."""
        checkpoint["metrics"] = plain(self.latest)
        checkpoint["patience"] = plain({"lowest": self.lowest, "without": self.without})

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take the latest held-out loss, and how long there has been no lower one."""
        self.latest = restore(checkpoint.get("metrics", {}))
        found = restore(checkpoint.get("patience", {}))
        self.lowest, self.without = found.get("lowest", self.lowest), found.get("without", self.without)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step, also where the end came early; but not when the training was told to stop."""
        if trainer.global_step != self._last and trainer.global_step != self.latest.get("step") and not trainer.should_stop:
            self._measure(trainer, pl_module)

    def _end_if_over(self, trainer: Any) -> None:
        """End the training when patience is at its end: alike on every rank, as all have the same all-reduced losses."""
        if self.patience is None or self.without < self.patience or trainer.should_stop:
            return
        trainer.should_stop = True
        told = f"ended early: {self.without} measurements without a held-out loss below {self.lowest:.4f}"
        run_context("Evaluate").events.write("text", {"text": told}, step=trainer.global_step)

    @torch.no_grad()
    def _measure(self, trainer: Any, pl_module: Any) -> None:
        events, step, model = run_context("Evaluate").events, trainer.global_step, pl_module.model
        keep = not pl_module.reshard_after_forward
        with gathered(model, reshard_after_forward=False) if keep else nullcontext():  # there is memory for it
            if self.batches is not None:
                found = _losses(pl_module, self.batches)
                loss = found["eval_loss"]
                self.latest = {**found, "step": step}
                lower = loss < self.lowest
                self.lowest, self.without = (loss, 0) if lower else (self.lowest, self.without + 1)
                events.write("metrics", found, step=step)
        if self.sample is None or not self.prompts:
            return
        training = model.training
        model.eval()
        with gathered(model, reshard_after_forward=not keep):
            for prompt in self.prompts:
                text = self.sample(model, prompt)
                events.write("sample", {"prompt": prompt, "text": text}, step=step)
        model.train(training)


def _losses(pl_module: Any, batches: Batches | Mapping[str, Batches]) -> dict[str, float]:
    """`eval_loss`, and that of each part, in nats a token."""
    if not isinstance(batches, Mapping):
        return {"eval_loss": pl_module.evaluate(batches())}
    sums = {name: pl_module.loss_and_tokens(part()) for name, part in batches.items()}
    loss, tokens = (sum(column) for column in zip(*sums.values(), strict=True))
    return {"eval_loss": loss / max(tokens, 1.0)} | {
        f"eval_loss/{name}": part_loss / max(part_tokens, 1.0) for name, (part_loss, part_tokens) in sums.items()
    }
