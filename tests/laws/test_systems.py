"""Every entry of systems.json is true: what it names exists."""

import importlib
import re
from pathlib import Path

import pytest

from toolkit.systems import System, read_systems

ROOT = Path(__file__).parents[2]
SYSTEMS = read_systems()


@pytest.mark.parametrize("system", SYSTEMS, ids=[system["key"] for system in SYSTEMS])
def test_an_entry_names_what_exists(system: System) -> None:
    assert list(system) == list(System.__annotations__)
    assert re.fullmatch(r"[a-z0-9_]+", system["key"])
    assert re.fullmatch(r"\d{4}\.\d{4,5}", system["arxiv"])
    assert system["title"]
    module, name = system["module"].split(":")
    assert module.startswith("toolkit.")
    assert hasattr(importlib.import_module(module), name)
    for path in (system["notebook"], system["claim"]):
        assert path is None or (ROOT / path).is_file()
    if system["claim"] is not None:
        assert system["claim"] == f"benchmarks/claims/{system['family']}/{system['key']}.py"


def test_keys_are_unique() -> None:
    keys = [system["key"] for system in SYSTEMS]
    assert len(keys) == len(set(keys))
