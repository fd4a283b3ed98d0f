"""A model written in the hub layout, from which the hub's libraries and `load_model` read it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.models.foreign import Foreign
from toolkit.models.hub_config import to_hub
from toolkit.models.storage import full, no_space, record, replace_file
from toolkit.models.tokenizer import Tokenizer
from toolkit.models.transformer import Transformer
from toolkit.models.weight_files import INDEX, SINGLE


def save_model(
    model: nn.Module,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a model in the hub layout, from which the hub's libraries and `load_model` read it; returns the folder.

    Weights keep their type. Above `max_shard_bytes` they are split over several files. The sha256 of each is written beside
    them, so that `load_model` finds what was changed since. An earlier model in the folder is replaced at the end, or, where
    something fails, not at all. Raises ValueError for a model with adapters attached (merge them first, or save them alone
    with `save_adapter`), for one that is neither a `Transformer` nor a `Foreign`, and for a full disk.

    >>> save_model(load_model("smollm2-135m"), "my-model", load_tokenizer("smollm2-135m"))
    PosixPath('my-model')
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Foreign):
        return _save_foreign(model, folder, tokenizer, max_shard_bytes)
    if not isinstance(model, Transformer):
        raise ValueError(f"save_model writes a Transformer, not {type(model).__name__}; use the model's own save_pretrained")
    with torch.device("meta"):
        expected = Transformer(model.config).state_dict()
    tensors = model.state_dict()
    strange = sorted(expected.keys() ^ tensors.keys())
    if strange:
        raise ValueError(f"the model has been changed at {strange[0]}: merge or remove adapters before save_model")
    shards = _shards(tensors, max_shard_bytes)
    files = [SINGLE if len(shards) == 1 else f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    index = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    config = to_hub(model.config, dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."))
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    aside = {file: folder / f".{file}.{os.getpid()}.partial" for file in files}
    try:
        for file, names in zip(files, shards, strict=True):
            part = {name: tensors[name].detach().contiguous().cpu() for name in names}
            save_file(part, aside[file], metadata={"format": "pt"})
        (folder / "files.json").unlink(missing_ok=True)
        for file, path in aside.items():
            os.replace(path, folder / file)
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
        _write_json(folder / "config.json", config)
        if tokenizer is not None:
            tokenizer.save(folder)
        _remove_stale(folder, set(files))
        record(folder, "*.safetensors")
    except (OSError, SafetensorError) as error:
        if full(error):
            raise ValueError(no_space(folder, "name another folder")) from None
        raise
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)
    return folder


def _save_foreign(model: Foreign, folder: Path, tokenizer: Tokenizer | None, max_shard_bytes: int) -> Path:
    """The layout that the model's own library writes."""
    model.refuse_changed()
    (folder / "files.json").unlink(missing_ok=True)
    try:
        model.hub.save_pretrained(folder, max_shard_size=max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(folder)
        record(folder, "*.safetensors")
    except (OSError, SafetensorError) as error:
        if full(error):
            raise ValueError(no_space(folder, "name another folder")) from None
        raise
    return folder


def _write_json(path: Path, data: object) -> None:
    replace_file(path, lambda aside: aside.write_text(json.dumps(data, indent=2)))


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _remove_stale(folder: Path, written: set[str]) -> None:
    """An earlier save with another number of shards would otherwise be read in place of this one."""
    for path in folder.glob("model*.safetensors"):
        if path.name not in written:
            path.unlink()
    if written == {SINGLE}:
        (folder / INDEX).unlink(missing_ok=True)
