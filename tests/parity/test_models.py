"""The reference transformer against the hub's own implementations, with the same attention kernel on both sides."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.laws.test_models import built, close, every_shape, one_thread, tokens
from toolkit.models import (
    DynamicRope,
    KVCache,
    LinearRope,
    Llama3Rope,
    LongRope,
    Transformer,
    TransformerConfig,
    YarnRope,
    inspect_model,
    load_model,
    load_tokenizer,
    model_files,
    save_model,
)
from toolkit.models.hub_config import to_hub
from toolkit.models.rotary import rotation
from toolkit.serve import Engine, Sampling

__all__ = ["one_thread"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
transformers.utils.logging.disable_progress_bar()


def reference(folder: Path | str, dtype: torch.dtype) -> nn.Module:
    """The hub's model of a folder. Its norms round to float32 also in float64; here they do not."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    if dtype == torch.float64:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child).__name__.endswith("RMSNorm"):
                    norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=dtype)
                    norm.weight = child.weight
                    setattr(module, name, norm)
    return model


def loss(logits: Tensor, row: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), row[:, 1:].flatten())


@every_shape
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_logits_and_gradients(config, dtype, tmp_path):
    ours = built(config).to(dtype)
    save_model(ours, tmp_path)
    theirs = reference(tmp_path, dtype)
    for length in (3, 16, 70):  # the last is longer than the context, which some rotary stretches go by
        row = tokens(3, length, seed=length)
        a, b = ours(row), theirs(input_ids=row).logits
        close(a, b, TOLERANCE[dtype])
        ours.zero_grad()
        theirs.zero_grad()
        loss(a, row).backward()
        loss(b, row).backward()
        names = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            close(parameter.grad, names[name].grad, TOLERANCE[dtype])


@every_shape
def test_ten_steps_of_training(config, tmp_path):
    ours = built(config)
    save_model(ours, tmp_path)
    theirs = reference(tmp_path, torch.float64)
    losses = []
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses.append([])
        for step in range(10):
            row = tokens(2, 12, seed=step)
            logits = model(row)
            value = loss(logits if isinstance(logits, Tensor) else logits.logits, row)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses[-1].append(value.item())
    close(torch.tensor(losses[0]), torch.tensor(losses[1]), 1e-9)


@every_shape
def test_weights_go_to_the_hub_and_back_byte_for_byte(config, tmp_path):
    ours = built(config).bfloat16()
    save_model(ours, tmp_path / "ours", max_shard_bytes=8000)
    theirs = reference(tmp_path / "ours", torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=8000)
    assert inspect_model(str(tmp_path / "theirs")).family == theirs.config.model_type
    again = load_model(str(tmp_path / "theirs"), dtype="bfloat16")
    assert again.config == config
    held = theirs.state_dict()
    assert held.keys() - again.state_dict().keys() <= {"lm_head.weight"}  # the tied head's second name
    for name, tensor in ours.state_dict().items():
        assert torch.equal(held[name].view(torch.uint8), tensor.view(torch.uint8))
        assert torch.equal(again.state_dict()[name].view(torch.uint8), tensor.view(torch.uint8))


