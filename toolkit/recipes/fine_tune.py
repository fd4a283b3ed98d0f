"""Fine-tune a decoder on text: whole, or through adapters, in one process or sharded over many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from toolkit.adapters import Adapter
from toolkit.data import Data, Manual
from toolkit.parallel import Plan
from toolkit.recipes.language import check_batch
from toolkit.training import AdamW, Cosine, Optimizer, Schedule
from toolkit.values import Range, Sites, check

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FineTune", "build"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTune:
    """Tune a pretrained decoder on text, through adapters or whole.

    Example:
        recipe = FineTune(model="smollm2-135m", data=Manual(), adapters={"*.q_proj": LoRA(rank=8)}, steps=40)
        run = launch(recipe, on=Local(processes=1))
    """

    entry: ClassVar[str] = "toolkit.recipes.language:train"
    loader: ClassVar[str] = "toolkit.recipes.language:load"
    loads: ClassVar[str] = "toolkit.recipes:Recipe"
    checker: ClassVar[str] = "toolkit.recipes.preflight:preflight"

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
    schedule: Schedule = Cosine()
    """Course of the learning rate: its warm-up, and how it falls."""
    optimizer: Optimizer = AdamW()
    """What turns gradients into steps."""
    weight_decay: Annotated[float, Range(0)] = 0.0
    """Decay of the trained matrices, per step and unit of learning rate; vectors do not decay."""
    clip: Annotated[float, Range(0, exclusive_low=True)] | None = 1.0
    """Largest norm of the whole gradient; None does not clip."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen weights and of the products; auto takes bfloat16 where the machine is fast at it."""
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
        if self.adapters is not None and not len(self.adapters):
            raise ValueError("FineTune.adapters: {} names no module; name patterns, or say None to tune every weight")
        check_batch(self)


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
