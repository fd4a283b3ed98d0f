"""A sharded model computes, and trains, as the whole model does; gradients are sums over ranks."""

import pytest

BODIES = "tests.distributed.fsdp_bodies"
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
PLANS = [{}, {"dp_shard": 2}, {"dp_replicate": 2}, {"dp_shard": 4}, {"dp_replicate": 2, "dp_shard": 2}]


def world(plan: dict[str, int]) -> int:
    return plan.get("dp_shard", 1) * plan.get("dp_replicate", 1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_training_is_that_of_the_whole_model(workers, plan, dtype):
    for options in ({}, {"adapted": True}, {"tied": True}):
        ranks = workers.run(f"{BODIES}:compare", world=world(plan), plan=plan, dtype=dtype, **options)
        assert max(rank["gradients"] for rank in ranks) <= TOLERANCE[dtype], options
        assert max(rank["weights"] for rank in ranks) <= TOLERANCE[dtype], options
        assert [rank["share"] for rank in ranks] == [[index, world(plan)] for index in range(world(plan))]
        assert ranks[0]["axes"] == ["pp", "dp_replicate", "dp_shard", "cp", "tp"]
        assert sum(rank["elements"] for rank in ranks) == ranks[0]["whole"] * plan.get("dp_replicate", 1)


def test_training_is_the_same_when_parameters_stay_gathered_until_backward(workers):
    ranks = workers.run(f"{BODIES}:compare", world=2, plan={"dp_shard": 2}, adapted=True, reshard=False)
    assert max(rank["gradients"] for rank in ranks) <= 1e-10


@pytest.mark.parametrize("plan", PLANS[1:], ids=str)
def test_accumulated_gradients_are_those_of_the_whole_batch(workers, plan):
    assert max(workers.run(f"{BODIES}:accumulate", world=world(plan), plan=plan)) <= 1e-10


@pytest.mark.parametrize("plan", [{}, {"dp_shard": 2}], ids=str)
def test_half_precision_computes_as_half_and_keeps_gradients_in_float32(workers, plan):
    for rank in workers.run(f"{BODIES}:half_precision", world=world(plan), plan=plan):
        assert rank["dtype"] == "torch.bfloat16" and rank["gradient_dtypes"] == ["torch.float32"]
        assert rank["output"] <= 2e-2 and rank["gradients"] <= 2e-2


def test_adapters_are_saved_from_shards_and_surgery_on_shards_is_refused(workers, tmp_path):
    for rank in workers.run(f"{BODIES}:adapters_of_a_sharded_model", world=2, folder=str(tmp_path / "adapter")):
        assert rank["same"] and rank["base"]
        adapting, loading, filling, merging = rank["messages"]
        assert "layers.0.up is sharded already: call adapt() before apply_fsdp()" in adapting
        assert "layers.0.down is sharded already" in loading
        assert "layers.0.up is sharded: load the adapter before apply_fsdp()" in filling
        assert "layers.0.up is sharded: merge a model with whole tensors" in merging


def test_impossible_units_are_refused_by_name(workers):
    for processes, across, outside, mixed, foreign in workers.run(f"{BODIES}:refusals", world=2):
        assert "needs 3 processes, there are 2" in processes
        assert "layers.0.up.weight and layers.1.up.weight are one parameter in two units" in across
        assert "alias" in outside and "layers.0.norm.weight" in outside
        assert "layers.0 trains parameters of" in mixed
        assert "a Block is no part of the model" in foreign
