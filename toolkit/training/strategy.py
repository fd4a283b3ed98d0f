"""The one Lightning strategy: a Plan's device mesh, and checkpoints without pickle.

Lightning's own mesh has two axes; a `Plan` has more, so `setup_environment` puts the plan's mesh in its place.
Checkpoints are the folders of `toolkit.checkpoint`: every rank writes its shards, any other `dp_shard` may read them.
"""

import platform
import random
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from toolkit import checkpoint as checkpoints
from toolkit.parallel import Plan, data_rank, mesh
from toolkit.runs import current

__all__ = ["MeshStrategy"]

_TENSORS = ("state_dict", "optimizer_states")


class MeshStrategy(ModelParallelStrategy):
    """Run a LightningModule on the device mesh of a `Plan`.

    The module shards itself in `configure_model` with `self.device_mesh` (see `LanguageModule`). Saving and loading go
    through `toolkit.checkpoint`: exact with the same plan, resharded with another. A module that sets
    `frozen_from_recipe = True` leaves its frozen parameters out of checkpoints, because building it restores them.

    Errors: `ValueError` when the plan's product is not the number of processes.

    Example:
        trainer = Trainer(strategy=MeshStrategy(Plan(dp_shard=2)), devices=2, accelerator="cpu",
                          use_distributed_sampler=False)
        trainer.fit(module, loader, ckpt_path="checkpoints/step-40", weights_only=True)
    """

    def __init__(self, plan: Plan | None = None, *, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(timeout=timeout)
        self.plan = plan or Plan()
        self._random_state: dict[str, Any] | None = None

    def setup_environment(self) -> None:
        """Join the process group and build the plan's mesh."""
        assert self.accelerator is not None and self.lightning_module is not None
        self.accelerator.setup_device(self.root_device)
        self._setup_distributed()
        if self.world_size != self.plan.world_size:
            raise ValueError(
                f"{self.plan!r} needs {self.plan.world_size} processes, but {self.world_size} were started; "
                f"start {self.plan.world_size}, or change the plan"
            )
        self._device_mesh = mesh(self.plan, self.root_device.type)
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Which share of the data this rank reads: ranks that differ only in tp or pp read the same."""
        rank, ranks = data_rank(self.device_mesh)
        return {"num_replicas": ranks, "rank": rank}

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Trained parameters and persistent buffers, as they lie on this rank (no communication)."""
        module = self.lightning_module
        assert module is not None
        omitted = set()
        if getattr(module, "frozen_from_recipe", False):
            omitted = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if name not in omitted}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """This rank's optimizer tensors by `<state>.<parameter>`, and the settings of each parameter group."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        names = self._parameter_names()
        tensors, scalars = {}, {}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                kept = tensors if isinstance(value, Tensor) else scalars
                kept[f"{key}.{names[parameter]}"] = value
        groups = [
            {**{key: value for key, value in group.items() if key != "params"}, "params": [names[p] for p in group["params"]]}
            for group in optimizer.param_groups
        ]
        return {"tensors": tensors, "scalars": scalars, "groups": groups}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write `filepath` (a folder named step-N) in the format of `toolkit.checkpoint`; all ranks call it."""
        path, step = Path(filepath), checkpoint["global_step"]
        if path.name != f"step-{step}":
            raise ValueError(f"{path}: a checkpoint of optimizer step {step} is a folder named step-{step}")
        optimizers = checkpoint.get("optimizer_states", [])
        tensors = dict(checkpoint["state_dict"])
        for optimizer in optimizers:
            tensors |= {f"optim.{name}": tensor for name, tensor in optimizer["tensors"].items()}
        state = {key: value for key, value in checkpoint.items() if key not in _TENSORS}
        state["optimizers"] = [{"scalars": o["scalars"], "groups": o["groups"]} for o in optimizers]
        state["plan"] = repr(self.plan)
        state |= _circumstances()
        checkpoints.save(
            path.parent,
            step=step,
            tensors={name: tensor.detach() for name, tensor in tensors.items()},
            state=state,
            rank_state=_random_state(),
            rank=self.global_rank,
            world_size=self.world_size,
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Fill model and optimizers in place from any shards that overlap this rank's; return the rest as a dict."""
        path = Path(checkpoint_path)
        state = checkpoints.read_state(path)
        tensors = self.lightning_module_state_dict()
        stored = checkpoints.read_manifest(path)
        for name, here in _circumstances().items():
            if state.pop(name, here) != here and (context := current()) is not None:
                text = f"{path.name} was saved with another {name}, not {here}: the numbers go on alike, not bit for bit"
                context.events.write("text", {"text": text}, step=state["step"])
        settings = state.pop("optimizers")
        if len(settings) != len(self.optimizers):
            raise ValueError(f"{path} holds {len(settings)} optimizers, the module made {len(self.optimizers)}")
        for optimizer, setting in zip(self.optimizers, settings, strict=True):
            tensors |= dict(self._empty_optimizer_state(optimizer, setting, stored.tensors))
        checkpoints.load_into(path, {name: tensor.detach() for name, tensor in tensors.items()})
        if self.global_rank < stored.world_size:  # a rank that the saving run had not starts from its seed
            self._random_state = checkpoints.read_rank_state(path, self.global_rank)
        return {**state, "state_dict": {}, "optimizer_states": []}

    def on_train_start(self) -> None:
        """Set the random generators last, so that nothing between loading and the first step moves them."""
        if self._random_state is not None:
            _set_random_state(self._random_state)
            self._random_state = None

    def _parameter_names(self) -> dict[Tensor, str]:
        assert self.lightning_module is not None
        return {parameter: name for name, parameter in self.lightning_module.named_parameters()}

    def _empty_optimizer_state(
        self, optimizer: torch.optim.Optimizer, setting: dict[str, Any], stored: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        """Give every parameter its state tensors, uninitialised, and yield them by their stored names."""
        parameters = {name: parameter for parameter, name in self._parameter_names().items()}
        mine: set[str] = set()
        for group, saved in zip(optimizer.param_groups, setting["groups"], strict=True):
            for key, value in saved.items():  # JSON has no tuples: keep the type that the optimizer made
                if key != "params":
                    group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
            mine.update(saved["params"])
        if unknown := sorted(mine - set(parameters)):
            raise ValueError(f"the checkpoint's optimizer trained {unknown[0]!r}, which this module does not have")
        for full_name, entry in stored.items():
            if not full_name.startswith("optim."):
                continue
            key, name = full_name.removeprefix("optim.").split(".", 1)
            if name not in mine:
                continue
            parameter, dtype = parameters[name], getattr(torch, entry.dtype)
            if entry.shape == tuple(parameter.shape):
                value = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            else:
                value = torch.empty(entry.shape, dtype=dtype)
            optimizer.state[parameter][key] = value
            yield full_name, value
        for full_name, value in setting["scalars"].items():
            key, name = full_name.split(".", 1)
            optimizer.state[parameters[name]][key] = value


def _circumstances() -> dict[str, Any]:
    """What has to be the same for a resumed training to be the undisturbed one, bit for bit."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}


def _random_state() -> dict[str, Any]:
    """Every generator of this process: Python, numpy, torch, and the current accelerator."""
    version, internal, gauss = random.getstate()
    legacy: Any = numpy.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [legacy[0], legacy[1].tolist(), *legacy[2:]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
