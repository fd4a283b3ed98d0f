"""What a monitor says about a run, as JSON and as text: pure functions of its state and of what was read so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np

from toolkit.runs import State
from widgets.follow import Follower
from widgets.view import GAP, compact, harmless, quantity

__all__ = ["COLUMNS", "chart_groups", "compared", "details", "rows", "sent_commands", "status", "summary"]

KNOWN = (
    ("Loss", "", ("loss", "train"), ("eval_loss", "held out")),
    ("Learning rate", "", ("lr", "")),
    ("Speed", "tokens/s", ("tokens_per_second", "")),
    ("Gradient norm", "", ("grad_norm", "")),
    ("Memory", "bytes", ("memory_bytes", "")),
    ("Step time", "s", ("step_seconds", "")),
)
"""Title, unit and (metric, label in the chart) of what every training writes; other metrics get a chart each."""
UNCHARTED = {"tokens"}
PART = "eval_loss/"
"""How the names of the held-out losses of a mixture's parts begin."""
MOST_CHARTS = 24
MOST_RANKS = 8
MOST_SAMPLES = 8
MOST_COMMANDS = 50
MOST_SAMPLE_STEPS = 500
UNCONTROLLED = {"stop", "kill", "restart"}
"""What the supervisor does itself, whatever the work obeys."""
COMMANDS = {
    "queued": ("stop",),
    "starting": ("stop",),
    "running": ("pause", "checkpoint", "set", "stop"),
    "pausing": ("resume", "set", "stop"),
    "paused": ("resume", "checkpoint", "set", "stop"),
    "stopping": ("kill",),
    "stopped": ("restart",),
    "failed": ("restart",),
    "lost": ("restart",),
}
"""What can be asked of a run in each state."""
COLUMNS = ("Metric", "First", "Latest", "Lowest", "Highest")
"""Headings of `rows`."""
PAST = {"pause": "paused", "resume": "resumed", "checkpoint": "checkpoint", "stop": "stopped"}


def status(run_id: str, state: State, follower: Follower, now: float) -> dict[str, Any]:
    """State, step, times and the commands that fit; `now` in seconds since 1970."""
    pace = follower.seconds_per_step() if state.name == "running" else None
    total = _whole(state.total_steps)
    step = max(_whole(state.step) or 0, 0 if state.final else follower.step(state.attempt))
    progress = min(1.0, step / total) if total else None
    rest = None if pace is None or not total else max(0, total - step) * pace
    end = state.since if state.final else now
    known = all(isinstance(moment, (int, float)) and math.isfinite(moment) for moment in (state.started, end))
    allowed = [name for name in COMMANDS.get(state.name, ()) if name in UNCONTROLLED or state.controls]
    return {
        "id": harmless(run_id, 100),
        "state": state.name,
        "final": state.final,
        "step": step,
        "total": total,
        "progress": progress,
        "left": None if rest is None else round(rest),
        "elapsed": round(max(0.0, end - state.started)) if known and state.started else None,
        "attempt": state.attempt,
        "message": harmless(state.message, 300),
        "allowed": allowed,
        "summary": f"Run {state.name}{_tenths(progress)}",
    }


def _whole(number: object) -> int | None:
    """A count of steps as a file says it, None for what is none."""
    return number if isinstance(number, int) and 0 < number < 1 << 53 else None


def _tenths(progress: float | None) -> str:
    """Progress in words that change ten times a run, so that a screen reader is not flooded."""
    return "" if progress is None else f", {math.floor(progress * 10) * 10} % done"


def details(state: State, follower: Follower, logs: Callable[[int], str]) -> dict[str, Any]:
    """Samples, marks of commands and, of a failed or lost run, why; `logs(rank)` gives a rank's last lines."""
    steps = list(dict.fromkeys(sample["step"] for sample in follower.samples))
    return {
        "samples": follower.samples_at(steps[-1])[-MOST_SAMPLES:] if steps else [],
        "sample_steps": steps[-MOST_SAMPLE_STEPS:],
        "marks": [mark for mark in map(_mark, follower.commands) if mark],
        "failure": _failure(state, logs) if state.name in ("failed", "lost") else None,
    }


def no_details(headline: str) -> dict[str, Any]:
    """What `details` gives of a run whose folder cannot be told, with the reason in the place of a failure."""
    failure = {"headline": headline, "remedy": "", "traceback": "", "tails": []}
    return {"samples": [], "sample_steps": [], "marks": [], "failure": failure}


def sent_commands(sent: Iterable[Mapping[str, Any]], follower: Follower, own: Container[int]) -> list[dict[str, Any]]:
    """The commands to the present attempt, each with where it stands: waiting, in force since a step, or refused.

    `sent`: lines of control.jsonl; `own`: the numbers of those that this monitor sent.
    """
    answers = {one["n"]: one for one in follower.commands if isinstance(one.get("n"), int)}
    found = []
    for line in list(sent)[-MOST_COMMANDS:]:
        answer = answers.get(line["n"])
        error = None if answer is None else answer.get("error")
        what = line["command"]
        if what == "set":
            what = f"set {line.get('name')} to {line.get('value')}"
        elif what == "stop" and line.get("save") is False:
            what = "stop without a checkpoint"
        found.append(
            {
                "n": line["n"],
                "what": harmless(what, 120),
                "time": line.get("time") if isinstance(line.get("time"), (int, float)) else None,
                "here": line["n"] in own,
                "step": None if answer is None else answer.get("step"),
                "error": harmless(error, 200) if error else "",
            }
        )
    return found


