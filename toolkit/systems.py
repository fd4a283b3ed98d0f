"""The published systems that are implemented here, one entry each in systems.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict


class System(TypedDict):
    """One published system."""

    key: str
    """Short name, unique."""
    title: str
    """Title of the paper."""
    arxiv: str
    """arXiv id."""
    family: str
    """Family of methods."""
    module: str
    """Where it is, `module:Name`."""
    notebook: str | None
    """Notebook that teaches it, relative to the project."""
    claim: str | None
    """Smallest honest experiment for it, relative to the project."""


def read_systems() -> list[System]:
    """Every implemented system. `read_systems()[0]["key"]`"""
    return json.loads(Path(__file__).with_name("systems.json").read_text(encoding="utf-8"))
