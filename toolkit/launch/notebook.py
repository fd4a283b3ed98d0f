"""Execute a notebook as a job: typed parameters, progress by cell, and an output that is never lost.

The executed copy is written after every cell, also when the notebook fails. The kernel is this interpreter, whatever
kernels are installed. `python -m toolkit.launch.notebook FOLDER` executes notebooks and rewrites their outputs.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from toolkit.launch.parameters import check_parameters, inject, read_parameters
from toolkit.launch.processes import LAUNCHER_VISIBLE, VISIBLE

ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
# A kernel that is started by a worker of a run is not that worker: it must not join the worker's process group.
OF_A_WORKER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
STARTUP_SECONDS = 120
Tell = Callable[[str], object]
Timed = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CellError:
    """What stopped a notebook."""

    cell: int
    """Number of the cell, from 1, markdown cells counted, as in the executed copy."""
    source: str
    """The cell's source."""
    name: str
    """The exception's class, or "KernelDied", "Timeout"."""
    message: str
    """The exception's text."""
    traceback: str
    """The traceback as the kernel printed it, without colours."""

    def __str__(self) -> str:
        code = "\n".join(f"    {line}" for line in self.source.splitlines())
        return f"cell {self.cell} failed: {self.name}: {self.message}\n\n{code}\n\n{self.traceback}".rstrip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the execution of a notebook ended."""

    notebook: Path
    """The executed copy."""
    cells: int
    """Number of code cells that were executed, the failing one included."""
    seconds: float
    """Wall time, the kernel's start included."""
    error: CellError | None
    """What stopped it; None when every cell ran."""

    @property
    def ok(self) -> bool:
        """Whether every cell ran."""
        return self.error is None


class ThisInterpreter(KernelSpecManager):
    """Answers every kernel name with IPython in this very interpreter."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # The working directory comes last in the search path, so that a folder named toolkit there shadows nothing.
        last = """--IPKernelApp.exec_lines=["import sys; sys.path.append('')"]"""
        argv = [sys.executable, "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}", last]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class Execution(NotebookClient):
    """nbclient that saves after each cell and tells what it is doing."""

    def __init__(
        self, notebook: NotebookNode, *, out: Path, tell: Tell, timed: Timed, cell_seconds: float | None, sockets: str
    ):
        super().__init__(notebook, timeout=cell_seconds, startup_timeout=STARTUP_SECONDS, record_timing=False)
        self.out, self.tell, self.timed, self.sockets = out, tell, timed, sockets
        self.done, self.number = 0, 0
        self.current: NotebookNode | None = None

    def create_kernel_manager(self) -> AsyncKernelManager:
        self.km = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=ThisInterpreter(),
            connection_file=f"{self.sockets}/kernel.json",  # a folder of this user alone, instead of open TCP ports
            transport="ipc" if os.name == "posix" else "tcp",
        )
        return self.km

    async def async_execute_cell(self, cell: NotebookNode, cell_index: int, **options: Any) -> NotebookNode:
        self.current, self.number = cell, cell_index + 1
        if cell.cell_type != "code" or not cell.source.strip():
            return cell
        started = time.monotonic()
        self.tell(f"{self._place()} {_title(cell.source)}")
        self.done += 1
        try:
            return await super().async_execute_cell(cell, cell_index, **options)
        finally:
            self.set_widgets_metadata()
            save(self.nb, self.out)
            seconds = time.monotonic() - started
            self.timed(self.number, len(self.nb.cells), seconds)
            self.tell(f"{self._place()} {seconds:.1f} s")

    def output(self, outs: list[NotebookNode], msg: dict, display_id: str | None, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            for line in plain(msg["content"]["text"]).splitlines():
                self.tell(f"    {line.rsplit(chr(13), 1)[-1]}")
        return super().output(outs, msg, display_id, cell_index)

    def _place(self) -> str:
        return f"[cell {self.number} of {len(self.nb.cells)}]"


def execute(
    notebook: str | Path,
    out: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    echo: Tell = print,
    timed: Timed = lambda cell, cells, seconds: None,
    cwd: str | Path | None = None,
    cell_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Execute `notebook` and write the executed copy to `out` (another file, or the same one).

    `parameters` replace those of the cell tagged `parameters`: an unknown name or another type raises before anything
    runs. A failing cell raises nothing: the outcome holds it, and `out` everything up to it. `echo` gets a line when a
    cell begins and ends and each line that it prints; `timed` gets (cell, number of cells, seconds) after each. `cwd`
    is the kernel's folder, by default the notebook's own, as in JupyterLab. `cell_seconds` limits each cell.
    `environment` holds the kernel's variables, by default those of this process.

        outcome = execute("notebooks/00-start-here.ipynb", "runs/executed.ipynb", parameters={"fast": True})
        print(outcome.error or f"{outcome.cells} cells in {outcome.seconds:.0f} s")
    """
    notebook, out = Path(notebook), Path(out)
    node = load(notebook)
    inject(node, check_parameters(read_parameters(node), parameters or {}))
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    node.metadata.pop("widgets", None)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(node, out)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scalebook-") as sockets:
        client = Execution(node, out=out, tell=echo, timed=timed, cell_seconds=cell_seconds, sockets=sockets)
        variables = os.environ if environment is None else environment
        error = _in_own_loop(_run(client, Path(cwd or notebook.resolve().parent), variables))
    save(node, out)
    return Outcome(notebook=out, cells=client.done, seconds=time.monotonic() - started, error=error)


