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


def loss_chart(root: Locator) -> Locator:
    return root.locator(".sb-chart").first


def test_two_runs_lie_over_one_another(compared: tuple[Notebook, Locator]) -> None:
    book, root = compared
    names = ["amber train", "amber held out", "mint train", "mint held out"]
    expect(loss_chart(root).locator(".sb-readout")).to_contain_text(names)
    rows = root.get_by_role("region", name="What differs").locator("tbody tr")
    expect(rows.first).to_have_text(re.compile(r'adapters\["\*\.q_proj"\]\.rank\s*4\s*8'))
    expect(rows.locator("th")).to_contain_text(["rank", "lr", "steps", "processes", "lowest held-out loss"])
    laws.picture(book, root, "compare")
    root.get_by_role("button", name="Hide mint").click()
    expect(loss_chart(root).locator(".sb-readout")).to_contain_text(names[:2])
    root.get_by_role("button", name="Show mint").click()
    expect(loss_chart(root).locator(".sb-readout")).to_contain_text(names)


def test_smoothing_log_scale_zoom_and_hover(compared: tuple[Notebook, Locator]) -> None:
    book, root = compared
    canvas = loss_chart(root).locator(".u-over")
    loss_chart(root).scroll_into_view_if_needed()
    root.get_by_role("slider", name="Smoothing").fill("0.9")
    root.get_by_role("checkbox", name="Log scale").check()
    box = canvas.bounding_box()
    assert box
    x, y = box["x"], box["y"] + box["height"] / 2
    mouse = book.page.mouse
    mouse.move(x + box["width"] / 2, y)
    expect(loss_chart(root).locator(".sb-chart-step")).to_have_text(re.compile(r"step 1[45]\d"))
    expect(loss_chart(root).locator(".sb-readout").first).to_have_text(re.compile(r"amber train 2\.\d+ raw 2\.\d+"))
    expect(root.locator(".sb-chart-step").nth(3)).to_have_text(re.compile(r"step 1[45]\d"))  # all charts share the cursor
    laws.picture(book, root, "compare-smooth")
    loss_chart(root).scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    x, y = box["x"], box["y"] + box["height"] / 2
    mouse.move(x + box["width"] / 3, y)
    mouse.down()
    mouse.move(x + 2 * box["width"] / 3, y, steps=4)
    mouse.up()
    zoomed = root.get_by_role("group", name="How the charts are drawn")
    expect(zoomed).to_contain_text(re.compile(r"steps (9|10)\d to (19|20)\d"))
    mouse.dblclick(x + box["width"] / 3, y)
    expect(zoomed).to_contain_text("drag across a chart to zoom")
    root.get_by_role("group", name="Charts.").focus()
    for key in ("ArrowRight", "ArrowRight", "+"):
        book.page.keyboard.press(key)
    expect(zoomed).to_contain_text("steps 1 to 77")
    root.get_by_role("button", name="Show all steps").click()
    root.get_by_role("slider", name="Smoothing").fill("0")
    root.get_by_role("checkbox", name="Log scale").uncheck()
    root.get_by_role("button", name="Enlarge Loss").click()
    expect(root.locator(".sb-chart-tall")).to_have_count(1)
    root.get_by_role("button", name="Shrink Loss").click()


def test_sixty_four_ranks_and_their_logs(compared: tuple[Notebook, Locator]) -> None:
    book, root = compared
    time_chart = root.locator(".sb-chart", has_text="Step time")
    expect(time_chart.locator(".sb-readout").first).to_have_text(re.compile(r"amber 3\.4\d s ranks 3\.\d+ s to 4\.\d+ s"))
    root.get_by_role("tab", name="Ranks").click()
    panel = root.get_by_role("tabpanel")
    expect(panel.locator("tbody tr")).to_have_count(64)
    expect(panel.locator(".sb-slowest th")).to_have_text("rank 17, slowest")
    laws.picture(book, root, "compare-ranks")
    root.get_by_role("tab", name="Logs").click()
    log = panel.get_by_role("region", name="Log")
    expect(log).to_contain_text("rank 0: step 299 done")
    panel.get_by_role("combobox", name="Whose log").select_option("17")
    expect(log).to_contain_text("rank 17: step 299 done")
    panel.get_by_role("searchbox").fill("STEP 12 ")
    expect(log).to_have_text("rank 17: step 12 done")
    panel.get_by_role("searchbox").fill("")
    with open(book.path.parent / "runs" / "20260102-030400-amber" / "rank-17.log", "a") as file:
        file.write("and one line more\n")
    expect(log).to_contain_text("and one line more")  # it follows


def test_samples_and_checkpoints(compared: tuple[Notebook, Locator]) -> None:
    book, root = compared
    root.get_by_role("tab", name="Samples").click()
    panel = root.get_by_role("tabpanel")
    expect(panel).to_contain_text("Samples at step 300, 16 of 16")
    panel.get_by_role("slider").fill("3")
    expect(panel).to_contain_text("Samples at step 60, 4 of 16")
    expect(panel.locator(".sb-text-block")).to_contain_text("at step 60")
    root.get_by_role("tab", name="Checkpoints").click()
    rows = ["step 300.*977 KiB.*best", "step 200", "step 100"]
    expect(panel.locator("tbody tr")).to_have_text([re.compile(row) for row in rows])
    laws.is_accessible(book, root)


def test_another_run_is_added_and_one_vanishes(compared: tuple[Notebook, Locator]) -> None:
    book, root = compared
    root.get_by_role("button", name="Compare with…").click()
    root.get_by_role("combobox", name="Run to compare with").select_option("20260102-030402-slate")
    expect(loss_chart(root).locator(".sb-readout")).to_have_count(6)
    folder = book.path.parent / "runs" / "20260102-030401-mint"
    folder.rename(folder.with_name("elsewhere"))
    root.get_by_role("button", name="mint", exact=False).first.click()
    expect(root.locator(".sb-monitor-badge")).to_have_text("gone")
    expect(root.locator(".sb-monitor-facts")).to_contain_text("its folder is gone")
    folder.with_name("elsewhere").rename(folder)
    expect(root.locator(".sb-monitor-badge")).to_have_text("finished")
    laws.follows_theme(book, root, "compare")
    laws.fits_at_double_zoom(book, root, "compare")
    laws.stays_here(book)
