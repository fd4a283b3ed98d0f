"""The time budget of each folder under tests/: measured, printed as a table, and a failure when it is exceeded.

A budget is for two cores of a known pace, left alone. A slower or busier machine gets as much more as it takes longer for
a fixed piece of work, which is done before each folder.
"""

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

MINUTES = {"laws": 4, "parity": 4, "distributed": 6, "faults": 8, "browser": 5, "clusters": 6, "notebooks": 14}
TOGETHER = {"parity": "laws"}  # these two share one budget
TESTS = Path(__file__).resolve().parents[1]
PACE_SECONDS = 0.22
"""What `pace` takes on the machine that the budgets were set on."""


def pace() -> float:
    """Seconds of wall time for a fixed piece of work in this interpreter."""
    started = time.perf_counter()
    total = 0
    for number in range(4_000_000):
        total += number * number % 7
    return time.perf_counter() - started


def folder_of(path: Path) -> str:
    """The folder under tests/ that a test's time is counted for.

    >>> folder_of(TESTS / "laws" / "test_values.py")
    'laws'
    """
    folder = path.resolve().relative_to(TESTS).parts[0]
    if folder not in MINUTES:
        raise pytest.UsageError(f"{path}: tests/{folder} has no time budget; the folders are {', '.join(MINUTES)}")
    return folder


class Budgets:
    """Adds up the wall time of the tests, fixtures included, by folder."""

    def __init__(self, soak: bool = False) -> None:
        self.soak = soak
        """Whether the long fault tests run, which no budget is for."""
        self.seconds: Counter[str] = Counter()
        self.tests: Counter[str] = Counter()
        self.paces: list[float] = []

    @property
    def slowness(self) -> float:
        """How much longer things take here and now than where the budgets were set; at least 1."""
        return max(1.0, statistics.median(self.paces) / PACE_SECONDS) if self.paces else 1.0

    def exceeded(self) -> list[str]:
        """One line for each budget that was not kept."""
        if self.soak:
            return []
        spent: Counter[str] = Counter()
        for folder, seconds in self.seconds.items():
            spent[TOGETHER.get(folder, folder)] += seconds
        return [
            f"tests/{folder} took {seconds:.0f} s: more than its {MINUTES[folder]} minutes"
            + (f" x {self.slowness:.2f}, as this machine is slower" if self.slowness > 1 else "")
            for folder, seconds in spent.items()
            if seconds > 60 * MINUTES[folder] * self.slowness
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = list(MINUTES)
        items.sort(key=lambda item: order.index(folder_of(item.path)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        folder = folder_of(item.path)
        if not self.tests[folder]:
            self.paces.append(pace())
        started = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[folder] += time.perf_counter() - started
            self.tests[folder] += 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and self.exceeded():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.tests:
            return
        terminalreporter.section("time by folder")
        terminalreporter.write_line(f"this machine takes {self.slowness:.2f} x the time that the budgets are for")
        for folder, minutes in MINUTES.items():
            if self.tests[folder]:
                budget = f"with {TOGETHER[folder]}" if folder in TOGETHER else f"of {minutes} min"
                budget = "" if self.soak else budget
                line = f"{folder:<12} {self.tests[folder]:>5} tests {self.seconds[folder]:>7.1f} s {budget}"
                terminalreporter.write_line(line)
        for line in self.exceeded():
            terminalreporter.write_line(f"OVER BUDGET: {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Budgets(config.getoption("--soak")), "scalebook-budgets")
