"""Going back to an older checkpoint sets the newer ones aside and loses nothing."""

from pathlib import Path

import pytest

from toolkit.checkpoint import files
from toolkit.checkpoint.check import steps
from toolkit.runs.rewind import STEP, aside, rewind


def checkpoint(folder: Path, step: int | str) -> None:
    path = folder / "checkpoints" / f"step-{step}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(str(step))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_newer_checkpoints_are_set_aside_twice(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        checkpoint(tmp_path, step)
    assert [path.name for path in rewind(tmp_path, 20)] == ["step-40.aside", "step-60.aside"]
    checkpoint(tmp_path, 40)
    assert [path.name for path in rewind(tmp_path, 20)] == ["step-40.aside-2"]
    assert names(tmp_path) == ["step-20", "step-40.aside", "step-40.aside-2", "step-60.aside"]
    assert (tmp_path / "checkpoints" / "step-40.aside" / "manifest.json").read_text() == "40"


def test_what_a_cut_off_replacement_left_is_set_aside_too(tmp_path: Path) -> None:
    """A resume would take it: the newest that is left is the one that was asked for."""
    assert STEP.pattern == files.STEP.pattern
    for step in (20, "40.replaced", 60, "60.replaced"):
        checkpoint(tmp_path, step)
    assert [path.name for path in rewind(tmp_path, 40)] == ["step-60.aside-2", "step-60.aside"]
    assert [path.name for path in rewind(tmp_path, 20)] == ["step-40.aside"]
    assert [step for step, _ in steps(tmp_path / "checkpoints")] == [20]
    (tmp_path / "checkpoints" / "step-9.aside").symlink_to(tmp_path)
    assert [path.name for path in aside(tmp_path)] == ["step-40.aside", "step-60.aside", "step-60.aside-2"]


def test_a_step_without_a_whole_checkpoint_is_refused_and_nothing_moves(tmp_path: Path) -> None:
    checkpoint(tmp_path, 20)
    (tmp_path / "checkpoints" / "step-40").mkdir()
    with pytest.raises(ValueError, match="no checkpoint of step 40: it has 20"):
        rewind(tmp_path, 40)
    assert names(tmp_path) == ["step-20", "step-40"]
