"""Plans: what they multiply to, what they refuse, and which blocks of a model become units."""

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from toolkit.parallel import AXES, DRIVEN, Plan, find_blocks, mesh, refuse
from toolkit.values import dump, load, parse, source

sizes = some.integers(1, 4)


@given(some.fixed_dictionaries(dict.fromkeys(AXES, sizes)), some.data())
def test_a_plan_is_the_product_of_its_axes_and_survives_text_and_json(axes, data):
    inside = axes["dp_shard"] * axes["cp"] * axes["tp"]
    ep = data.draw(some.sampled_from([number for number in range(1, inside + 1) if inside % number == 0]))
    plan = Plan(**axes, ep=ep)
    assert plan.world_size == inside * axes["pp"] * axes["dp_replicate"]
    assert plan.data_ranks == axes["dp_replicate"] * axes["dp_shard"]
    assert parse(source(plan), Plan) == plan and load(dump(plan), Plan) == plan
    undriven = {axis for axis in ("cp", "tp", "pp", "ep") if getattr(plan, axis) > 1}
    if undriven:
        with pytest.raises(ValueError, match="is a valid plan, but nothing here divides") as raised:
            refuse(plan)
        assert all(f"{axis}={getattr(plan, axis)}" in str(raised.value) for axis in undriven)
        assert all(axis in str(raised.value) for axis in DRIVEN)
    else:
        refuse(plan)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dp_shard": 0}, r"Plan\.dp_shard: .*at least 1.*0"),
        ({"tp": 1.5}, r"Plan\.tp: .*1\.5"),
        ({"ep": 2}, r"Plan\.ep: 2 must divide dp_shard x cp x tp = 1 x 1 x 1 = 1"),
        ({"ep": 4, "dp_shard": 3, "tp": 2}, r"Plan\.ep: 4 must divide .* = 6"),
        ({"dp_replicate": 2, "ep": 2}, r"Plan\.ep: 2 must divide"),
    ],
)
def test_impossible_plans_are_refused_with_the_axis(fields, message):
    with pytest.raises(ValueError, match=message):
        Plan(**fields)


def test_a_plan_describes_itself():
    assert Plan().describe() == "1 process"
    whole = Plan(dp_replicate=2, dp_shard=4, ep=2).describe()
    assert whole == "8 processes: 2 replicas x 4 shards, experts spread over 2 of them"
    assert Plan(pp=2, tp=2).describe() == "4 processes: 2 pipeline stages x 2 parts of each weight"


def test_a_mesh_without_processes_is_refused_with_what_to_do():
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match="needs a process group"):
        mesh(Plan(), "cpu")


def test_blocks_are_found_in_nested_models():
    def block():
        return nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))

    blocks = [block() for _ in range(5)]
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(3, 2),
            "encoder": nn.ModuleDict({"layers": nn.ModuleList(blocks[:2])}),
            "decoder": nn.Sequential(nn.ModuleList([nn.ModuleList(blocks[2:4]), nn.ModuleDict({"last": blocks[4]})])),
            "drops": nn.ModuleList([nn.Dropout()]),
        }
    )
    assert find_blocks(model) == blocks
    assert find_blocks(nn.Sequential(nn.Linear(2, 2))) == []
    assert find_blocks(nn.ModuleList(blocks)) == blocks