def _in_own_loop(execution: Coroutine[Any, Any, CellError | None]) -> CellError | None:
    """What `execution` returns; in a thread of its own where this one runs a loop already, as a notebook's cell does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(execution)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, execution).result()


async def _run(client: Execution, cwd: Path, variables: Mapping[str, str]) -> CellError | None:
    variables = {name: value for name, value in variables.items() if name not in OF_A_WORKER}
    try:
        await client.async_execute(cwd=str(cwd), env=variables)
    except CellExecutionError as failure:
        outputs = client.current.outputs if client.current else []
        frames = [line for output in outputs if output.output_type == "error" for line in output.traceback]
        return _error(client, failure.ename, failure.evalue, "\n".join(frames))
    except DeadKernelError:
        return _error(client, "KernelDied", "the kernel ended by itself: out of memory, a crash, or an interrupt", "")
    except CellTimeoutError:
        return _error(client, "Timeout", f"the cell took more than {client.timeout} s", "")
    return None


def _error(client: Execution, name: str, message: str, traceback: str) -> CellError:
    source = client.current.source if client.current else ""
    return CellError(cell=client.number, source=source, name=name, message=plain(message), traceback=plain(traceback))


def load(path: str | Path) -> NotebookNode:
    """The notebook in a file, in the newest format; ValueError names a file that is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, UnicodeDecodeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not a notebook: {error}") from error


def save(notebook: NotebookNode, path: str | Path) -> None:
    """Write a notebook so that a reader, or a crash, never meets half a file."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(nbformat.writes(notebook), encoding="utf-8")
    os.replace(aside, path)


def plain(text: str) -> str:
    """`text` without terminal colours.

    >>> plain("\\x1b[31mred\\x1b[0m")
    'red'
    """
    return ANSI.sub("", text)


def _title(source: str) -> str:
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    code = [line for line in lines if not line.startswith("#")] or lines
    return code[0] if len(code[0]) <= 80 else code[0][:77] + "..."


class NotebookFailed(RuntimeError):
    """A cell of a job's notebook raised; the message shows which one."""


