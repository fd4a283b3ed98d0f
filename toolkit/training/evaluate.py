"""Measure held-out loss and show samples while a run trains."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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


class Evaluate(lightning.Callback):
    """Record `eval_loss` before the first step, every `every` optimizer steps and after the last; and samples.

    `batches()` yields this rank's held-out micro-batches, as many on every rank; None shows samples only.
    `sample(model, prompt)` returns the continuation of one prompt; it must be deterministic, because all ranks run it
    together.

    Example:
        Evaluate(every=20, batches=lambda: held_out_batches(packed, micro_sequences=4, rank=0, ranks=1))
    """

    def __init__(
        self,
        *,
        every: int,
        batches: Callable[[], Iterable[dict[str, Tensor]]] | None,
        prompts: Sequence[str] = (),
        sample: Callable[[nn.Module, str], str] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.every = every
        self.batches = batches
        self.prompts = tuple(prompts)
        self.sample = sample
        self.latest: dict[str, float] = {}
        self._last = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure where training starts from."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when it is time."""
        step = trainer.global_step
        if step != self._last and (step % self.every == 0 or step == trainer.max_steps):
            self._last = step
            self._measure(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the latest held-out loss beside the weights, so that the best checkpoint can be named."""
        checkpoint["metrics"] = plain(self.latest)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take the latest held-out loss."""
        self.latest = restore(checkpoint.get("metrics", {}))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step, also where the end came early; but not when the training was told to stop."""
        if trainer.global_step != self._last and trainer.global_step != self.latest.get("step") and not trainer.should_stop:
            self._measure(trainer, pl_module)

    @torch.no_grad()
    def _measure(self, trainer: Any, pl_module: Any) -> None:
        events, step, model = run_context("Evaluate").events, trainer.global_step, pl_module.model
        keep = not pl_module.reshard_after_forward
        with gathered(model, reshard_after_forward=False) if keep else nullcontext():  # there is memory for it
            if self.batches is not None:
                loss = pl_module.evaluate(self.batches())
                self.latest = {"eval_loss": loss, "step": step}
                events.write("metrics", {"eval_loss": loss}, step=step)
        if self.sample is None or not self.prompts:
            return
        training = model.training
        model.eval()
        with gathered(model, reshard_after_forward=not keep):
            for prompt in self.prompts:
                text = self.sample(model, prompt)
                events.write("sample", {"prompt": prompt, "text": text}, step=step)
        model.train(training)
