"""Every claim and comparison can be imported and says what it measures; none is run here."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.results import Claim, Row

WORKING = """
'''A claim. Holds when measured is below baseline.'''
from benchmarks.results import Claim
def run(seed):
    return Claim(key="works", paper="less", measured=0.5 + seed, baseline=9.0, control_holds=False, holds=seed < 2, seconds=0.1)
"""
CRASHING = "def run(seed):\n    raise RuntimeError('no data')\n"


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """Two claims of a family in another place."""
    family = tmp_path / "claims" / "adapters"
    family.mkdir(parents=True)
    (family / "works.py").write_text(WORKING)
    (family / "crashes.py").write_text(CRASHING)
    monkeypatch.setattr(benchmarks, "HERE", tmp_path)
    package = importlib.import_module("benchmarks.claims")
    monkeypatch.setattr(package, "__path__", [str(tmp_path / "claims")])
    yield
    for name in [name for name in sys.modules if name.startswith("benchmarks.claims.")]:
        del sys.modules[name]


def lines_of(capsys) -> list[dict]:
    """What was printed, a JSON object a line."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("module", [*benchmarks.claim_files().values(), "benchmarks.claims"])
def test_every_claim_declares_its_rule_and_its_run(module):
    claim = importlib.import_module(module)
    assert claim.__doc__
    if module != "benchmarks.claims":
        assert re.search(r"\bholds\b", claim.__doc__), "the docstring states no rule for `holds`"
        assert callable(claim.run)
        assert Path(claim.__file__).parent.name in benchmarks.FAMILIES


@pytest.mark.parametrize("module", benchmarks.peer_files())
def test_every_comparison_declares_its_rows(module):
    assert callable(importlib.import_module(module).rows)
    assert module.rpartition(".")[2] in benchmarks.FAMILIES


def test_a_line_has_the_agreed_fields(claims, capsys):
    assert benchmarks.main(["claims", "--family", "adapters", "--key", "works", "--json"]) == 0
    (line,) = lines_of(capsys)
    assert list(line) == ["key", "paper", "measured", "baseline", "control_holds", "holds", "seconds"]
    assert [field.name for field in dataclasses.fields(Claim)] == list(line)
    assert [field.name for field in dataclasses.fields(Row)] == ["what", "ours", "peer", "limit", "target", "spread", "unit"]


def test_a_crash_is_a_claim_that_does_not_hold(claims, capsys):
    assert benchmarks.main(["claims", "--json"]) == 0
    lines = {line["key"]: line for line in lines_of(capsys)}
    assert lines["works"]["holds"]
    assert lines["crashes"]["holds"] is False
    assert lines["crashes"]["error"] == "RuntimeError: no data"


def test_three_seeds_add_the_spread(claims, capsys):
    assert benchmarks.main(["claims", "--key", "works", "--seeds", "3", "--seed", "1", "--json"]) == 0
    (line,) = lines_of(capsys)
    assert (line["spread"], line["seeds"], line["holds"]) == (2.0, [1, 2, 3], False)


def test_lines_are_also_for_people(claims, capsys):
    benchmarks.main(["claims", "--key", "works"])
    assert capsys.readouterr().out == "works: holds (measured 0.5, baseline 9.0, 0 s)\n"
    row = Row(what="help", ours=0.25, peer=None, limit=0.02, target=0.4, spread=0.01, unit="s")
    assert benchmarks.show(dataclasses.asdict(row)) == "help: ours 0.25, limit 0.02, target 0.4 s (spread 0.01)"
