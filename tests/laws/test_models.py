"""Laws of the reference transformer."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from toolkit.models import (
    DynamicRope,
    KVCache,
    LinearRope,
    Llama3Rope,
    LongRope,
    Transformer,
    TransformerConfig,
    YarnRope,
    load_model,
    load_tokenizer,
)
from toolkit.models.config import tensor_shapes
from toolkit.models.hub_config import from_hub, to_hub

SMALL = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.3,
)
SHAPES = {
    "llama": TransformerConfig(**SMALL),
    "llama, untied, biases": TransformerConfig(
        **SMALL, tie_word_embeddings=False, query_key_value_bias=True, output_bias=True, mlp_bias=True
    ),
    "llama, one key head": TransformerConfig(**SMALL | {"num_key_value_heads": 1, "head_dim": 6}),
    "llama, linear": TransformerConfig(**SMALL, rope_scaling=LinearRope(factor=2.0)),
    "llama, dynamic": TransformerConfig(**SMALL, rope_scaling=DynamicRope(factor=4.0)),
    "llama, llama3": TransformerConfig(**SMALL, rope_theta=500.0, rope_scaling=Llama3Rope(original_context=32)),
    "llama, yarn": TransformerConfig(**SMALL, rope_theta=500.0, rope_scaling=YarnRope(factor=4.0, original_context=32)),
    "llama, longrope": TransformerConfig(
        **SMALL,
        rope_scaling=LongRope(
            short_factors=(1.0, 1.1, 1.5, 2.0), long_factors=(1.0, 2.0, 4.0, 8.0), factor=4.0, original_context=32
        ),
    ),
    "mistral": TransformerConfig(**SMALL, sliding_window=5, tie_word_embeddings=False),
    "qwen2": TransformerConfig(**SMALL, query_key_value_bias=True),
    "qwen2, windows": TransformerConfig(
        **SMALL, query_key_value_bias=True, sliding_window=5, layer_types=("full_attention", "sliding_attention")
    ),
    "qwen3": TransformerConfig(**SMALL, query_key_norm=True),
    "qwen3, windows": TransformerConfig(
        **SMALL | {"num_key_value_heads": 4},
        query_key_norm=True,
        query_key_value_bias=True,
        output_bias=True,
        sliding_window=4,
        layer_types=("sliding_attention", "full_attention"),
        tie_word_embeddings=False,
    ),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These models are too small for two threads, and where other work runs beside, the second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(config: TransformerConfig, seed: int = 1) -> Transformer:
    """A float64 model in which no parameter has a special value."""
    model = Transformer(config, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@every_shape
def test_a_packed_document_does_not_see_the_others(config):
    model = built(config)
    lengths = [(7, 1, 9), (4, 13)]
    row = tokens(2, 17)
    documents = torch.stack([torch.repeat_interleave(torch.arange(len(part)), torch.tensor(part)) for part in lengths])
    packed = model(row, documents_BT=documents)
    packed.square().sum().backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for number, part in enumerate(lengths):
        for piece, logits in zip(row[number].split(part), packed[number].split(part), strict=True):
            alone = model(piece[None])[0]
            close(logits, alone)
            alone.square().sum().backward()
    for name, parameter in model.named_parameters():
        close(together[name], parameter.grad, 1e-9)


@every_shape
def test_one_document_a_row_needs_no_mask(config):
    model = built(config)
    row = tokens(2, 12)
    assert torch.equal(model(row), model(row, documents_BT=torch.tensor([[3] * 12, [5] * 12])))


@every_shape
@pytest.mark.parametrize("cuts", [(12,), (5, 1, 1, 1, 1, 1, 1, 1), (3, 4, 5)], ids=str)
def test_a_cache_changes_nothing(config, cuts):
    model = built(config)
    row = tokens(2, 12)
    cache = KVCache(14)
    parts = [model(part, cache=cache) for part in row.split(cuts, dim=1)]
    close(torch.cat(parts, 1), model(row))
    with pytest.raises(ValueError, match="room for 14 tokens"):
        model(row, cache=cache)


@every_shape
def test_padding_on_the_left_changes_nothing(config):
    model = built(config)
    row = tokens(1, 9)
    padded = torch.cat([tokens(1, 4, seed=5), row], 1)
    documents = torch.tensor([[0] * 4 + [1] * 9])
    cache = KVCache(13)
    first = model(padded[:, :10], documents_BT=documents[:, :10], cache=cache)[:, 4:]
    rest = [model(padded[:, i : i + 1], positions_BT=torch.tensor([[i - 4]]), cache=cache) for i in range(10, 13)]
    close(torch.cat([first, *rest], 1), model(row))
    twice = cache.select(torch.tensor([0, 0]), capacity=20)
    assert (twice.length, twice.capacity, twice.keys_BKSC[0].shape[0]) == (13, 20, 2)
    assert torch.equal(twice.documents_BS[1, :13], documents[0])


def test_positions_start_again_and_can_be_given():
    model = built(SHAPES["llama"])
    row = tokens(1, 6)
    given_positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    documents = torch.tensor([[4, 4, 4, 9, 9, 9]])
    assert torch.equal(model(row, documents_BT=documents), model(row, documents_BT=documents, positions_BT=given_positions))
    with pytest.raises(ValueError, match="positions_BT"):
        cache = KVCache(12)
        model(row, cache=cache)
        model(row, cache=cache, documents_BT=documents)


@every_shape
def test_head_of_hidden_at_chosen_places(config):
    model = built(config)
    row = tokens(2, 7)
    where = torch.rand(2, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    logits = model(row)
    close(model.head(model.hidden(row)), logits)
    close(model(row, where_BT=where), logits[where])


@every_shape
def test_built_on_meta_and_filled_by_name(config):
    model = built(config)
    with torch.device("meta"):
        empty = Transformer(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not list(empty.buffers())
    empty.load_state_dict(model.state_dict(), assign=True)
    row = tokens(1, 5)
    assert torch.equal(empty(row), model(row))
    assert list(empty.blocks) == list(empty.model.layers)


def test_random_weights_follow_the_seed_alone():
    before = torch.get_rng_state()
    models = [Transformer(SHAPES["qwen3"], seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["model.embed_tokens.weight"], models[2]["model.embed_tokens.weight"])
    model = Transformer(SHAPES["qwen3"])
    torch.set_rng_state(before)
    again = model.state_dict()["model.embed_tokens.weight"].clone()
    model.reset_parameters(0)
    assert torch.equal(again, model.state_dict()["model.embed_tokens.weight"])


def test_norm_keeps_its_statistics_in_float32():
    norm = built(SHAPES["llama"]).model.norm
    x = 100 * torch.randn(64, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = norm.double()(x.double())
    assert norm.bfloat16()(x).dtype == torch.bfloat16
    close(norm(x).double(), exact, 2e-2)


@every_shape
def test_config_comes_back_from_the_hub_form(config):
    data = json.loads(json.dumps(to_hub(config)))
    assert from_hub(data) == config
    newer = {name: value for name, value in data.items() if name not in ("rope_theta", "rope_scaling")}
    older = {name: value for name, value in data.items() if name not in ("rope_parameters", "layer_types")}
    assert from_hub(newer) == config
    if config.layer_types is None or config.layer_types[0] == "full_attention":  # older files only say from which block on
        assert from_hub(older) == config


@every_shape
def test_shapes_are_known_without_building(config):
    with torch.device("meta"):
        built_shapes = {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    assert built_shapes == tensor_shapes(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "rotary scaling 'proportional'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' without a factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "1 factors, head_dim=8 needs 4"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "from layer to layer"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"num_key_value_heads": 3}, "must be a multiple of"),
        ({"model_type": "qwen3", "layer_types": ["chunked"] * 2, "use_sliding_window": True, "sliding_window": 4}, "'chunked'"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 2, "sliding_window": 4}, "layer_types of a mistral"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_config_refuses_what_it_cannot_compute(change, message):
    data = to_hub(SHAPES["llama"]) | change
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        from_hub({name: value for name, value in data.items() if value is not None})


def test_smollm2_speaks():
    model, tokenizer = load_model("smollm2-135m", dtype="float32"), load_tokenizer("smollm2-135m")
    assert len(model.blocks) == 30
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    ids = torch.tensor([tokenizer.encode("The sun rises in the east and sets in the west. Water boils at 100 degrees")])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    assert loss < 2.5  # a wrong order of rows in the query projection gives more than 7


def test_naming_a_value_imports_no_torch():
    code = (
        "import sys; from toolkit.models import TransformerConfig; from toolkit.data import Data, Manual; "
        "from toolkit.serve import Sampling; sys.exit(bool({'torch', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