def run_job(
    directory: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    echo: Tell = print,
    out: str | Path | None = None,
) -> int:
    """Run the bundle in `directory` as a run of its own, follow it line by line, and return the exit status.

    The run folder gets notebook.ipynb (the executed copy, also of a notebook that fails) and notebook.html; with `out`,
    both are copied there under the job's name. An interrupt stops the job and keeps what it has done.

        status = run_job("runs/tour/job", parameters={"fast": True})
    """
    from toolkit.launch import Local, launch
    from toolkit.launch.bundle import read_job
    from toolkit.runs import RunFailed

    job = read_job(directory)
    values = {name: each.default for name, each in job.parameters.items()}
    values |= check_parameters(job.parameters, parameters or {})
    run = launch(work, str(job.folder), values, on=Local(processes=1, devices="cpu"), durable=False)
    echo(f"Job {job.name} is run {run.id}")
    status, seen, told = 0, 0, False
    try:
        while True:
            over = not run.alive
            for event in run.events(seen):
                seen = event["seq"]
                if event["kind"] == "text":
                    echo(event["data"]["text"])
                    told |= event["data"].get("error", False)
            if over:
                break
            time.sleep(0.2)
        run.wait()
    except RunFailed as failure:
        echo(f"Run {run.id} failed" if told else str(failure))
        status = 1
    except KeyboardInterrupt:
        run.stop(save=False)
        echo(f"Interrupted: run {run.id} was told to stop")
        status = 130
    for suffix in (".ipynb", ".html"):
        made = run.folder / f"notebook{suffix}"
        if made.is_file() and out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
            made = Path(shutil.copyfile(made, Path(out) / f"{job.name}{suffix}"))
        if made.is_file():
            echo(f"{made}")
    return status


def work(folder: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """What the one worker of a job does: execute the bundle's notebook into the run folder, telling every step."""
    from toolkit.launch.page import write_page
    from toolkit.runs import current

    context = current()
    assert context is not None, "work() is called by a worker of a run"
    events = context.events

    def timed(cell: int, cells: int, seconds: float) -> None:
        events.write("state", {"state": "running", "controls": False, "total_steps": cells}, step=cell)
        events.write("metrics", {"cell_seconds": seconds}, step=cell)

    executed = context.folder / "notebook.ipynb"
    outcome = execute(
        Path(folder) / "notebook.ipynb",
        executed,
        parameters=parameters,
        echo=lambda line: events.write("text", {"text": shortened(line)}),
        timed=timed,
        environment=launcher_environment(os.environ),
    )
    error = shortened(str(outcome.error)) if outcome.error else None
    if error:
        events.write("text", {"text": error, "error": True})
    write_page(executed, executed.with_suffix(".html"))
    if error:
        raise NotebookFailed(error)
    return {"cells": outcome.cells, "seconds": outcome.seconds}


def launcher_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A worker's variables, with the GPUs of the process that launched its run: a job holds none, its notebook may."""
    found = {name: value for name, value in environment.items() if name not in (VISIBLE, LAUNCHER_VISIBLE)}
    return found | ({VISIBLE: environment[LAUNCHER_VISIBLE]} if LAUNCHER_VISIBLE in environment else {})


def shortened(text: str, most: int = 4000) -> str:
    """`text`, or its beginning and its end where it has more than `most` characters: an event is one line of a file.

    >>> shortened("abcdefgh", 4)
    'ab [4 characters left out] gh'
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def forget_place(executed: Path, notebook: Path) -> None:
    """Take this machine's folders out of what is stored: a traceback then names files from the project's root on."""
    root = next((str(one) for one in notebook.resolve().parents if (one / "pyproject.toml").exists()), None)
    text = executed.read_text(encoding="utf-8")
    for place, short in ((root, ""), (str(Path.home()), "~/")):
        if place is not None and len(place) > 1:
            text = re.sub(rf"(?<![\w./-]){re.escape(place)}/", short, text)
    executed.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute notebooks with their own parameters; rewrite the outputs of those that run to the end."""
    parser = argparse.ArgumentParser(prog="python -m toolkit.launch.notebook", description=main.__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="notebooks, or folders of notebooks")
    failed = 0
    for path in parser.parse_args(arguments).paths:
        for notebook in sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]:
            if ".ipynb_checkpoints" in notebook.parts:
                continue
            print(f"== {notebook}", flush=True)
            aside = notebook.with_name(f".executing-{notebook.name}")
            outcome = execute(notebook, aside, echo=lambda line: print(line, flush=True))
            if outcome.ok:
                forget_place(aside, notebook)
                os.replace(aside, notebook)
            else:
                failed += 1
                print(f"{outcome.error}\nThe stored notebook is unchanged; what ran is in {aside}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
