"""A run as a person holds it: a folder, its state, its numbers, and the commands it obeys."""

from __future__ import annotations

import html
import importlib
import json
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.runs import control
from toolkit.runs.events import read_events
from toolkit.runs.fields import LAUNCHED, RESULT, checked, read_object
from toolkit.runs.files import check_own, read_json, read_owned, restore
from toolkit.runs.report import explain, tail
from toolkit.runs.roots import checked_name, known_roots, root_of
from toolkit.runs.series import metrics, read_series
from toolkit.runs.state import State, end_silent, read_state


class RunFailed(RuntimeError):
    """The run ended without a result; the message says which rank failed first, why, and what to do."""

    def __init__(self, run: Run, state: State) -> None:
        super().__init__(explain(run.folder, state))
        self.run, self.report = run, state.report


class RunInactive(RuntimeError):
    """A command to a run that is over, or that cannot obey it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a run came to."""

    state: str
    """"finished" or "stopped"."""
    metrics: Any
    """What the work of rank 0 returned."""
    checkpoint: Path | None
    """Newest checkpoint."""
    seconds: float
    """Duration of the last attempt."""


class Run:
    """One run. `Run.attach(id)` finds it again from any notebook or shell; `launch` makes a new one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        if not (self.folder / "launch.json").is_file():
            raise FileNotFoundError(f"{self.folder} is not the folder of a run: it has no launch.json")
        self.id = self.folder.name

    @classmethod
    def attach(cls, id_or_folder: str | Path, root: str | Path | None = None) -> Run:
        """The run with this id under `root` (default: this project, then every known root), or in this folder.

        `run = Run.attach("20260102-030405-amber")`
        """
        if os.sep in str(id_or_folder) or isinstance(id_or_folder, Path):
            return cls(Path(id_or_folder).expanduser())
        name = checked_name(id_or_folder)
        roots = [Path(root).resolve()] if root else [root_of(), *known_roots()]
        for place in roots:
            if (place / "runs" / name / "launch.json").is_file():
                return cls(place / "runs" / name)
        raise FileNotFoundError(f"no run {name!r} under {', '.join(dict.fromkeys(map(str, roots)))}; runs() lists what there is")

    # ---- looking -----------------------------------------------------------------------------------------------------

    @property
    def launched(self) -> dict[str, Any]:
        """How it was started: the content of launch.json. Raises ValueError where it is damaged."""
        return read_object(self.folder / "launch.json", LAUNCHED)

    @property
    def recipe(self) -> Any:
        """The recipe as a value where its class is known, else the function's name."""
        data, loads = read_object(self.folder / "recipe.json", {}), self.launched.get("loads")
        if loads is None:
            return data.get("function", data)
        from toolkit.values import load_root

        return load_root(data, ours(loads), control.resolver(self.folder))

    @property
    def state(self) -> State:
        """The state now, read from the folder."""
        return read_state(self.folder)

    @property
    def alive(self) -> bool:
        """Whether it may still change by itself."""
        return not self.state.final

    def metrics(self, name: str | None = None, *, max_points: int = 2000) -> dict[str, tuple[Any, Any]]:
        """Steps and values by metric, of `name` alone or of all. `steps, loss = run.metrics("loss")["loss"]`"""
        names = metrics(self.folder) if name is None else [name]
        return {each: read_series(self.folder, each, max_points=max_points) for each in names}

    def samples(self) -> list[dict[str, Any]]:
        """Texts that the model wrote on the way: `{"step", "prompt", "text", ...}`."""
        return [{"step": event["step"], **event["data"]} for event in read_events(self.folder, kinds=("sample",))]

    def events(self, since: int = 0, *, rank: int = 0, kinds: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """Events of one rank numbered above `since`."""
        return read_events(self.folder, rank=rank, since=since, kinds=kinds)

    def logs(self, rank: int | str = 0, lines: int = 50) -> str:
        """The last lines that a rank, or "supervisor", printed."""
        return tail(self.folder / ("supervisor.log" if rank == "supervisor" else f"rank-{int(rank)}.log"), lines)

    def checkpoints(self) -> list[tuple[int, Path, dict[str, Any]]]:
        """Step, folder and metrics of every whole checkpoint, by step."""
        found = []
        for path in (self.folder / "checkpoints").glob("step-*"):
            number = path.name.removeprefix("step-")
            if number.isdecimal() and (path / "manifest.json").is_file():
                state = read_object(path / "state.json", {"metrics": "an object or null"})
                found.append((int(number), path, restore(state.get("metrics") or {})))
        return sorted(found, key=lambda entry: entry[0])

    def load(self, step: int | str = "last") -> Any:
        """The model as it was at `step` (a number, "last" or "best"), adapters on, in this process."""
        loader = self.launched.get("loader")
        if loader is None:
            raise ValueError(f"run {self.id} has no model to load: it ran a function")
        return ours(loader)(self.folder, step)

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Result:
        """Block until the run is over. Interrupting stops the waiting, not the run.

        Raises RunFailed, and TimeoutError after `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not (state := self.state).final:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"run {self.id} is still {state} after {timeout} s")
            time.sleep(0.05)
        return self._result(state)

    def __await__(self) -> Generator[Any, None, Result]:
        return self._ended().__await__()

    async def until(self, state: str | None = None, *, step: int = 0) -> State:
        """Wait for a state, for a step, or for both, while the notebook stays responsive. `await run.until("paused")`

        Raises RunInactive when the run is over before that.
        """
        import asyncio

        while not ((now := self.state).name == (state or now.name) and (now.step or 0) >= step):
            if now.final:
                raise RunInactive(f"run {self.id} is {now} and never was {state or 'there'} at step {step} or later")
            await asyncio.sleep(0.05)
        return now

    async def _ended(self) -> Result:
        import asyncio

        while not (state := self.state).final:
            await asyncio.sleep(0.05)
        return self._result(state)

    def _result(self, state: State) -> Result:
        if state.name in ("failed", "lost"):
            raise RunFailed(self, state)
        found = read_object(self.folder / "result.json", RESULT)
        checkpoint = found.get("checkpoint")
        return Result(
            state=state.name,
            metrics=restore(found.get("metrics")),
            seconds=found.get("seconds", 0.0),
            checkpoint=self.folder / checkpoint if checkpoint else None,
        )

    # ---- steering ----------------------------------------------------------------------------------------------------

    def pause(self) -> int:
        """Hold after the next optimizer step; the command's number."""
        return self._steer("pause")

    def resume(self) -> int:
        """Go on after a pause; the command's number. (A run that is over goes on with `restart`.)"""
        return self._steer("resume")

    def checkpoint(self) -> int:
        """Save a checkpoint after the next optimizer step; the command's number."""
        return self._steer("checkpoint")

    def set(self, name: str, value: float) -> int:
        """Change a setting of the running training: lr, weight_decay, max_steps, log_every or checkpoint_every."""
        if name not in control.SETTINGS:
            raise ValueError(f"setting {name!r}: expected one of {', '.join(control.SETTINGS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"setting {name}: expected a number, got {value!r}")
        if value - value != 0:
            raise ValueError(f"setting {name}: expected a finite number, got {value!r}")
        return self._steer("set", name=name, value=value)

    def stop(self, save: bool = True) -> int:
        """End after the next optimizer step, with a checkpoint if `save`. A second stop ends it at once."""
        self._active()
        return control.send(self.folder, "stop", save=save)

    def kill(self) -> int:
        """End it at once; what was not in a checkpoint is lost. Also ends a run whose supervisor does not answer."""
        silent = self._active().silent is not None
        number = control.send(self.folder, "kill")
        if silent:
            end_silent(self.folder)
        return number

    def call(self, function: Callable[..., Any], *, timeout: float | None = None) -> list[Any]:
        """Run `function` on every rank between two steps and return what each returned (JSON), by rank."""
        from toolkit.runs.shipping import ship

        self._steerable("call")
        number = control.send(self.folder, "call", code=ship(self.folder, function, what=f"call({function!r})"))
        answers: list[dict[str, Any]] = []
        until = None if timeout is None else time.monotonic() + timeout
        while len(answers) < self.launched["processes"]:
            found = read_json(self.folder / "calls" / f"{number}-{len(answers)}.json")
            if found is not None:
                answers.append(found)
            elif not self.alive:
                raise RunInactive(f"run {self.id} is {self.state.name}: rank {len(answers)} did not answer the call")
            elif until is not None and time.monotonic() > until:
                raise TimeoutError(f"run {self.id}: rank {len(answers)} did not answer the call within {timeout} s")
            else:
                time.sleep(0.02)
        for rank, answer in enumerate(answers):
            if "error" in answer:
                raise RuntimeError(f"call on rank {rank}: {answer['error']}")
        return [restore(answer["result"]) for answer in answers]

    def acknowledgement(self, number: int) -> dict[str, Any] | None:
        """What rank 0 answered to command `number`: `{"n", "command", "applied": step, ...}`; None: not yet."""
        answers = (event["data"] for event in read_events(self.folder, kinds=("command",)))
        return next((data for data in answers if data.get("n") == number), None)

    def restart(self, step: int | None = None) -> Run:
        """Start again from the newest checkpoint, or from that of `step`, in the same folder, as the next attempt.

        Checkpoints after `step` are set aside. Raises PermissionError where another user owns or may write the folder.
        """
        check_own(self.folder)
        path = self.folder / "launch.json"
        launched = checked(json.loads(read_owned(path)), LAUNCHED, str(path))
        return ours(launched.get("restart", ""))(self, step)

    def _active(self) -> State:
        state = self.state
        if state.final:
            again = "" if state.name == "finished" or not self.folder.is_dir() else "; restart() starts it again"
            raise RunInactive(f"run {self.id} is {state.name}: it obeys no command any more{again}")
        if self.folder.stat().st_uid != os.geteuid():
            raise PermissionError(f"run {self.id} belongs to user {self.folder.stat().st_uid}: it can only be looked at")
        return state

    def _steerable(self, command: str) -> None:
        state = self._active()
        if state.controls is False or (state.controls is None and self.launched.get("entry") is None):
            raise RunInactive(
                f"run {self.id} is a plain function: it has no steps at which to obey {command!r}; stop() and "
                "kill() work. toolkit.training.Control gives a training of your own all commands"
            )

    def _steer(self, command: str, **arguments: Any) -> int:
        self._steerable(command)
        return control.send(self.folder, command, **arguments)

    # ---- showing -----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Run {self.id}: {self.state}"

    def _repr_html_(self) -> str:
        state = self.state
        rows = [
            f"<strong>{html.escape(self.id)}</strong> {html.escape(str(state))}",
            f"<small>{html.escape(str(self.folder))}</small>",
        ]
        if state.name in ("failed", "lost"):
            rows.append(f"<pre>{html.escape(explain(self.folder, state))}</pre>")
        return "<div>" + "<br>".join(rows) + "</div>"


def ours(name: str) -> Any:
    """What "module:name" names inside toolkit: a run folder cannot have anything else called."""
    module, _, attribute = name.partition(":")
    if not module.startswith("toolkit.") or not attribute.isidentifier():
        raise ValueError(f"{name!r}: expected toolkit.<module>:<name>")
    return getattr(importlib.import_module(module), attribute)
