"""A model written in the hub layout, from which the hub's libraries and `load_model` read it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.models.foreign import Foreign
from toolkit.models.hub_config import to_hub
from toolkit.models.storage import full, no_space, record
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
    them, so that `load_model` finds what was changed since. All files are written aside and then moved into the folder: where
    writing fails, an earlier model stays as it was; in the moment of moving there is no config.json, so that nothing reads a
    mixture. Raises ValueError for a model with adapters attached (merge them first, or save them alone with `save_adapter`),
    for one that is neither a `Transformer` nor a `Foreign`, and for a full disk.

    >>> save_model(load_model("smollm2-135m"), "my-model", load_tokenizer("smollm2-135m"))
    PosixPath('my-model')
    """
    folder = Path(folder)
    if isinstance(model, Foreign):
        model.refuse_changed()
        write = partial(model.hub.save_pretrained, max_shard_size=max_shard_bytes)
    elif isinstance(model, Transformer):
        write = _transformer(model, tokenizer, max_shard_bytes)
    else:
        raise ValueError(f"save_model writes a Transformer, not {type(model).__name__}; use the model's own save_pretrained")
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".model.partial"
    shutil.rmtree(aside, ignore_errors=True)  # of a save that was killed
    try:
        write(aside)
        if tokenizer is not None:
            tokenizer.save(aside)
        record(aside, "*.safetensors")
        _replace(folder, aside)
    except (OSError, SafetensorError) as error:
        if full(error):
            raise ValueError(no_space(folder, "name another folder")) from None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _transformer(model: Transformer, tokenizer: Tokenizer | None, max_shard_bytes: int) -> Callable[[Path], None]:
    """What writes config.json and the weights into a new folder; the model is checked at once."""
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

    def write(folder: Path) -> None:
        folder.mkdir()
        for file, names in zip(files, shards, strict=True):
            part = {name: tensors[name].detach().contiguous().cpu() for name in names}
            save_file(part, folder / file, metadata={"format": "pt"})
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
        _write_json(folder / "config.json", config)

    return write


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2))


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


def _replace(folder: Path, aside: Path) -> None:
    """Move the files of a finished model into the folder, config.json last, and remove what an earlier one has beside them."""
    config = "config.json"
    new = [path.name for path in aside.iterdir() if path.name != config]
    (folder / config).unlink(missing_ok=True)
    for path in (*folder.glob("model*.safetensors"), folder / INDEX):  # another number of shards would be read in place of this
        if path.name not in new:
            path.unlink(missing_ok=True)
    for name in (*new, config):
        os.replace(aside / name, folder / name)