def chart_groups(names: Iterable[str]) -> list[dict[str, Any]]:
    """One chart a metric group: {"title", "unit", "series": [{"name", "label", "sparse"}]}."""
    left = [name for name in names if name not in UNCHARTED]
    parts = [(name, harmless(name.removeprefix(PART), 40)) for name in sorted(left) if name.startswith(PART)]
    left = [name for name in left if not name.startswith(PART)]
    groups = []
    for title, unit, *members in KNOWN:
        found = [(name, label) for name, label in members if name in left]
        left = [name for name in left if name not in dict(found)]
        if found:
            groups.append(_group(title, unit, found if len(members) > 1 else [(found[0][0], "")]))
        if parts and title == "Loss":
            groups.append(_group("Held-out loss by part", "", parts))
    for name in sorted(left):
        if not (name.startswith("eval_") and name.removeprefix("eval_") in left):
            pair = [(name, "train"), (f"eval_{name}", "held out")]
            groups.append(_group(harmless(name, 60), "", pair if f"eval_{name}" in left else [(name, "")]))
    return groups[:MOST_CHARTS]


def _group(title: str, unit: str, members: list[tuple[str, str]]) -> dict[str, Any]:
    series = [{"name": name, "label": label, "sparse": name.startswith("eval_")} for name, label in members]
    return {"title": title, "unit": unit, "series": series}


def _mark(command: dict[str, Any]) -> dict[str, Any] | None:
    name, step = command.get("command"), command.get("step")
    if not isinstance(step, int) or not isinstance(name, str) or name == "call":
        return None
    label = PAST.get(name, name)
    if name == "set":
        value = command.get("value")
        label = f"{command.get('name')} = {compact(value) if isinstance(value, (int, float)) else value}"
    if command.get("error"):
        label = f"{name} refused: {command['error']}"
    return {"step": step, "label": harmless(label, 120)}


def _failure(state: State, logs: Callable[[int], str]) -> dict[str, Any]:
    report = state.report if isinstance(state.report, dict) else {}
    rank = report.get("rank")
    cause = (
        f"was killed by {report['signal']}"
        if report.get("signal")
        else str(report["error"])
        if report.get("error")
        else f"ended with exit code {report['exit']}"
        if report.get("exit") is not None
        else ""
    )
    headline = state.message or f"The run is {state.name}"
    if cause and rank is not None:
        headline = f"Rank {rank} {cause}" if cause.startswith(("was", "ended")) else f"Rank {rank}: {cause}"
    likely = f"; likely {report['likely']}" if report.get("likely") else ""
    tails = report.get("tails")
    tails = tails if isinstance(tails, dict) and tails else {"0": logs(0)}
    return {
        "headline": harmless(f"{headline}{likely}", 600),
        "remedy": harmless(report.get("remedy") or "", 600),
        "traceback": harmless(report.get("traceback") or "", 6000),
        "tails": [[str(of), harmless(text, 2000)] for of, text in list(tails.items())[:MOST_RANKS] if text],
    }


def rows(groups: list[dict[str, Any]], follower: Follower) -> list[list[str]]:
    """The table of the static twin: metric, first, latest, lowest and highest value of each charted series."""
    found = []
    for group in groups:
        for one in group["series"]:
            if one["name"] not in follower.series:
                continue
            values = np.frombuffer(follower.series[one["name"]][1])
            finite = values[np.isfinite(values)]
            title = f"{group['title']}, {one['label']}" if one["label"] else group["title"]
            if len(values):
                ends = (float(finite.min()), float(finite.max())) if len(finite) else (None, None)
                numbers = (float(values[0]), float(values[-1]), *ends)
                found.append([title, *(quantity(number, group["unit"]) for number in numbers)])
    return found


def compared(differences: Iterable[Mapping[str, Any]], tables: list[list[list[str]]]) -> list[list[str]]:
    """Rows over several runs: the fields in which they differ, then the latest and the lowest value of each of their `rows`."""
    titles = dict.fromkeys(row[0] for table in tables for row in table)
    by_title = [{row[0]: row for row in table} for table in tables]
    absent = ["", GAP, GAP, GAP, GAP]
    found = [[str(one["field"]), *one["values"]] for one in differences]
    for title in titles:
        for word, place in (("latest", 2), ("lowest", 3)):
            found.append([f"{title}, {word}", *(table.get(title, absent)[place] for table in by_title)])
    return found


def summary(state: State, groups: list[dict[str, Any]], follower: Follower) -> str:
    """The run in two or three sentences."""
    total = _whole(state.total_steps)
    parts = [f"Run {harmless(state.name, 20)}, step {_whole(state.step) or 0}{f' of {total}' if total else ''}."]
    parts += [
        f"{title}: {first} at first, {last} at the latest, lowest {low}."
        for title, first, last, low, _ in rows(groups[:1], follower)
    ]
    if state.name in ("failed", "lost"):
        parts.append(harmless(state.message, 200))
    return " ".join(filter(None, parts))
