"""The host of all adapters: what it names, what it refuses, and folders in and out."""

import json

import pytest
import torch
from torch import nn

from tests.laws.test_adapters import SharedFactor, adapted_model, disturb, inputs, model_of, trained
from toolkit.adapters import Adapted, LoRA, adapt, load_adapter, merge_, save_adapter


def test_layers_that_blocks_share_are_adapted_once():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"first": nn.Sequential(shared), "second": nn.Sequential(shared, nn.Linear(4, 2))})
    adapt(model, {"first.0": LoRA(rank=1)})
    assert model["first"][0] is model["second"][0] and isinstance(model["first"][0], Adapted)
    merge_(model)
    assert model["first"][0] is model["second"][0] is shared


def test_a_meta_model_is_adapted_with_real_adapters():
    with torch.device("meta"):
        model = model_of()
    adapt(model, {"*.up": LoRA(rank=2)})
    assert {parameter.device.type for parameter in trained(model).values()} == {"cpu"}
    assert model.layers[0]["up"].base.weight.is_meta


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*.upp"], r"'\*\.upp' matches no module.*near: '\*\.up'.*'\*\.up' \(2\)"),
        (["*.up", "layers.0.*"], r"layers\.0\.up is named by '\*\.up' and 'layers\.0\.\*'"),
        (["layers"], "'layers' matches only 1 ModuleList, and no torch.nn.Linear"),
        (["*.up", "nothing"], "'nothing' matches no module"),
        ([], "no adapters given"),
    ],
)
def test_patterns_that_do_not_name_one_layer_each_are_refused_and_nothing_changes(patterns, message):
    model = model_of()
    with pytest.raises(ValueError, match=message):
        adapt(model, dict.fromkeys(patterns, LoRA()))
    assert str(model) == str(model_of()) and all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_adapted_or_merged_is_refused_by_name():
    model = adapted_model(LoRA())
    with pytest.raises(ValueError, match="has adapters already"):
        adapt(model, {"head": LoRA()})
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_(model_of())

    class InPlace(LoRA):
        in_place = True

    with pytest.raises(ValueError, match=r"head: InPlace trains the base weight in place"):
        adapt(model_of(), {"head": InPlace()})
    tied = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    tied["head"].weight = tied["embed"].weight
    adapt(tied, {"head": LoRA(rank=1)})
    with pytest.raises(ValueError, match="head: its weight is also that of embed"):
        merge_(tied)
    assert isinstance(tied["head"], Adapted)


def test_a_model_with_adapters_says_which():
    text = str(adapt(nn.Sequential(nn.Linear(2, 2)), {"0": LoRA(rank=1)}))
    assert "LoRA(rank=1, alpha=8.0, rslora=False, dropout=0.0)" in text


def test_folders_round_trip_and_refuse_what_does_not_fit(tmp_path):
    mixed = {"layers.0.*": LoRA(rank=2, alpha=3.0), "layers.1.up": LoRA(rank=4), "layers.1.down": LoRA(rank=2)}
    model = disturb(adapt(model_of(), mixed))
    save_adapter(model, tmp_path / "adapter", base="mine")
    fresh = load_adapter(model_of(), tmp_path / "adapter")
    assert torch.equal(fresh(inputs()), model(inputs())) and trained(fresh)
    assert torch.equal(load_adapter(adapt(model_of(), mixed), tmp_path / "adapter")(inputs()), model(inputs()))
    with pytest.raises(ValueError, match="the model's adapters differ"):
        load_adapter(adapted_model(LoRA(rank=1)), tmp_path / "adapter")
    with pytest.raises(ValueError, match="no module 'layers.0.down'"):
        load_adapter(nn.Sequential(nn.Linear(2, 2)), tmp_path / "adapter")
    narrow = model_of()
    narrow.layers[1]["down"] = nn.Linear(9, 6)
    with pytest.raises(ValueError, match=r"layers\.1\.down: LoRA.*\(2, 9\)"):
        load_adapter(narrow, tmp_path / "adapter")
    assert not any(isinstance(module, Adapted) for module in narrow.modules())
    with pytest.raises(ValueError, match="nothing to save"):
        save_adapter(model_of(), tmp_path)
    with pytest.raises(ValueError, match="PEFT's layout holds one method"):
        save_adapter(adapt(model_of(), {"*.up": SharedFactor()}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'; known: LORA"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
    ],
)
def test_folders_with_features_that_change_the_result_are_refused(tmp_path, changes, message):

    save_adapter(adapted_model(LoRA()), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_adapter(model_of(), tmp_path)


def test_a_pickled_adapter_is_refused_by_name(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter_model.bin is a pickle"):
        load_adapter(model_of(), tmp_path)
