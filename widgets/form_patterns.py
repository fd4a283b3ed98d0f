"""How many modules each pattern of a form names: told without weights, a download or foreign code.

The rule is the adapters' host's: a pattern names linear layers by their path, and no layer may have two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import translate
from functools import lru_cache
from typing import Any

from toolkit.models import inspect_model, places
from toolkit.models.config import tensor_shapes
from widgets.view import harmless

__all__ = ["Layers", "counts", "layers_of", "suggestions"]

Layers = tuple[tuple[str, ...], str]
"""Paths of a model's linear layers, and, where they cannot be known, the reason."""
EXAMPLES = 3


class _Uncounted(Exception):
    """Why the layers of a model by name cannot be known yet, as the page says it."""


def layers_of(model: Any) -> Layers:
    """The linear layers of a module, or of the model that a text names, as far as its configuration is on this machine.

    >>> len(layers_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))[0])
    1
    """
    if model is None:
        return (), "no model is named beside these patterns: Form(value, model=...) counts in one"
    return _named(model) if isinstance(model, str) else (_linear_paths(model), "")


def counts(patterns: Sequence[str], layers: Layers) -> list[dict[str, Any]]:
    """Of each pattern {"text", "tone", "examples"}: how many layers it names, and what is wrong with that."""
    paths, reason = layers
    if reason:
        return [{"text": reason, "tone": "", "examples": ""} for _ in patterns]
    expressions = [re.compile(translate(pattern)) for pattern in patterns]
    matches = [[path for path in paths if expression.match(path)] for expression in expressions]
    times = Counter(path for found in matches for path in set(found))
    told = []
    for at, (pattern, found) in enumerate(zip(patterns, matches, strict=True)):
        twice = sum(times[path] > 1 for path in found)
        text = f"{len(found)} of {len(paths)} linear layers"
        if not found:
            near = get_close_matches(pattern, suggestions(layers), n=2, cutoff=0.5)
            text = f"matches no linear layer{'; near: ' if near else ''}{' and '.join(near)}"
        elif twice:
            others = [other for n, other in enumerate(patterns) if n != at and set(matches[n]) & set(found)]
            text += f"; {twice} of them also match {' and '.join(others)}, but a layer takes one pattern"
        examples = ", ".join(found[:EXAMPLES])[:300] + (" …" if len(found) > EXAMPLES else "")
        tone = "" if found and not twice else "bad"
        told.append({"text": harmless(text[:300]), "tone": tone, "examples": harmless(examples)})
    return told


def suggestions(layers: Layers) -> list[str]:
    """Patterns by which the linear layers are usually named, the commonest first."""
    names = Counter("*." + path.rpartition(".")[2] if "." in path else path for path in layers[0])
    return [name for name, _ in names.most_common(20)]


def _named(name: str) -> Layers:
    try:
        return _found(name), ""
    except _Uncounted as error:
        return (), str(error)
    except (OSError, ValueError) as error:
        return (), harmless(f"not counted: {error}"[:200])


@lru_cache(maxsize=32)
def _found(name: str) -> tuple[str, ...]:
    """The linear layers of a model by name. It raises rather than answers no: a cache must keep what was found alone."""
    if places.is_builder(name):
        raise _Uncounted(f"{harmless(name[:60])} is built by code: Form(value, model=...) counts in what it builds")
    if places.gguf_source(name) is None and places.local_folder(name) is None and places.cached(name) is None:
        raise _Uncounted(f"{harmless(name[:60])} is not on this machine yet: not counted")
    config = inspect_model(name).config
    if config is None:
        raise _Uncounted(f"{harmless(name[:60])} is computed by transformers: Form(value, model=...) counts in it")
    shapes = tensor_shapes(config)
    return tuple(key.removesuffix(".weight") for key, shape in shapes.items() if len(shape) == 2 and "embed" not in key)


def _linear_paths(model: Any) -> tuple[str, ...]:
    from torch import nn

    return tuple(path for path, module in model.named_modules() if type(module) is nn.Linear)
