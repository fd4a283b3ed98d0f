"""Adapters: small trained changes beside a frozen model. One file a method, one host.

`adapt()` takes any member of `Adapter`, and any class of yours with the functions of `AdapterLike`.
"""

from toolkit.adapters.api import AdapterLike, Params, PeftFormat, Site
from toolkit.adapters.files import load_adapter, save_adapter
from toolkit.adapters.host import Adapted, adapt, disabled, merge_
from toolkit.adapters.lora import LoRA

Adapter = LoRA
"""The closed union of the methods here: `LoRA | Next` once there is a next one."""

__all__ = [
    "Adapted",
    "Adapter",
    "AdapterLike",
    "LoRA",
    "Params",
    "PeftFormat",
    "Site",
    "adapt",
    "disabled",
    "load_adapter",
    "merge_",
    "save_adapter",
]
