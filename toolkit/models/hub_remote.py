"""Facts of a hub model that is not on this machine yet, from its config.json and the first bytes of its weight files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from toolkit.models import places
from toolkit.models.config import tensor_shapes
from toolkit.models.inspect import ModelFacts, facts, native_config
from toolkit.models.weight_files import PICKLED, Stored, compare, pickled, torch_name


def inspect_remote(name: str) -> ModelFacts:
    """What `inspect_model` says of a hub id; some kilobytes are transferred.

    Raises ValueError for a model that cannot be reached, has no safetensors, does not fit its config or the disk.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError

    api = HfApi()
    try:
        files = [str(one.rfilename) for one in api.model_info(name).siblings or ()]
        data = json.loads(Path(hf_hub_download(name, "config.json")).read_text(encoding="utf-8"))
        headers = api.get_safetensors_metadata(name).files_metadata
    except NotASafetensorsRepoError:
        others = [file for file in files if file.endswith(PICKLED)]
        reason = pickled(f"{name}/{others[0]}") if others else f"the hub model {name!r} has no safetensors weights"
        raise ValueError(reason) from None
    except EntryNotFoundError:
        raise ValueError(f"the hub model {name!r} has no config.json, so it is not a model in the hub layout") from None
    except Exception as error:  # the client has dozens of classes for "cannot be reached" and "does not exist"
        raise ValueError(places.unreachable(name, error)) from error
    config = native_config(data, name)
    stored = {
        key: Stored(
            file=file, dtype=torch_name(one.dtype), shape=tuple(one.shape), size=one.data_offsets[1] - one.data_offsets[0]
        )
        for file, header in headers.items()
        for key, one in header.tensors.items()
    }
    if config is not None:
        compare(stored, tensor_shapes(config), Path(name))
    found = facts(name, "hub", data, config, stored, has_tokenizer="tokenizer.json" in files)
    cache = Path(HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < found.bytes_on_disk:
        sizes = f"takes {found.bytes_on_disk:,} bytes, but {cache} has {free:,} free"
        raise ValueError(f"the hub model {name!r} {sizes}; make room, or set HF_HOME")
    return found