TINY = dict(
    vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3
)
LEAST = {
    "llama": (transformers.LlamaConfig, {}),
    "llama, tied, biases": (transformers.LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, yarn": (
        transformers.LlamaConfig,
        {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e4, "mscale": 0.7, "mscale_all_dim": 0.4},
        },
    ),
    "mistral": (transformers.MistralConfig, {"num_key_value_heads": 1, "head_dim": 16}),
    "mistral, no window": (transformers.MistralConfig, {"num_key_value_heads": 4, "sliding_window": None}),
    "mistral, window": (transformers.MistralConfig, {"num_key_value_heads": 2, "sliding_window": 7, "tie_word_embeddings": True}),
    "qwen2": (transformers.Qwen2Config, {"num_key_value_heads": 2}),
    "qwen2, window": (
        transformers.Qwen2Config,
        {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": (transformers.Qwen3Config, {"num_key_value_heads": 2}),
    "qwen3, every layer slides": (
        transformers.Qwen3Config,
        {"num_key_value_heads": 4, "head_dim": 6, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4}
        | {"max_window_layers": 0},
    ),
}


@pytest.mark.parametrize("name", LEAST)
def test_models_that_the_hub_made_compute_the_same(name, tmp_path):
    """Random weights of the hub's class, whose config.json leaves all else at its defaults."""
    kind, fields = LEAST[name]
    torch.manual_seed(1)
    made = transformers.AutoModelForCausalLM.from_config(kind(**TINY, **fields), dtype=torch.float64)
    made.save_pretrained(tmp_path)
    least = {"model_type": kind.model_type, **TINY, **fields}
    (tmp_path / "config.json").write_text(json.dumps(least))
    theirs, ours = reference(tmp_path, torch.float64), load_model(str(tmp_path), dtype="float64")
    row = tokens(2, 20)
    close(ours(row), theirs(input_ids=row).logits, 1e-10)


@every_shape
def test_greedy_continuations_of_random_weights(config, tmp_path):
    ours = built(config)
    save_model(ours, tmp_path)
    theirs = reference(tmp_path, torch.float64)
    prompt = tokens(2, 5, seed=3)
    want = theirs.generate(prompt, max_new_tokens=64, do_sample=False, attention_mask=torch.ones_like(prompt))[:, 5:]
    cache, step, got = KVCache(5 + 64), prompt, []
    with torch.no_grad():
        for _ in range(64):
            step = ours(step, cache=cache)[:, -1:].argmax(-1)
            got.append(step)
    assert torch.equal(torch.cat(got, 1), want)


def test_rotary_frequencies_are_the_hubs_bit_for_bit():
    for head_dim, context, theta, scaling in (
        (64, 8192, 1e5, None),
        (128, 131072, 5e5, Llama3Rope(factor=32.0)),
        (64, 2048, 1e4, LinearRope(factor=3.0)),
        (96, 2048, 1e4, DynamicRope(factor=2.0)),
        (128, 131072, 1e6, YarnRope(factor=4.0, original_context=32768)),
        (128, 8192, 1e6, YarnRope(factor=2.5, original_context=4096, beta_fast=16.0, truncate=False, mscale=0.7)),
        (96, 131072, 1e4, LongRope(short_factors=(1.0,) * 48, long_factors=tuple(1 + n / 7 for n in range(48)), factor=32.0)),
    ):
        config = TransformerConfig(
            head_dim=head_dim, max_position_embeddings=context, rope_theta=theta, rope_scaling=scaling, num_hidden_layers=1
        )
        theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**to_hub(config)))
        for positions in ([[0, 1, 2, 4000]], [[0, 5000, 140000]]):
            cos, sin = theirs(torch.zeros(()), torch.tensor(positions))
            ours = rotation(torch.tensor(positions), config, dtype=torch.float32)
            assert torch.equal(ours[0][:, 0], cos[..., : head_dim // 2]), config
            assert torch.equal(ours[1][:, 0], sin[..., : head_dim // 2]), config


@every_shape
def test_packed_documents_against_the_hub_one_by_one(config, tmp_path):
    ours = built(config)
    save_model(ours, tmp_path)
    theirs = reference(tmp_path, torch.float64)
    row = tokens(1, 20)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([6, 2, 12]))[None]
    logits = ours(row, documents_BT=documents)
    alone = [theirs(input_ids=part).logits for part in row.split([6, 2, 12], dim=1)]
    close(logits, torch.cat(alone, 1))


def test_sampling_rules_are_the_hubs():
    from transformers.generation import logits_process as hub

    from toolkit.serve.sampling import penalise, truncate

    logits = 4 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 50, (20, 8), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(20, 50, dtype=torch.bool).scatter(1, ids, True)
    assert torch.equal(penalise(logits, seen, 1.3), hub.RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone()))
    for ours, theirs in (
        (Sampling(top_k=7), [hub.TopKLogitsWarper(7)]),
        (Sampling(top_p=0.8), [hub.TopPLogitsWarper(0.8)]),
        (Sampling(min_p=0.1), [hub.MinPLogitsWarper(0.1)]),
        (
            Sampling(top_k=20, top_p=0.9, min_p=0.02),
            [hub.TopKLogitsWarper(20), hub.TopPLogitsWarper(0.9), hub.MinPLogitsWarper(0.02)],
        ),
    ):
        want = logits.clone()
        for rule in theirs:
            want = rule(ids, want)
        assert torch.equal(truncate(logits, ours), want)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Transformer, nn.Module]:
    return load_model("smollm2-135m", dtype="float32"), reference(model_files("smollm2-135m"), torch.float32)


def test_smollm2_logits(smollm2):
    ours, theirs = smollm2
    row = torch.tensor([load_tokenizer("smollm2-135m").encode("A language model predicts the next token of a text.")])
    with torch.no_grad():
        close(ours(row), theirs(input_ids=row).logits, 1e-5)


def test_smollm2_continues_token_for_token(smollm2):
    ours, theirs = smollm2
    tokenizer = load_tokenizer("smollm2-135m")
    ids = tokenizer.encode_chat([{"role": "user", "content": "Name three colours and one animal for each."}])
    got = Engine(ours, tokenizer).generate([ids], Sampling(max_tokens=64)).token_ids[0]
    want = theirs.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :].tolist()
    assert got == want
    assert len(got) == 64 or got[-1] == tokenizer.eos_id


def test_smollm2_tokenizer():
    from pydoc_data.topics import topics

    theirs = transformers.AutoTokenizer.from_pretrained(model_files("smollm2-135m"))
    ours = load_tokenizer("smollm2-135m")
    texts = [topics["strings"], "naïve 日本語 \t 12345  678\n<|im_start|>user\n", ""]
    assert ours.encode_batch(texts) == theirs(texts)["input_ids"]
    assert (theirs.eos_token_id, theirs.bos_token_id, len(theirs)) == (ours.eos_id, ours.bos_id, ours.vocab_size)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert ours.render_chat(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
