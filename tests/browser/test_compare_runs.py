"""RunMonitor over several runs, and over one with many ranks, in a real JupyterLab; the runs are folders that were written."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, expect

from tests.browser import laws, toy
from tests.browser.laws import Lab, Notebook

COMPARE = """
from toolkit.runs import Run
from widgets import RunMonitor
monitor = RunMonitor([Run.attach(folder) for folder in {folders!r}])
monitor
"""
MONITOR = ".sb-monitor"


@pytest.fixture(scope="module")
def compared(lab: Lab) -> Iterator[tuple[Notebook, Locator]]:
    """Two finished runs in one monitor, and a third one beside them."""
    folders = []
    for seed, (name, steps) in enumerate((("amber", 300), ("mint", 200), ("slate", 100))):
        folder = lab.work / "runs" / f"20260102-03040{seed}-{name}"
        toy.make_finished(folder, steps=steps, seed=seed, ranks=64 if name == "amber" else 1)
        folders.append(str(folder))
    book = lab.open(COMPARE.format(folders=folders[:2]))
    try:
        yield book, laws.renders(book, MONITOR, cell=0)
    finally:
        book.close()


def test_two_runs_lie_over_one_another(compared: tuple[Notebook, Locator]) -> None:
    book, root = compared
    loss = root.locator(".sb-chart").first
    expect(loss.locator(".sb-readout")).to_contain_text(["amber train", "amber held out", "mint train", "mint held out"])
    table = root.get_by_role("region", name="What differs")
    expect(table.locator("tbody tr").first).to_have_text(re.compile(r"adapters\[.\*\.q_proj.\]\.rank\s*4\s*8"))
    laws.picture(book, root, "compare")
