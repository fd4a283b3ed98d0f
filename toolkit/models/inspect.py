"""What a model is and whether its files are sound, from config.json and the headers of the weight files alone.

Meant for the moment before a process starts: nothing is converted or downloaded whole, no weight is read, torch stays out.
"""

from __future__ import annotations

import ast
import importlib.util
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal

from toolkit.models import places
from toolkit.models.config import TransformerConfig, tensor_shapes
from toolkit.models.hub_config import ARCHITECTURES, from_hub
from toolkit.models.storage import verify_changed
from toolkit.models.weight_files import Stored, compare, read_headers, read_json
from toolkit.values import Range, check


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What is known of a model without reading its weights; None where nothing says so before it is built."""

    name: str
    """As it was asked for."""
    kind: Literal["folder", "gguf", "hub", "builder"]
    """Where it comes from: a folder in the hub layout, a GGUF file, the hub, or a function that builds it."""
    family: str
    """llama, mistral, qwen2, qwen3, another model_type of the hub, or "builder"."""
    native: bool
    """Whether this toolkit's own transformer computes it; otherwise `transformers` does, or the builder's class."""
    max_context: Annotated[int, Range(1)] | None = None
    """Longest context the weights were trained for, in tokens."""
    vocab_size: Annotated[int, Range(1)] | None = None
    """Number of token ids."""
    num_parameters: Annotated[int, Range(0)] | None = None
    """Number of weights, a tied head counted once."""
    dtype: str | None = None
    """Number format of most of the stored weights, such as bfloat16 or Q4_1."""
    bytes_on_disk: Annotated[int, Range(0)] = 0
    """Size of the weight files, in bytes; of a hub model, also where they are not here yet."""
    has_tokenizer: bool = False
    """Whether a tokenizer comes with it."""
    config: TransformerConfig | None = None
    """Its shape, for a native one."""

    __post_init__ = check


def inspect_model(name: str) -> ModelFacts:
    """Facts of the model `name` (as `load_model` takes it), checked as far as its files can be without reading weights.

    Raises ValueError, in one line that names the file or tensor and the remedy: for an unknown name, a config.json or
    architecture that cannot be computed, weight files that are cut short, damaged, pickled or inconsistent, weights that do not
    fit the config, and too little space for what has to be converted first.

    >>> inspect_model("smollm2-135m").num_parameters
    134515008
    """
    if places.is_builder(name):
        _find_builder(name)
        return ModelFacts(name=name, kind="builder", family="builder", native=False)
    source = places.gguf_source(name)
    if source is not None:
        return _inspect_gguf(name, source)
    folder = places.local_folder(name)
    if folder is not None:
        return inspect_folder(name, folder)
    folder = places.cached(name)
    if folder is not None:
        return inspect_folder(name, folder, kind="hub")
    from toolkit.models.hub_remote import inspect_remote

    return inspect_remote(name)


def inspect_tokenizer(name: str) -> int:
    """Number of token ids of the tokenizer of the model `name`, or of "bytes".

    Raises ValueError, in one line, for a model without a tokenizer and for one that cannot be read.

    >>> inspect_tokenizer("smollm2-135m")
    49152
    """
    if name == "bytes":
        from toolkit.models.byte_tokenizer import byte_tokenizer

        return byte_tokenizer().vocab_size
    source = None if places.is_builder(name) else places.gguf_source(name)
    if source is not None and not places.converted_folder(source).is_dir():
        from toolkit.models.gguf_header import GGUFHeader
        from toolkit.models.gguf_tokenizer import check_tokenizer

        return check_tokenizer(GGUFHeader(source))
    from toolkit.models.tokenizer import Tokenizer

    return Tokenizer.from_folder(places.tokenizer_files(name)).vocab_size


def verify_model(name: str) -> None:
    """Compare the files of a model on this machine with their recorded sha256, those that changed since it was noted.

    What has no record, a builder and what is not here yet pass. Raises ValueError, in one line that names the file.

    >>> verify_model("smollm2-135m")
    """
    if places.is_builder(name):
        return
    source = places.gguf_source(name)
    folder = (places.local_folder(name) or places.cached(name)) if source is None else places.converted_folder(source)
    if folder is not None:
        verify_changed(folder)


def inspect_folder(name: str, folder: Path, *, kind: Literal["folder", "gguf", "hub"] = "folder") -> ModelFacts:
    """The facts of a folder in the hub layout."""
    data = read_config(folder)
    config = native_config(data, folder)
    stored = read_headers(folder)
    if config is not None:
        compare(stored, tensor_shapes(config), folder)
    return facts(name, kind, data, config, stored, has_tokenizer=(folder / "tokenizer.json").is_file())


def facts(
    name: str,
    kind: Literal["folder", "gguf", "hub"],
    data: Mapping[str, Any],
    config: TransformerConfig | None,
    stored: Mapping[str, Stored],
    *,
    has_tokenizer: bool,
) -> ModelFacts:
    """Put together what config.json and the headers say."""
    shapes = {key: one.shape for key, one in stored.items()} if config is None else tensor_shapes(config)
    bytes_of: Counter[str] = Counter()
    for one in stored.values():
        bytes_of[one.dtype] += one.size
    return ModelFacts(
        name=name,
        kind=kind,
        family=str(data.get("model_type")),
        native=config is not None,
        max_context=data.get("max_position_embeddings") if config is None else config.max_position_embeddings,
        vocab_size=data.get("vocab_size") if config is None else config.vocab_size,
        num_parameters=sum(_product(shape) for shape in shapes.values()),
        dtype=bytes_of.most_common(1)[0][0] if bytes_of else None,
        bytes_on_disk=sum(bytes_of.values()),
        has_tokenizer=has_tokenizer,
        config=config,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of a folder's config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json, so it is not a model in the hub layout; name the folder that has one")
    return read_json(path)


def native_config(data: Mapping[str, Any], folder: Path | str) -> TransformerConfig | None:
    """The config of a family that this transformer computes; None for one that `transformers` has and can stand in for.

    Raises ValueError for a model_type that neither has, and for one that needs `transformers` where it is not installed.
    """
    family, where = data.get("model_type"), f"{folder}/config.json"
    if family is not None and (not isinstance(family, str) or Path(family).name != family or not family):
        raise ValueError(f"{where}: model_type={family!r:.60} must be a word")
    if family in ARCHITECTURES:
        return from_hub(dict(data), where=where)
    ours = ", ".join(ARCHITECTURES)
    if family is None:
        raise ValueError(f"{where} has no model_type; this transformer computes {ours}")
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ValueError(f"{where}: model_type {family!r} is not one of {ours}; pip install transformers to train it")
    if not (Path(spec.origin).parent / "models" / family.replace("-", "_")).is_dir():
        from transformers import CONFIG_MAPPING

        if family not in CONFIG_MAPPING:
            raise ValueError(f"{where}: model_type {family!r} is not one of {ours}, and the installed transformers lacks it too")
    for key in ("max_position_embeddings", "vocab_size"):
        if data.get(key) is not None and (type(data[key]) is not int or data[key] < 1):
            raise ValueError(f"{where}: {key}={data[key]!r:.60} must be a whole number above 0")
    return None


def _inspect_gguf(name: str, source: Path) -> ModelFacts:
    from toolkit.models import gguf_file, gguf_tokenizer
    from toolkit.models.gguf_header import GGUFHeader

    folder = places.converted_folder(source)
    if folder.is_dir():
        return inspect_folder(name, folder, kind="gguf")
    header = GGUFHeader(source)
    config = gguf_file.check_model(header)
    free = shutil.disk_usage(folder.parent).free
    needed = gguf_file.converted_bytes(header, config)
    if free < needed:
        raise ValueError(
            f"{source} takes {needed:,} bytes converted, but {folder.parent} has {free:,} free; make room, or set XDG_CACHE_HOME"
        )
    kinds = gguf_file.kinds(header)
    return ModelFacts(
        name=name,
        kind="gguf",
        family=header["general.architecture"],
        native=True,
        max_context=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        num_parameters=sum(_product(shape) for shape in tensor_shapes(config).values()),
        dtype=kinds.most_common(1)[0][0],
        bytes_on_disk=source.stat().st_size,
        has_tokenizer=gguf_tokenizer.has_tokenizer(header),
        config=config,
    )


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result


def _find_builder(name: str) -> None:
    """ValueError unless the module can be found and, as far as its source tells, has the function. Nothing of it is run."""
    module, _, function = name.partition(":")
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for part in inner:  # one by one, since finding "package.module" at once would run the package's __init__.py
            spec = spec and PathFinder.find_spec(part, list(spec.submodule_search_locations or []))
    except (ImportError, ValueError) as error:
        raise ValueError(f"the model builder {name!r} cannot be imported: {error}") from None
    if spec is None:
        raise ValueError(f"the model builder {name!r} cannot be imported: there is no module {module!r} on the path")
    if spec.origin is None or not spec.origin.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"the model builder {name!r} cannot be imported: {spec.origin}: {error}") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=found) | ast.ClassDef(name=found) | ast.Name(id=found) | ast.alias(asname=str(found)):
                names.add(found)
            case ast.alias(name=found):
                names.add(found)
    if not names & {function, "*", "__getattr__"}:
        raise ValueError(f"the model builder {name!r} cannot be imported: {spec.origin} defines no {function!r}")
