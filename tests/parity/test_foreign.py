"""Models of `transformers` in the place of the transformer here: the same training, and documents kept apart in all of them."""

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.laws.test_models import SHAPES, built, close, every_shape, one_thread, tokens
from tests.parity.test_models import reference
from toolkit.adapters import LoRA, adapt, merge_
from toolkit.data import IGNORED
from toolkit.models import Transformer, inspect_model, load_model, save_model
from toolkit.models.foreign import Foreign, wrap
from toolkit.parallel.apply import find_blocks
from toolkit.training.language import loss_sum

__all__ = ["one_thread"]
transformers.utils.logging.disable_progress_bar()

SMALL = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)
NARROW = SMALL | dict(intermediate_size=40, num_key_value_heads=2)
OTHERS = {
    "gpt2": transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, n_positions=64),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL, intermediate_size=40),
    "opt": transformers.OPTConfig(
        **{name: value for name, value in SMALL.items() if name != "initializer_range"},
        ffn_dim=40, word_embed_proj_dim=32, init_std=0.3,
    ),
    "gemma2": transformers.Gemma2Config(**NARROW, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "phi3": transformers.Phi3Config(**NARROW, pad_token_id=0),
    "olmo2": transformers.Olmo2Config(**NARROW),
    "granite": transformers.GraniteConfig(**NARROW, logits_scaling=2.0),
    "mixtral": transformers.MixtralConfig(**NARROW, num_local_experts=4),
}


def batch() -> dict[str, Tensor]:
    """Two packed rows, and targets in places that differ from row to row."""
    row = tokens(2, 17)
    documents = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(part)) for part in [(7, 1, 9), (4, 6, 7)]])
    targets = row.roll(-1, 1)
    targets[torch.rand(2, 17, generator=torch.Generator().manual_seed(0)) < 0.6] = IGNORED
    return {"tokens_BT": row, "targets_BT": targets, "documents_BT": documents}


