"""What every test of Scalebook shares: an isolated home for state, few threads, the same examples each time."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ("tests.harness.budgets", "tests.harness.groups", "tests.harness.leftovers", "tests.harness.shapes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="long fault chains and new random examples each time")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background inherits it ignored
    state = Path(tempfile.mkdtemp(prefix="scalebook-tests-")).resolve()
    config.add_cleanup(lambda: shutil.rmtree(state, ignore_errors=True))
    os.environ["XDG_STATE_HOME"] = str(state)  # the cache of converted weights stays shared
    os.environ["OMP_NUM_THREADS"] = str(min(2, os.cpu_count() or 1))  # read when torch is first imported
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    soak = config.getoption("--soak")
    settings.register_profile("scalebook", deadline=None, derandomize=not soak, database=None)
    settings.load_profile("scalebook")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether this is `make soak`: longer, and at random moments."""
    return request.config.getoption("--soak")
