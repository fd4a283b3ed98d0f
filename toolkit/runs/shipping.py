"""Code on its way from the kernel to its workers: pickled, named by its sha256, with its source beside it.

Refused by name: tensors on a device, open files and sockets, and captured data over 10 MB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import socket
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from toolkit.runs.files import replace_bytes

LARGEST = 10_000_000
DATACLASS_MARKS = {"MISSING": dataclasses.MISSING, "KW_ONLY": dataclasses.KW_ONLY}
"""Objects that are compared by identity: where they travel as copies, every field seems to have a default factory."""


class NotShippable(ValueError):
    """Something that cannot travel to a worker; the message names the variable."""


def ship(folder: Path, thing: Any, *, what: str, arguments: tuple[Any, ...] | None = None) -> str:
    """Store `thing` (a function or a class), with `arguments` if given, under `code/`; its sha256."""
    data = pickled(thing, arguments, what)
    digest = hashlib.sha256(data).hexdigest()
    (folder / "code").mkdir(mode=0o700, exist_ok=True)
    replace_bytes(folder / "code" / f"{digest}.pickle", data)
    text = source_of(thing)
    if text is not None:
        name = "".join(letter if letter.isalnum() else "_" for letter in getattr(thing, "__name__", "code"))
        replace_bytes(folder / "code" / f"{name}.py", text.encode())
    return digest


def source_of(thing: Any) -> str | None:
    """Source text of a function or class, also of one from a notebook cell; None where it is not known."""
    try:
        if isinstance(thing, type):
            from toolkit.class_source import class_source

            return class_source(thing)
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return None


def pickled(thing: Any, arguments: tuple[Any, ...] | None, what: str) -> bytes:
    """cloudpickle of `thing`, or of `(thing, arguments)`. Raises NotShippable naming what cannot travel."""
    try:
        data = _dumps(thing if arguments is None else (thing, arguments))
    except Exception as error:
        for name, value in captured(thing, arguments):
            try:
                _dumps(value)
            except Exception as cause:
                raise NotShippable(
                    f"{what} cannot travel to the workers: {name}: {cause}. Make it inside the function"
                ) from cause
        raise NotShippable(f"{what} cannot travel to the workers: {error}") from error
    if len(data) <= LARGEST:
        return data
    sizes = {name: len(_dumps(value)) for name, value in captured(thing, arguments)}
    largest = max(sizes, key=lambda name: sizes[name], default=None)
    blame = f"; {largest} alone has {sizes[largest] / 1e6:.1f} MB" if largest else ""
    raise NotShippable(
        f"{what} carries {len(data) / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}{blame}. Save large data to a "
        "file and pass its path"
    )


def captured(thing: Any, arguments: tuple[Any, ...] | None = None) -> Iterator[tuple[str, Any]]:
    """Names and values that travel along with a function: arguments, closure, and globals of the notebook."""
    for index, value in enumerate(arguments or ()):
        yield f"argument {index + 1}", value
    waiting, seen = [(thing, "")], set()
    while waiting:
        of, prefix = waiting.pop()
        if isinstance(of, type):
            waiting += [(item, prefix) for item in vars(of).values() if isinstance(item, types.FunctionType)]
        if not isinstance(of, types.FunctionType) or id(of) in seen:
            continue
        seen.add(id(of))
        for name, value in _variables(of):
            if isinstance(value, types.ModuleType) or value is of:
                continue
            if isinstance(value, types.FunctionType) and value.__module__ == of.__module__:
                waiting.append((value, f"{prefix}{name} -> "))
            else:
                yield f"{prefix}{name}", value


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _pickler()(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def _pickler() -> Callable[..., Any]:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        """cloudpickle that refuses what would travel and then be wrong."""

        def reducer_override(self, obj: Any) -> Any:
            _refuse(obj)
            for name, mark in DATACLASS_MARKS.items():
                if obj is mark:
                    return getattr, (dataclasses, name)
            return super().reducer_override(obj)

    return Pickler


def _refuse(obj: Any) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(obj, torch.Tensor) and obj.device.type != "cpu":
        raise NotShippable(f"a tensor on {obj.device}")
    if isinstance(obj, (io.IOBase, socket.socket)):
        raise NotShippable(f"an open {'socket' if isinstance(obj, socket.socket) else 'file'} ({obj!r})")
