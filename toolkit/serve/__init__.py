"""The one inference engine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.serve.sampling import Sampling

if TYPE_CHECKING:
    from toolkit.serve.engine import Engine as Engine
    from toolkit.serve.engine import Generations as Generations
    from toolkit.serve.engine import StopGeneration as StopGeneration
    from toolkit.serve.score import Scores as Scores

__all__ = ["Engine", "Generations", "Sampling", "Scores", "StopGeneration"]


def __getattr__(name: str) -> Any:
    """Import on first use: `Sampling` is needed where torch is not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.engine"), name)
