"""A JupyterLab server and Chromium, isolated from the user's own: for tests and for benchmarks of what runs in the page."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Playwright

from tests.browser.laws import Lab
from tests.harness.groups import chromium

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
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


def started(play: Playwright) -> Browser:
    """Chromium with a profile of its own that asks nobody anything."""
    return play.chromium.launch(executable_path=chromium(), args=list(FLAGS), ignore_default_args=["--headless"])


@contextmanager
def serving(browser: Browser, home: Path, artifacts: Path) -> Iterator[Lab]:
    """A JupyterLab server on a free port of 127.0.0.1, its folders in `home`, its kernels those of this environment."""
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
