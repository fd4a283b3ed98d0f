"""Every notebook is stored whole, and runs as the job that it exports to.

Cells tagged `check` are compared with the stored outputs by nbval's own comparison, on the copy that the job executed.
"""

import re
import time
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, IPyNbFile, coalesce_streams

from toolkit.launch.bundle import export
from toolkit.launch.notebook import load, run_job
from toolkit.launch.parameters import read_parameters, tagged

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").rglob("*.ipynb") if not path.parts[-1].startswith("."))
LIMIT = 240.0  # seconds for a notebook with fast=True, the kernel's start and two worker processes included
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|private|var/folders)/[\w.-]+")
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
UNTOLD_SVG = re.compile(r"<svg(?![^>]*\b(?:aria-label|aria-labelledby|aria-hidden)=)[^>]*>(?!\s*<title>)")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """The code cells that are not empty, with their numbers from 1."""
    return [(n, cell) for n, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code" and cell.source.strip()]


def without_text(output: NotebookNode) -> list[str]:
    """The kinds of picture in an output that has no alternative text for it."""
    data, about = output.get("data", {}), output.get("metadata", {})
    silent = [kind for kind in PICTURES if kind in data and not (about.get("alt") or about.get(kind, {}).get("alt"))]
    html = data.get("text/html", "")
    silent += ["img"] if re.search(r"<img(?![^>]*\balt=[\"'][^\"'])[^>]*>", html) else []
    silent += ["svg"] if UNTOLD_SVG.search(data.get("image/svg+xml", "") + html) else []
    if "image/svg+xml" in silent and "svg" not in silent:
        silent.remove("image/svg+xml")  # it carries its text itself
    return silent


def test_there_are_notebooks():
    assert ROOT / "notebooks" / "00-start-here.ipynb" in NOTEBOOKS


@every_notebook
def test_a_stored_notebook_is_whole(path):
    notebook = load(path)
    nbformat.validate(notebook)
    parameters = read_parameters(notebook)
    assert parameters["fast"].default is False, "the stored outputs come from the full values"
    cells = code_cells(notebook)
    assert [cell.execution_count for _, cell in cells] == list(range(1, len(cells) + 1)), "run it from its top: make notebooks"
    failed = [number for number, cell in cells if any(output.output_type == "error" for output in cell.outputs)]
    assert not failed
    assert not MACHINE_PATH.search(nbformat.writes(notebook)), "a path of one machine is stored"
    silent = {number: kinds for number, cell in cells for output in cell.outputs if (kinds := without_text(output))}
    assert not silent, f"pictures without alternative text, by cell: {silent}"
    pictures = [re.search(r"!\[\s*\]\(", cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]
    assert not any(pictures)


@every_notebook
def test_a_notebook_runs_as_its_job(path, tmp_path, monkeypatch, request):
    (tmp_path / "pyproject.toml").touch()  # the root of the runs that the notebook makes
    monkeypatch.chdir(tmp_path)
    bundle = export(path, to="local", out=tmp_path / "job")
    lines: list[str] = []
    started = time.monotonic()
    status = run_job(bundle, parameters={"fast": True}, echo=lines.append, out=tmp_path / "kept")
    seconds = time.monotonic() - started
    assert status == 0, "\n".join(lines[-60:])
    assert seconds < LIMIT
    assert next((tmp_path / "kept").glob("*.html")).stat().st_size
    executed = load(next((tmp_path / "kept").glob("*.ipynb")))
    assert differences(path, executed, request) == []


def differences(path: Path, executed: NotebookNode, request: pytest.FixtureRequest) -> list[str]:
    """What nbval finds unlike the stored outputs in the cells tagged `check`."""
    file = IPyNbFile.from_parent(request.session, path=path)
    stored = [cell for _, cell in code_cells(load(path))]
    ran = [cell for _, cell in code_cells(executed) if not tagged(cell, "injected-parameters")]
    assert [cell.source for cell in ran] == [cell.source for cell in stored]
    found: list[str] = []
    for number, (test, reference) in enumerate(zip(ran, stored), 1):
        if tagged(reference, "check"):
            item = IPyNbCell.from_parent(file, name=f"check {number}", cell_num=number, cell=reference, options={})
            if not item.compare_outputs(coalesce_streams(test.outputs), coalesce_streams(reference.outputs)):
                found.append(f"code cell {number}: " + "\n".join(item.comparison_traceback))
    return found
