"""What every recipe that trains a decoder on text does: `train` in each worker of a run, and `load` afterwards.

The recipes differ in how the model comes about (`build`) and where its tokenizer is from (`tokenizer_of`); the rest is here.
Nothing heavy is imported before a function needs it, so that a form or a command line can read the recipes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from toolkit.data import Packed, Text
    from toolkit.models import Tokenizer
    from toolkit.recipes.fine_tune import FineTune
    from toolkit.recipes.pretrain import Pretrain
    from toolkit.runs import Context

__all__ = ["build", "check_batch", "check_context", "check_fits", "load", "tokenizer_of", "train"]

TOKENIZER = "tokenizer"
"""Folder in the run's folder that keeps the tokenizer, in the hub layout."""


def check_batch(recipe: FineTune | Pretrain) -> None:
    """Raise ValueError unless a step's tokens are whole rows that divide over the processes; it says what would."""
    name, rows = type(recipe).__name__, recipe.batch_tokens // recipe.context
    if recipe.batch_tokens % recipe.context:
        raise ValueError(
            f"{name}.batch_tokens: {recipe.batch_tokens} is not a multiple of context {recipe.context}; "
            f"take {max(1, rows) * recipe.context}"
        )
    ranks = recipe.plan.data_ranks
    if rows % ranks:
        raise ValueError(
            f"{name}.batch_tokens: {rows} rows of {recipe.context} tokens do not divide over {ranks} data-parallel "
            f"processes; take {-(-rows // ranks) * ranks * recipe.context}"
        )
    if recipe.micro_rows is not None and rows // ranks % recipe.micro_rows:
        raise ValueError(f"{name}.micro_rows: {rows // ranks} rows a process are not a multiple of {recipe.micro_rows}")


def check_fits(recipe: FineTune | Pretrain, vocab_size: int | None, num_ids: int | None) -> None:
    """Raise ValueError where the tokenizer has more ids than the model; None is not known."""
    if vocab_size is not None and num_ids is not None and num_ids > vocab_size:
        raise ValueError(
            f"{type(recipe).__name__}.tokenizer: it has {num_ids} ids, the model only {vocab_size}; "
            "take the model's own tokenizer, or a model with more ids"
        )


def check_context(recipe: FineTune | Pretrain, longest: int | None, model: str) -> None:
    """Raise ValueError where the recipe's rows are longer than the model's context; None is not known."""
    if longest is not None and recipe.context > longest:
        raise ValueError(
            f"{type(recipe).__name__}.context: {recipe.context} tokens are more than the {longest} of {model}; take at most that"
        )


def tokenizer_of(recipe: FineTune | Pretrain, learned: Iterable[Text]) -> Tokenizer:
    """The recipe's tokenizer; one that is to be trained is trained on the documents `learned`, once.

    Errors: `ValueError` for a model without one.
    """
    from toolkit.models import load_tokenizer
    from toolkit.recipes.fine_tune import FineTune
    from toolkit.recipes.vocabulary import BPE, trained

    if isinstance(recipe, FineTune):
        return load_tokenizer(recipe.tokenizer or recipe.model)
    return trained(recipe.tokenizer, learned) if isinstance(recipe.tokenizer, BPE) else load_tokenizer(recipe.tokenizer)


def build(recipe: FineTune | Pretrain, vocab_size: int, device: str = "cpu") -> nn.Module:
    """The recipe's model before any training, in memory of the CPU; `device` says where it will train.

    `vocab_size` is the tokenizer's. Errors: `ValueError` for a model that has fewer ids, or whose context is shorter than the
    recipe's, which of a builder's model is known only now.
    """
    import torch

    from toolkit.recipes import fine_tune, pretrain

    with torch.random.fork_rng(devices=()):  # a builder draws the same weights on every rank, and again in `load`
        torch.default_generator.manual_seed(recipe.seed)
        if isinstance(recipe, fine_tune.FineTune):
            model = fine_tune.build(recipe, device)
        else:
            model = pretrain.build(recipe, vocab_size)
    config = getattr(model, "config", None)
    check_fits(recipe, getattr(config, "vocab_size", None), vocab_size)
    check_context(recipe, getattr(config, "max_position_embeddings", None), repr(recipe.model))
    return model


