"""Pretrain a decoder from random weights on text, in one process or sharded over many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from toolkit.data import Data, Manual
from toolkit.models import TransformerConfig
from toolkit.parallel import Plan
from toolkit.recipes.architecture import Architecture
from toolkit.recipes.language import check_batch
from toolkit.recipes.vocabulary import BPE
from toolkit.training import AdamW, Cosine, Optimizer, Schedule
from toolkit.values import Range, check

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Pretrain", "build"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Train a decoder from random weights on text.

    Example:
        recipe = Pretrain(model=Architecture(hidden_size=128), tokenizer=BPE(vocab_size=1024), data=Manual(), steps=200)
        run = launch(recipe, on=Local(processes=1))
    """

    entry: ClassVar[str] = "toolkit.recipes.language:train"
    loader: ClassVar[str] = "toolkit.recipes.language:load"
    loads: ClassVar[str] = "toolkit.recipes:Recipe"
    checker: ClassVar[str] = "toolkit.recipes.preflight:preflight"

    model: Architecture | TransformerConfig | str = Architecture()
    """Shape of the model: a few numbers, every detail, or "module:function" that builds one with random weights."""
    tokenizer: BPE | str = BPE()
    """A vocabulary to learn from the data, "bytes", or the model whose tokenizer to use, such as "smollm2-135m"."""
    data: Data = Manual()
    """Text to learn from."""
    plan: Plan = Plan()
    """How the work is spread over processes."""
    steps: Annotated[int, Range(1)] = 200
    """Optimizer steps."""
    batch_tokens: Annotated[int, Range(1)] = 2048
    """Tokens of one optimizer step, over all processes; a multiple of context."""
    context: Annotated[int, Range(2)] = 256
    """Tokens of one row; documents are packed into rows and do not see one another."""
    micro_rows: Annotated[int, Range(1)] | None = None
    """Rows that one process handles at once; None takes its whole share."""
    lr: Annotated[float, Range(0)] = 3e-3
    """Learning rate, the highest of the schedule."""
    schedule: Schedule = Cosine()
    """Course of the learning rate: its warm-up, and how it falls."""
    optimizer: Optimizer = AdamW()
    """What turns gradients into steps."""
    weight_decay: Annotated[float, Range(0)] = 0.1
    """Decay of the trained matrices, per step and unit of learning rate; vectors do not decay."""
    clip: Annotated[float, Range(0, exclusive_low=True)] | None = 1.0
    """Largest norm of the whole gradient; None does not clip."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the products; auto takes bfloat16 where the machine is fast at it. Weights are float32."""
    reshard: bool = True
    """Free gathered weights after each block's forward (less memory), or keep them until its backward (less traffic)."""
    seed: Annotated[int, Range(0)] = 0
    """Seed of the data order, of what is drawn at the start and of every other draw."""
    log_every: Annotated[int, Range(1)] = 1
    """Steps between two records of the metrics."""
    eval_every: Annotated[int, Range(1)] = 20
    """Steps between two measurements of the held-out loss; also before the first and after the last step."""
    eval_rows: Annotated[int, Range(1)] = 16
    """Rows of held-out text that one measurement reads."""
    patience: Annotated[int, Range(1)] | None = None
    """Measurements of the held-out loss without a new lowest one after which the run ends; None goes on to the last step."""
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
        check_batch(self)


def build(recipe: Pretrain, vocab_size: int) -> nn.Module:
    """The recipe's model with random weights drawn from its seed, in float32 in memory of the CPU.

    `vocab_size` is the tokenizer's. Errors: `ValueError` for a model with fewer token ids than that, or a builder that
    cannot be imported.

    Example:
        model = build(Pretrain(model=Architecture(num_hidden_layers=2)), vocab_size=257)
    """
    from toolkit.models import Transformer, load_model

    if isinstance(recipe.model, str):
        return load_model(recipe.model, dtype="float32").requires_grad_(True)
    shape = recipe.model
    config = shape.config(vocab_size, recipe.context) if isinstance(shape, Architecture) else shape
    if config.vocab_size < vocab_size:
        raise ValueError(f"Pretrain.model: vocab_size {config.vocab_size} is less than the tokenizer's {vocab_size} ids")
    return Transformer(config, seed=recipe.seed)
