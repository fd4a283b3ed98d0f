"""Bodies that train a tiny transformer with Lightning in the warm workers, and the model and data they share."""

import lightning
import numpy as np
import torch
from torch.distributed.tensor import DTensor

from toolkit.adapters import LoRA, adapt
from toolkit.data import IGNORED, Packed, StepLoader, held_out_batches
from toolkit.models import Transformer, TransformerConfig, load_tokenizer
from toolkit.models.foreign import wrap
from toolkit.parallel import Plan
from toolkit.runs import current
from toolkit.serve import Engine, Sampling
from toolkit.training import Evaluate, LanguageModule, MeshStrategy, Optimizer, Schedule
from toolkit.training.evaluate import gathered
from toolkit.values import parse

CONFIG = TransformerConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8,
)


def tiny() -> Transformer:
    """A transformer with the vocabulary of SmolLM2 and hardly anything else."""
    return Transformer(
        TransformerConfig(
            vocab_size=49152, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )


def unequal(rows: int = 44, context: int = 24) -> Packed:
    """Packed rows whose loss is on answers alone: many targets, few, one, none."""
    random = np.random.default_rng(0)
    tokens_NT = random.integers(0, 64, (rows, context)).astype(np.int32)
    documents_NT = (np.arange(context)[None] >= random.integers(1, context, (rows, 1))).astype(np.int32)
    targets_NT = np.full_like(tokens_NT, IGNORED)
    targets_NT[:, :-1] = tokens_NT[:, 1:]
    targets_NT[:, :-1][documents_NT[:, 1:] != documents_NT[:, :-1]] = IGNORED
    answers = [context, 3, 1, 0]
    for row in range(rows):
        targets_NT[row, answers[row % 4] :] = IGNORED
    return Packed(tokens_NT=tokens_NT, targets_NT=targets_NT, documents_NT=documents_NT)


def foreign(family: str) -> torch.nn.Module:
    """A small model of `transformers` in the place of ours; documents are kept apart by positions, or in OPT by a mask."""
    import transformers

    sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(3)
    if family == "gpt_neox":
        return wrap(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, intermediate_size=48)).double())
    config = transformers.OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0)
    return wrap(transformers.OPTForCausalLM(config).double())


FOREIGN = {"gpt_neox": {"*.query_key_value": LoRA(rank=2), "*.dense_4h_to_h": LoRA(rank=3)}, "opt": {"*.q_proj": LoRA(rank=2)}}


class Watched(LanguageModule):
    """A language module that keeps every loss, and the gradients of the first step as whole tensors."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.losses: list[float] = []
        self.gradients: dict[str, list[float]] = {}

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        self.losses.append(float(output["loss"]))
        return output

    def _clip(self):
        if not self.gradients:
            for name, parameter in self.named_parameters():
                if parameter.grad is not None:
                    whole = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
                    self.gradients[name] = whole.flatten().tolist()
        return super()._clip()


class SaveAt(lightning.Callback):
    """Save one checkpoint after optimizer step `step`."""

    def __init__(self, folder: str, step: int):
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(f"{self.folder}/step-{self.step}")


def fit(
    *,
    plan: dict[str, int],
    dtype: str = "float32",
    adapted: bool = True,
    dropout: float = 0.0,
    steps: int = 10,
    micro_rows: int = 2,
    schedule: str = "Cosine(warmup=2)",
    optimizer: str = "AdamW()",
    weight_decay: float = 0.0,
    lr: float = 1e-2,
    narrow: bool = False,
    patience: int | None = None,
    family: str | None = None,
    save: tuple[str, int] | None = None,
    resume: str | None = None,
) -> dict[str, object]:
    """Train, and return the losses, the first gradients, the held-out loss and the final trained weights.

    `narrow` multiplies in bfloat16; `patience` measures held-out text after each step and may end the training by it.
    `family` takes a model of `transformers`, and tells what it continues greedily in the end.
    """
    layout = Plan(**plan)
    context = current()
    lightning.seed_everything(1, verbose=False)
    lightning.pytorch.seed_everything(1 + context.rank, verbose=False)

    def build():
        if family is not None:
            return adapt(foreign(family), FOREIGN[family]) if adapted else foreign(family)
        model = Transformer(CONFIG, seed=3).to(getattr(torch, dtype))
        return adapt(model, {"*.q_proj": LoRA(rank=2, dropout=dropout), "*.down_proj": LoRA(rank=3)}) if adapted else model

    module = Watched(
        build, lr=lr, steps=steps, schedule=parse(schedule, Schedule), optimizer=parse(optimizer, Optimizer),
        weight_decay=weight_decay, clip=0.5, param_dtype=torch.bfloat16 if narrow else None,
    )
    module.frozen_from_recipe = adapted
    data = dict(rank=context.rank, ranks=layout.data_ranks)
    loader = StepLoader(unequal(), sequences_per_step=8, micro_sequences=micro_rows, seed=5, **data)

    def held_out():
        return held_out_batches(unequal(rows=7), micro_sequences=micro_rows, **data)

    callbacks = [] if patience is None else [Evaluate(every=1, batches=held_out, patience=patience)]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=layout.world_size, strategy=MeshStrategy(layout), max_steps=steps, max_epochs=-1,
        callbacks=callbacks + ([SaveAt(*save)] if save else []), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    weights = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            weights[name] = whole.detach().flatten().tolist()
    told = {"losses": module.losses, "gradients": module.gradients, "held_out": module.evaluate(held_out()), "weights": weights}
    if family is not None:
        with gathered(module.model):
            engine = Engine(module.model, load_tokenizer("bytes"))
            told["said"] = engine.generate([[1, 2, 3], [7]], Sampling(max_tokens=3)).token_ids
    return told