def train(recipe_json: dict[str, Any], context: Context) -> dict[str, Any]:
    """What every worker of a run does; returns the final metrics."""
    import lightning
    import torch

    from toolkit import checkpoint as checkpoints
    from toolkit.data import StepLoader, documents, held_out_batches, pack
    from toolkit.data.mixing import Mixed
    from toolkit.models import resolve_dtype
    from toolkit.parallel import refuse
    from toolkit.recipes import Recipe
    from toolkit.runs.control import resolver
    from toolkit.serve import Engine, Sampling
    from toolkit.training import Control, Evaluate, LanguageModule, MeshStrategy, Recorder
    from toolkit.values import load_root

    recipe: FineTune | Pretrain = load_root(recipe_json, Recipe, notebook=resolver(context.folder))
    refuse(recipe.plan)
    lightning.seed_everything(recipe.seed, verbose=False)
    learned, held_out = documents(recipe.data)
    tokenizer = tokenizer_of(recipe, learned)
    if context.rank == 0:
        tokenizer.save(context.folder / TOKENIZER)
    ranks = recipe.plan.data_ranks
    rows = recipe.batch_tokens // recipe.context
    micro_rows = recipe.micro_rows or rows // ranks
    loader = StepLoader(
        pack(learned, tokenizer, recipe.context, recipe.seed),
        sequences_per_step=rows,
        micro_sequences=micro_rows,
        rank=context.rank,
        ranks=ranks,
        seed=recipe.seed,
    )

    def again(rows: Packed) -> Callable[[], Iterable[dict[str, Tensor]]]:
        return partial(held_out_batches, rows, micro_sequences=micro_rows, rank=context.rank, ranks=ranks)

    evaluation: Any = None
    if held_out:
        rows_held_out = pack(held_out, tokenizer, recipe.context, recipe.seed)
        first = slice(recipe.eval_rows)
        if isinstance(rows_held_out, Mixed):
            evaluation = {name: again(part) for name, part in rows_held_out.apart(first).items()}
        else:
            evaluation = again(rows_held_out[first])

    def sample(model: nn.Module, prompt: str) -> str:
        return Engine(model, tokenizer).generate([prompt], Sampling(max_tokens=recipe.sample_tokens)).texts[0]

    fast = resolve_dtype(recipe.dtype, context.device)
    module = LanguageModule(
        lambda: build(recipe, tokenizer.vocab_size, context.device),
        lr=recipe.lr,
        steps=recipe.steps,
        schedule=recipe.schedule,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        param_dtype=None if fast == torch.float32 else fast,
        reshard_after_forward=recipe.reshard,
    )
    module.frozen_from_recipe = getattr(recipe, "adapters", None) is not None
    evaluate = Evaluate(
        every=recipe.eval_every,
        batches=evaluation,
        prompts=recipe.prompts,
        sample=sample,
        patience=recipe.patience,
    )
    recorder = Recorder(every=recipe.log_every)
    trainer = lightning.Trainer(
        accelerator="cpu" if context.device == "cpu" else "cuda",
        devices=context.world_size,
        strategy=MeshStrategy(recipe.plan),
        max_steps=recipe.steps,
        max_epochs=-1,
        callbacks=[recorder, evaluate, Control(checkpoint_every=recipe.checkpoint_every, keep=recipe.keep)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    newest, skipped = checkpoints.newest(context.folder / "checkpoints")
    for path, reason in skipped:
        context.events.write("text", {"text": f"passed over {path.name}: {reason}"})
    trainer.fit(module, loader, ckpt_path=newest and str(newest), weights_only=True)
    return {**recorder.latest, **evaluate.latest, "steps": trainer.global_step, "tokens": module.tokens_seen}


def load(run_folder: Path, step: int | Literal["last", "best"]) -> nn.Module:
    """The run's model, adapters on, with the weights of one checkpoint; in this process, unsharded.

    Errors: `CheckpointError` when the run holds no such checkpoint, or it is damaged.
    """
    import json

    from toolkit import checkpoint as checkpoints
    from toolkit.models import load_tokenizer
    from toolkit.recipes import FineTune, Recipe
    from toolkit.runs.control import resolver
    from toolkit.values import load_root

    data = json.loads((run_folder / "recipe.json").read_text())
    recipe: FineTune | Pretrain = load_root(data, Recipe, notebook=resolver(run_folder))
    path = checkpoints.choose(run_folder / "checkpoints", step)
    num_ids = 0 if isinstance(recipe, FineTune) else load_tokenizer(str(run_folder / TOKENIZER)).vocab_size
    model = build(recipe, num_ids)
    stored = checkpoints.read_manifest(path).tensors
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    needed = {name: t.detach() for name, t in tensors.items() if name in stored or getattr(t, "requires_grad", False)}
    checkpoints.load_into(path, needed, strict=False)
    return model.eval()
