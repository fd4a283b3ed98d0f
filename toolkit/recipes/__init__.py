"""Frozen values that put the parts together; `launch` runs them."""

from toolkit.recipes.fine_tune import FineTune

Recipe = FineTune
"""The closed union of recipes."""

__all__ = ["FineTune", "Recipe"]
