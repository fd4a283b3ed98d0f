"""Fine-tune a decoder on text: whole, or through adapters, in one process or sharded over many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from toolkit.adapters import Adapter
from toolkit.data import Data, Manual
from toolkit.parallel import Plan
from toolkit.values import Range, Sites, check, load_root

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from toolkit.runs import Context

__all__ = ["FineTune", "load", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTune:
    """Tune a pretrained decoder on text, through adapters or whole.

    Example:
        recipe = FineTune(model="smollm2-135m", data=Manual(), adapters={"*.q_proj": LoRA(rank=8)}, steps=40)
        run = launch(recipe, on=Local(processes=1))
    """

    entry: ClassVar[str] = "toolkit.recipes.fine_tune:train"
    loader: ClassVar[str] = "toolkit.recipes.fine_tune:load"
    loads: ClassVar[str] = "toolkit.recipes:Recipe"

    model: str = "smollm2-135m"
    """What to tune: "smollm2-135m", a hub id, a folder in the hub layout, or "module:function" that builds a model."""
    tokenizer: str | None = None
    """Model whose tokenizer to use; None takes the model's own, which a "module:function" has not."""
    data: Data = Manual()
    """Text to learn from."""
    adapters: Sites[Adapter] | None = None
    """Adapter for each pattern of module paths, such as {"*.q_proj": LoRA(rank=8)}; None tunes every weight."""
    plan: Plan = Plan()
    """How the work is spread over processes."""
    steps: Annotated[int, Range(1)] = 100
    """Optimizer steps."""
    batch_tokens: Annotated[int, Range(1)] = 1024
    """Tokens of one optimizer step, over all processes; a multiple of context."""
    context: Annotated[int, Range(2)] = 256
    """Tokens of one row; documents are packed into rows and do not see one another."""
    micro_rows: Annotated[int, Range(1)] | None = None
    """Rows that one process handles at once; None takes its whole share."""
    lr: Annotated[float, Range(0)] = 1e-3
    """Learning rate, the highest of the schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after the warm-up; linear and cosine end at zero."""
    warmup: Annotated[int, Range(0)] = 5
    """Steps over which the learning rate rises linearly."""
    weight_decay: Annotated[float, Range(0)] = 0.0
    """Decay of AdamW, per step and unit of learning rate."""
    clip: Annotated[float, Range(0, exclusive_low=True)] | None = 1.0
    """Largest norm of the whole gradient; None does not clip."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen weights and of the products; auto takes bfloat16 where the machine is fast at it."""
    reshard: bool = True
    """Free gathered weights after each block's forward (less memory), or keep them until its backward (less traffic)."""
    seed: Annotated[int, Range(0)] = 0
    """Seed of the data order, of the adapters' start and of every other draw."""
    log_every: Annotated[int, Range(1)] = 1
    """Steps between two records of the metrics."""
    eval_every: Annotated[int, Range(1)] = 20
    """Steps between two measurements of the held-out loss; also before the first and after the last step."""
    eval_rows: Annotated[int, Range(1)] = 16
    """Rows of held-out text that one measurement reads."""
    prompts: tuple[str, ...] = ()
    """Prompts to continue greedily at every measurement."""
    sample_tokens: Annotated[int, Range(1)] = 32
    """Longest continuation of a prompt, in tokens."""
    checkpoint_every: Annotated[int, Range(0)] = 20
    """Steps between two checkpoints; 0 saves only at the end and when asked."""
    keep: Annotated[int, Range(1)] = 2
    """Newest checkpoints to keep; the best one is kept besides."""

    def __post_init__(self) -> None:
        check(self)
        if self.adapters is not None and not len(self.adapters):
            raise ValueError("FineTune.adapters: {} names no module; name patterns, or say None to tune every weight")
        if self.batch_tokens % self.context:
            raise ValueError(
                f"FineTune.batch_tokens: {self.batch_tokens} is not a multiple of context {self.context}; "
                f"take {max(1, self.batch_tokens // self.context) * self.context}"
            )
        ranks = self.plan.data_ranks
        rows = self.batch_tokens // self.context
        if rows % ranks:
            raise ValueError(
                f"FineTune.batch_tokens: {rows} rows of {self.context} tokens do not divide over {ranks} data-parallel "
                f"processes; take {-(-rows // ranks) * ranks * self.context}"
            )
        if self.micro_rows is not None and rows // ranks % self.micro_rows:
            raise ValueError(f"FineTune.micro_rows: {rows // ranks} rows a process are not a multiple of {self.micro_rows}")


