"""The safetensors files of a model folder, and what their headers say; nothing here reads a weight or imports torch.

Format: the safetensors description in its project's documentation: eight bytes with the size of a JSON header, the header,
then the tensors without gaps. Everything is checked against the size of the file before a byte of a tensor is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LARGEST_HEADER = 100_000_000
_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One tensor as its file's header describes it."""

    file: str
    """Name of the file in the model's folder."""
    dtype: str
    """Number format, torch's name where it is a usual one."""
    shape: tuple[int, ...]
    """Sizes."""
    size: int
    """Number of bytes."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError names the file when it cannot be read or holds something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold one JSON object")
    return data


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, those of its index if it has one.

    Raises ValueError for an index that names anything but files beside it, for pickled weights, and where there are none.
    """
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} is not an index of weights: it has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
                raise ValueError(f"{index} names {name!r}, which is not a safetensors file beside it; fetch the model again")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLED:
            raise ValueError(pickled(path))
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f", only {', '.join(others[:3])}" if others else ""
    raise ValueError(f"{folder} holds no {SINGLE}{found}; save the model there with save_model or save_pretrained")


def pickled(path: Path | str) -> str:
    """The message that refuses a pickled checkpoint."""
    return (
        f"{path} is a pickle, which can run code when read; convert it to safetensors where you trust it: "
        "transformers' save_pretrained writes that"
    )


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's weight files. Raises ValueError for damage, and for files and index that disagree."""
    stored: dict[str, Stored] = {}
    for path in weight_files(folder):
        for name, one in read_header(path).items():
            if name in stored:
                raise ValueError(f"{path} and {folder / stored[name].file} both hold the tensor {name}")
            stored[name] = one
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)["weight_map"]
        for name, file in index.items():
            if name not in stored or stored[name].file != file:
                raise ValueError(f"{folder / INDEX} places the tensor {name} in {file}, which does not hold it")
    return stored


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file. Raises ValueError, naming the file, where header and file size disagree.

    >>> read_header(model_files("smollm2-135m") / "model.safetensors")["model.norm.weight"].shape
    (576,)
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > min(_LARGEST_HEADER, total - 8):
            sizes = f"{total} bytes, a header of {size}"
            raise ValueError(f"{path} is damaged, cut short or not safetensors ({sizes}); fetch it again")
        text = file.read(size)
    try:
        header: dict[str, Any] = dict(json.loads(text, object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not safetensors: its header is not JSON ({error}); fetch it again") from None
    header.pop("__metadata__", None)
    places: list[tuple[int, int, str]] = []
    stored: dict[str, Stored] = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = _entry(entry, f"{path}: the tensor {name!r}")
        places.append((begin, end, name))
        stored[name] = Stored(file=path.name, dtype=torch_name(dtype), shape=shape, size=end - begin)
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            place = f"the tensor {name!r} starts at byte {begin} of the data, not at {at}"
            raise ValueError(f"{path} is damaged: {place}; fetch it again")
        at = end
    if 8 + size + at != total:
        kind = "cut short" if total < 8 + size + at else "longer than its header says"
        raise ValueError(f"{path} is {kind}: {total} bytes instead of {8 + size + at}; fetch it again")
    return stored


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    damaged = ValueError(f"{where} has a damaged entry in the header; fetch the file again")
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise damaged from None
    if dtype not in _BITS or not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise damaged
    if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{where} has the shape {shape} in {dtype}, but {end - begin} bytes; fetch the file again")
    return dtype, shape, (begin, end)


def compare(stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raise ValueError unless the weight files hold what config.json asks for: no tensor less, more or of another shape."""
    remedy = "take config.json and weights of the same model"
    missing = [name for name in expected if name not in stored]
    surplus = [name for name in stored if name not in expected and not _harmless(name)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{folder}: config.json asks for the tensor {missing[0]}{more}, which the weights do not hold; {remedy}")
    if surplus:
        more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        raise ValueError(f"{folder}: the weights hold {surplus[0]}{more}, for which config.json has no place; {remedy}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(f"{folder}: {name} has the shape {stored[name].shape}, but config.json says {shape}; {remedy}")


def torch_name(dtype: str) -> str:
    """Torch's name of a safetensors number format, for the usual ones."""
    return _NAMES.get(dtype, dtype)


def _harmless(name: str) -> bool:
    """Older libraries stored a tied head a second time, and the rotary frequencies, which follow from the config."""
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")
