"""The front: how long a person or a step waits for the toolkit itself."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import count, pairwise
from pathlib import Path
from statistics import median

from benchmarks.results import Row

REPEATS = 7
STEPS = 100_000
WATCHED_SECONDS = 10
OPEN = """
from widgets import RunMonitor
RunMonitor({folder!r})
"""
SHOWN = """last => {
    const charts = [...document.querySelectorAll(".sb-monitor .sb-chart-canvas")];
    const ends = charts.map(one => Number(/steps [0-9]+ to ([0-9]+)/.exec(one.getAttribute("aria-label") ?? "")?.[1] ?? 0));
    return charts.length >= 9 && ends.every(end => end >= last);
}"""
"""Whether every chart is drawn up to a step."""
REDRAWS = """async seconds => {
    const times = [];
    const canvas = document.querySelector(".sb-monitor .sb-chart-canvas");
    const watcher = new MutationObserver(() => times.push(performance.now() / 1000));
    watcher.observe(canvas, { attributes: true, attributeFilter: ["aria-label"] });
    await new Promise(done => setTimeout(done, 1000 * seconds));
    watcher.disconnect();
    return times;
}"""
"""When the first chart was drawn with new steps, in seconds."""


def rows() -> Iterable[Row]:
    """Starting the command line, recording one step, opening a long run's monitor and watching it move."""
    yield start()
    yield recorder()
    yield from monitor()


def start() -> Row:
    """Wall time of `python -m toolkit --help` beside that of the bare interpreter."""
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(REPEATS):
        for name, code in (("ours", ["-m", "toolkit", "--help"]), ("bare", ["-c", "pass"])):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-P", *code], check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    ours = times["ours"]
    return Row(
        what="help: python -m toolkit --help (peer null: not measured in this process)",
        ours=median(ours),
        peer=None,
        limit=median(times["bare"]),
        target=0.4,
        spread=max(ours) - min(ours),
        unit="s",
    )


def recorder() -> Row:
    """Wall time of writing the ten metrics of one step as an event, beside one bare write of the same bytes."""
    from toolkit.runs import EventWriter

    data = {f"metric_{number}": number / 3 for number in range(10)}
    line = b"x" * 400 + b"\n"
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = EventWriter(Path(folder), 0, 1)
        with open(Path(folder) / "bare", "wb", buffering=0) as file:
            for step in range(2000):
                began = time.perf_counter()
                writer.write("metrics", data, step=step)
                between = time.perf_counter()
                file.write(line)
                ours.append(1e6 * (between - began))
                bare.append(1e6 * (time.perf_counter() - between))
        writer.close()
    ours, bare = sorted(ours[100:]), bare[100:]
    return Row(
        what="recorder: one step's ten metrics (peer null: not measured in this process)",
        ours=median(ours),
        peer=None,
        limit=median(bare),
        target=60.0,
        spread=ours[int(0.95 * len(ours))] - ours[0],
        unit="us",
    )


def write(steps: int) -> None:
    """Work of a run that has made `steps` steps of ten metrics at once, and goes on with fifty a second until it is ended."""
    from tests.browser.toy import write_step
    from toolkit.runs import current

    context = current()
    assert context is not None
    for step in count(1):
        write_step(context.events, step, steps, more=3)
        if step > steps:
            time.sleep(0.02)


def monitor() -> Iterable[Row]:
    """A monitor in JupyterLab and Chromium: from running the cell to drawn charts, and between two redraws."""
    from playwright.sync_api import sync_playwright

    from tests.browser.server import ROOT, serving, started
    from toolkit.launch import launch
    from toolkit.runs import read_series

    with tempfile.TemporaryDirectory() as home, sync_playwright() as play:
        chrome = started(play)
        with serving(chrome, Path(home), ROOT / "tests" / "artifacts") as lab:
            run = launch(write, STEPS, root=lab.work)
            try:
                while (run.state.step or 0) < STEPS or not len(read_series(run.folder, "loss", max_points=4)[0]):
                    time.sleep(0.2)
                book = lab.open("from widgets import RunMonitor", OPEN.format(folder=str(run.folder)))
                book.execute("from widgets import RunMonitor")
                opened = []
                for _ in range(3):
                    book.command("notebook:clear-all-cell-outputs")
                    began = time.perf_counter()
                    book.run_cell(1)
                    book.page.wait_for_function(SHOWN, arg=STEPS, polling=20)
                    opened.append(time.perf_counter() - began)
                book.page.wait_for_timeout(1000)
                times = book.settle(REDRAWS, WATCHED_SECONDS)
                book.close()
            finally:
                run.kill()
    between = sorted(later - earlier for earlier, later in pairwise(times))
    yield Row(
        what=f"monitor_open: {STEPS} steps x 10 metrics, cell to drawn charts in JupyterLab (peer, limit null: not measured)",
        ours=median(opened),
        peer=None,
        limit=None,
        target=2.0,
        spread=max(opened) - min(opened),
        unit="s",
    )
    yield Row(
        what="monitor_draw: between two redraws of the same run as it goes on (peer, limit null: not measured)",
        ours=median(between),
        peer=None,
        limit=None,
        target=0.2,
        spread=between[-1] - between[0],
        unit="s",
    )