def foreign(config: transformers.PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Foreign:
    torch.manual_seed(0)
    return wrap(transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval())


@every_shape
def test_loss_and_gradients_are_ours(config, tmp_path):
    ours = built(config)
    save_model(ours, tmp_path)
    theirs = wrap(reference(tmp_path, torch.float64))
    losses = [loss_sum(model, batch()) for model in (ours, theirs)]
    close(losses[0], losses[1], 1e-10)
    for value in losses:
        value.backward()
    names = dict(theirs.hub.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, names[name].grad, 1e-10)


def test_adapters_train_the_same(tmp_path):
    ours = built(SHAPES["qwen3, windows"])
    save_model(ours, tmp_path)
    models = [ours, wrap(reference(tmp_path, torch.float64))]
    trained = []
    for model in models:
        adapt(model, {"*.q_proj": LoRA(rank=2), "*.down_proj": LoRA(rank=3)})
        trained.append([parameter for parameter in model.parameters() if parameter.requires_grad])
        assert [type(block).__name__ for block in find_blocks(model)] in (["Block"] * 2, ["Qwen3DecoderLayer"] * 2)
    with torch.no_grad():
        for ours_, theirs_ in zip(*trained, strict=True):  # a start is drawn for each path, and the paths differ by "hub."
            theirs_.copy_(ours_)
    losses: list[list[float]] = [[], []]
    for model, parameters, seen in zip(models, trained, losses, strict=True):
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        for _ in range(3):
            loss = loss_sum(model, batch())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    close(torch.tensor(losses[0]), torch.tensor(losses[1]), 1e-9)
    assert losses[0][-1] < losses[0][0]
    for ours_, theirs_ in zip(*trained, strict=True):
        close(ours_, theirs_, 1e-8)
    with pytest.raises(ValueError, match=r"changed at model\.layers\.0.*merge or remove adapters"):
        save_model(models[1], tmp_path / "again")
    save_model(merge_(models[1]), tmp_path / "again")
    again = load_model(str(tmp_path / "again"), dtype="float64")
    assert isinstance(again, Transformer)
    close(again(tokens(1, 9)), models[1](tokens(1, 9)), 1e-10)


@pytest.mark.parametrize("name", OTHERS)
def test_documents_of_any_family_are_kept_apart(name):
    model, packed = foreign(OTHERS[name]), batch()
    where = packed["targets_BT"] != IGNORED
    logits = model(packed["tokens_BT"], documents_BT=packed["documents_BT"])
    close(model(packed["tokens_BT"], documents_BT=packed["documents_BT"], where_BT=where), logits[where], 1e-5)
    for row, documents, got in zip(packed["tokens_BT"], packed["documents_BT"], logits, strict=True):
        sizes = documents.unique(return_counts=True)[1].tolist()
        alone = [model(part[None])[0] for part in row.split(sizes)]
        close(got, torch.cat(alone), 1e-4)
    assert len(find_blocks(model)) == 2
    assert model.gives_mask == (name == "opt")
    loss_sum(model, packed).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_family_that_only_transformers_has_is_loaded_and_saved(tmp_path):
    made = foreign(OTHERS["gemma2"], torch.bfloat16)
    save_model(made, tmp_path)
    facts = inspect_model(str(tmp_path))
    assert (facts.family, facts.native, facts.vocab_size, facts.dtype) == ("gemma2", False, 61, "bfloat16")
    assert facts.num_parameters == sum(parameter.numel() for parameter in made.parameters())
    again = load_model(str(tmp_path), dtype="bfloat16")
    assert isinstance(again, Foreign)
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name].view(torch.uint8), tensor.view(torch.uint8))
    assert all(parameter.is_meta for parameter in load_model(str(tmp_path), device="meta").parameters())
    (tmp_path / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(ValueError, match=r"'no_such_thing' is not one of llama, .*transformers lacks it too"):
        load_model(str(tmp_path))


def gpt2() -> nn.Module:
    """A builder, named below as tests.parity.test_foreign:gpt2."""
    return transformers.AutoModelForCausalLM.from_config(OTHERS["gpt2"])


def test_a_builder_may_return_a_model_of_transformers():
    model = load_model("tests.parity.test_foreign:gpt2", dtype="bfloat16")
    assert isinstance(model, Foreign)
    assert model(tokens(1, 4)).dtype == torch.bfloat16
    assert (model.config.max_position_embeddings, model.config.vocab_size) == (64, 61)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4), "takes no position_ids"),
        (transformers.T5Config(vocab_size=61, d_model=32, num_layers=1, d_ff=8, num_heads=2), "takes no position_ids"),
    ],
    ids=["mamba", "t5"],
)
def test_what_cannot_keep_documents_apart_is_refused(config, message):
    kind = transformers.MambaForCausalLM if config.model_type == "mamba" else transformers.T5ForConditionalGeneration
    with pytest.raises(ValueError, match=message):
        wrap(kind(config))
    with pytest.raises(ValueError, match="has no language-model head"):
        wrap(transformers.LlamaModel(transformers.LlamaConfig(**NARROW)))


class Leaky(transformers.LlamaForCausalLM):
    """Takes positions and pays them no heed."""

    def forward(self, input_ids=None, position_ids=None, labels=None, attention_mask=None, **other):
        return super().forward(input_ids=input_ids, **other)


def test_a_model_that_lets_documents_see_each_other_is_found_out():
    with pytest.raises(ValueError, match="Leaky lets documents of a packed row see each other"):
        wrap(Leaky(transformers.LlamaConfig(**NARROW)))
    model = foreign(OTHERS["olmo2"])
    with pytest.raises(ValueError, match="generate with model.hub.generate"):
        model(tokens(1, 3), cache=object())
    with pytest.raises(ValueError, match="positions_BT with documents_BT"):
        model(tokens(1, 3), documents_BT=torch.zeros(1, 3, dtype=torch.long), positions_BT=torch.arange(3)[None])
