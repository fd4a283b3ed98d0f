"""Keeps a run folder true while the run lives: lock, heartbeat, state, series. The supervisor's half that writes files."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.runs import pulse, reserve
from toolkit.runs.control import read_commands
from toolkit.runs.files import read_json, replace_json
from toolkit.runs.series import SeriesWriter, Tail, mark_complete, sizes
from toolkit.runs.state import FINAL, write_holder

SHOWN = ("running", "pausing", "paused", "stopping")
EXPECTED = {("pause", "running"): "pausing", ("resume", "pausing"): "running"}
EXPECTED |= {("stop", name): "stopping" for name in ("running", "pausing", "paused")}
"""What a training that obeys commands is about to do: by command and by what it does now."""
LATE = {("pausing", "running"), ("stopping", "running"), ("stopping", "pausing"), ("stopping", "paused")}
"""What is shown, and what the training said before it came to the command."""
RETURNED = "returned.json"


class Keeper:
    """Owns one run folder for one attempt. Only it writes `state.json`; `tick` is called a few times a second."""

    def __init__(self, folder: Path, lock: int, attempt: int, ranks: int) -> None:
        self.folder, self.attempt = folder, attempt
        self.stopping = False
        self._lock = lock
        self._tails = [Tail(folder, rank) for rank in range(ranks)]
        self._writers = [SeriesWriter(folder, rank) for rank in range(ranks)]
        self._written: dict[str, Any] = {}
        self._beat, self._unsaved, self._in_trouble = 0.0, False, False
        self._before = ""
        self._begun = time.monotonic()
        now = time.time()
        self.data: dict[str, Any] = {
            "name": "starting",
            "attempt": attempt,
            "step": None,
            "total_steps": None,
            "message": "",
            "report": None,
            "since": now,
            "started": now,
            "controls": None,
            "devices": [],
            "processes": [os.getpid()],
            "host": platform.node(),
        }
        write_holder(lock, attempt, keeper=True)
        (folder / "result.json").unlink(missing_ok=True)
        self._clear()
        reserve.set_aside(folder)
        self._touch()

    def show(self, name: str | None = None, **changes: Any) -> None:
        """Change the state, and have it on the disk before this returns; where that fails, `tick` tries again."""
        self._change(name, changes)
        try:
            self._save(sync=True)
        except FileNotFoundError:
            raise
        except OSError as error:
            self._trouble(error)

    def _change(self, name: str | None, changes: dict[str, Any]) -> None:
        if name is not None and name != self.data["name"]:
            changes |= {"name": name, "since": time.time()}
        self.data |= changes

    def expect(self, command: str) -> None:
        """Show at once what a command leads to; the training itself says so only after its step."""
        name = EXPECTED.get((command, self.data["name"]))
        if name is not None and self.data["controls"]:
            self.show(name)

    def tick(self) -> None:
        """Heartbeat, events, progress: what falls due every moment. A full disk is waited out."""
        try:
            self.follow()
            if time.monotonic() - self._beat >= 1.0:
                self._touch()
                if self._unsaved or self.data != self._written:
                    self._save(sync=False)
                if self._in_trouble and reserve.set_aside(self.folder):
                    self._in_trouble = False
                    self.show(message=self._before)
        except FileNotFoundError:
            raise
        except OSError as error:
            self._trouble(error)

    def _trouble(self, error: OSError) -> None:
        """The disk refuses: say so where that is still possible, and try again at the next moment."""
        self._unsaved = True
        if not self._in_trouble:
            self._in_trouble, self._before = True, self.data["message"]
            self.data["message"] = f"{error.strerror or error}: {error.filename or self.folder}; free space, or stop()"
            with suppress(OSError):
                self._save(sync=False)
        say(f"{time.strftime('%H:%M:%S')} {error}")

    def follow(self) -> bool:
        """Read new events into state and series; whether all were read."""
        done = True
        for rank, (tail, writer) in enumerate(zip(self._tails, self._writers)):
            events, all_read = tail.poll()
            for event in events:
                writer.add(event)
                if rank == 0 and event["attempt"] == self.attempt:
                    self._mirror(event)
            writer.flush(all_read)
            done = done and all_read
        return done

    def commands(self, after: int) -> list[dict[str, Any]]:
        """New commands; a control file that is not to be trusted is named in the state, and not read."""
        try:
            return read_commands(self.folder, after)
        except PermissionError as error:
            if self.data["message"] != str(error):
                self.show(message=str(error))
            return []

    def finish(self, name: str, *, message: str = "", report: dict[str, Any] | None = None) -> None:
        """Read the last events, write the result and the final state, and let go of the lock.

        "finished" becomes "stopped" where the work has said that it obeyed a stop.
        """
        assert name in FINAL
        reserve.give_up(self.folder)  # The end is what it was kept for.
        self._touch()
        found = sizes(self.folder)
        while not self.follow():
            pass
        mark_complete(self.folder, found)
        if name == "finished" and self.stopping:
            name = "stopped"
        returned = read_json(self.folder / RETURNED, {})
        replace_json(
            self.folder / "result.json",
            {
                "state": name,
                "metrics": returned.get("metrics"),
                "checkpoint": newest_checkpoint(self.folder),
                "seconds": round(time.monotonic() - self._begun, 3),
            },
        )
        self._change(name, {"message": message, "report": report})
        self._save(sync=True)
        self._clear()
        os.close(self._lock)

    def _mirror(self, event: dict[str, Any]) -> None:
        data, changes = event["data"], {}
        if event["kind"] == "state":
            if data.get("state") in SHOWN:
                if (self.data["name"], data["state"]) not in LATE:
                    changes["name"] = data["state"]
                self.stopping = self.stopping or data["state"] == "stopping"
            changes |= {
                key: data[key] for key, type_ in (("controls", bool), ("total_steps", int)) if type(data.get(key)) is type_
            }
        elif event["kind"] == "metrics" and self.data["name"] in ("starting", "queued"):
            changes["name"] = "running"
        if event["step"] is not None and event["kind"] in ("metrics", "state"):
            changes["step"] = event["step"]
        name = changes.pop("name", None)
        if name is not None and name != self.data["name"]:
            self.show(name, **changes)
        else:
            self.data |= changes

    def _clear(self) -> None:
        """Remove what the workers leave for the keeper; it stands in state.json and result.json."""
        for pattern in (RETURNED, "error-*.json", "meet-*.json", "stacks-*.txt"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _touch(self) -> None:
        self._beat = time.monotonic()
        pulse.beat(self.folder)

    def _save(self, *, sync: bool) -> None:
        reserve.written(self.folder, lambda: replace_json(self.folder / "state.json", self.data, sync=sync))
        self._written, self._unsaved = dict(self.data), False


def say(text: str) -> None:
    """Print a line into the supervisor's log, which may lie on a disk that is full."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint, relative to the run folder."""
    found = [path for path in (folder / "checkpoints").glob("step-*") if (path / "manifest.json").is_file()]
    numbered = [(int(path.name[5:]), path) for path in found if path.name[5:].isdecimal()]
    return str(max(numbered)[1].relative_to(folder)) if numbered else None
