"""Checkpoints of several processes: saved by some, loaded by others, written once, failed together."""

import pytest

from toolkit.checkpoint import newest

BODIES = "tests.distributed.checkpoint_bodies"
PLANS = {1: [{}], 2: [{"dp_shard": 2}, {"dp_replicate": 2}], 4: [{"dp_shard": 4}, {"dp_replicate": 2, "dp_shard": 2}]}


@pytest.mark.parametrize("world", [2, 4])
def test_what_some_ranks_save_any_others_load(workers, tmp_path, world):
    for plan in PLANS[world]:
        folder = str(tmp_path / str(plan))
        (path, *others) = workers.run(f"{BODIES}:write", world=world, folder=folder, plan=plan)
        assert all(other == path for other in others)
        empty = 0
        for readers, plans in PLANS.items():
            for rank in workers.run(f"{BODIES}:read", world=readers, path=path, plan=plans[0]):
                assert rank["same"], (plan, plans[0])
                assert rank["state"] == {"tokens": 11, "step": 5}
                assert rank["ranks"] == [[saver] * 5 for saver in range(world)]
                empty += rank["empty"]
        assert empty, "no rank had an empty shard: the model is too even for this test"


def test_replicas_load_what_shards_saved(workers, tmp_path):
    path = workers.run(f"{BODIES}:write", world=4, folder=str(tmp_path), plan={"dp_shard": 4})[0]
    for plan in ({"dp_replicate": 2}, {"dp_shard": 2, "dp_replicate": 2}):
        ranks = workers.run(f"{BODIES}:read", world=2 if len(plan) == 1 else 4, path=path, plan=plan)
        assert all(rank["same"] for rank in ranks)


def test_plain_tensors_are_written_by_the_first_rank_that_has_them(workers, tmp_path):
    files = workers.run(f"{BODIES}:unequal_plain_tensors", world=4, folder=str(tmp_path))[0]
    owners = {"everywhere": 0, "stage.0": 0, "stage.1": 2} | {f"own.{rank}": rank for rank in range(4)}
    assert files == {name: [f"rank-{rank}.safetensors"] for name, rank in owners.items()}


def test_placements_may_differ_between_saving_and_loading(workers, tmp_path):
    assert workers.run(f"{BODIES}:other_placements", world=4, folder=str(tmp_path)) == [True] * 4


def test_a_rank_that_cannot_save_fails_all_and_is_named(workers, tmp_path):
    first, second = workers.run(f"{BODIES}:failures", world=2, folder=str(tmp_path))
    assert "rank 1 could not save, its log says why" in first[0]
    assert "rank 1 could not save: rank_state cannot be written as JSON" in second[0]
    reasons = ["w is float32 (2,) on one rank, float64 (2,) on rank 1", "(2,) on one rank, float32 (3,) on rank 1"]
    for index, reason in enumerate(reasons, start=1):
        assert reason in first[index] and "rank 0 could not save, its log says why" in second[index]
    path, skipped = newest(tmp_path)
    assert path.name == "step-9" and not skipped
