"""Laws of generation: a batch gives what each prompt gives alone, and the numbers are the model's own."""

import math
import re

import pytest
import torch
from torch import Tensor

from tests.laws.test_models import one_thread
from toolkit.models import LinearRope, Transformer, TransformerConfig, load_tokenizer
from toolkit.serve import Engine, Generations, Sampling, StopGeneration
from toolkit.serve.sampling import choose, penalise, truncate, uniforms
from toolkit.values import dump, load, parse, source

__all__ = ["one_thread"]
TOKENIZER = load_tokenizer("bytes")
END = TOKENIZER.eos_id
PROMPTS = ["a", "The quick brown fox", "Another prompt", "The quick brown fox"]


def model(**changes: object) -> Transformer:
    """A small model whose distributions are sharp enough to differ and flat enough to be sampled."""
    shape = dict(
        vocab_size=257,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    return Transformer(TransformerConfig(**(shape | changes)), seed=3).double()


MODELS = {
    "shared heads": model(),
    "window": model(sliding_window=6),
    "stretched": model(rope_scaling=LinearRope(factor=2.0), query_key_norm=True),
}
every_model = pytest.mark.parametrize("one", MODELS.values(), ids=MODELS.keys())


def generate(one: Transformer, prompts: list, **sampling: object) -> Generations:
    return Engine(one, TOKENIZER).generate(prompts, Sampling(**sampling))


class Ending(Transformer):
    """Ends a row where the likeliest byte is a multiple of 9, and nowhere else."""

    def head(self, x: Tensor) -> Tensor:
        logits = super().head(x)[..., :END]
        ends = torch.where(logits.argmax(-1, keepdim=True) % 9 == 0, 99.0, -99.0).to(logits.dtype)
        return torch.cat([logits, ends], -1)


def ending() -> Transformer:
    return Ending(model().config, seed=3).double()


@every_model
def test_a_batch_is_its_prompts_one_by_one(one):
    together = generate(one, PROMPTS, max_tokens=20)
    for number, prompt in enumerate(PROMPTS):
        alone = generate(one, [prompt], max_tokens=20)
        assert alone.token_ids[0] == together.token_ids[number]
        assert alone.log_probs[0] == pytest.approx(together.log_probs[number], abs=1e-9)
        assert alone.texts[0] == together.texts[number]
    assert together.prompt_ids == [TOKENIZER.encode(prompt) for prompt in PROMPTS]


@every_model
def test_greedy_is_the_likeliest_token_of_the_whole_forward(one):
    result = generate(one, PROMPTS, max_tokens=12)
    for prompt, ids, log_probs in zip(result.prompt_ids, result.token_ids, result.log_probs, strict=True):
        logits = one(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == ids
        want = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert log_probs == pytest.approx(want.tolist(), abs=1e-9)


@every_model
def test_log_probs_are_the_policys_at_its_temperature(one):
    result = generate(one, PROMPTS, max_tokens=8, temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.2, group=2)
    for number, (ids, log_probs) in enumerate(zip(result.token_ids, result.log_probs, strict=True)):
        prompt = result.prompt_ids[number // 2]
        logits = one(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1] / 0.7
        want = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert log_probs == pytest.approx(want.tolist(), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_rows_that_end_leave_the_others_as_they_are(temperature):
    one = ending()
    prompts = [f"prompt {number}" * (1 + number % 3) for number in range(12)]
    together = generate(one, prompts, max_tokens=30, temperature=temperature)
    lengths = {len(ids) for ids in together.token_ids}
    assert len(lengths) > 2
    for number, prompt in enumerate(prompts):
        alone = generate(one, [prompt], max_tokens=30, temperature=temperature)
        assert alone.token_ids[0] == together.token_ids[number]
        ids, reason = together.token_ids[number], together.finish_reasons[number]
        assert (reason == "stop") == (ids[-1] == END)
        assert END not in ids[:-1]
        assert reason == "stop" or len(ids) == 30


def test_samples_depend_on_seed_prompt_and_number_alone():
    one = model()
    ways = dict(max_tokens=10, temperature=1.0)
    group = generate(one, ["x", "y"], group=3, **ways)
    assert group.token_ids[3:] == generate(one, ["y"], group=3, **ways).token_ids
    assert group.token_ids[3:] == generate(one, ["y", "x", "y", "y"], **ways).token_ids[0:1] + [
        generate(one, ["y", "x", "y", "y"], **ways).token_ids[number] for number in (2, 3)
    ]
    assert len({tuple(ids) for ids in group.token_ids}) == 6
    assert generate(one, ["x"], seed=1, **ways).token_ids[0] != group.token_ids[0]


def test_a_group_shares_one_prefill():
    one = model()
    sizes = []
    one.model.register_forward_pre_hook(lambda _, arguments: sizes.append(tuple(arguments[0].shape)))
    generate(one, ["abc", "defgh"], max_tokens=3, group=4, temperature=1.0)
    assert sizes == [(2, 5), (8, 1), (8, 1)]


def test_tokens_stream_as_they_come():
    heard: dict[int, list[tuple[int, str]]] = {}
    result = Engine(ending(), TOKENIZER).generate(
        PROMPTS, Sampling(max_tokens=20, temperature=1.0), on_token=lambda n, t, said: heard.setdefault(n, []).append((t, said))
    )
    for number, ids in enumerate(result.token_ids):
        assert [token for token, _ in heard[number]] == ids
        assert "".join(text for _, text in heard[number]) == result.texts[number]


class Scripted(Transformer):
    """Continues every prompt with a fixed text."""

    script: list[int]

    def head(self, x: Tensor) -> Tensor:
        logits = torch.zeros(*x.shape[:-1], 257, dtype=x.dtype)
        logits[..., self.script[self.said]] = 9.0
        self.said += 1
        return logits


def scripted(text: str, **sampling: object) -> tuple[Generations, list[str]]:
    one = Scripted(model().config).double()
    one.script, one.said, heard = [*text.encode(), END, END], 0, []
    ways = Sampling(**({"max_tokens": 20} | sampling))
    result = Engine(one, TOKENIZER).generate(["p"], ways, on_token=lambda _n, _t, said: heard.append(said))
    return result, heard


def test_stop_texts_are_cut_off_and_never_heard():
    result, heard = scripted("one two STOP three", stop=("STOP", "zzz"))
    assert (result.texts, result.finish_reasons) == (["one two "], ["stop"])
    assert bytes(result.token_ids[0]) == b"one two STOP"
    assert heard == [*"one two ", "", "", "", ""]
    result, heard = scripted("STO", stop=("STOP",), max_tokens=3)
    assert (result.texts, result.finish_reasons, "".join(heard)) == (["STO"], ["length"], "STO")
    result, heard = scripted("STO", stop=("STOP",))
    assert (result.texts, result.finish_reasons, heard) == (["STO"], ["stop"], ["", "", "", "STO"])


def test_a_character_is_heard_when_it_is_whole():
    result, heard = scripted("é語", max_tokens=6)
    assert (result.texts, heard) == (["é語"], ["", "é", "", "", "語", ""])


def test_the_listener_can_end_one_row():
    heard: list[tuple[int, int]] = []

    def listen(number: int, token: int, text: str) -> bool:
        heard.append((number, token))
        return number == 1 and sum(n == 1 for n, _ in heard) == 3

    one, whole = model(), generate(model(), PROMPTS, max_tokens=10)
    result = Engine(one, TOKENIZER).generate(PROMPTS, Sampling(max_tokens=10), on_token=listen)
    assert result.finish_reasons == ["length", "cancelled", "length", "length"]
    assert result.token_ids[1] == whole.token_ids[1][:3] == [token for number, token in heard if number == 1]
    assert [ids for n, ids in enumerate(result.token_ids) if n != 1] == [ids for n, ids in enumerate(whole.token_ids) if n != 1]


def test_the_listener_can_end_all_rows():
    def listen(number: int, token: int, text: str) -> None:
        if number == 2:
            raise StopGeneration

    one = model().train()
    result = Engine(one, TOKENIZER).generate(PROMPTS, Sampling(max_tokens=10), on_token=listen)
    assert result.finish_reasons == ["cancelled"] * 4
    assert [len(ids) for ids in result.token_ids] == [1, 1, 1, 0]
    assert result.texts[3] == ""
    assert one.training


def test_what_a_listener_writes_is_not_a_wish_to_end():
    result = Engine(model(), TOKENIZER).generate(["a"], Sampling(max_tokens=5), on_token=lambda *_: 1)
    assert result.finish_reasons == ["length"]


@every_model
@torch.no_grad()
def test_scores_are_those_of_a_plain_forward(one):
    continuations = ["", "x", "a longer one", [3, 4]]
    scores = Engine(one, TOKENIZER).score(PROMPTS, continuations, temperature=0.5, alternatives=3)
    assert [len(each) for each in scores.log_probs] == [0, 1, 12, 2]
    for row, (prompt, ids) in enumerate(zip(PROMPTS, scores.token_ids, strict=True)):
        before = TOKENIZER.encode(prompt, special=True)
        log_probs = (one(torch.tensor([before + ids]))[0] / 0.5).log_softmax(-1)
        for place, token in enumerate(ids):
            here = log_probs[len(before) - 1 + place]
            assert scores.log_probs[row][place] == pytest.approx(here[token].item(), abs=1e-9)
            best = here.topk(3)
            assert [token for token, _ in scores.alternatives[row][place]] == best.indices.tolist()
            assert [chance for _, chance in scores.alternatives[row][place]] == pytest.approx(best.values.tolist(), abs=1e-9)


def test_what_was_sampled_scores_as_it_was_reported(monkeypatch):
    engine = Engine(model(), TOKENIZER)
    result = engine.generate(PROMPTS, Sampling(max_tokens=9, temperature=0.8))
    want = engine.score(PROMPTS, result.token_ids, temperature=0.8)
    assert [pytest.approx(each, abs=1e-9) for each in want.log_probs] == result.log_probs
    assert want.alternatives == [[[]] * len(ids) for ids in result.token_ids]
    monkeypatch.setattr("toolkit.serve.score._LOGITS", 257 * 10)  # one row at a time
    assert [pytest.approx(each, abs=1e-9) for each in want.log_probs] == engine.score(
        PROMPTS, result.token_ids, temperature=0.8
    ).log_probs


def test_scores_that_cannot_be_are_refused():
    engine = Engine(model(), TOKENIZER)
    for prompts, ways, message in (
        (["a", "b"], {}, "2 prompts and 1 continuations"),
        ([""], {}, "prompt 0 is empty"),
        (["a" * 64], {}, "prompt 0 has 64 tokens"),
        (["a"], {"temperature": 0.0}, "temperature must be above 0"),
        (["a"], {"alternatives": 258}, "alternatives must be between 0 and the vocabulary's 257, got 258"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.score(prompts, ["x"], **ways)


def test_prompts_may_be_ids():
    one = model()
    assert generate(one, [TOKENIZER.encode("abc")], max_tokens=4) == generate(one, ["abc"], max_tokens=4)
    assert generate(one, [], max_tokens=4).texts == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([""], "prompt 0 is empty"), (["ok", "x" * 61], "prompt 1 has 61 tokens, with 4 to follow more than the model's")],
)
def test_prompts_that_do_not_fit_are_refused(prompts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(model(), prompts, max_tokens=4)
    with pytest.raises(ValueError, match="adapters by row"):
        Engine(model(), TOKENIZER).generate(["a"], adapters=[0])


def test_training_mode_and_gradients_are_left_alone():
    one = model()
    one.train()
    generate(one, ["a"], max_tokens=2)
    assert one.training
    assert torch.is_grad_enabled()
    assert one(torch.tensor([[1]])).requires_grad


def test_new_weights_have_a_version():
    one, other = model(), Transformer(model().config, seed=9).double()
    engine = Engine(one, TOKENIZER)
    engine.load_weights(7, other.state_dict())
    result = engine.generate(["abc"], Sampling(max_tokens=5))
    assert result.version == 7
    assert result.token_ids == generate(other, ["abc"], max_tokens=5).token_ids
    engine.load_weights(8)
    assert engine.version == 8
    for bad in ({"absent": torch.ones(1)}, {"model.norm.weight": torch.ones(1)}):
        with pytest.raises(ValueError, match="load_weights: "):
            engine.load_weights(9, bad)


# ---- choosing a token


def test_sampling_is_a_value():
    sampling = Sampling(max_tokens=3, temperature=0.5, stop=("a", "b"))
    assert parse(source(sampling), Sampling) == load(dump(sampling), Sampling) == sampling
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"group": 0}, {"min_p": 2.0}):
        with pytest.raises(ValueError, match=f"Sampling.{next(iter(bad))}"):
            Sampling(**bad)


def test_every_token_gets_its_share_of_the_uniform_numbers():
    chance = torch.tensor([0.0, 0.1, 0.0, 0.55, 0.3, 0.05, 0.0])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = choose(chance.log().expand(1000, 7), uniform)
    assert (torch.bincount(tokens, minlength=7) - 1000 * chance).abs().max() <= 1
    edges = torch.tensor([0.0, 1.0 - 1e-17, 1.0], dtype=torch.float64)
    assert choose(chance.log().expand(3, 7), edges).tolist() == [1, 5, 5]


def test_a_large_vocabulary_is_sampled_by_blocks():
    size = 70_001
    chance = torch.zeros(size)
    chance[[0, 255, 256, 40_000, size - 1]] = torch.tensor([0.1, 0.2, 0.05, 0.4, 0.25])
    uniform = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    tokens = choose(chance.log().expand(100, size), uniform)
    assert torch.bincount(tokens, minlength=size)[[0, 255, 256, 40_000, size - 1]].tolist() == [10, 20, 5, 40, 25]
    edges = torch.tensor([0.0, 1.0 - 1e-17, 1.0], dtype=torch.float64)
    assert choose(chance.log().expand(3, size), edges).tolist() == [0, size - 1, size - 1]


@pytest.mark.parametrize("scale", [0.01, 4.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_sorting_it(scale):
    logits = scale * torch.randn(3, 3000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    sorted_, order = logits.sort(-1, descending=True)
    chance = sorted_.softmax(-1)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, chance.cumsum(-1) - chance < 0.6)
    assert torch.equal(truncate(logits, Sampling(top_p=0.6)).isfinite(), kept)
    both = truncate(truncate(logits, Sampling(top_k=50)), Sampling(top_p=0.6))
    assert torch.equal(truncate(logits, Sampling(top_k=50, top_p=0.6)), both)


def test_truncation_keeps_what_it_says():
    logits = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()
    kept = lambda **ways: truncate(logits, Sampling(**ways)).isfinite()[0].tolist()  # noqa: E731
    assert kept(top_k=2) == [True, True, False, False, False]
    assert kept(top_k=9) == [True] * 5
    assert kept(top_p=0.69) == [True, True, False, False, False]
    assert kept(top_p=0.71) == [True, True, True, False, False]
    assert kept(top_p=1e-9) == [True, False, False, False, False]
    assert kept(min_p=0.3) == [True, True, True, False, False]
    assert kept(min_p=1.0, top_k=3) == [True, False, False, False, False]


def test_seen_tokens_become_less_likely():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalise(logits, seen, 2.0).tolist() == [[1.0, -4.0, 1.0]]
    one = model()
    plain = generate(one, ["abcabc"], max_tokens=25).token_ids[0]
    varied = generate(one, ["abcabc"], max_tokens=25, repetition_penalty=50.0).token_ids[0]
    assert len(set(varied)) == 25 > len(set(plain))


def test_random_numbers_are_uniform_and_apart():
    drawn = uniforms([[1], [2], [1]], Sampling(max_tokens=2000, group=2, seed=5))
    assert drawn.shape == (6, 2000)
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.1
    assert drawn.mean(1).sub(0.5).abs().max() < 4 * math.sqrt(1 / 12 / 2000)

