"""The colours of the widgets, measured: contrast on their grounds, and series and runs told apart without ordinary colour vision.

Source: A Physiologically-based Model for Simulation of Color Vision Deficiency, Machado et al., 2009, matrices of severity 1;
distances in OKLab, Ottosson 2020; contrast as in WCAG 2.2, 1.4.3 and 1.4.11.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from widgets import view
from widgets.twin import COLORS

VISIONS = {
    "ordinary": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_CONES = np.array(
    [[0.41222147, 0.53633254, 0.05144599], [0.21190350, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.62997870]]
)
TO_LAB = np.array(
    [[0.21045426, 0.79361779, -0.00407205], [1.97799850, -2.42859221, 0.45059371], [0.02590404, 0.78277177, -0.80867577]]
)
STATIC = Path(view.__file__).with_name("static")
APART = 13
"""Least distance of two colours that stand for two things."""
MANY = {"series": 5, "run": 8}
"""How many colours there are for the lines of one run, and for runs."""
TEXTS = ("text", "muted", "accent", "mark", "good", "warn", "bad")


def colors(theme: str) -> dict[str, str]:
    """The variables of one theme: those of every widget, and the runs' of the monitor."""
    found = {}
    for file, first in (("view.css", "surface"), ("run_monitor.css", "run-1")):
        light, dark = re.findall(rf"\{{([^}}]*--sb-{first}:[^}}]*)\}}", (STATIC / file).read_text())
        found |= re.findall(r"--sb-([\w-]+): (#\w{6});", light if theme == "light" else dark)
    return found


def linear(color: str) -> np.ndarray:
    """Linear red, green and blue of "#rrggbb"."""
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two colours.

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    low, high = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def seen(color: str, vision: str) -> np.ndarray:
    """OKLab x 100 of a colour as an eye sees it."""
    return 100 * TO_LAB @ np.cbrt(TO_CONES @ np.clip(np.array(VISIONS[vision]) @ linear(color), 0, 1))


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", MANY)
def test_series_and_runs_are_told_apart(kind: str, theme: str, vision: str) -> None:
    lines = {name: color for name, color in colors(theme).items() if name.startswith(f"{kind}-")}
    assert len(lines) == MANY[kind]
    for (one, a), (other, b) in itertools.combinations(lines.items(), 2):
        assert np.linalg.norm(seen(a, vision) - seen(b, vision)) >= APART, f"{one} and {other}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_their_ground(theme: str) -> None:
    found = colors(theme)
    for ground in ("surface", "sunken"):
        for name in TEXTS:
            assert contrast(found[name], found[ground]) >= 4.5, f"{name} on {ground}"
        for name in (name for name in found if name.startswith(("series-", "run-")) or name == "edge"):
            assert contrast(found[name], found[ground]) >= (3 if ground == "surface" else 2.9), f"{name} on {ground}"


def test_the_static_picture_reads_on_both_grounds() -> None:
    for color, theme in itertools.product(COLORS, ("light", "dark")):
        assert contrast(color, colors(theme)["surface"]) >= 3, f"{color} in {theme}"
