"""Lightning parts: language-model training, the mesh strategy, and the callbacks that record and steer a run.

Schedules and optimizers are values, which forms and command lines read without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.training.optimizers import SGD, Adafactor, AdamW, Muon, Optimizer
from toolkit.training.schedules import WSD, Constant, Cosine, Linear, Schedule

if TYPE_CHECKING:
    from toolkit.training.control import Control as Control
    from toolkit.training.evaluate import Evaluate as Evaluate
    from toolkit.training.language import LanguageModule as LanguageModule
    from toolkit.training.recorder import Recorder as Recorder
    from toolkit.training.strategy import MeshStrategy as MeshStrategy

_HOME = {
    "Control": "control",
    "Evaluate": "evaluate",
    "LanguageModule": "language",
    "MeshStrategy": "strategy",
    "Recorder": "recorder",
}
__all__ = [
    "SGD",
    "WSD",
    "Adafactor",
    "AdamW",
    "Constant",
    "Control",
    "Cosine",
    "Evaluate",
    "LanguageModule",
    "Linear",
    "MeshStrategy",
    "Muon",
    "Optimizer",
    "Recorder",
    "Schedule",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the values above are needed where torch is not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
