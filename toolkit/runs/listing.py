"""The list of runs."""

from __future__ import annotations

import html
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path

from toolkit.runs.fields import DAMAGED
from toolkit.runs.roots import known_roots, root_of
from toolkit.runs.run import Run
from toolkit.runs.state import start_time

_reminded = False
COLUMNS = ("run", "state", "step", "age", "memory", "what")


class RunList(list[Run]):
    """Runs, newest first; shown as a table."""

    def rows(self) -> list[tuple[str, ...]]:
        """One row of text a run, under `COLUMNS`."""
        return [row(run) for run in self]

    def __repr__(self) -> str:
        if not self:
            return "no runs"
        table = [COLUMNS, *self.rows()]
        widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in self.rows())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def runs(root: str | Path | None = None, all: bool = False) -> RunList:
    """The runs under `root` (default: this project), or under every root this user has used, newest first.

    `runs()[0].state`
    """
    first = Path(root).resolve() if root else root_of()
    roots = {first, *(known_roots() if all else [])}
    found: list[tuple[float, str, Run]] = []
    for path in (path for place in roots for path in (place / "runs").glob("[!.]*/launch.json")):
        with suppress(FileNotFoundError):  # It is being removed.
            found.append((path.stat().st_mtime, path.parent.name, Run(path.parent)))
    return RunList(run for *_, run in sorted(found, key=lambda entry: entry[:2], reverse=True))


def unattended() -> RunList:
    """Runs that go on, under any root, although the kernel or shell that launched them has ended."""
    return RunList(run for run in runs(all=True) if _unattended(run))


def _unattended(run: Run) -> bool:
    try:
        return run.alive and not _launcher_lives(run)
    except DAMAGED:  # `runs()` shows it, and says what is wrong with it.
        return False


def _launcher_lives(run: Run) -> bool:
    kernel = run.launched.get("kernel") or {}
    if kernel.get("host") != platform.node() or "pid" not in kernel:
        return False
    return start_time(kernel["pid"]) == kernel.get("start")


def row(run: Run) -> tuple[str, ...]:
    """Id, state, step, age, memory and work of one run, as text; a run whose files are damaged says so."""
    try:
        return _row(run)
    except DAMAGED as error:
        return (run.id, "damaged", "", "", "", " ".join(str(error).split()))


def _row(run: Run) -> tuple[str, ...]:
    state, launched = run.state, run.launched
    step = "" if state.step is None else f"{state.step}" + (f"/{state.total_steps}" if state.total_steps else "")
    return (
        run.id,
        state.name,
        step,
        age(time.time() - launched.get("time", time.time())),
        memory(state.processes) if not state.final else "",
        str(launched.get("title", "")),
    )


def remind() -> None:
    """In a kernel, and once: name the runs that go on although nobody looks at them. Never raises: a launch follows."""
    global _reminded
    if _reminded or "ipykernel" not in sys.modules:
        return
    _reminded = True
    with suppress(Exception):
        if found := unattended():
            print(f"These runs go on; Run.attach(id) opens one, .stop() ends it:\n{found!r}", file=sys.stderr)


def age(seconds: float) -> str:
    """A duration in its largest unit: 40 s, 12 min, 3 h, 5 d."""
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds // divisor))} {unit}"
    return f"{int(seconds // 86400)} d"


def memory(processes: tuple[int, ...]) -> str:
    """Resident memory of processes of this machine together, as text; empty where it cannot be told."""
    pages = 0
    for process in processes:
        try:
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    import resource

    return f"{pages * resource.getpagesize() / 2**20:.0f} MiB" if pages else ""
