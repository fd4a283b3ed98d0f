"""Checkpoints on a disk that fails: at every single operation, in every way, nothing good is lost."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.faults.disk import Crash, Disk, Way
from toolkit.checkpoint import CheckpointError, load_into, newest, prune, save

WAYS: tuple[Way, ...] = ("death", "refused", "full", "power")


def write(folder: Path, step: int) -> Path:
    """A checkpoint whose numbers say its step."""
    values = {"w": torch.full((4, 2), float(step)), "b": torch.arange(3)}
    return save(folder, step=step, tensors=values, state={}, rank_state={"seed": torch.ones(2)}, rank=0, world_size=1)


def value(path: Path) -> float:
    """The number in a checkpoint, every byte of which is as it was written."""
    found = {"w": torch.zeros(4, 2), "b": torch.zeros(3, dtype=torch.int64)}
    load_into(path, found)
    return found["w"].unique().item()


def disturbed(folder: Path, step: int, fails: int, way: Way) -> tuple[Disk, bool]:
    """Save `step` and prune on a disk that fails; whether the save was done."""
    done, told = False, None
    with Disk(fails, way) as disk:
        try:
            write(folder, step)
            done = True
            prune(folder, 1)
        except (Crash, CheckpointError, OSError) as error:
            told = error
    if way == "power":
        disk.lose_power()
    assert isinstance(told, Crash) == (disk.count >= fails and way in ("death", "power"))
    assert not isinstance(told, CheckpointError) or "keeps its earlier checkpoints" in str(told)
    return disk, done


@pytest.mark.parametrize("step", [5, 4], ids=["new", "again"])
@pytest.mark.parametrize("way", WAYS)
def test_a_fault_at_every_operation_of_a_checkpoint_loses_nothing(tmp_path: Path, way: Way, step: int) -> None:
    before = tmp_path / "before"
    for earlier in (3, 4):
        write(before, earlier)
    undisturbed, done = disturbed(tmp_path / "whole", step, 10**9, way)
    assert done
    shutil.copytree(before, tmp_path / "counted")
    undisturbed, _ = disturbed(tmp_path / "counted", step, 10**9, way)
    kinds = {line.split()[0] for line in undisturbed.trace}
    assert kinds == {"create", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"}, kinds
    seen = set()
    for fails in range(1, undisturbed.count + 1):
        folder = tmp_path / str(fails)
        shutil.copytree(before, folder)
        disk, done = disturbed(folder, step, fails, way)
        found, skipped = newest(folder)
        assert found is not None, disk.trace[-1]
        assert value(found) in ((step,) if done else (4.0, float(step))), disk.trace[-1]
        assert all(reason for _, reason in skipped)
        seen.add((done, value(found)))
        write(folder, 6)  # The next one goes through, and tidies up.
        prune(folder, 1)
        assert os.listdir(folder) == ["step-6"], disk.trace[-1]
        assert value(folder / "step-6") == 6.0
        shutil.rmtree(folder)
    assert {(False, 4.0), (True, float(step))} <= seen
