"""Next-token training of a decoder, with the loss normalised over the whole global batch.

One batch is one optimizer step: a list of micro-batches `{tokens_BT, targets_BT, documents_BT}` of this data rank (see
`toolkit.data.StepLoader`). Each micro-batch adds the SUM of its token losses divided by the target tokens of the whole
global batch (all ranks, all micro-batches), and the gradients are summed over ranks. So the step does not depend on how
the batch was cut, also when ranks hold very unequal numbers of target tokens.
Shapes: B rows, T tokens a row, K chosen positions (those with a target), V vocabulary.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from toolkit.data import IGNORED
from toolkit.parallel import apply_fsdp
from toolkit.runs import current
from toolkit.training.flops import Work, peak, work_of
from toolkit.training.optimizers import AdamW, Optimizer
from toolkit.training.schedules import Constant, Schedule

__all__ = ["LanguageModule", "loss_sum"]


def loss_sum(model: nn.Module, micro: dict[str, Tensor]) -> Tensor:
    """Sum of the cross-entropy over the target tokens of one micro-batch, in nats, as a float32 (or wider) scalar.

    `model(tokens_BT, documents_BT=..., where_BT=...)` must return logits (K, V) at the chosen positions, as the reference
    transformer does. A micro-batch without a target gives zero and keeps the graph, so that every rank runs the same
    collectives.

    Example:
        loss = loss_sum(model, {"tokens_BT": tokens, "targets_BT": targets, "documents_BT": documents})
        (loss / (targets != IGNORED).sum()).backward()
    """
    targets_BT = micro["targets_BT"]
    where_BT = targets_BT != IGNORED
    if not where_BT.any():  # one logit with weight zero: same collectives, no loss
        where_BT = torch.zeros_like(where_BT)
        where_BT[0, 0] = True
        logits_KV = model(micro["tokens_BT"], documents_BT=micro.get("documents_BT"), where_BT=where_BT)
        return logits_KV.sum() * 0.0
    logits_KV = model(micro["tokens_BT"], documents_BT=micro.get("documents_BT"), where_BT=where_BT)
    wide = torch.promote_types(logits_KV.dtype, torch.float32)
    return F.cross_entropy(logits_KV.to(wide), targets_BT[where_BT], reduction="sum")


class LanguageModule(lightning.LightningModule):
    """Train the model that `build()` returns on next-token prediction.

    `build` runs in `configure_model`, after the mesh exists: it makes the model and its adapters; sharding follows here.
    Optimisation is manual: one `training_step` is one optimizer step over a list of micro-batches.
    `base_lr`, `weight_decay` and `total_steps` may be changed while training runs (`toolkit.training.Control` does).

    Example:
        module = LanguageModule(lambda: adapt(load_model("smollm2-135m"), {"*.q_proj": LoRA(rank=8)}), lr=1e-3, steps=40)
        Trainer(strategy=MeshStrategy(Plan()), max_steps=40, use_distributed_sampler=False).fit(module, loader)
    """

    frozen_from_recipe = True
    """Frozen parameters come from `build`, so checkpoints leave them out."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        lr: float,
        steps: int,
        schedule: Schedule = Constant(warmup=0),
        optimizer: Optimizer = AdamW(),
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
        param_dtype: torch.dtype | None = None,
        reshard_after_forward: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.build = build
        self.base_lr = lr
        self.total_steps = steps
        self.schedule = schedule
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.clip = clip
        self.param_dtype = param_dtype
        self.reshard_after_forward = reshard_after_forward
        self.model: nn.Module | None = None
        self.tokens_seen = 0
        self._work: Work | None = None
        self._peak = 0.0

    def configure_model(self) -> None:
        """Build, adapt and shard, once."""
        if self.model is None:
            if self.device_mesh is None:
                raise ValueError("LanguageModule needs strategy=MeshStrategy(plan), also in one process")
            self.model = self.build()
            apply_fsdp(
                self.model,
                self.device_mesh,
                param_dtype=self.param_dtype,
                reshard_after_forward=self.reshard_after_forward,
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the value `optimizer` over what trains; rate and decay are set anew at every step."""
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        if not trained:
            raise ValueError("nothing to train: every parameter is frozen; name adapters, or train the whole model")
        return self.optimizer.make(trained)

    def on_train_start(self) -> None:
        """Find out, once, what the device could do; the run's record says where the number is from."""
        self._peak, source = peak(self.device, self.param_dtype or torch.float32)
        if (context := current()) is not None and context.rank == 0:
            told = f"mfu is the share of {self._peak / 1e12:.3g} TFLOP/s a process, {source}"
            context.events.write("text", {"text": told}, step=self.global_step)

    def training_step(self, batch: list[dict[str, Tensor]], batch_idx: int) -> dict[str, Tensor]:
        """One optimizer step; returns `loss` (nats a token over the global batch) and what `Recorder` writes.

        `grad_norm` is that before clipping, `tokens` those with a target so far, `mfu` the part of this process's peak FLOPs
        that the model's own products took (see `toolkit.training.flops`).
        """
        began = time.perf_counter()
        made = self.optimizers()
        optimizers: list[Any] = made if isinstance(made, list) else [made]
        assert self.model is not None
        rate = self._set_rate(optimizers)
        mine = sum(((micro["targets_BT"] != IGNORED).sum() for micro in batch), torch.zeros((), device=self.device))
        tokens = self.global_sum(mine.clone())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro in batch:
            loss = loss_sum(self.model, micro) / tokens.clamp(min=1)
            self.manual_backward(loss)
            total += loss.detach().double()
        norm = self._clip()
        optimizers[0].step()
        for other in optimizers[1:]:
            other.optimizer.step()  # the bare one: Lightning counts a training step for each step of a wrapped one
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = self.global_sum(total)
        self.tokens_seen += int(tokens)
        seconds = time.perf_counter() - began
        return {
            "loss": loss,
            "grad_norm": norm,
            "lr": torch.tensor(rate, dtype=torch.float64),
            "tokens": torch.tensor(float(self.tokens_seen)),
            "tokens_per_second": tokens / seconds,
            "step_seconds": torch.tensor(seconds),
            "mfu": torch.tensor(self._flops(batch, float(mine)) / (seconds * self._peak)),
        }

    def evaluate(self, batches: Iterable[dict[str, Tensor]]) -> float:
        """Mean held-out loss in nats a token over all ranks' batches; every rank must hold as many batches."""
        loss, tokens = self.loss_and_tokens(batches)
        return loss / max(tokens, 1.0)

    @torch.no_grad()
    def loss_and_tokens(self, batches: Iterable[dict[str, Tensor]]) -> tuple[float, float]:
        """Sum of the loss over all ranks' batches, in nats, and how many tokens it is of."""
        assert self.model is not None
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        was_training = self.model.training
        self.model.eval()
        for micro in batches:
            micro = {name: tensor.to(self.device) for name, tensor in micro.items()}
            sums[0] += loss_sum(self.model, micro).double()
            sums[1] += (micro["targets_BT"] != IGNORED).sum()
        self.model.train(was_training)
        loss, tokens = self.global_sum(sums).tolist()
        return loss, tokens

    def global_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the data-parallel ranks (all ranks of the world, as no other axis splits a row here)."""
        tensor = tensor.to(self.device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(tensor)
        return tensor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of tokens seen."""
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the count of tokens seen."""
        self.tokens_seen = int(checkpoint["tokens_seen"])

    def _flops(self, batch: list[dict[str, Tensor]], targets: float) -> float:
        """FLOPs of this rank's part of a step."""
        assert self.model is not None
        if self._work is None:
            self._work = work_of(self.model, batch[0]["tokens_BT"].shape[1])
        return self._work.step(sum(micro["tokens_BT"].numel() for micro in batch), targets)

    def _set_rate(self, optimizers: list[Any]) -> float:
        """Set the step's rate, and the decay of the groups that it is for."""
        rate = self.base_lr * self.schedule.factor(self.global_step, self.total_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
                group["weight_decay"] = self.weight_decay if group.get("decays", True) else 0.0
        return rate

    def _clip(self) -> Tensor:
        """Norm of the whole gradient before clipping; clips in place when `clip` is set."""
        trained = [parameter for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, self.clip, norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
