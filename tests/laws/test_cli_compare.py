"""`runs compare`: recipes beside one another, numbers beside one another, and the step at which runs part."""

from pathlib import Path
from typing import Any

import pytest

from tests.laws.command_line import command, command_json, write_run
from toolkit.cli.compare import KEYS, first_difference, summary
from toolkit.runs.differences import differences


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three runs: `b` leaves `a` at step 3, `c` is `a` again, and longer."""
    recipe = {"type": "FineTune", "lr": 0.1, "plan": {"type": "Plan", "dp_shard": 2}, "adapters": {"*.q": {"rank": 8}}}
    write_run(tmp_path, "a", losses=(3.0, 2.0, 1.5), recipe=recipe)
    write_run(tmp_path, "b", losses=(3.0, 2.0, 1.75), recipe={**recipe, "plan": {"type": "Plan", "dp_shard": 1}})
    write_run(tmp_path, "c", losses=(3.0, 2.0, 1.5, 1.0, 1.2), recipe=recipe)
    return tmp_path


def test_what_differs_and_from_where(root: Path, capsys: Any) -> None:
    found = command_json("runs", "compare", "a", "b", "c", "--json", "--root", str(root), capsys=capsys)
    assert tuple(found) == KEYS
    assert found["recipe"] == {"plan.dp_shard": [2, 1, 2]}
    assert found["parts_at"] == [None, 3, None]
    assert found["metrics"]["loss"][2] == {"last": 1.2, "step": 5.0, "best": 1.0, "best_step": 4.0}
    assert [run["run"] for run in found["runs"]] == ["a", "b", "c"]


def test_the_table_and_the_chart(root: Path, capsys: Any) -> None:
    status, out, _ = command("runs", "compare", "a", "b", "--root", str(root), capsys=capsys)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["A", "B"]
    assert ["plan.dp_shard", "2", "1"] in [line.split() for line in lines]
    assert "loss of A and B differ from step 3 on" in out
    assert any(line.endswith("B") for line in lines)
    assert max(map(len, lines)) <= 80
    equal = command("runs", "compare", "a", "c", "--root", str(root), capsys=capsys)[1]
    assert "The recipes are equal." in equal
    assert "nowhere: all 3 common steps are equal bit for bit" in equal


def test_a_metric_that_no_run_has_is_named(root: Path, capsys: Any) -> None:
    status, out, err = command("runs", "compare", "a", "b", "--metric", "los", "--root", str(root), capsys=capsys)
    assert (status, out) == (2, "")
    assert "--metric: no run has 'los', did you mean loss?; there are loss" in err


def test_parts() -> None:
    assert differences([{"a": [1, 2]}, {"a": [1, 3], "b": {}}]) == {"a": [(1, 2), (1, 3)], "b": [None, {}]}
    lora = {"type": "LoRA", "rank": 4}
    one, other = ({"type": "FineTune", "adapters": {"*.q": lora, "*.v": {**lora, "rank": rank}}} for rank in (4, 8))
    assert differences([one, other]) == {'adapters["*.v"].rank': [4, 8]}
    nan = float("nan")
    assert first_difference(([1, 2], [nan, 1.0]), ([1, 2], [nan, 1.0])) is None
    assert first_difference(([1, 2], [nan, 1.0]), ([2, 3], [1.5, 1.0])) == 2
    assert first_difference(([1], [1.0]), ([2], [2.0])) is None
    assert summary("accuracy", ([1, 2, 3], [0.5, 0.9, 0.9])) == {"last": 0.9, "step": 3, "best": 0.9, "best_step": 2}
    assert summary("loss", ([1], [nan])) is None
