"""Commands to a run: lines of `control.jsonl`, numbered under a lock, read only where nobody else could have written them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.runs.files import locked, plain, read_json, read_owned, replace_json

COMMANDS = ("stop", "pause", "resume", "checkpoint", "set", "call", "kill")
SETTINGS = ("lr", "weight_decay", "max_steps", "log_every", "checkpoint_every")
LARGEST_ANSWER = 1 << 18
ATTEMPT = "attempt"
"""Line that the launcher writes at each attempt: what stands above it is history."""


def send(folder: Path, command: str, **arguments: Any) -> int:
    """Append a command and return its number. Whether the run still listens is for the caller to ask.

    `send(run.folder, "set", name="lr", value=1e-4)`
    """
    if command not in COMMANDS:
        raise ValueError(f"command {command!r}: expected one of {', '.join(COMMANDS)}")
    return _append(Path(folder), command, arguments)


def begin_attempt(folder: Path, attempt: int) -> None:
    """From here on only commands sent to this attempt count."""
    _append(Path(folder), ATTEMPT, {"attempt": attempt})


def _append(folder: Path, command: str, arguments: dict[str, Any]) -> int:
    path = folder / "control.jsonl"
    with locked(folder / "control.lock"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.close(descriptor)
        written = read_owned(path)
        number = max((line["n"] for line in _lines(written)), default=0) + 1
        text = json.dumps({"n": number, "command": command, **plain(arguments), "time": time.time()}) + "\n"
        if written and not written.endswith(b"\n"):
            text = "\n" + text
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.write(descriptor, text.encode()) < len(text.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, len(written))  # A command that was not sent is not obeyed either.
            raise
        finally:
            os.close(descriptor)
    return number


def read_commands(folder: Path, after: int) -> list[dict[str, Any]]:
    """Commands to the present attempt that are numbered above `after`: `{"n", "command", "time", ...arguments}`.

    Raises UntrustedFile when another user owns or may write the file, or when it is a link.
    """
    try:
        written = read_owned(Path(folder) / "control.jsonl")
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in _lines(written):
        if line["command"] == ATTEMPT:
            found = []
        elif line["n"] > after and line["command"] in COMMANDS:
            found.append(line)
    return found


def _lines(written: bytes) -> list[dict[str, Any]]:
    found = []
    for text in written.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("n"), int) and isinstance(line.get("command"), str):
            found.append(line)
    return found


def load_shipped(folder: Path, sha256: str) -> Any:
    """The function or class that the kernel shipped into `code/`, after a look at its owner and its sha256.

    This is the only place that unpickles, and it does so only in a worker, or for the kernel that wrote the file.
    """
    import cloudpickle

    if len(sha256) != 64 or any(letter not in "0123456789abcdef" for letter in sha256):
        raise ValueError(f"code {sha256!r}: expected a sha256")
    path = Path(folder) / "code" / f"{sha256}.pickle"
    data = read_owned(path)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: its sha256 is {found}, not the one it was shipped with: it was changed")
    return cloudpickle.loads(data)


def resolver(folder: Path) -> Callable[[str, str], type]:
    """`(name, sha256 of the source) -> class` for the notebook classes of the recipe in this run folder."""

    def notebook(name: str, code: str) -> type:
        entry = read_json(Path(folder) / "launch.json", {}).get("code", {}).get(name)
        if not isinstance(entry, dict) or entry.get("source") != code:
            raise ValueError(f"notebook class {name} with source {code[:12]}... was not shipped with this run")
        return load_shipped(folder, entry["pickle"])

    return notebook


def perform_call(folder: Path, command: dict[str, Any], rank: int, *arguments: Any) -> dict[str, Any]:
    """Run what `Run.call` shipped on this rank, store `calls/<n>-<rank>.json`, return `{"result"}` or `{"error"}`.

    Called by the training loop on every rank: `perform_call(context.folder, command, context.rank, module)`. A function
    without parameters is called without arguments.
    """
    try:
        function = load_shipped(folder, command["code"])
        answer = {"result": plain(function(*arguments[: _positions(function)]))}
        if (size := len(json.dumps(answer))) > LARGEST_ANSWER:
            raise ValueError(f"the result has {size} characters of JSON, more than {LARGEST_ANSWER}: save it to a file")
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    (Path(folder) / "calls").mkdir(mode=0o700, exist_ok=True)
    replace_json(Path(folder) / "calls" / f"{command['n']}-{rank}.json", answer)
    return answer


def _positions(function: Callable[..., Any]) -> int:
    """How many positional arguments `function` takes."""
    import inspect

    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 1 << 16
    return sum(parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters)
