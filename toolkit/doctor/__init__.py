"""What this machine can do for training, what keeps it from it, and how to get what is missing.

`for finding in examine(): print(finding.name, finding.found, finding.remedy)`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from toolkit.doctor.finding import Finding
from toolkit.doctor.machine import about_machine
from toolkit.doctor.places import about_places
from toolkit.doctor.software import about_software, about_tools
from toolkit.doctor.workers import about_workers

__all__ = ["Finding", "examine"]


def examine(
    root: str | Path | None = None, *, self_test: bool = True, tell: Callable[[str], object] = lambda what: None
) -> Iterator[Finding]:
    """Look at everything, a finding at a time; with `self_test` two real worker processes compute together at the end.

    `root`: the folder above `runs/` (default: this project). `tell` is called with what begins and takes long.
    `[finding.name for finding in examine(self_test=False) if finding.state == "problem"]`
    """
    yield from about_software()
    yield from about_machine()
    yield from about_places(root)
    yield from about_tools()
    if self_test:
        yield from about_workers(tell)
