"""Lightning parts: language-model training, the mesh strategy, and the callbacks that record and steer a run."""

from toolkit.training.control import Control
from toolkit.training.evaluate import Evaluate
from toolkit.training.language import LanguageModule
from toolkit.training.recorder import Recorder
from toolkit.training.strategy import MeshStrategy

__all__ = ["Control", "Evaluate", "LanguageModule", "MeshStrategy", "Recorder"]
