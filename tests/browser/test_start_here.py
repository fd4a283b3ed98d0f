"""The first notebook as a person meets it in JupyterLab: run it, watch it, lose the kernel, find the run again."""

import time

import nbformat
from playwright.sync_api import expect

from tests.browser import laws
from tests.browser.laws import START_MILLISECONDS, Lab
from toolkit.launch.parameters import tagged
from toolkit.runs import Run, root_of

MONITOR = ".sb-monitor"
ATTACH = """
from toolkit.runs import Run
from widgets import RunMonitor
RunMonitor(Run.attach({folder!r}))
"""


def until_step(run: Run, step: int) -> None:
    until = time.monotonic() + 120
    while (run.state.step or 0) < step:
        assert run.alive, run.state
        assert time.monotonic() < until, run.state
        time.sleep(0.1)


def test_a_training_outlives_the_kernel_that_started_it(lab: Lab) -> None:
    notebook = nbformat.read(root_of(__file__) / "notebooks" / "00-start-here.ipynb", as_version=4)
    watch = next(n for n, cell in enumerate(notebook.cells) if "RunMonitor(run)" in cell.source)
    del notebook.cells[watch + 1 :]
    for cell in notebook.cells:
        if tagged(cell, "parameters"):
            cell.source += "\nfast = True"
        cell.source = cell.source.replace("steps=steps", "steps=500")  # long enough to lose the kernel in the middle
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    before = set(lab.work.glob("runs/*"))
    book = lab.show(notebook)
    run = None
    try:
        book.command("notebook:run-all-cells")
        root = book.page.locator(MONITOR)
        expect(root).to_be_visible(timeout=2 * START_MILLISECONDS)
        (folder,) = set(lab.work.glob("runs/*")) - before
        run = Run(folder)
        until_step(run, 2)
        expect(root.locator(".sb-monitor-badge")).to_have_text("running")
        for line in ("train", "held out"):  # the held-out loss is there first: the chart takes the other in
            expect(root.locator(".sb-chart").first).to_contain_text(line)
        laws.picture(book, root, "start-here")

        book.save()
        step = run.state.step or 0
        book.restart()
        until_step(run, step + 2)  # the training does not notice
        book.page.reload()
        book.wait_idle()
        book.page.evaluate(
            """([index, source]) => {
                const book = window.jupyterapp.shell.currentWidget.content;
                book.activeCellIndex = index;
                book.activeCell.model.sharedModel.setSource(source);
            }""",
            [watch, ATTACH.format(folder=str(folder))],
        )
        root = laws.renders(book, MONITOR, cell=watch)
        expect(root.locator(".sb-monitor-badge")).to_have_text("running", timeout=START_MILLISECONDS)
        root.get_by_role("button", name="Stop and keep", exact=True).click()
        expect(root.locator(".sb-monitor-badge")).to_have_text("stopped", timeout=START_MILLISECONDS)
        assert run.state.name == "stopped" and run.checkpoints()
        laws.stays_here(book)
    finally:
        if run is not None and run.alive:
            run.kill()
        book.close()
