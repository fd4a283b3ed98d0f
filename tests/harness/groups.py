"""Groups of tests that need something of the machine: run where it is there, named with the remedy where it is not."""

import os
import shutil
from collections import Counter
from collections.abc import Callable

import pytest


def chromium() -> str | None:
    """The path of a Chromium or Chrome on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def ssh_server() -> str | None:
    """The path of sshd, which stands outside the search path of most users."""
    return shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


# marker: (what tells that it can run, what is missing, how to get it)
GROUPS: dict[str, tuple[Callable[[], object], str, str]] = {
    "gpu": (cuda, "no CUDA device", "run `make test` on a machine with an NVIDIA GPU"),
    "browser": (chromium, "no Chromium", "apt-get install chromium"),
    "cluster": (ssh_server, "no SSH server", "apt-get install openssh-server"),
}
MAY_BE_MISSING = {"gpu"}


class Groups:
    """Leaves out the tests of a group that cannot run here and says so in the last lines."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for group, (can_run, _, _) in GROUPS.items():
            members = [item for item in items if item.get_closest_marker(group)]
            if members and not can_run():
                self.left_out[group] = len(members)
                config.hook.pytest_deselected(items=members)
                items[:] = [item for item in items if item not in members]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        missing = set(self.left_out) - MAY_BE_MISSING
        if missing and session.config.getoption("--strict-groups"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        for group, count in self.left_out.items():
            _, missing, remedy = GROUPS[group]
            failed = config.getoption("--strict-groups") and group not in MAY_BE_MISSING
            word = "FAILED: not run" if failed else "Not run"
            terminalreporter.write_line(f"{word}: {count} {group} tests ({missing}). To run them: {remedy}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-groups", action="store_true", help="a group that cannot run (but gpu) is a failure")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Groups(), "scalebook-groups")
