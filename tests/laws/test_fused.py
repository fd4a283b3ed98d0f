"""Laws of the fused decoding step: it is the model's own forward, with the weights of the moment, or it is not taken."""

import pytest
import torch
from torch import Tensor, nn

from tests.laws.test_engine import MODELS, TOKENIZER, model
from tests.laws.test_models import one_thread
from toolkit.adapters import LoRA, adapt
from toolkit.adapters.host import disabled
from toolkit.models import KVCache, Transformer
from toolkit.models.transformer import Block
from toolkit.serve import Engine, Sampling
from toolkit.serve.fused import FusedDecoder, can_fuse
from toolkit.serve.score import left_padded

__all__ = ["one_thread"]
IDS = [[5, 6, 7, 8, 9], [11], [3, 4]]
FAMILIES = {
    **MODELS,
    "window on one block": model(sliding_window=4, layer_types=("sliding_attention", "full_attention")),
    "biases, untied": model(query_key_value_bias=True, output_bias=True, mlp_bias=True, tie_word_embeddings=False),
}
ROOM = 6


def said(rows: int) -> Tensor:
    """What is said at each step, in each row."""
    return (torch.arange(ROOM)[:, None] * 7 + torch.arange(rows) * 5) % 250


@torch.no_grad()
def fused(one: Transformer, group: int, kept: list[int]) -> list[Tensor]:
    """Logits of each step; after half of the steps only the rows `kept` go on."""
    tokens, documents = left_padded(IDS, torch.device("cpu"))
    cache = KVCache(tokens.shape[1])
    one(tokens, documents_BT=documents, cache=cache)
    decoder = FusedDecoder(one, cache, group=group, room=ROOM)
    rows = torch.arange(len(IDS) * group)
    lengths = torch.tensor([len(row) for row in IDS]).repeat_interleave(group)
    logits = []
    for step in range(ROOM):
        if step == ROOM // 2:
            decoder.keep(torch.tensor(kept))
            rows = rows[kept]
        logits.append(decoder.step(said(len(lengths))[step, rows], lengths[rows] + step))
    return logits


@torch.no_grad()
def plain(one: Transformer, group: int, kept: list[int]) -> list[Tensor]:
    """The same from one forward a row."""
    rows = [row for row in IDS for _ in range(group)]
    words = said(len(rows)).T.tolist()
    logits = torch.stack([one(torch.tensor([row + more]))[0, len(row) :] for row, more in zip(rows, words, strict=True)], 1)
    return [each if step < ROOM // 2 else each[kept] for step, each in enumerate(logits)]


def same(one: Transformer, group: int, tolerance: float) -> None:
    kept = [len(IDS) * group - 1, 0]
    for got, want in zip(fused(one, group, kept), plain(one, group, kept), strict=True):
        assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("one", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_step_is_the_models_own_forward(one, group):
    generator = torch.Generator().manual_seed(2)
    for name, parameter in one.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, generator=generator)
    assert can_fuse(one)
    same(one, group, 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("group", [1, 3])
def test_in_every_type(dtype, tolerance, group):
    same(model(query_key_norm=True, initializer_range=0.2).to(dtype), group, tolerance)


def adapted(dtype: torch.dtype) -> Transformer:
    one = adapt(model(initializer_range=0.2).to(dtype), {"*.q_proj": LoRA(rank=2), "*.mlp.*": LoRA(rank=3, alpha=6.0)})
    for name, parameter in one.named_parameters():
        if name.endswith("b_OR"):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return one.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.bfloat16, 2e-2)], ids=str)
def test_adapters_take_part(dtype, tolerance):
    one = adapted(dtype)
    with_them = fused(one, 2, [0])
    same(one, 2, tolerance)
    with disabled(one):
        same(one, 2, tolerance)
        assert (fused(one, 2, [0])[0] - with_them[0]).abs().max() > 10 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_switched_off_adapters_leave_the_base_bit_for_bit(dtype):
    base = model().to(dtype)
    adapted = adapt(model().to(dtype), {"*_proj": LoRA(rank=2)})
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("b_OR"):
                parameter.normal_()
    with disabled(adapted):
        steps = zip(fused(adapted, 2, [0, 3]), fused(base, 2, [0, 3]), strict=True)
        assert all(torch.equal(got, want) for got, want in steps)


def test_weights_are_those_of_the_moment():
    one, other = model(), model()
    engine, sampling = Engine(one, TOKENIZER), Sampling(max_tokens=8)
    engine.generate(["abc"], sampling)
    for each in (one, other):
        each.model.layers[1].self_attn.k_proj.weight.data[0].neg_()  # no version counter sees this
        each.model.layers[0].mlp.up_proj.weight.data[:, 0] += 1
    assert engine.generate(["abc"], sampling) == Engine(other, TOKENIZER).generate(["abc"], sampling)
    assert engine.generate(["abc"], sampling) != Engine(model(), TOKENIZER).generate(["abc"], sampling)


class Doubled(nn.Linear):
    """A layer that is not what its weight says."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("name", ["q_proj", "o_proj", "down_proj"])
def test_another_projection_is_called(name):
    one = model()
    for block in one.blocks:
        owner = block.mlp if name == "down_proj" else block.self_attn
        doubled = Doubled(getattr(owner, name).in_features, getattr(owner, name).out_features, bias=False).double()
        setattr(owner, name, doubled)
    same(one, 2, 1e-10)


def test_a_watched_projection_is_called():
    one, calls = model(), []
    one.blocks[1].mlp.up_proj.register_forward_hook(lambda module, given, made: calls.append(made.shape[0]))
    Engine(one, TOKENIZER).generate(["ab", "c"], Sampling(max_tokens=4))
    assert calls == [2, 2, 2, 2]


class OtherBlock(Block):
    """A block that someone changed."""

    def forward(self, x_BTD: Tensor, *arguments: object) -> Tensor:
        return -super().forward(x_BTD, *arguments)


class OtherHidden(Transformer):
    """A model that does more than its blocks."""

    def hidden(self, tokens_BT: Tensor, **ways: object) -> Tensor:
        return -super().hidden(tokens_BT, **ways)


def other_block() -> Transformer:
    one = model()
    one.model.layers[1] = OtherBlock(one.config, 1).double()
    return one


def hooked() -> Transformer:
    one = model()
    one.blocks[0].register_forward_hook(lambda module, given, made: -made)
    return one


def mixed_types() -> Transformer:
    one = model()
    one.blocks[0].input_layernorm.float()
    return one


@pytest.mark.parametrize("make", [other_block, hooked, lambda: OtherHidden(model().config, seed=3).double()])
def test_what_is_not_the_reference_runs_its_own_forward(make):
    one = make()
    assert not can_fuse(one)
    result = Engine(one, TOKENIZER).generate(["abc", "d"], Sampling(max_tokens=6))
    for prompt, ids in zip(result.prompt_ids, result.token_ids, strict=True):
        assert one(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].argmax(-1).tolist() == ids


def test_mixed_types_and_autocast_run_their_own_forward():
    assert not can_fuse(mixed_types())
    assert not can_fuse(nn.Linear(2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_fuse(model())
    assert can_fuse(model())


def test_there_is_no_room_beyond_what_was_asked_for():
    one, cache = model(), KVCache(2)
    one(torch.tensor([[1, 2]]), cache=cache)
    decoder = FusedDecoder(one, cache, group=2, room=1)
    decoder.step(torch.tensor([3, 4]), torch.tensor([2, 2]))
    with pytest.raises(ValueError, match="no room for more than 1 token"):
        decoder.step(torch.tensor([3, 4]), torch.tensor([3, 3]))
