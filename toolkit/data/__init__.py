"""Text in: where it comes from, packed into rows, in a deterministic order."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.data.sources import (
    Conversation,
    Data,
    Document,
    Hub,
    JsonLines,
    Manual,
    Mixture,
    Part,
    Saved,
    Text,
    TextFiles,
    conversation,
)

if TYPE_CHECKING:
    from toolkit.data.inspection import DataFacts as DataFacts
    from toolkit.data.inspection import inspect_data as inspect_data
    from toolkit.data.loader import StepLoader as StepLoader
    from toolkit.data.loader import held_out_batches as held_out_batches
    from toolkit.data.mixing import Mixed as Mixed
    from toolkit.data.packing import IGNORED as IGNORED
    from toolkit.data.packing import Packed as Packed
    from toolkit.data.packing import pack as pack
    from toolkit.data.reading import Documents as Documents
    from toolkit.data.reading import documents as documents
    from toolkit.data.saving import save as save
    from toolkit.data.streaming import Stream as Stream

_HOME = {
    "DataFacts": "inspection",
    "Documents": "reading",
    "IGNORED": "packing",
    "Mixed": "mixing",
    "Packed": "packing",
    "StepLoader": "loader",
    "Stream": "streaming",
    "documents": "reading",
    "held_out_batches": "loader",
    "inspect_data": "inspection",
    "pack": "packing",
    "save": "saving",
}
__all__ = [
    "Conversation",
    "Data",
    "Document",
    "Hub",
    "JsonLines",
    "Manual",
    "Mixture",
    "Part",
    "Saved",
    "Text",
    "TextFiles",
    "conversation",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    """Import on first use: the values above are needed where torch is not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
