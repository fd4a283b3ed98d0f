"""Our adapters against PEFT's, on a small Llama of transformers: same numbers, same files."""

import json

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.adapters import Adapted, LoRA, adapt, load_adapter, merge_, save_adapter

CONFIG = LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=80,
    vocab_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    attn_implementation="sdpa",
)  # every linear is rectangular but q and o; q, k, v and o have a bias
MIXED = {"*.q_proj": LoRA(rank=4, alpha=6.0), "*.1.mlp.up_proj": LoRA(rank=2, alpha=6.0), "*.down_proj": LoRA(rank=4, alpha=3.0)}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).to(dtype)


def tokens():
    return torch.randint(64, (3, 10), generator=torch.Generator().manual_seed(1))


def disturb(model):
    """Move every trained value; the same values for the same order of shapes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(sum(name.encode()))
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter.dtype))
    return model


def peft_model(dtype=torch.float32, **fields):
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]} | fields
    return disturb(peft.get_peft_model(llama(dtype), peft.LoraConfig(**options), autocast_adapter_dtype=False))


def close(a, b, tolerance):
    assert a.shape == b.shape and a.dtype == b.dtype
    return (a - b).abs().max() <= tolerance * b.abs().max()


def gradients(model):
    """Gradients by PEFT's key, after one backward pass."""
    model.zero_grad()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    ours = {"a_RI": "lora_A.weight", "b_OR": "lora_B.weight"}
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.removeprefix("base_model.model.").replace(".default", "")
            place, _, last = name.rpartition(".")
            found[f"{place}.{ours[last]}" if last in ours else name] = parameter.grad
    return found


@each_dtype
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2, r"1\.mlp\.up_proj": 3}, "alpha_pattern": {"v_proj": 5}},
        {"target_modules": r".*\.(k|o)_proj"},
        {"lora_dropout": 0.4},
    ],
    ids=str,
)
def test_a_folder_that_peft_wrote_gives_the_same_outputs_gradients_and_merge(tmp_path, dtype, fields):
    theirs = peft_model(dtype, **fields).eval()
    theirs.save_pretrained(tmp_path)
    mine = load_adapter(llama(dtype), tmp_path).eval()
    assert close(mine(tokens()).logits, theirs(tokens()).logits, TOLERANCE[dtype])
    expected, found = gradients(theirs), gradients(mine)
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        assert close(found[name], gradient, TOLERANCE[dtype]), name
    merged, weights = merge_(mine).state_dict(), theirs.merge_and_unload().state_dict()
    assert merged.keys() == weights.keys()
    for name, weight in weights.items():
        assert close(merged[name], weight, TOLERANCE[dtype]), name


@each_dtype
@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_of_ours_opens_in_peft(tmp_path, dtype, rslora):
    patterns = {pattern: LoRA(rank=m.rank, alpha=m.alpha, rslora=rslora) for pattern, m in MIXED.items()}
    mine = disturb(adapt(llama(dtype), patterns))
    save_adapter(mine, tmp_path, base="small-llama")
    theirs = peft.PeftModel.from_pretrained(llama(dtype), tmp_path, is_trainable=True, autocast_adapter_dtype=False)
    assert close(theirs(tokens()).logits, mine(tokens()).logits, TOLERANCE[dtype])
    expected, found = gradients(mine), gradients(theirs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert close(found[name], gradient, TOLERANCE[dtype]), name
    assert theirs.peft_config["default"].base_model_name_or_path == "small-llama"


def test_what_peft_writes_again_is_what_we_wrote(tmp_path):
    mine = disturb(adapt(llama(), MIXED))
    save_adapter(mine, tmp_path / "ours")
    peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load_adapter(llama(), tmp_path / "theirs")
    before, after = mine.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    methods = {name: module.method for name, module in mine.named_modules() if isinstance(module, Adapted)}
    assert methods == {name: module.method for name, module in again.named_modules() if isinstance(module, Adapted)}
    theirs = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    ours = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert ours.keys() <= theirs.keys()
    assert sorted(ours["target_modules"]) == sorted(theirs["target_modules"])


def test_the_first_values_are_spread_as_pefts():
    mine = adapt(llama(), {"*.down_proj": LoRA(rank=64)}).get_submodule("model.layers.0.mlp.down_proj").a_RI
    torch.manual_seed(3)
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(r=64, target_modules=["down_proj"]))
    theirs = theirs.get_parameter("base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight")
    assert mine.shape == theirs.shape
    assert abs(mine.std() / theirs.std() - 1) < 0.05 and abs(mine.abs().max() / theirs.abs().max() - 1) < 0.02


def test_unsupported_parts_of_a_peft_folder_are_refused_by_name(tmp_path):
    for number, (fields, message) in enumerate(
        [
            ({"use_dora": True}, "use_dora=True"),
            ({"bias": "lora_only"}, "bias='lora_only'"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ]
    ):
        peft_model(**fields).save_pretrained(tmp_path / str(number))
        with pytest.raises(ValueError, match=message):
            load_adapter(llama(), tmp_path / str(number))