def build(recipe: FineTune, device: str = "cpu") -> nn.Module:
    """The recipe's model with its adapters, before any training, in memory of the CPU.

    `device` says where it will train, which decides the number format; sharding moves one unit at a time there.

    Errors: `ValueError` for a model that cannot be found or a pattern that matches no module.

    Example:
        model = build(FineTune(adapters={"*.q_proj": LoRA(rank=8)}))
    """
    from toolkit.adapters import adapt
    from toolkit.models import load_model, resolve_dtype

    if recipe.adapters is None:  # weights that train stay float32; FSDP casts them for products
        return load_model(recipe.model, dtype="float32").requires_grad_(True)
    fast = str(resolve_dtype(recipe.dtype, device)).removeprefix("torch.")
    return adapt(load_model(recipe.model, dtype=cast("Any", fast)), recipe.adapters, seed=recipe.seed)


def train(recipe_json: dict[str, Any], context: Context) -> dict[str, Any]:
    """What every worker of a run does; returns the final metrics."""
    import lightning
    import torch

    from toolkit import checkpoint as checkpoints
    from toolkit.data import StepLoader, documents, held_out_batches, pack
    from toolkit.models import load_tokenizer, resolve_dtype
    from toolkit.parallel import refuse
    from toolkit.runs.control import resolver
    from toolkit.serve import Engine, Sampling
    from toolkit.training import Control, Evaluate, LanguageModule, MeshStrategy, Recorder

    recipe = load_root(recipe_json, FineTune, notebook=resolver(context.folder))
    refuse(recipe.plan)
    lightning.seed_everything(recipe.seed, verbose=False)
    tokenizer = load_tokenizer(recipe.tokenizer or recipe.model)
    learned, held_out = documents(recipe.data)
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
    evaluation = pack(held_out, tokenizer, recipe.context, recipe.seed)[: recipe.eval_rows] if held_out else None

    def held_out_micro_batches() -> Iterable[dict[str, Tensor]]:
        assert evaluation is not None
        return held_out_batches(evaluation, micro_sequences=micro_rows, rank=context.rank, ranks=ranks)

    def sample(model: nn.Module, prompt: str) -> str:
        return Engine(model, tokenizer).generate([prompt], Sampling(max_tokens=recipe.sample_tokens)).texts[0]

    fast = resolve_dtype(recipe.dtype, context.device)
    module = LanguageModule(
        lambda: build(recipe, context.device),
        lr=recipe.lr,
        steps=recipe.steps,
        schedule=recipe.schedule,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        param_dtype=None if fast == torch.float32 else fast,
        reshard_after_forward=recipe.reshard,
    )
    module.frozen_from_recipe = recipe.adapters is not None
    evaluate = Evaluate(
        every=recipe.eval_every,
        batches=None if evaluation is None else held_out_micro_batches,
        prompts=recipe.prompts,
        sample=sample,
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
    from toolkit.runs.control import resolver

    recipe = load_root(json.loads((run_folder / "recipe.json").read_text()), FineTune, notebook=resolver(run_folder))
    path = checkpoints.choose(run_folder / "checkpoints", step)
    model = build(recipe)
    stored = checkpoints.read_manifest(path).tensors
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    needed = {name: t.detach() for name, t in tensors.items() if name in stored or getattr(t, "requires_grad", False)}
    checkpoints.load_into(path, needed, strict=False)
    return model.eval()
