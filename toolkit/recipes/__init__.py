"""Frozen values that put the parts together; `launch` runs them."""

from toolkit.recipes.architecture import Architecture
from toolkit.recipes.fine_tune import FineTune
from toolkit.recipes.pretrain import Pretrain
from toolkit.recipes.vocabulary import BPE

Recipe = FineTune | Pretrain
"""The closed union of recipes."""

__all__ = ["BPE", "Architecture", "FineTune", "Pretrain", "Recipe"]
