"""What a person reads when a run has failed."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.runs.files import open_plain
from toolkit.runs.state import GONE, State


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file; nothing when there is no file. Reads at most 256 KiB."""
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (1 << 18)))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def explain(folder: Path, state: State) -> str:
    """Several lines: what failed first, the likely cause, the remedy, the traceback, the last lines of every rank."""
    if state.name == "lost" and not folder.is_dir():
        return f"run {folder.name} was lost: {GONE}.\nRemedy: launch it again; {folder} was removed or moved while it went on."
    if state.name == "lost":
        logs = [("the supervisor", folder / "supervisor.log")]
        logs += [(f"rank {path.stem.removeprefix('rank-')}", path) for path in sorted(folder.glob("rank-*.log"))]
        last = [f"---- last lines of {who}\n{text}" for who, path in logs if (text := tail(path, 10).strip())]
        said = (
            f"run {folder.name} was lost at attempt {state.attempt}: its supervisor died, and the workers with it "
            "(killed, or the machine went down).\nRemedy: restart() goes on from the newest checkpoint."
        )
        return "\n".join([said, *last])
    report = state.report or {}
    if not report:
        return f"run {folder.name} failed: {state.message}"
    what = report.get("signal") or report.get("error") or f"exit code {report.get('exit')}"
    parts = [f"run {folder.name} failed: rank {report['rank']} {what}"]
    parts += [f"{title}: {report[key]}" for title, key in (("Likely", "likely"), ("Remedy", "remedy")) if report.get(key)]
    traceback = (report.get("traceback") or "").rstrip()
    parts += [traceback] if traceback else []
    parts += [f"---- where rank {rank} was\n{stack}" for rank, stack in (report.get("stacks") or {}).items() if stack]
    for rank, lines in (report.get("tails") or {}).items():
        said = lines.rstrip().removesuffix(traceback).rstrip() if traceback else lines.rstrip()
        parts += [f"---- last lines of rank {rank}\n{said}"] if said else []
    return "\n".join(parts)
