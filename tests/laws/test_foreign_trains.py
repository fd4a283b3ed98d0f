"""A model of `transformers` in the place of ours from the recipe to the result: it trains, shows samples, loads and is saved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from tests.laws.test_models import one_thread
from toolkit.adapters import LoRA, merge_
from toolkit.launch import InProcess, launch
from toolkit.models import load_model, load_tokenizer, save_model
from toolkit.models.foreign import Foreign
from toolkit.recipes import FineTune
from toolkit.recipes.language import build
from toolkit.serve import Engine, Sampling

__all__ = ["one_thread"]
transformers.utils.logging.disable_progress_bar()
SMALL = dict(vocab_size=257, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
MANY = 1 << 15
"""More new tokens than any of these models has places for."""


def neox() -> torch.nn.Module:
    """A builder: rotary positions over a part of each head, parallel blocks, biases, heads not tied."""
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL | dict(vocab_size=49152), intermediate_size=32))


def gemma() -> torch.nn.Module:
    """A builder: scaled and tied embeddings, norms that add one."""
    return transformers.GemmaForCausalLM(
        transformers.GemmaConfig(**SMALL, intermediate_size=32, num_key_value_heads=1, head_dim=8)
    )


def opt() -> torch.nn.Module:
    """A builder: learned positions, documents kept apart by a mask."""
    return transformers.OPTForCausalLM(transformers.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0))


CASES = {
    "neox": ("smollm2-135m", {"*.query_key_value": LoRA(rank=2), "*.dense_4h_to_h": LoRA(rank=2)}),
    "gemma": ("bytes", None),
    "opt": ("bytes", {"*.q_proj": LoRA(rank=2)}),
}
"""Tokenizer, and adapters or the whole model."""


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # OPT's layers return a view, and change it nowhere
@pytest.mark.parametrize("name", CASES)
def test_it_trains_samples_loads_and_is_saved(name: str, tmp_path: Path) -> None:
    tokenizer, adapters = CASES[name]
    recipe = FineTune(
        model=f"{__name__}:{name}", tokenizer=tokenizer, adapters=adapters, steps=3, batch_tokens=64, context=32, lr=3e-3,
        eval_rows=2, eval_every=3, dtype="float32", prompts=("Once upon",), sample_tokens=3,
    )  # fmt: skip
    run = launch(recipe, on=InProcess(devices="cpu"), root=tmp_path)
    assert run.state.name == "finished"
    held_out = run.metrics("eval_loss")["eval_loss"][1]
    assert held_out[-1] < held_out[0]
    model = run.load()
    assert isinstance(model, Foreign)
    drawn = {key: tensor for key, tensor in build(recipe, 257).named_parameters() if tensor.requires_grad}
    moved = [key for key, tensor in model.named_parameters() if key in drawn and not torch.equal(tensor, drawn[key])]
    assert set(moved) == set(drawn)
    weights = [build(one, 257).hub.get_input_embeddings().weight for one in (recipe, replace(recipe, seed=1))]
    assert not torch.equal(*weights), "drawn from the seed of the recipe"
    shown = run.samples()
    assert [sample["step"] for sample in shown] == [0, 3]
    assert shown[-1]["text"] == Engine(model, load_tokenizer(tokenizer)).generate(["Once upon"], Sampling(max_tokens=3)).texts[0]
    if recipe.adapters is not None:
        model = merge_(model)
    save_model(model, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), dtype="float32")
    tokens_BT = torch.arange(8)[None]
    assert torch.allclose(again(tokens_BT), model(tokens_BT), atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_engine_generates_what_transformers_does(name: str) -> None:
    """Prompts of several lengths, greedily, a group each; and every log-probability is the one that `score` finds."""
    model = load_model(f"{__name__}:{name}", dtype="float64").eval()
    torch.nn.init.normal_(model.hub.get_output_embeddings().weight, std=1.0)
    prompts = [[5, 200, 31, 4], [77], [3, 3]]
    engine = Engine(model, load_tokenizer(CASES[name][0]))
    found = engine.generate(prompts, Sampling(max_tokens=6, group=2))
    for number, ids in enumerate(found.token_ids):
        prompt_1T = torch.tensor([prompts[number // 2]])
        hub = model.hub.generate(
            prompt_1T, attention_mask=torch.ones_like(prompt_1T), max_new_tokens=len(ids), do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        assert hub[0, prompt_1T.shape[1] :].tolist() == ids
    scores = engine.score([prompt for prompt in prompts for _ in range(2)], found.token_ids)
    for told, scored in zip(found.log_probs, scores.log_probs, strict=True):
        assert told == pytest.approx(scored, abs=1e-9)
    sampling = Sampling(max_tokens=5, temperature=1.0, group=2, seed=3)
    together, alone = engine.generate(prompts, sampling), engine.generate(prompts[1:2], sampling)
    assert together.token_ids[2:4] == alone.token_ids
    with pytest.raises(ValueError, match="prompt 0 has 1 tokens, with 32768 to follow more than the model's context of "):
        engine.generate([[77]], Sampling(max_tokens=MANY))


def test_what_only_the_built_model_knows_is_one_line(tmp_path: Path) -> None:
    """A builder's context and ids are not known before it runs."""
    recipe = FineTune(model=f"{__name__}:opt", tokenizer="smollm2-135m", context=4096, batch_tokens=4096)
    with pytest.raises(ValueError, match=r"FineTune\.context: 4096 tokens are more than the 2048 of .*:opt'; take at most that"):
        build(recipe, 257)
    recipe = FineTune(model=f"{__name__}:opt", tokenizer="smollm2-135m")
    with pytest.raises(ValueError, match=r"FineTune\.tokenizer: it has 49152 ids, the model only 257"):
        build(recipe, 49152)
