"""The front: how long a person or a step waits for the toolkit itself."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.results import Row

REPEATS = 7


def rows() -> Iterable[Row]:
    """Starting the command line, and recording one step."""
    yield start()
    yield recorder()


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
