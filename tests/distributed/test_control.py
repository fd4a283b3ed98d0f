"""Commands are obeyed after the same step on every rank, answered, and never lose what was trained."""

from pathlib import Path

from tests.distributed.pool import Pool

STEERED = "tests.distributed.control_bodies:steered"
PLAIN = "tests.distributed.control_bodies:plain"


def test_every_rank_stops_after_the_same_step_and_keeps_it(workers: Pool, tmp_path: Path) -> None:
    ranks = workers.run(STEERED, world=2, folder=str(tmp_path), steps=50, commands={3: [["stop", {"save": True}]]})
    assert [rank["step"] for rank in ranks] == [4, 4]
    assert ranks[0]["checkpoints"] == ["step-4"]
    assert ranks[0]["states"][-1] == {"state": "stopping", "controls": False, "total_steps": 50}


def test_what_is_not_wanted_is_not_kept(workers: Pool, tmp_path: Path) -> None:
    (alone,) = workers.run(STEERED, world=1, folder=str(tmp_path), steps=50, commands={1: [["stop", {"save": False}]]})
    assert (alone["step"], alone["checkpoints"]) == (2, [])


def test_fewer_steps_than_are_done_end_it_and_keep_the_last(workers: Pool, tmp_path: Path) -> None:
    """The command comes when its step is past already: the step that was made is measured and kept all the same."""
    shorter = {4: [["set", {"name": "max_steps", "value": 2}]]}
    (alone,) = workers.run(STEERED, world=1, folder=str(tmp_path), steps=50, commands=shorter)
    assert (alone["step"], alone["checkpoints"]) == (5, ["step-5"])


def test_a_run_made_longer_stays_longer_when_it_resumes(workers: Pool, tmp_path: Path) -> None:
    longer = {2: [["set", {"name": "max_steps", "value": 9}]], 5: [["stop", {"save": True}]]}
    (first,) = workers.run(STEERED, world=1, folder=str(tmp_path), steps=4, commands=longer)
    assert (first["step"], first["checkpoints"]) == (6, ["step-6"])
    (second,) = workers.run(STEERED, world=1, folder=str(tmp_path), steps=4, commands={})
    assert second["step"] == 9


def test_a_setting_that_makes_no_sense_is_answered_and_changes_nothing(workers: Pool, tmp_path: Path) -> None:
    wrong = [["set", {"name": "lr", "value": "NaN"}], ["set", {"name": "max_steps", "value": 2.5}], ["resume", {}]]
    (alone,) = workers.run(STEERED, world=1, folder=str(tmp_path), steps=4, commands={1: wrong})
    assert alone["step"] == 4
    assert ["error" in answer for answer in alone["answers"]] == [True, True, False]
    assert alone["settings"] == []


def test_a_held_out_loss_that_is_not_finite_does_not_stop_the_saving(workers: Pool, tmp_path: Path) -> None:
    (alone,) = workers.run(STEERED, world=1, folder=str(tmp_path), steps=2, commands={}, nan=True, every=1)
    assert alone["checkpoints"] == ["step-1", "step-2"]


def test_a_command_after_the_last_step_is_refused_by_name(workers: Pool, tmp_path: Path) -> None:
    (alone,) = workers.run(STEERED, world=1, folder=str(tmp_path), steps=2, commands={-1: [["pause", {}]]})
    assert alone["states"][-1]["controls"] is False
    assert [answer["error"] for answer in alone["answers"]] == ["the training was over"]


def test_anyones_trainer_is_recorded_and_steered(workers: Pool, tmp_path: Path) -> None:
    commands = {
        2: [["set", {"name": "lr", "value": 0.0}]],
        4: [["set", {"name": "lr", "value": 0.05}], ["checkpoint", {}]],
        6: [["stop", {"save": True}]],
    }
    (alone,) = workers.run(PLAIN, world=1, folder=str(tmp_path), steps=30, commands=commands)
    assert (alone["step"], alone["lr"]) == (7, 0.05)
    assert {"loss", "loss_now", "memory_bytes"} <= set(alone["metrics"])
    errors = [answer.get("error", "") for answer in alone["answers"]]
    assert errors[0] == errors[1] == "" and "MeshStrategy" in errors[2] and "MeshStrategy" in errors[3]
    assert alone["checkpoints"] == []  # nothing that could not be loaded again
