"""Adapters in PEFT's folder layout: `adapter_config.json` and `adapter_model.safetensors`.

A folder written here opens in PEFT, and a folder written by PEFT opens here, for every method with a `PeftFormat`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from toolkit.adapters.api import AdapterLike, PeftFormat
from toolkit.adapters.host import Adapted, attach, fill
from toolkit.adapters.lora import LoRA
from toolkit.adapters.sites import choose_targets

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FORMATS: dict[str, PeftFormat] = {method.peft.kind: method.peft for method in (LoRA,)}
"""The methods that PEFT knows too, by its name for them."""


def save_adapter(model: nn.Module, folder: str | Path, *, base: str = "") -> Path:
    """Write the adapters of `model`, without its base, as PEFT does. Returns the folder.

    `base` is the name of the base model to note in the file. Of a sharded model every rank must call this, and rank 0
    writes. Raises ValueError for a method that PEFT's layout cannot hold.

    >>> model = adapt(nn.Sequential(nn.Linear(4, 2)), {"0": LoRA(rank=2)})
    >>> sorted(path.name for path in save_adapter(model, folder, base="mine").iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    adapted = _adapted(model)
    if not adapted:
        raise ValueError("nothing to save: the model has no adapters")
    methods = {path: module.method for path, module in adapted.items()}
    layout = _format_of(methods)
    tensors = {
        f"{PREFIX}{path}.{layout.names[name]}": _whole(tensor)
        for path, module in adapted.items()
        for name, tensor in module.params.trained.items()
    }
    folder = Path(folder)
    if not dist.is_initialized() or dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{TENSORS}.partial"
        save_file(tensors, aside, metadata={"format": "pt"})
        os.replace(aside, folder / TENSORS)
        config = {
            "peft_type": layout.kind,
            "task_type": None,
            "base_model_name_or_path": base,
            "inference_mode": True,
            "target_modules": list(methods),
            "modules_to_save": None,
            **layout.write(methods),
        }
        aside = folder / f".{CONFIG}.partial"
        aside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, folder / CONFIG)
    return folder


def load_adapter(model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Put the adapters of a folder beside the layers they were made for, in place. Returns the model.

    A model without adapters is adapted (see `adapt` for `dtype` and for what is refused); on one that is adapted at the
    same places with the same methods the values are replaced, in the dtype it has. Raises ValueError for tensors that
    do not fit the model and for features of PEFT that would change the result, FileNotFoundError for a missing file.
    Only safetensors files are read.
    """
    folder = Path(folder)
    config, tensors = _read(folder)
    layout = FORMATS.get(str(config.get("peft_type")))
    if layout is None:
        raise ValueError(f"{folder / CONFIG}: peft_type {config.get('peft_type')!r}; known: {', '.join(FORMATS)}")
    if config.get("modules_to_save"):
        raise ValueError(f"{folder / CONFIG}: modules_to_save {config['modules_to_save']} are no adapters")
    layout.read(config, "")  # refuses what the whole folder has in a way that no method here is, before its tensors are named
    values = _by_path(tensors, layout, folder)
    methods = {path: layout.read(config, path) for path in values}
    present = {path: module.method for path, module in _adapted(model).items()}
    if present and present != methods:
        differing = sorted(path for path in {*present, *methods} if present.get(path) != methods.get(path))
        raise ValueError(f"the model's adapters differ from those of {folder}, first at {differing[0]}: merge_() them first")
    if not present:
        return attach(model, choose_targets(model, methods), seed=0, dtype=dtype, values=values)
    for path, module in _adapted(model).items():
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise ValueError(f"{path} is sharded: load the adapter before apply_fsdp()")
        fill(module, values[path])
    return model


def _adapted(model: nn.Module) -> dict[str, Adapted]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def _format_of(methods: Mapping[str, AdapterLike]) -> PeftFormat:
    """The one format of all these methods."""
    kinds = {getattr(type(method), "peft", None) for method in methods.values()}
    layout = kinds.pop()
    if kinds or layout is None:
        names = ", ".join(sorted({type(method).__name__ for method in methods.values()}))
        raise ValueError(f"PEFT's layout holds one method of {', '.join(FORMATS)} a folder; the model has {names}")
    return layout


def _whole(tensor: Tensor) -> Tensor:
    """The tensor with all its shards, in memory of its own on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().clone().contiguous()


def _read(folder: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The configuration and the tensors of a folder."""
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise ValueError(f"{folder / 'adapter_model.bin'} is a pickle and is not opened: save it again as safetensors")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG}: expected a JSON object, found {type(config).__name__}")
    return config, load_file(folder / TENSORS)


def _by_path(tensors: Mapping[str, Tensor], layout: PeftFormat, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Module path to our tensor names to tensors, from the keys of the file."""
    values: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        for name, ending in layout.names.items():
            if key.startswith(PREFIX) and key.endswith(f".{ending}"):
                values.setdefault(key[len(PREFIX) : -len(ending) - 1], {})[name] = tensor
                break
        else:
            known = ", ".join(layout.names.values())
            raise ValueError(f"{folder / TENSORS}: {key!r} is none of the tensors {known} of {layout.kind}")
    if not values:
        raise ValueError(f"{folder / TENSORS} holds no tensors")
    return values
