"""The job runner and the bundle, on tiny notebooks made here."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from toolkit.launch.bundle import export, read_job
from toolkit.launch.leaks import find_secrets
from toolkit.launch.notebook import execute, forget_place, main, run_job, save
from toolkit.launch.parameters import check_parameters, inject, literal, parse_parameters, read_parameters
from toolkit.launch.script import script

PARAMETERS = {"tags": ["parameters"]}
SEES = "import os\nprint('GPUs', {name: os.environ[name] for name in os.environ if 'CUDA_VISIBLE' in name})"


def notebook_of(*cells, path: Path) -> Path:
    """A notebook of these code cells; the first holds the parameters."""
    first = new_code_cell("steps = 40\nfast: bool = False\nname = 'plain'\nlr = 0.1", metadata=PARAMETERS)
    save(new_notebook(cells=[new_markdown_cell("# A *small* one"), first, *map(new_code_cell, cells)]), path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder that is the root of runs and the working directory."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_execution_is_saved_up_to_the_failing_cell(tmp_path):
    cells = ["print('steps', steps)\nlr", "raise ValueError('no \\x1b[31mred\\x1b[0m')", "print('never')"]
    lines, out = [], tmp_path / "out" / "executed.ipynb"
    timed = []
    outcome = execute(
        notebook_of(*cells, path=tmp_path / "one.ipynb"),
        out,
        parameters={"steps": 3, "lr": 1},
        echo=lines.append,
        timed=lambda *entry: timed.append(entry[:2]),
    )
    assert not outcome.ok
    assert (outcome.error.cell, outcome.error.name, outcome.error.message) == (5, "ValueError", "no red")
    assert "raise ValueError" in str(outcome.error)
    assert "\x1b" not in str(outcome.error)
    kept = nbformat.read(out, as_version=4)
    assert kept.cells[2].metadata.tags == ["injected-parameters"]
    assert [output.get("text", output.get("data")) for output in kept.cells[3].outputs] == [
        "steps 3\n",
        {"text/plain": "1.0"},
    ]
    assert kept.cells[4].outputs[0].ename == "ValueError"
    assert kept.cells[5].execution_count is None
    assert "    steps 3" in lines
    assert timed == [(2, 6), (3, 6), (4, 6), (5, 6)]
    assert not list(tmp_path.rglob(".*"))


async def cell(path: Path, out: Path):
    """Execute as the cell of a notebook does: its thread runs a loop already."""
    return execute(path, out, echo=lambda line: None)


def test_the_kernel_is_this_interpreter_and_its_folder_shadows_nothing(tmp_path):
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "__init__.py").write_text("raise ImportError('shadowed')")
    (tmp_path / "beside.py").write_text("value = 7")
    code = "import sys, os, toolkit, beside\nassert sys.executable == {!r}\nassert 'RANK' not in os.environ"
    path = notebook_of(code.format(sys.executable), path=tmp_path / "one.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "1")
        outcome = ThreadPoolExecutor(1).submit(asyncio.run, cell(path, tmp_path / "out.ipynb")).result()
    assert outcome.error is None


def test_a_dead_kernel_and_a_slow_cell_are_outcomes(tmp_path):
    dead = notebook_of("import os; os._exit(3)", path=tmp_path / "dead.ipynb")
    assert execute(dead, tmp_path / "out.ipynb", echo=lambda line: None).error.name == "KernelDied"
    slow = notebook_of("import time; time.sleep(60)", path=tmp_path / "slow.ipynb")
    outcome = execute(slow, tmp_path / "out.ipynb", echo=lambda line: None, cell_seconds=1)
    assert outcome.error.name == "Timeout"


def test_parameters_are_checked_by_name_and_type(tmp_path):
    known = read_parameters(nbformat.read(notebook_of(path=tmp_path / "one.ipynb"), as_version=4))
    assert {name: each.type for name, each in known.items()} == {
        "steps": "int",
        "fast": "bool",
        "name": "str",
        "lr": "float",
    }
    assert parse_parameters(known, ["steps=4", "fast=true", "name=a=b", "lr=1e-3"]) == {
        "steps": 4,
        "fast": True,
        "name": "a=b",
        "lr": 1e-3,
    }
    with pytest.raises(ValueError, match="no parameter 'stepps': did you mean steps"):
        check_parameters(known, {"stepps": 4})
    with pytest.raises(TypeError, match="steps takes int"):
        check_parameters(known, {"steps": True})
    with pytest.raises(TypeError, match="fast takes bool"):
        parse_parameters(known, ["fast=perhaps"])
    with pytest.raises(TypeError, match="name takes str"):
        check_parameters(known, {"name": object()})


def test_literals_and_injection():
    values = [1, -2.5, True, None, "it's \"é\"\n", {"a": [float("inf")]}, float("-inf")]
    assert eval(literal(values), {"float": float}) == values
    with pytest.raises(TypeError, match="JSON"):
        literal({"a": {1, 2}})
    node = new_notebook(cells=[new_code_cell("x = 1", metadata=PARAMETERS), new_code_cell("x")])
    inject(node, {"x": 2})
    inject(node, {"x": 3})
    assert [cell.source for cell in node.cells] == ["x = 1", "# Parameters of this job\nx = 3", "x"]


def test_the_script_does_what_the_cells_do(tmp_path):
    cells = [
        "%matplotlib inline\nimport asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x",
        "é = await double(await   double(steps))\nprint('é', é, fast)  # 'await ' stays",
    ]
    node = nbformat.read(notebook_of(*cells, path=tmp_path / "one.ipynb"), as_version=4)
    node.cells.append(new_code_cell("1 / 0", metadata={"tags": ["interactive"]}))
    (tmp_path / "script.py").write_text(script(node))
    command = [sys.executable, "-P", "script.py", "--steps", "3", "--fast"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "é 12 True\n"
    node.cells.append(new_code_cell("async with lock:\n    pass"))
    with pytest.raises(ValueError, match="cell 6 uses `async for` or `async with`"):
        script(node)


def test_export_and_run_under_a_hostile_name(project, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    cells = ["print('fast is', fast, steps)\n{'a': 1}", SEES, "print('long ' * 400_000)"]
    path = notebook_of(*cells, path=project / "a'; $(rm -rf x) \"\n{name}.ipynb")
    bundle = export(path, to="local", out=project / "job")
    job = yaml.safe_load((bundle / "job.yaml").read_text())
    assert job["name"] == "a-rm-rf-x-name"
    assert job["parameters"]["steps"] == {"type": "int", "value": 40}
    assert {"script.py", "constraints.txt", "git.json", "README.md"} <= {file.name for file in bundle.iterdir()}
    assert "torch==2.13.0\n" in (bundle / "constraints.txt").read_text()
    job["parameters"]["steps"]["value"] = 5
    (bundle / "job.yaml").write_text(yaml.safe_dump(job))
    lines: list[str] = []
    assert run_job(bundle, parameters={"fast": True}, echo=lines.append, out=project / "kept") == 0
    assert "    fast is True 5" in lines
    assert "    GPUs {'CUDA_VISIBLE_DEVICES': '3,1'}" in lines  # The job's own process holds none.
    assert max(map(len, lines)) < 5000
    page = (project / "kept" / "a-rm-rf-x-name.html").read_text()
    assert "fast is True 5" in page
    assert (project / "kept" / "a-rm-rf-x-name.ipynb").is_file()


def test_a_failing_job_keeps_its_notebook_and_says_why(project, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cells = ["print('before')", SEES + "\nraise ZeroDivisionError('division by zero' + ' ' + 'z' * 2_000_000)"]
    bundle = export(notebook_of(*cells, path=project / "fails.ipynb"), out=project / "job")
    lines: list[str] = []
    assert run_job(bundle, echo=lines.append, out=project / "kept") == 1
    text = "\n".join(lines)
    assert "cell 5 failed: ZeroDivisionError: division by zero" in text
    assert "characters left out" in text
    assert "    GPUs {}" in lines
    kept = nbformat.read(project / "kept" / "fails.ipynb", as_version=4)
    assert kept.cells[3].outputs[0].text == "before\n"


def test_a_bundle_is_refused_when_it_would_carry_a_secret(project, monkeypatch):
    token = "hf_" + "Q" * 34
    node = nbformat.read(notebook_of("1", path=project / "one.ipynb"), as_version=4)
    node.cells[2].outputs = [new_output("stream", text=f"using {token}\n")]
    save(node, project / "one.ipynb")
    with pytest.raises(ValueError, match="the output of cell 3: a Hugging Face token") as refusal:
        export(project / "one.ipynb", out=project / "job")
    assert token not in str(refusal.value)
    monkeypatch.setenv("SOME_API_KEY", "correct horse")
    notebook_of("x = 'correct horse'", path=project / "two.ipynb")
    with pytest.raises(ValueError, match=r"cell 3: the value of \$SOME_API_KEY"):
        export(project / "two.ipynb", out=project / "job")
    assert not (project / "job").exists()
    assert find_secrets("a disk-like word and task-0123456789012345678901", {}) == []


def test_uncommitted_changes_travel_as_a_patch_and_are_searched(project):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (project / "helper.py").write_text("x = 1\n")
    notebook_of("1", path=project / "one.ipynb")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    (project / "helper.py").write_text("x = 2\n")
    bundle = export("one.ipynb", out="job")
    assert "+x = 2" in (bundle / "uncommitted.patch").read_text()
    assert json.loads((bundle / "git.json").read_text())["dirty"] is True
    (project / "helper.py").write_text("key = 'AKIAABCDEFGHIJKLMNOP'\n")
    with pytest.raises(ValueError, match="uncommitted changes, line 7: an AWS access key"):
        export("one.ipynb", out="job")


def test_export_replaces_only_a_bundle_and_knows_one_target(project):
    path = notebook_of("1", path=project / "one.ipynb")
    export(path, out=project / "job")
    export(path, out=project / "job")
    (project / "other").mkdir()
    (project / "other" / "precious.txt").touch()
    with pytest.raises(ValueError, match="exists and is no bundle"):
        export(path, out=project / "other")
    with pytest.raises(ValueError, match="only 'local' is available"):
        export(path, to="slurm", out=project / "elsewhere")
    (project / "broken.ipynb").write_text("{")
    with pytest.raises(ValueError, match="is not a notebook"):
        export(project / "broken.ipynb", out=project / "elsewhere")


def test_a_job_file_is_checked(project):
    bundle = export(notebook_of("1", path=project / "one.ipynb"), out=project / "job")
    text = (bundle / "job.yaml").read_text()
    (bundle / "job.yaml").write_text(text.replace("steps:", "stepps:"))
    with pytest.raises(ValueError, match=r"parameters\.stepps"):
        read_job(bundle)
    for more, told in (("resources: {processes: 2}", "unknown resources; expected schema, name, parameters"),
                       ("parameters: [1]", "parameters: expected"),
                       ("parameters: {steps: {value: 1, type: str}}", r"parameters\.steps: expected `type: int`"),
                       ("parameters: {steps: {value: 1, unit: s}}", "nothing else")):  # fmt: skip
        (bundle / "job.yaml").write_text(f"schema: 1\nname: one\n{more}\n")
        with pytest.raises(ValueError, match=told):
            read_job(bundle)
    (bundle / "job.yaml").write_text("schema: 1\nparameters: {steps: {value: 7}}")
    assert read_job(bundle).parameters["steps"].default == 7
    (bundle / "job.yaml").write_text("!!python/object/apply:os.system [true]")
    with pytest.raises(ValueError, match=r"job\.yaml"):
        read_job(bundle)
    with pytest.raises(ValueError, match="is no bundle"):
        read_job(project)


def test_notebooks_are_rewritten_only_when_they_run_to_the_end(tmp_path, capsys):
    good, bad = tmp_path / "good.ipynb", tmp_path / "sub" / "wrong.ipynb"
    bad.parent.mkdir()
    notebook_of("2 + 2", path=good)
    before = notebook_of("1 / 0", path=bad).read_text()
    assert main([str(tmp_path)]) == 1
    assert nbformat.read(good, as_version=4).cells[2].outputs[0].data["text/plain"] == "4"
    assert bad.read_text() == before
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_stored_notebook_names_files_from_the_root_of_the_project(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    executed = tmp_path / "notebooks" / "a.ipynb"
    executed.write_text(f'File \\"{tmp_path}/toolkit/x.py\\", line 1, {Path.home()}/y.py, https://host{tmp_path}/z')
    forget_place(executed, executed)
    assert executed.read_text() == f'File \\"toolkit/x.py\\", line 1, ~/y.py, https://host{tmp_path}/z'
