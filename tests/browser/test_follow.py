"""What monitors read and how they write numbers, without a notebook."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser

from tests.browser import toy
from toolkit.runs import EventWriter
from widgets import view
from widgets.follow import Follower

NUMBERS = (
    0, 1, -1, 1.5, 12, 123, 1234, 999.6, 999_999, 1_234_567, 0.1, 0.0123, 0.001, 0.0009999, 1e-4, 1.5e-7, -2.5e-5, 1e20,
    2.5675, 0.5, 1023.4, 1023.9, 1024, 1.24e6, 123_456_789_012, 1e15, 4.2e17, -1234.5, 99.95, 0.99999, 3725, 90_000,
)  # fmt: skip


def numbers_of(points: dict[str, tuple[list[int], list[float | None]]]) -> dict[str, dict[int, float | None]]:
    """Step -> value of each series."""
    return {name: dict(zip(*pair, strict=True)) for name, pair in points.items()}


def test_pieces_follow_one_another(tmp_path: Path) -> None:
    events = toy.make_folder(tmp_path / "run")
    follower = Follower(tmp_path / "run")
    assert follower.read().points == {}
    for step in (1, 2, 3):
        events.write("metrics", {"loss": step / 2}, step=step)
    first = follower.read()
    assert (first.since, first.seq) == (0, 3)
    events.write("metrics", {"loss": float("nan"), "lr": 0.1}, step=4)
    events.write("sample", {"prompt": "\x1b[1ma", "text": "b" * 5000}, step=4)
    second = follower.read()
    assert (second.since, second.seq, second.told) == (3, 5, True)
    assert numbers_of(second.points) == {"loss": {4: None}, "lr": {4: 0.1}}
    assert follower.samples[0]["prompt"] == "a"
    assert len(follower.samples[0]["text"]) < 2000
    assert follower.read().points == {}


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    events = toy.make_folder(tmp_path / "run")
    follower = Follower(tmp_path / "run")
    for step in range(1, 8):
        events.write("metrics", {"loss": 1.0, "old": 1.0} if step > 5 else {"loss": 1.0}, step=step)
    for step in (2, 7):
        events.write("command", {"n": step, "command": "pause", "applied": step}, step=step)
    follower.read()
    assert [one["step"] for one in follower.commands] == [2, 7]
    events.close()
    events = EventWriter(tmp_path / "run", 0, 2)
    events.write("state", {"state": "running"}, step=3)
    assert not follower.read().points
    assert [one["step"] for one in follower.commands] == [2]
    events.write("metrics", {"loss": 2.0}, step=4)
    whole = follower.read()
    assert whole.since == 0
    assert numbers_of(whole.points) == {"loss": {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}}
    events.write("metrics", {"loss": 3.0}, step=5)
    assert numbers_of(follower.read().points) == {"loss": {5: 3.0}}
    toy.end(tmp_path / "run", "finished", 5)
    assert numbers_of(Follower(tmp_path / "run").read().points) == {"loss": {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 3.0}}


def test_what_a_resume_drops_is_not_shown_by_who_opens_the_folder_then(tmp_path: Path) -> None:
    events = toy.make_folder(tmp_path / "run")
    for step in range(1, 8):
        events.write("metrics", {"loss": 1.0}, step=step)
    toy.end(tmp_path / "run", "stopped", 7)
    assert len(Follower(tmp_path / "run").read().points["loss"][0]) == 7  # the series files are written
    events.close()
    events = EventWriter(tmp_path / "run", 0, 2)
    events.write("state", {"state": "running"}, step=3)
    follower = Follower(tmp_path / "run")
    assert len(follower.read().points["loss"][0]) == 7  # it did not say yet from where it goes on
    events.write("metrics", {"loss": 2.0}, step=4)
    assert numbers_of(follower.read().points) == {"loss": {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}}
    events.close()
    events = EventWriter(tmp_path / "run", 0, 3)
    events.write("state", {"state": "running", "resumed": 2}, step=2)
    assert numbers_of(Follower(tmp_path / "run").read().points) == {"loss": {1: 1.0, 2: 1.0}}


def test_zoomed_points_are_finer(tmp_path: Path) -> None:
    events = toy.make_folder(tmp_path / "run")
    for step in range(1, 301):
        events.write("metrics", {"loss": step / 2}, step=step)
    follower = Follower(tmp_path / "run")
    follower.read()
    assert len(follower.points(20)["loss"][0]) <= 20
    assert follower.points_between(100, 110, 20)["loss"] == (list(range(99, 112)), [step / 2 for step in range(99, 112)])


@given(st.lists(st.floats(), min_size=1, max_size=300), st.integers(4, 40))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    steps, kept = view.thin(np.arange(len(values)), np.array(values), most)
    assert len(steps) == len(kept) <= max(most, 4)
    assert (steps[0], steps[-1]) == (0, len(values) - 1)
    shown = [float(f"{value:.6g}") for value in values if abs(value) < 1e300]
    finite = [value for value in kept if value is not None]
    if shown:
        assert math.isclose(min(finite), min(shown), abs_tol=1e-300)
        assert math.isclose(max(finite), max(shown), abs_tol=1e-300)


def test_numbers_read_the_same_in_python_and_on_the_page(browser: Browser) -> None:
    page = browser.new_page()
    page.add_script_tag(content=view.module("view.js") + "\nwindow.view = { compact, quantity, duration };", type="module")
    shown = page.evaluate(
        """numbers => numbers.map(one => [
            view.compact(one), view.compact(one, 5), view.quantity(one, "bytes"), view.quantity(one, "s"),
            view.quantity(one, "tokens/s"), view.duration(Math.abs(one)),
        ])""",
        NUMBERS,
    )
    page.close()
    assert shown == [
        [
            view.compact(one), view.compact(one, 5), view.quantity(one, "bytes"), view.quantity(one, "s"),
            view.quantity(one, "tokens/s"), view.duration(abs(one)),
        ]
        for one in NUMBERS
    ]  # fmt: skip


CHARTS = """() => {
    const steps = Array.from({ length: 101 }, (_, step) => step);
    const noisy = steps.map(step => step + (step % 2 ? 5 : -5));
    const amount = 0.9;
    const smooth = charts.smoothed([steps, noisy], amount);
    const [low, fine] = [[[0, 50, 100], [0, 5, 10]], [[40, 41, 42, 60], [4, 4.1, 4.2, 6]]];
    return {
        off: charts.smoothed([steps, noisy], 0) === noisy,
        constant: charts.smoothed([[1, 5, 9], [2, null, 2]], amount),
        rough: Math.max(...smooth.slice(21).map((value, at) => Math.abs(value - smooth[20 + at]))),
        thin: Math.abs(charts.smoothed([steps.filter(s => s % 2), noisy.filter((_, s) => s % 2)], amount)[0] - noisy[1]),
        align: charts.align([[[1, 3], [10, 30]], [[2, 3], [2, null]]]),
        spliced: charts.spliced(low, fine, 40, 60),
        beyond: charts.spliced([[1, 2, 3], [1, 2, 3]], [[1, 2], [1.5, 2.5]], 1, 5),
        ticks: [charts.logTicks(1e-7, 1), charts.logTicks(2.3, 3.1), charts.logTicks(0.8, 40)],
        extent: [charts.extent([[[], []], [[3, 9], [0, 0]]]), charts.extent([[[], []]])],
        nearest: [charts.nearest([1, undefined, 3], 1), charts.nearest([undefined], 0)],
    };
}"""


def test_what_charts_compute(browser: Browser) -> None:
    page = browser.new_page()
    names = "smoothed, align, spliced, logTicks, extent, nearest"
    page.add_script_tag(content=f"{view.module('chart_math.js')}\nwindow.charts = {{ {names} }};", type="module")
    found = page.evaluate(CHARTS)
    page.close()
    assert found["off"] and found["constant"] == [2, None, 2] and found["thin"] == 0
    assert found["rough"] < 3  # the raw one jumps by 11
    assert found["align"] == [[1, 2, 3], [10, None, 30], [None, 2, None]]
    assert found["spliced"] == [[0, 40, 41, 42, 60, 100], [0, 4, 4.1, 4.2, 6, 10]]
    assert found["beyond"] == [[1, 2, 3], [1.5, 2.5, 3]]  # what came after the finer part was asked for stays
    assert found["ticks"] == [[1e-6, 1e-4, 0.01, 1], [2.4, 2.6, 2.8, 3], [1, 2, 5, 10, 20]]
    assert found["extent"] == [[3, 9], None] and found["nearest"] == [1, None]


def test_modules_are_joined_without_imports() -> None:
    joined = view.module("run_monitor.js")
    assert joined.count("export default") == 1
    assert "\nimport " not in joined
    assert "https://github.com/leeoniya/uPlot" in joined  # its author and licence stay named
    names = re.findall(r"^(?:export )?(?:async )?(?:function|const|let) (\w+)", joined, re.MULTILINE)
    assert len(names) == len(set(names))  # joined, the files share one scope


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\u202eb", "ab"),
        ("\x1b]8;;x\x07link\x1b]8;;\x07", "link"),
        ("a\r\nb\x00\tc", "a\nb\tc"),
    ],
)
def test_control_characters_are_dropped(text: str, harmless: str) -> None:
    assert view.harmless(text) == harmless
