"""Models by name: the weights read into a transformer, on the device and in the type that are wanted.

Only safetensors are read. A file is mapped, not copied: on the CPU a model in the file's own type costs no memory until it is
used, and any other takes the memory of the model and of one tensor more.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from toolkit.models.byte_tokenizer import byte_tokenizer
from toolkit.models.config import tensor_shapes
from toolkit.models.inspect import native_config, read_config
from toolkit.models.places import is_builder, model_files, tokenizer_files
from toolkit.models.storage import verify_changed
from toolkit.models.tokenizer import Tokenizer
from toolkit.models.transformer import Transformer
from toolkit.models.weight_files import compare, read_headers, weight_files

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]


def load_model(name: str, *, dtype: Dtype = "auto", device: str | torch.device = "cpu") -> nn.Module:
    """A model with its weights: a `Transformer`, a `Foreign` around a model of `transformers`, or what a builder returns.

    `name` is "smollm2-135m" (works without a network), a folder in the hub layout, a GGUF file, a hub id "owner/name", or
    "module:function" that builds one. A folder or hub id of a family that the transformer here does not compute is built by
    `transformers`, where that is installed; so is what a builder returns of its classes. "auto" is bfloat16 where the device
    multiplies it natively, else float32; a builder's model keeps its own type under "auto". On the device "meta" no weights
    are read. Raises ValueError, in one line, for what `inspect_model` refuses, and for weights that were changed since
    `save_model` wrote them.

    >>> model = load_model("smollm2-135m", dtype="float32")
    >>> model.config.num_hidden_layers
    30
    """
    device = torch.device(device)
    if is_builder(name):
        model = _build(name)
        return model.to(device=device, dtype=None if dtype == "auto" else resolve_dtype(dtype, device))
    folder = model_files(name)
    config = native_config(read_config(folder), folder)
    compare_to = None if config is None else tensor_shapes(config)
    stored = read_headers(folder)
    if compare_to is not None:
        compare(stored, compare_to, folder)
    if device.type != "meta":
        verify_changed(folder)
    if config is None:
        from toolkit.models.foreign import load_foreign

        return load_foreign(folder, resolve_dtype(dtype, device), device)
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(resolve_dtype(dtype, device))
    if device.type != "meta":
        _fill(model, folder, device)
    return model


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of the model `name` (see `load_model`; a builder has none), or "bytes", one id a byte.

    >>> load_tokenizer("smollm2-135m").vocab_size
    49152
    """
    if name == "bytes":
        return byte_tokenizer()
    return Tokenizer.from_folder(tokenizer_files(name))


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


def _build(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the model builder {name!r} cannot be imported: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model builder {name!r} returned {type(model).__name__}, not a torch module")
    from toolkit.models.foreign import is_foreign, wrap

    return wrap(model) if is_foreign(model) else model


def _fill(model: nn.Module, folder: Path, device: torch.device) -> None:
    """Give a model on the meta device its weights, file by file, each tensor straight to the device and the model's type."""
    wanted = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                part = {key: file.get_tensor(key).to(wanted[key]) for key in file.keys() if key in wanted}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or not safetensors: {error}") from None
        model.load_state_dict(part, strict=False, assign=True)
