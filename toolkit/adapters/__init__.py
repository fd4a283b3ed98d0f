"""Adapters: small trained changes beside a frozen model. One file a method, one host.

`adapt()` takes any member of `Adapter`, and any class of yours with the functions of `AdapterLike`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.adapters.api import AdapterLike, Params, PeftFormat, Site
from toolkit.adapters.lora import LoRA

if TYPE_CHECKING:
    from toolkit.adapters.files import load_adapter as load_adapter
    from toolkit.adapters.files import save_adapter as save_adapter
    from toolkit.adapters.host import Adapted as Adapted
    from toolkit.adapters.host import adapt as adapt
    from toolkit.adapters.host import disabled as disabled
    from toolkit.adapters.host import merge_ as merge_

Adapter = LoRA
"""The closed union of the methods here: `LoRA | Next` once there is a next one."""

_HOME = {
    "Adapted": "host",
    "adapt": "host",
    "disabled": "host",
    "load_adapter": "files",
    "merge_": "host",
    "save_adapter": "files",
}
__all__ = ["Adapter", "AdapterLike", "LoRA", "Params", "PeftFormat", "Site", *_HOME]


def __getattr__(name: str) -> Any:
    """Import on first use: the methods above are needed where torch is not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
