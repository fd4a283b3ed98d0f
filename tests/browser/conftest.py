"""A real JupyterLab server and a real Chromium, once a session, isolated from the user's own."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.laws import Lab
from tests.browser.server import ROOT, serving, started

FROZEN_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and {"lab", "browser"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("browser")


@pytest.fixture(autouse=True)
def never_frozen() -> Iterator[None]:
    """A frozen page makes some calls of Playwright wait for ever: end Chromium then, so that the test fails and is named."""

    def end() -> None:
        for process in psutil.Process().children(recursive=True):
            if "chrom" in process.name():
                process.kill()

    timer = threading.Timer(FROZEN_SECONDS, end)
    timer.start()
    yield
    timer.cancel()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium with a profile of its own that asks nobody anything."""
    with sync_playwright() as play:
        chrome = started(play)
        yield chrome
        chrome.close()


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where pictures of what was tested are kept, to be looked at."""
    folder = ROOT / "tests" / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lab(browser: Browser, artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab server on a free port of 127.0.0.1, its folders temporary, its kernels those of this environment."""
    with serving(browser, tmp_path_factory.mktemp("lab"), artifacts) as found:
        yield found
