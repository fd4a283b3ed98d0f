"""Models of the fault tests."""

import time
from typing import Any

from tests.distributed.training_bodies import tiny

__all__ = ["paced", "tiny"]

PACE = 0.03
"""Seconds that a forward pass takes at least: a fast machine shall not be through before it is killed."""


def paced() -> Any:
    """The tiny transformer, a little slower."""
    model = tiny()
    model.register_forward_pre_hook(lambda module, inputs: time.sleep(PACE))
    return model
