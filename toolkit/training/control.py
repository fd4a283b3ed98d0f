"""Obey the commands of a run's folder between optimizer steps, alike on every rank; save and prune checkpoints.

Rank 0 reads the commands. At the start of a step the newest number travels to all ranks by an asynchronous broadcast on
the control group; at the step's end every rank waits for it, and only a new number costs a second broadcast with the
commands themselves, as JSON. So all ranks apply a command after the same step. While paused, rank 0 says every 0.1 s
that the pause goes on: no collective waits longer.
"""

import contextlib
import json
import time
from typing import Any

import lightning
import torch
import torch.distributed as dist

from toolkit import checkpoint as checkpoints
from toolkit.runs import Context, read_events
from toolkit.runs.control import perform_call, read_commands
from toolkit.runs.files import read_json, replace_json
from toolkit.training.recorder import Recorder, run_context, total_steps
from toolkit.training.strategy import MeshStrategy

__all__ = ["Control"]

PAUSE = 0.1
"""Seconds between two looks at the commands while paused."""


class Control(lightning.Callback):
    """Pause, resume, stop and keep, checkpoint, set and call for any Lightning training inside `launch`.

    Saves a checkpoint every `checkpoint_every` optimizer steps (0: never by itself), after the last step, and when
    asked; keeps the `keep` newest and the one with the lowest `eval_loss`. Put it after `Recorder`. Checkpoints need
    `MeshStrategy`; commands need nothing.

    A setting that was changed stands in `settings.json` with the step after which it holds, and is applied again when
    the run resumes from an earlier step.

    Example:
        Trainer(max_steps=1000, strategy=MeshStrategy(), callbacks=[Recorder(), Control(checkpoint_every=100)])
    """

    steers_run = True

    def __init__(self, *, checkpoint_every: int = 0, keep: int = 2) -> None:
        if checkpoint_every < 0 or keep < 1:
            raise ValueError(f"checkpoint_every={checkpoint_every} must be at least 0 and keep={keep} at least 1")
        self.checkpoint_every = checkpoint_every
        self.keep = keep
        self._done = 0  # number of the newest command that was applied
        self._step = -1  # optimizer step that was last handled
        self._saved = -1  # optimizer step of the newest checkpoint of this attempt
        self._state = "running"  # what was said last
        self._news: tuple[torch.Tensor, Any] | None = None
        self._settings: list[dict[str, Any]] = []

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take up a changed number of steps before the loop asks whether it has done them all."""
        context = run_context("Control")
        for entry in _share(context, read_json(context.folder / "settings.json", [])):
            if entry["name"] == "max_steps" and entry["step"] <= checkpoint["global_step"]:
                trainer.fit_loop.epoch_loop.max_steps = int(entry["value"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take up the settings that held at this step."""
        context = run_context("Control")
        self._step = trainer.global_step
        answered = [event["data"].get("n", 0) for event in read_events(context.folder, kinds=("command",))]
        self._done = _share(context, max(answered, default=0))  # of an earlier training of this run
        self._settings = _share(context, read_json(context.folder / "settings.json", []))
        self._replay(trainer, pl_module, up_to=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the last step, and say that from here on nothing is obeyed."""
        context = run_context("Control")
        if self._keeps(trainer):
            self._save(trainer)
        for command in read_commands(context.folder, self._done) if context.rank == 0 else []:
            answer = {"n": command["n"], "command": command["command"], "applied": trainer.global_step}
            context.events.write("command", {**answer, "error": "the training was over"}, step=trainer.global_step)
        self._say(trainer, self._state, controls=False)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Send the number of the newest command on its way."""
        context = run_context("Control")
        number = torch.tensor([self._newest(context) if context.rank == 0 else 0])
        work = dist.broadcast(number, 0, group=context.control_group, async_op=True) if context.world_size > 1 else None
        self._news = (number, work)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Once an optimizer step: save if it is time, then apply what was commanded."""
        assert self._news is not None
        number, work = self._news
        if work is not None:
            work.wait()
        step = trainer.global_step
        if step != self._step:
            self._step = step
            self._replay(trainer, pl_module, up_to=step, after=step - 1)
            due = step == trainer.max_steps or (self.checkpoint_every and step % self.checkpoint_every == 0)
            if due and self._keeps(trainer):
                self._save(trainer)
            if int(number) > self._done:
                self._obey(trainer, pl_module)

    def _newest(self, context: Context) -> int:
        found = read_commands(context.folder, self._done)
        return found[-1]["n"] if found else self._done

    def _obey(self, trainer: Any, pl_module: Any) -> None:
        """Apply every new command; after a pause came, stay until something ends it."""
        context = run_context("Control")
        paused = False
        while True:
            found = read_commands(context.folder, self._done) if context.rank == 0 else []
            for command in _share(context, found):
                self._done = command["n"]
                answer = {"n": command["n"], "command": command["command"], "applied": trainer.global_step}
                try:
                    paused, more = self._apply(trainer, pl_module, command, paused)
                    answer |= more
                except (ValueError, TypeError, OSError) as error:
                    answer["error"] = str(error)
                context.events.write("command", answer, step=trainer.global_step)
            if not paused or trainer.should_stop:
                return
            time.sleep(PAUSE if context.rank == 0 else 0.0)

    def _apply(self, trainer: Any, pl_module: Any, command: dict[str, Any], paused: bool) -> tuple[bool, dict[str, Any]]:
        """Carry out one command; returns whether the run is paused now, and what to add to the acknowledgement."""
        context = run_context("Control")
        match command["command"]:
            case "pause":
                self._say(trainer, "paused")
                return True, {}
            case "resume":
                self._say(trainer, "running")
                return False, {}
            case "stop":
                self._say(trainer, "stopping")
                trainer.should_stop = True
                if command.get("save", True):
                    self._save(trainer)
                else:
                    self._saved = trainer.global_step  # what is not wanted is not kept at the end either
                return False, {"save": command.get("save", True)}
            case "checkpoint":
                self._save(trainer)
                return paused, {"step": trainer.global_step}
            case "set":
                name, value = command["name"], command["value"]
                self._set(trainer, pl_module, name, value)
                step = trainer.global_step
                kept = [entry for entry in self._settings if entry["name"] != name or entry["step"] <= step]
                self._settings = [*kept, {"step": step, "name": name, "value": value}]
                if context.rank == 0:
                    replace_json(context.folder / "settings.json", self._settings)
                return paused, {"name": name, "value": value}
            case "call":
                return paused, perform_call(context.folder, command, context.rank, pl_module, trainer)
        return paused, {"error": f"a training does not know the command {command['command']!r}"}

    def _replay(self, trainer: Any, pl_module: Any, *, up_to: int, after: int = -1) -> None:
        for entry in self._settings:
            if after < entry["step"] <= up_to:
                self._set(trainer, pl_module, entry["name"], entry["value"])

    def _set(self, trainer: Any, pl_module: Any, name: str, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected a number, got {value!r}")
        if name in ("max_steps", "log_every", "checkpoint_every"):
            least = 0 if name == "checkpoint_every" else 1
            if value != int(value) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        elif not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
        match name:
            case "lr":
                _set_rate(trainer, pl_module, value)
            case "weight_decay":
                if hasattr(pl_module, "weight_decay"):
                    pl_module.weight_decay = value
                for optimizer in trainer.optimizers:
                    for group in optimizer.param_groups:
                        group["weight_decay"] = value
            case "max_steps":
                trainer.fit_loop.epoch_loop.max_steps = int(value)
                if hasattr(pl_module, "total_steps"):
                    pl_module.total_steps = int(value)
                self._say(trainer, self._state)
            case "log_every":
                for callback in trainer.callbacks:
                    if isinstance(callback, Recorder):
                        callback.every = int(value)
            case "checkpoint_every":
                self.checkpoint_every = int(value)
            case _:
                raise ValueError(f"{name!r} is not a setting of a training")

    @staticmethod
    def _keeps(trainer: Any) -> bool:
        return isinstance(trainer.strategy, MeshStrategy)

    def _save(self, trainer: Any) -> None:
        step = trainer.global_step
        if step == self._saved:
            return
        if not self._keeps(trainer):
            raise ValueError("nothing was saved: checkpoints need Trainer(strategy=MeshStrategy())")
        folder = run_context("Control").folder / "checkpoints"
        trainer.save_checkpoint(folder / f"step-{step}")
        self._saved = step
        if trainer.is_global_zero:
            best = checkpoints.best(folder)
            try:
                checkpoints.prune(folder, self.keep, protect=() if best is None else (best,))
            except OSError as error:  # What was to be removed stays: no reason to end the training.
                run_context("Control").events.write("text", {"text": f"an old checkpoint stays: {error}"}, step=step)

    def _say(self, trainer: Any, state: str, *, controls: bool = True) -> None:
        self._state = state
        data = {"state": state, "controls": controls, "total_steps": total_steps(trainer)}
        run_context("Control").events.write("state", data, step=trainer.global_step)


def _share(context: Context, value: Any) -> Any:
    """Rank 0's JSON value, on every rank."""
    if context.world_size == 1:
        return value
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    length = torch.tensor([len(text)])
    dist.broadcast(length, 0, group=context.control_group)
    if context.rank != 0:
        text = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(text, 0, group=context.control_group)
    return json.loads(bytes(text.tolist()))


def _set_rate(trainer: Any, pl_module: Any, value: float) -> None:
    """Rescale the base of the schedule, whoever owns it."""
    if hasattr(pl_module, "base_lr"):
        pl_module.base_lr = value
        return
    for optimizer in trainer.optimizers:
        base = optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] = group[name] * value / base if base and group[name] else value
    for config in trainer.lr_scheduler_configs:
        with contextlib.suppress(AttributeError):
            config.scheduler.base_lrs = [group["initial_lr"] for group in config.scheduler.optimizer.param_groups]
