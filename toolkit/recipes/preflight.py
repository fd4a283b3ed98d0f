"""What can be wrong with a recipe, found before any process starts: `launch` asks `preflight`, in the person's own process.

Only headers, settings and first rows are read. torch is loaded for adapters alone, whose classes need it anyway.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from toolkit.data import Mixture, inspect_data
from toolkit.models import TransformerConfig, inspect_model, inspect_tokenizer, verify_model
from toolkit.models.storage import cache_folder
from toolkit.recipes.architecture import Architecture
from toolkit.recipes.fine_tune import FineTune
from toolkit.recipes.language import check_context, check_fits
from toolkit.recipes.pretrain import Pretrain
from toolkit.recipes.vocabulary import BPE

if TYPE_CHECKING:
    from toolkit.data import Data
    from toolkit.data.inspection import DataFacts
    from toolkit.data.sources import Part

__all__ = ["preflight"]


def preflight(recipe: FineTune | Pretrain) -> None:
    """Raise ValueError, in one line with the field and the remedy, for a recipe that could not run.

    Looked at are the model's files, the tokenizer, the data, the longest context, adapter patterns, and the plan. What a
    builder "module:function" returns is not known before it runs, and neither are rows beyond the first ones.

    >>> preflight(FineTune(context=100_000, batch_tokens=100_000))
    Traceback (most recent call last):
    ValueError: FineTune.context: 100000 tokens are more than the 8192 of 'smollm2-135m'; take at most that
    """
    from toolkit.parallel import refuse

    refuse(recipe.plan)
    if recipe.patience is not None and not _holds_out(recipe.data):
        raise ValueError(f"{type(recipe).__name__}.patience: needs held-out text, but the data's held_out is 0")
    if isinstance(recipe, FineTune):
        _fine_tune(recipe)
    else:
        _pretrain(recipe)


def _fine_tune(recipe: FineTune) -> None:
    facts = inspect_model(recipe.model)
    verify_model(recipe.model)
    if recipe.tokenizer is None and not facts.has_tokenizer:
        raise ValueError(f"FineTune.tokenizer: {recipe.model!r} has none; name a model whose tokenizer fits, or 'bytes'")
    check_fits(recipe, facts.vocab_size, inspect_tokenizer(recipe.tokenizer or recipe.model))
    check_context(recipe, facts.max_context, repr(recipe.model))
    if recipe.adapters is not None and facts.config is not None:
        _patterns(recipe, facts.config)
    if _text(recipe).chat and recipe.tokenizer == "bytes":
        raise ValueError("FineTune.tokenizer: it has no chat template, which this data needs; name a model")


def _pretrain(recipe: Pretrain) -> None:
    facts = _text(recipe)
    if facts.chat and (isinstance(recipe.tokenizer, BPE) or recipe.tokenizer == "bytes"):
        raise ValueError("Pretrain.tokenizer: it has no chat template, which this data needs; name a model")
    if isinstance(recipe.tokenizer, BPE):
        num_ids = None if isinstance(recipe.model, Architecture) else recipe.tokenizer.vocab_size
    else:
        num_ids = inspect_tokenizer(recipe.tokenizer)
    if isinstance(recipe.model, TransformerConfig):
        check_fits(recipe, recipe.model.vocab_size, num_ids)
        check_context(recipe, recipe.model.max_position_embeddings, "Pretrain.model")
    elif isinstance(recipe.model, str):
        found = inspect_model(recipe.model)
        if found.kind != "builder":
            raise ValueError(
                f"Pretrain.model: {recipe.model!r} has weights already; give an Architecture, or tune it with FineTune"
            )


def _text(recipe: FineTune | Pretrain) -> DataFacts:
    """A look at the data, and at the space for its packed rows: they take three numbers of four bytes a token."""
    facts = inspect_data(recipe.data)
    needed = 0 if any(getattr(part, "stream", False) for part in _parts(recipe.data)) else facts.bytes or 0
    place = cache_folder("data")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"{type(recipe).__name__}.data: {needed:,} bytes of text take more than that packed, but {place} has {free:,} free; "
            "make room, set XDG_CACHE_HOME, or stream it"
        )
    return facts


def _patterns(recipe: FineTune, config: TransformerConfig) -> None:
    """The patterns on a model without weights: the same errors as `adapt` would raise in the run."""
    import torch

    from toolkit.adapters.sites import find_targets
    from toolkit.models import Transformer

    assert recipe.adapters is not None
    with torch.device("meta"):
        model = Transformer(config)
    try:
        find_targets(model, recipe.adapters)
    except ValueError as error:
        raise ValueError(f"FineTune.adapters: {error}") from None


def _holds_out(data: Data) -> bool:
    return any(part.held_out > 0 for part in _parts(data))


def _parts(data: Data) -> tuple[Part, ...]:
    return data.parts if isinstance(data, Mixture) else (data,)
