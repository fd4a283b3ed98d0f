"""A real JupyterLab server and a real Chromium, once a session, isolated from the user's own."""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.laws import Lab
from tests.harness.groups import chromium

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
FROZEN_SECONDS = 300
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


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
        chrome = play.chromium.launch(executable_path=chromium(), args=list(FLAGS), ignore_default_args=["--headless"])
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
    home = tmp_path_factory.mktemp("lab")
    work, runtime, schemas = home / "work", home / "runtime", home / "app" / "settings"
    for folder in (work, runtime, schemas):
        folder.mkdir(parents=True)
    (schemas / "overrides.json").write_text(json.dumps(SETTINGS))
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),  # the converted weights
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": 0,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": work,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabServerApp.app_settings_dir": schemas,
        "LabApp.app_settings_dir": schemas,
        "LabApp.expose_app_in_browser": True,
        "JupyterNotebookApp.expose_app_in_browser": True,
        "LabApp.news_url": "",
        "MappingKernelManager.shutdown_wait_time": 2,
    }
    command = [sys.executable, "-P", "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with open(home / "server.log", "wb") as log:
        server = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        port = _port(server, runtime, home / "server.log")
        yield Lab(browser=browser, address=f"http://127.0.0.1:{port}", token=token, work=work, artifacts=artifacts)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _port(server: subprocess.Popen[bytes], runtime: Path, log: Path) -> int:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            port = json.loads(path.read_text() or "{}").get("port")
            if port:
                return port
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
