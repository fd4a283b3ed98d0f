"""No test module leaves a process of a run behind.

Every process of a run carries `SCALEBOOK_RUN`, and every process that comes from these tests carries their own
`XDG_STATE_HOME`: together they tell our leftovers from the runs of anyone else on this machine.
"""

import os
import time
from collections.abc import Iterator

import psutil
import pytest

GRACE = 10.0  # seconds that a run may still take to end after the last test of a module
kept: set[str] = set()  # ids of runs that live as long as the session, such as the pool of workers


def processes_of_runs() -> dict[int, str]:
    """The living processes that runs of these tests own: process id -> run id."""
    home, found = os.environ["XDG_STATE_HOME"], {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
        except (psutil.Error, OSError):
            continue
        run = environment.get("SCALEBOOK_RUN")
        if run and run not in kept and environment.get("XDG_STATE_HOME") == home:
            found[process.pid] = run
    return found


@pytest.fixture(scope="module", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fail the module's last test when a process of a run outlives it, and end that process."""
    yield
    deadline = time.monotonic() + GRACE
    while (left := processes_of_runs()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
    assert not left, f"processes left behind (process id: run): {left}"
