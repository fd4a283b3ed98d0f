"""The pool of warm workers: worlds of every size, failures reported by rank, new workers after a crash."""

import time

import pytest

from tests.distributed.pool import BodyFailed

BODIES = "tests.distributed.bodies"


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_body_sees_a_world_of_the_size_it_asked_for(workers, world):
    found = workers.run(f"{BODIES}:place", world=world)
    assert [each["rank"] for each in found] == list(range(world))
    for each in found:
        assert each["world"] == each["environment"] == each["context"] == each["control"] == world
        assert each["threads"] == 1


@pytest.mark.parametrize("shape", [[4], [2, 2], [2], [4, 1], [1, 2]])
def test_meshes_of_one_case_leave_nothing_to_the_next(workers, shape):
    world = shape[0] * (shape[1] if len(shape) > 1 else 1)
    assert workers.run(f"{BODIES}:sum_of_ranks", world=world, shape=shape) == [[world * (world + 1) / 2]] * world


def test_an_exception_on_all_ranks_keeps_the_workers(workers):
    before = workers.run(f"{BODIES}:place", world=4)
    with pytest.raises(BodyFailed, match=r"(?s)(ValueError: all raised.*){2}") as failure:
        workers.run(f"{BODIES}:fails_alone", world=2)
    assert all(f"--- rank {rank} ---" in str(failure.value) for rank in (0, 1))
    with pytest.raises(BodyFailed, match="no_such_body"):
        workers.run(f"{BODIES}:no_such_body", world=1)
    after = workers.run(f"{BODIES}:place", world=4)
    assert [each["process"] for each in after] == [each["process"] for each in before]


@pytest.mark.parametrize("body", ["fails_on", "crashes"])
def test_workers_are_made_anew_after_a_hang_or_a_crash(workers, body):
    workers.run(f"{BODIES}:place", world=4)
    starts = workers.starts
    arguments = {"failing": 1} if body == "fails_on" else {}
    began = time.monotonic()
    with pytest.raises(BodyFailed, match="rank 1 raised" if body == "fails_on" else r"ranks \[.*1.*\] did not answer"):
        workers.run(f"{BODIES}:{body}", world=3, limit=5, **arguments)
    assert time.monotonic() - began < 30
    assert len(workers.run(f"{BODIES}:place", world=4)) == 4
    assert workers.starts <= starts + 1


def test_a_case_costs_well_under_a_second(workers):
    workers.run(f"{BODIES}:place", world=4)
    seconds = []
    for world in (4, 2, 4, 3, 4, 2):
        began = time.monotonic()
        workers.run(f"{BODIES}:sum_of_ranks", world=world, shape=[world])
        seconds.append(time.monotonic() - began)
    assert sorted(seconds)[1] < 1, f"on a busy machine too, the quickest cases take well under a second: {seconds}"
