"""Under pytest, functions whose annotations state tensor shapes are checked at every call (jaxtyping and beartype).

Only those: a value class takes a dict or a list where its field says Sites or tuple, and converts it itself.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from beartype import beartype
from jaxtyping import install_import_hook

CHECKED = [f"toolkit.{part}" for part in ("adapters", "data", "models", "parallel", "serve", "training")]
SHAPED = re.compile(r"\b(?:Float|Int|UInt|Bool|Num|Inexact|Integer|Shaped|BFloat)\d*\[")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its arguments and result checked, if an annotation of it states a shape."""
    shaped = any(SHAPED.search(str(annotation)) for annotation in getattr(function, "__annotations__", {}).values())
    return beartype(function) if shaped else function


def pytest_configure(config: pytest.Config) -> None:
    hook = install_import_hook(CHECKED, f"{__name__}.check")
    config.add_cleanup(hook.uninstall)
