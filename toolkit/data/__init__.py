"""Text in: where it comes from, packed into rows, in a deterministic order."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.data.sources import Data, Document, Hub, JsonLines, Manual, Saved, TextFiles, documents

if TYPE_CHECKING:
    from toolkit.data.loader import StepLoader as StepLoader
    from toolkit.data.loader import held_out_batches as held_out_batches
    from toolkit.data.packing import IGNORED as IGNORED
    from toolkit.data.packing import Packed as Packed
    from toolkit.data.packing import pack as pack
    from toolkit.data.saving import save as save

_HOME = {
    "IGNORED": "packing",
    "Packed": "packing",
    "StepLoader": "loader",
    "held_out_batches": "loader",
    "pack": "packing",
    "save": "saving",
}
__all__ = ["Data", "Document", "Hub", "JsonLines", "Manual", "Saved", "TextFiles", "documents", *_HOME]


def __getattr__(name: str) -> Any:
    """Import on first use: the values above are needed where torch is not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
