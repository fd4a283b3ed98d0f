"""Training in one process and in several is the same training; a resumed one is the undisturbed one."""

import pytest

from tests.distributed.pool import Pool

BODY = "tests.distributed.training_bodies:fit"
LOSSES = {"float32": 1e-5, "float64": 1e-9}
GRADIENTS = {"float32": 1e-5, "float64": 1e-10}
PLANS = {2: [{"dp_shard": 2}, {"dp_replicate": 2}], 4: [{"dp_shard": 4}, {"dp_replicate": 2, "dp_shard": 2}]}


def close(found: list[float], expected: list[float], tolerance: float) -> bool:
    """max|a-b| <= tolerance * max|b|, the comparison of every parity test."""
    largest = max((abs(value) for value in expected), default=0.0)
    return len(found) == len(expected) and all(abs(a - b) <= tolerance * largest for a, b in zip(found, expected, strict=True))


def same(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys() and expected
    for name in expected:
        assert close(found[name], expected[name], tolerance), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("adapted", [True, False], ids=["adapters", "whole"])
def test_any_plan_trains_like_one_process(workers: Pool, dtype: str, adapted: bool) -> None:
    (alone,) = workers.run(BODY, world=1, plan={}, dtype=dtype, adapted=adapted)
    assert len(alone["losses"]) == 10 and alone["losses"][-1] != alone["losses"][0]
    for world, plans in PLANS.items():
        for plan in plans:
            ranks = workers.run(BODY, world=world, plan=plan, dtype=dtype, adapted=adapted)
            for rank in ranks:
                assert close(rank["losses"], alone["losses"], LOSSES[dtype]), plan
                same(rank["gradients"], alone["gradients"], GRADIENTS[dtype])
                assert close([rank["held_out"]], [alone["held_out"]], LOSSES[dtype]), plan


@pytest.mark.parametrize(("family", "adapted"), [("gpt_neox", False), ("opt", True)])
def test_a_model_of_transformers_trains_like_one_process(workers: Pool, family: str, adapted: bool) -> None:
    case = dict(family=family, adapted=adapted, steps=3, dtype="float64")
    (alone,) = workers.run(BODY, world=1, plan={}, **case)
    for rank in workers.run(BODY, world=2, plan={"dp_shard": 2}, **case):
        assert close(rank["losses"], alone["losses"], LOSSES["float64"])
        same(rank["gradients"], alone["gradients"], GRADIENTS["float64"])
        assert close([rank["held_out"]], [alone["held_out"]], LOSSES["float64"])
        assert rank["said"] == alone["said"]


def test_micro_batches_do_not_change_the_step(workers: Pool) -> None:
    (whole,) = workers.run(BODY, world=1, plan={}, dtype="float64", micro_rows=8)
    (cut,) = workers.run(BODY, world=1, plan={}, dtype="float64", micro_rows=1)
    assert close(cut["losses"], whole["losses"], 1e-9)
    same(cut["gradients"], whole["gradients"], 1e-10)


@pytest.mark.parametrize("adapted", [True, False], ids=["adapters", "whole"])
def test_resume_is_bit_for_bit_with_the_same_plan(workers: Pool, tmp_path, adapted: bool) -> None:
    case = dict(world=2, plan={"dp_shard": 2}, adapted=adapted, dropout=0.2 if adapted else 0.0)
    undisturbed = workers.run(BODY, **case, save=[str(tmp_path), 7])
    resumed = workers.run(BODY, **case, resume=str(tmp_path / "step-7"))
    for before, after in zip(undisturbed, resumed, strict=True):
        assert after["losses"] == before["losses"][7:]
        assert after["weights"] == before["weights"]


@pytest.mark.parametrize("world", [1, 4])
def test_resume_with_another_number_of_shards(workers: Pool, tmp_path, world: int) -> None:
    (undisturbed, _) = workers.run(BODY, world=2, plan={"dp_shard": 2}, dtype="float64", save=[str(tmp_path), 4])
    resumed = workers.run(BODY, world=world, plan={"dp_shard": world}, dtype="float64", resume=str(tmp_path / "step-4"))
    assert close(resumed[0]["losses"], undisturbed["losses"][4:], 1e-9)


OPTIMIZERS = {
    "AdamW": dict(optimizer="AdamW(beta2=0.99, fused=False)", schedule="WSD(warmup=2, decay=0.5)", weight_decay=0.3),
    "SGD": dict(optimizer="SGD(nesterov=True)", schedule="Constant(warmup=0)", weight_decay=0.1, lr=0.3),
    "Adafactor": dict(optimizer="Adafactor()", schedule="Linear(floor=0.1)", adapted=False, lr=0.1),
    "Muon": dict(optimizer="Muon(exact=True)", schedule="WSD(shape='linear')", weight_decay=0.1, adapted=False),
}
"""Each with another schedule, with decay, and with adapters or the whole model."""

CUT = {
    "AdamW": (2, {"dp_replicate": 2}),
    "SGD": (2, {"dp_shard": 2}),
    "Adafactor": (2, {"dp_shard": 2}),
    "Muon": (4, {"dp_replicate": 2, "dp_shard": 2}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_and_schedule_trains_like_one_process(workers: Pool, name: str) -> None:
    case = dict(dtype="float64", steps=8, **OPTIMIZERS[name])
    (alone,) = workers.run(BODY, world=1, plan={}, micro_rows=8, **case)
    world, plan = CUT[name]
    for rank in workers.run(BODY, world=world, plan=plan, micro_rows=1, **case):
        assert close(rank["losses"], alone["losses"], LOSSES["float64"])
        same(rank["weights"], alone["weights"], 1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_bit_for_bit(workers: Pool, tmp_path, name: str) -> None:
    case = dict(world=2, plan={"dp_shard": 2}, steps=7, **OPTIMIZERS[name])
    undisturbed = workers.run(BODY, **case, save=[str(tmp_path), 4])
    resumed = workers.run(BODY, **case, resume=str(tmp_path / "step-4"))
    for before, after in zip(undisturbed, resumed, strict=True):
        assert after["losses"] == before["losses"][4:]
        assert after["weights"] == before["weights"]


def test_muon_in_bfloat16_stays_within_its_rounding(workers: Pool) -> None:
    case = dict(optimizer="Muon()", adapted=False, narrow=True, steps=8)
    (alone,) = workers.run(BODY, world=1, plan={}, micro_rows=8, **case)
    for rank in workers.run(BODY, world=2, plan={"dp_shard": 2}, micro_rows=2, **case):
        assert close(rank["losses"], alone["losses"], 2e-2)
        assert rank["losses"][-1] < rank["losses"][0]


def test_patience_ends_every_plan_and_a_resumed_run_at_the_same_step(workers: Pool, tmp_path) -> None:
    """Random text has nothing to learn: the held-out loss soon has no new lowest value."""
    case = dict(steps=40, patience=2, lr=0.008, schedule="Constant()", adapted=False, dtype="float64")
    (alone,) = workers.run(BODY, world=1, plan={}, **case)
    ended = len(alone["losses"])
    assert 4 < ended < 40
    shards = workers.run(BODY, world=2, plan={"dp_shard": 2}, save=[str(tmp_path), ended - 1], **case)
    assert [len(rank["losses"]) for rank in shards] == [ended, ended]
    resumed = workers.run(BODY, world=2, plan={"dp_shard": 2}, resume=str(tmp_path / f"step-{ended - 1}"), **case)
    assert [rank["losses"] for rank in resumed] == [rank["losses"][-1:] for rank in shards]
