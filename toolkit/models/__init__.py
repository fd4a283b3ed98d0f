"""The reference transformer, and weights in and out of the hub layout."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.models.cache import KVCache as KVCache
    from toolkit.models.config import TransformerConfig as TransformerConfig
    from toolkit.models.inspect import ModelFacts as ModelFacts
    from toolkit.models.inspect import inspect_model as inspect_model
    from toolkit.models.inspect import inspect_tokenizer as inspect_tokenizer
    from toolkit.models.inspect import verify_model as verify_model
    from toolkit.models.places import model_files as model_files
    from toolkit.models.rope import DynamicRope as DynamicRope
    from toolkit.models.rope import LinearRope as LinearRope
    from toolkit.models.rope import Llama3Rope as Llama3Rope
    from toolkit.models.rope import LongRope as LongRope
    from toolkit.models.rope import RopeScaling as RopeScaling
    from toolkit.models.rope import YarnRope as YarnRope
    from toolkit.models.saving import save_model as save_model
    from toolkit.models.tokenizer import Tokenizer as Tokenizer
    from toolkit.models.transformer import Transformer as Transformer
    from toolkit.models.weights import load_model as load_model
    from toolkit.models.weights import load_tokenizer as load_tokenizer
    from toolkit.models.weights import resolve_dtype as resolve_dtype

_HOME = {
    "KVCache": "cache",
    "ModelFacts": "inspect",
    "inspect_model": "inspect",
    "inspect_tokenizer": "inspect",
    "DynamicRope": "rope",
    "LinearRope": "rope",
    "Llama3Rope": "rope",
    "LongRope": "rope",
    "RopeScaling": "rope",
    "YarnRope": "rope",
    "TransformerConfig": "config",
    "Tokenizer": "tokenizer",
    "Transformer": "transformer",
    "load_model": "weights",
    "load_tokenizer": "weights",
    "model_files": "places",
    "resolve_dtype": "weights",
    "save_model": "saving",
    "verify_model": "inspect",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import on first use, so that a form or a command line can name these without importing torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
