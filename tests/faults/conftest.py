"""The table of kills, and how many there are: few in a test, many in a soak."""

import time
from collections.abc import Callable

import pytest

from tests.faults.chain import HEAD, PHASES, SHORT, VICTIMS

TABLE: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`kills`: (victim, phase) pairs; in a soak a chain of 20 for each victim, every phase four times."""
    if "kills" in metafunc.fixturenames:
        soak = metafunc.config.getoption("--soak")
        chains = {victim: tuple((victim, phase) for phase in PHASES * 4) for victim in VICTIMS} if soak else SHORT
        metafunc.parametrize("kills", list(chains.values()), ids=[name.replace(" ", "") for name in chains])


@pytest.fixture
def tell(request: pytest.FixtureRequest, soak: bool) -> Callable[[str], None]:
    """Adds a line to the table at the end of the session; in a soak it is also shown at once."""
    lines = request.config.stash.setdefault(TABLE, [])
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def add(line: str) -> None:
        lines.append(line)
        if soak and capture is not None:
            with capture.global_and_fixture_disabled():
                print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(TABLE, [])
    if lines:
        terminalreporter.section("killed and resumed")
        terminalreporter.write_line(HEAD)
        for line in lines:
            terminalreporter.write_line(line)
