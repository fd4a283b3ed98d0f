"""Bodies that train a tiny transformer in a run folder of its own and send it commands from inside."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning
import torch

from tests.distributed.training_bodies import CONFIG, unequal
from toolkit import checkpoint as checkpoints
from toolkit.data import StepLoader
from toolkit.models import Transformer
from toolkit.parallel import Plan
from toolkit.runs import EventWriter, current, read_events, send
from toolkit.runs.context import enter
from toolkit.training import Control, Evaluate, LanguageModule, MeshStrategy, Recorder


@contextmanager
def in_folder(folder: str):
    """As if this process were a rank of the run in `folder`."""
    before = current()
    events = EventWriter(Path(folder), before.rank, 1)
    enter(replace(before, folder=Path(folder), events=events))
    try:
        yield
    finally:
        enter(before)
        events.close()


class Sends(lightning.Callback):
    """Sends commands when a step begins, and those of step -1 when training ends: {step: [[command, arguments], ...]}."""

    def __init__(self, commands):
        self.commands = {int(step): found for step, found in commands.items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._send(trainer, trainer.global_step)

    def on_train_end(self, trainer, pl_module):
        self._send(trainer, -1)

    def _send(self, trainer, step):
        if trainer.is_global_zero:
            for command, arguments in self.commands.get(step, []):
                send(current().folder, command, **arguments)


class Plain(lightning.LightningModule):
    """Anyone's module: automatic optimisation, its own optimizer and schedule."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        self.log("loss_now", self.layer(batch).square().mean())
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=1)]


def steered(*, folder: str, commands: dict, steps: int, nan: bool = False, every: int = 0) -> dict:
    """Train a language model on one or two ranks under commands; what rank 0 wrote, and which checkpoints there are."""
    context = current()
    world = context.world_size
    with in_folder(folder):
        module = LanguageModule(lambda: Transformer(CONFIG, seed=3), lr=1e-2, steps=steps)
        module.frozen_from_recipe = False
        if nan:
            module.evaluate = lambda batches: float("nan")
        loader = StepLoader(unequal(), sequences_per_step=4, micro_sequences=2, rank=context.rank, ranks=world, seed=5)
        trainer = lightning.Trainer(
            accelerator="cpu", devices=world, strategy=MeshStrategy(Plan(dp_shard=world)), max_steps=steps, max_epochs=-1,
            callbacks=[Sends(commands), Recorder(), Evaluate(every=100, batches=list), Control(checkpoint_every=every)],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )
        newest, _ = checkpoints.newest(Path(folder) / "checkpoints")
        trainer.fit(module, loader, ckpt_path=newest and str(newest), weights_only=True)
    return {"step": trainer.global_step} | told(folder)


def plain(*, folder: str, commands: dict, steps: int) -> dict:
    """The same for a training that knows nothing of Scalebook but its two callbacks."""
    with in_folder(folder):
        module = Plain()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, callbacks=[Sends(commands), Recorder(), Control(checkpoint_every=2)],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(torch.ones(64, 2), batch_size=2))
        rate = trainer.optimizers[0].param_groups[0]["lr"]
    return {"step": trainer.global_step, "lr": rate} | told(folder)


def told(folder: str) -> dict:
    """Answers to commands, states and checkpoints of a folder."""
    events = read_events(Path(folder))
    return {
        "answers": [event["data"] for event in events if event["kind"] == "command"],
        "states": [event["data"] for event in events if event["kind"] == "state"],
        "metrics": sorted({name for event in events if event["kind"] == "metrics" for name in event["data"]}),
        "checkpoints": sorted(path.name for path in Path(folder, "checkpoints").glob("*")),
        "settings": json.loads(Path(folder, "settings.json").read_text()) if Path(folder, "settings.json").exists() else [],
    }
