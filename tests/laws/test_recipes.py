"""Recipes: what is wrong with one is said before anything starts, in one line; both are the same training; FLOPs are exact."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.laws.test_schedules import Model
from toolkit.adapters import LoRA, adapt
from toolkit.data import Document, JsonLines, Manual, Mixture, TextFiles
from toolkit.launch import InProcess, launch
from toolkit.models import Transformer, TransformerConfig
from toolkit.parallel import Plan
from toolkit.recipes import BPE, Architecture, FineTune, Pretrain
from toolkit.recipes.language import build
from toolkit.recipes.preflight import preflight
from toolkit.recipes.vocabulary import trained
from toolkit.training import Muon
from toolkit.training.flops import peak, stated, work_of
from toolkit.values import spec

SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
OWN = ("model", "tokenizer", "adapters")


def test_what_the_recipes_share_is_the_same_in_both() -> None:
    fine_tune, pretrain = ({field.name: field for field in spec(kind).fields} for kind in (FineTune, Pretrain))
    shared = [name for name in fine_tune if name not in OWN]
    assert shared == [name for name in pretrain if name not in OWN]
    assert [name for name in shared if fine_tune[name].type != pretrain[name].type] == []
    assert [name for name in shared if fine_tune[name].help != pretrain[name].help] == ["dtype"]


WRONG = {
    "no such model": (lambda: FineTune(model="no-such"), "unknown model 'no-such'"),
    "no such builder": (lambda: FineTune(model="no.such:thing", tokenizer="bytes"), "'no.such:thing' cannot be imported"),
    "no such tokenizer": (lambda: Pretrain(tokenizer="no-such"), "unknown model 'no-such'"),
    "builder without tokenizer": (
        lambda: FineTune(model="tests.distributed.training_bodies:tiny"),
        "FineTune.tokenizer: 'tests.distributed.training_bodies:tiny' has none; name a model whose tokenizer fits",
    ),
    "weights in a pretraining": (lambda: Pretrain(model="smollm2-135m"), "Pretrain.model: 'smollm2-135m' has weights already"),
    "long context": (
        lambda: FineTune(context=10_000, batch_tokens=10_000),
        "FineTune.context: 10000 tokens are more than the 8192 of 'smollm2-135m'; take at most that",
    ),
    "long context of a shape": (
        lambda: Pretrain(model=TransformerConfig(max_position_embeddings=64)),
        "Pretrain.context: 256 tokens are more than the 64 of Pretrain.model",
    ),
    "too few ids": (
        lambda: Pretrain(model=TransformerConfig(vocab_size=300), tokenizer="smollm2-135m"),
        "Pretrain.tokenizer: it has 49152 ids, the model only 300",
    ),
    "a pattern for nothing": (
        lambda: FineTune(adapters={"*.qproj": LoRA()}),
        "FineTune.adapters: '*.qproj' matches no module, and no torch.nn.Linear; near: '*.q_proj'",
    ),
    "two patterns for one": (
        lambda: FineTune(adapters={"*_proj": LoRA(), "*.q_proj": LoRA()}),
        "FineTune.adapters: model.layers.0.self_attn.q_proj is named by '*_proj' and '*.q_proj'; one pattern a module",
    ),
    "no such file": (lambda: Pretrain(data=TextFiles(paths=("no-such-*.txt",))), "'no-such-*.txt' matches no file"),
    "nothing held out": (
        lambda: Pretrain(patience=2, data=Mixture(parts=(Manual(held_out=0),))),
        "Pretrain.patience: needs held-out text, but the data's held_out is 0",
    ),
    "undriven plan": (lambda: Pretrain(plan=Plan(tp=2)), "tp=2 is a valid plan, but nothing here divides the work along tp yet"),
    "uneven batch": (lambda: Pretrain(batch_tokens=1000), "Pretrain.batch_tokens: 1000 is not a multiple of context 256"),
    "uneven ranks": (
        lambda: FineTune(plan=Plan(dp_shard=3)),
        "FineTune.batch_tokens: 4 rows of 256 tokens do not divide over 3 data-parallel processes; take 1536",
    ),
    "uneven micro-batches": (lambda: Pretrain(micro_rows=3), "Pretrain.micro_rows: 8 rows a process are not a multiple of 3"),
    "uneven heads": (lambda: Architecture(num_attention_heads=3), "Architecture.hidden_size: 256 must be an even multiple"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_before_anything_starts(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (compared below)
        launch(make(), root=tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [], "nothing was started, and nothing is left"


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n} + 2?", "answer": str(n + 2)}) + "\n" for n in range(3)))
    data = JsonLines(path=str(path), chat=True)
    for recipe in (Pretrain(data=data), Pretrain(data=data, tokenizer="bytes"), FineTune(data=data, tokenizer="bytes")):
        with pytest.raises(ValueError, match=r"tokenizer: it has no chat template, which this data needs; name a model"):
            preflight(recipe)
    preflight(FineTune(data=data))


def test_schedules_optimizers_and_checks_need_no_torch() -> None:
    code = (
        "import sys; from toolkit.models import inspect_model; from toolkit.data import Manual, inspect_data; "
        "from toolkit.training import Muon; inspect_model('smollm2-135m'); inspect_data(Manual()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# ---- pretraining -----------------------------------------------------------------------------------------------------


def test_a_learned_vocabulary_writes_any_text() -> None:
    texts = [Document("", "to be or not to be, that is the question " * 20)]
    tokenizer = trained(BPE(vocab_size=280), texts)
    assert 257 < tokenizer.vocab_size <= 280
    for text in ("to be or not", "naïve 雪 \x00", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("to be or not to be")) < len("to be or not to be")
    assert trained(BPE(vocab_size=280), list(texts)).fingerprint == tokenizer.fingerprint


def test_the_same_seed_builds_the_same_model() -> None:
    recipe = Pretrain(model=Architecture(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), tokenizer="bytes")
    first, again = (build(recipe, 257).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(ValueError, match="vocab_size 100 is less than the tokenizer's 257 ids"):
        build(Pretrain(model=TransformerConfig(vocab_size=100), tokenizer="bytes"), 257)


def test_a_pretraining_runs_and_loads(tmp_path: Path) -> None:
    """Bytes, Muon, two micro-batches, samples: the record has every number, and the loaded model is the trained one."""
    recipe = Pretrain(
        model=Architecture(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), tokenizer="bytes", optimizer=Muon(),
        steps=3, batch_tokens=256, context=64, micro_rows=2, eval_every=2, eval_rows=2, prompts=("The",), sample_tokens=2,
    )
    run = launch(recipe, on=InProcess(devices="cpu"), root=tmp_path)
    assert run.state.name == "finished"
    assert run.recipe == recipe
    metrics = {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "step_seconds", "mfu"}
    metrics |= {"memory_bytes", "memory_peak_bytes"}
    assert metrics <= run.metrics().keys()
    values = {name: run.metrics(name)[name][1] for name in metrics}
    assert all(len(column) == 3 for column in values.values())
    assert 0 < values["mfu"].max() < 1.5
    assert (values["memory_peak_bytes"] >= values["memory_bytes"] * 0.9).all()
    assert [sample["step"] for sample in run.samples()] == [0, 2, 3]
    assert any("TFLOP/s a process" in event["data"]["text"] for event in run.events(kinds=("text",)))
    model = run.load()
    assert isinstance(model, Transformer)
    assert model.config.vocab_size == 257
    drawn = build(recipe, 257)
    assert not torch.equal(model.model.embed_tokens.weight, drawn.model.embed_tokens.weight)


# ---- FLOPs -----------------------------------------------------------------------------------------------------------

LOW_RANK = LoRA(rank=2, dropout=0.1)
TRAINED = {"whole": None, "every layer": {"*_proj": LOW_RANK}, "one": {"*.1.*.down_proj": LOW_RANK}}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapters", TRAINED.values(), ids=TRAINED)
def test_flops_are_those_that_torch_counts(tied: bool, adapters) -> None:
    """With targets at some positions only; dropout, so that adapters take the path whose products torch counts."""
    model = Transformer(TransformerConfig(vocab_size=64, tie_word_embeddings=tied, **SHAPE))
    if adapters:
        adapt(model, adapters)
    tokens_BT = torch.zeros(2, 8, dtype=torch.long)
    where_BT = torch.zeros(2, 8, dtype=torch.bool)
    where_BT[:, :3] = True
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens_BT, where_BT=where_BT).sum().backward()
    assert work_of(model, context=8).step(tokens=16, targets=6) == counter.get_total_flops()


def test_peak_says_where_it_is_from() -> None:
    flops, source = peak(torch.device("cpu"), torch.float32)
    assert flops > 1e9
    assert source == "measured here with float32 matrix products"


def test_a_gpu_is_known_by_whole_words_of_its_name() -> None:
    assert stated("NVIDIA A100-SXM4-80GB") == stated("NVIDIA A100 80GB PCIe") == 312e12
    found = {name: stated(f"NVIDIA {name}") for name in ("L4", "L40", "L40S", "H100 PCIe", "H200")}
    assert found == {"L4": 121e12, "L40": 181e12, "L40S": 362e12, "H100 PCIe": 756e12, "H200": 989e12}
    assert stated("NVIDIA RTX A1000") is stated("NVIDIA RTX A100X") is stated("NVIDIA L400") is None


def test_other_models_are_counted_too() -> None:
    assert work_of(Model(), context=8).token == 6 * (32 + 32)
