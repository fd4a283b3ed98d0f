"""The harness itself: budgets are summed, leftovers are seen, shapes are checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.harness import budgets, leftovers, shapes
from toolkit.models import rotary


def test_every_folder_of_tests_has_a_budget():
    folders = {path.name for path in budgets.TESTS.iterdir() if any(path.glob("test_*.py"))}
    assert folders <= set(budgets.MINUTES)
    with pytest.raises(pytest.UsageError, match="no time budget"):
        budgets.folder_of(Path(budgets.TESTS / "elsewhere" / "test_x.py"))


def test_laws_and_parity_share_a_budget():
    spent = budgets.Budgets()
    spent.seconds.update({"laws": 150.0, "parity": 80.0, "browser": 299.0})
    assert spent.exceeded() == []
    spent.seconds["parity"] += 20
    assert spent.exceeded() == ["tests/laws took 250 s: more than its 4 minutes"]
    spent.paces = [0.1, 1.2 * budgets.PACE_SECONDS, 9.0]
    assert spent.exceeded() == [], "a machine that takes 1.2 times as long may take 288 s"
    spent.paces = [0.01]
    assert len(spent.exceeded()) == 1, "a quicker one may not take less"
    spent.soak = True
    assert spent.exceeded() == []


def test_a_leftover_of_a_run_is_seen_and_others_are_not():
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = subprocess.Popen(sleep, env={**os.environ, "SCALEBOOK_RUN": "left"})
    others = subprocess.Popen(sleep, env={**os.environ, "SCALEBOOK_RUN": "elsewhere", "XDG_STATE_HOME": "/nowhere"})
    try:
        found = leftovers.processes_of_runs()
        assert found.get(ours.pid) == "left"
        assert others.pid not in found
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


def test_shapes_are_checked_where_they_are_stated():
    def double(x_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        return 2 * x_BT

    checked = jaxtyped(shapes.check(double), typechecker=None)
    assert checked(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(Exception, match="x_BT"):
        checked(torch.ones(2))

    def plain(paths: tuple[str, ...]) -> None: ...

    assert shapes.check(plain) is plain


def test_the_reference_model_is_checked():
    shaped = [name for name, value in vars(rotary).items() if hasattr(value, "__wrapped__")]
    assert shaped, "the import hook came after the import of toolkit.models"
    with pytest.raises(TypeCheckError):
        rotary.rotate(torch.ones(2, 3), (torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1)))
