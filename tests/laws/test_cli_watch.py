"""Charts in text, and `runs watch` on a real terminal: it draws, takes keys, follows its size, and ends by itself."""

import fcntl
import json
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.command_line import living, write_run
from toolkit.cli.chart import braille, letters
from toolkit.cli.watch import press
from toolkit.runs import EventWriter, Run

NUMBERS = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=20)


@given(values=NUMBERS, width=st.integers(20, 60), height=st.integers(3, 9))
def test_a_chart_has_its_size_whatever_it_shows(values: list[float], width: int, height: int) -> None:
    curve = (list(range(len(values))), values)
    for lines in (braille(curve, width=width, height=height), letters({"A": curve, "B": curve}, width=width, height=height)):
        assert len(lines) == height
        assert {len(line) for line in lines} <= set(range(width + 1))
    finite = [value for value in values if math.isfinite(value)]
    drawn = any("⠁" <= letter <= "⣿" for line in braille(curve, width=width, height=height) for letter in line)
    assert drawn == bool(finite)


def test_a_falling_curve_falls() -> None:
    lines = braille(([1, 2, 3], [3.0, 2.0, 1.0]), width=14, height=3)
    assert lines == ["        3 ⠑⢄  ", "        1   ⠑⢄", "          1  3"]
    both = letters({"A": ([1, 2], [1.0, 1.0]), "B": ([1, 2], [1.0, 3.0])}, width=20, height=4)
    assert both[0].endswith("B")
    assert both[2].rstrip().endswith("A")
    assert both[2][10] == "*"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, size: tuple[int, int], **variables: str) -> None:
        self.main, side = pty.openpty()
        self.resize(*size)
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        environment |= {"TERM": "xterm-256color", **variables}
        command = [sys.executable, "-P", "-m", "toolkit", *arguments]
        self.process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True)
        os.close(side)
        self.text = ""

    def resize(self, lines: int, columns: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, wanted: str, seconds: float = 20.0) -> str:
        """Read until `wanted` was written; what was written since the last call."""
        deadline = time.monotonic() + seconds
        while re.search(wanted, self.text) is None:
            assert time.monotonic() < deadline, f"{wanted!r} did not come: {self.text[-2000:]!r}"
            if select.select([self.main], [], [], 0.1)[0]:
                self.text += os.read(self.main, 1 << 16).decode(errors="replace")
        found, self.text = self.text, ""
        return found

    def press(self, key: str) -> None:
        """Type a key."""
        os.write(self.main, key.encode())

    def end(self) -> tuple[int, str]:
        """Exit status and the rest of what was written."""
        while True:
            try:
                data = os.read(self.main, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            self.text += data.decode(errors="replace")
        os.close(self.main)
        return self.process.wait(10), self.text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of 30 steps that says a hostile text."""
    made = write_run(tmp_path, "seen", losses=tuple(3 / step for step in range(1, 31)))
    writer = EventWriter(made, 0, 1)
    writer.write("text", {"text": "told \x1b]0;owned\x07[red]you"}, step=30)
    writer.close()
    return made


def test_watching_draws_steers_follows_the_size_and_goes_on(folder: Path) -> None:
    with living(folder):
        terminal = Terminal("runs", "watch", "seen", "--root", str(folder.parents[1]), size=(30, 90))
        try:
            shown = terminal.until(r"q quit")
            assert "loss 0.1" in shown
            assert re.search("[⠁-⣿]{3}", shown)
            assert "\x1b[36m" in shown, "the curve has a colour"
            assert "\x1b]0;owned" not in shown
            assert "told \\x1b]0;owned\\x07[red]you" in shown
            terminal.press("p")
            terminal.until(r"told it \(command 1\): pause, after the next step")
            terminal.resize(20, 50)
            terminal.until(r"q quit")
            narrow = terminal.until(r"q quit").rpartition("\x1b[H")[2]
            lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", narrow).splitlines()
            assert max(map(len, lines)) <= 50
            assert len(lines) <= 20
            terminal.press("q")
            status, left = terminal.end()
        finally:
            terminal.process.kill()
            terminal.process.wait()
    assert status == 0
    assert "Run seen goes on" in left
    assert "\x1b[?1049l" in left, "the screen that was there before is back"
    sent = [json.loads(line) for line in (folder / "control.jsonl").read_text().splitlines()]
    assert [command["command"] for command in sent] == ["pause"]


def test_the_end_of_a_run_ends_the_watching_and_no_color_is_respected(folder: Path) -> None:
    terminal = Terminal("runs", "watch", "seen", "--root", str(folder.parents[1]), size=(30, 90), NO_COLOR="1")
    status, shown = terminal.end()
    assert status == 0
    after = shown.rpartition("\x1b[?1049l")[2]
    assert "loss 0.1" in after, "the last picture stays"
    assert "Run seen finished" in after
    assert not re.search(r"\x1b\[(?:\d+;)*3\d(?:;\d+)*m", shown)


def test_keys_that_a_run_cannot_obey_say_why(folder: Path) -> None:
    run = Run(folder)
    assert press(run, "x") == ""
    assert press(run, "p") == "run seen is finished: it obeys no command any more"
    with living(folder, state="stopping"):
        assert "it is stopping already" in press(run, "s")
    assert not (folder / "control.jsonl").exists()
