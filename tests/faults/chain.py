"""A training that is killed and resumed again and again: who is killed, when, what is shown, what is left."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.harness.leftovers import processes_of_runs
from toolkit.adapters import LoRA
from toolkit.data import Manual
from toolkit.launch import Local, launch
from toolkit.parallel import Plan
from toolkit.recipes import FineTune
from toolkit.runs import Run, State
from toolkit.runs.files import is_locked, read_json, replace_json
from toolkit.runs.roots import make_folder
from toolkit.training import Cosine

VICTIMS = ("worker", "rank 0", "supervisor", "kernel")
PHASES = ("starting", "step", "checkpoint", "pause", "stop")
SHORT = {
    "workers": (("rank 0", "starting"), ("worker", "step"), ("rank 0", "stop")),
    "keepers": (("supervisor", "checkpoint"), ("kernel", "pause"), ("supervisor", "step")),
}
"""What `make test` does: every victim and every phase, in two chains, so that none takes long on a slow machine."""
STEPS_A_KILL = 12
"""Optimizer steps that one attempt may make before it is killed; the steps of the chain are paced for that."""
SHOWN = 15.0
"""Seconds within which the state has to be true."""
PATIENCE = 180.0
HERE = Path(__file__).parents[2]


def recipe(kills: int, *, paced: bool) -> FineTune:
    """A tiny model in two processes, for a chain of `kills`; with `paced` no step takes less than a while."""
    return FineTune(
        model=f"tests.faults.models:{'paced' if paced else 'tiny'}", tokenizer="smollm2-135m", data=Manual(),
        adapters={"*_proj": LoRA(rank=2, dropout=0.1)}, plan=Plan(dp_shard=2), steps=STEPS_A_KILL * kills + 10,
        batch_tokens=128, context=32, eval_rows=4, eval_every=20, checkpoint_every=6, lr=1e-2, schedule=Cosine(warmup=0),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One row of the table."""

    victim: str
    phase: str
    before: State
    """What was shown when the signal was sent."""
    after: State
    """What was shown once it was true."""
    seconds: float
    """From the signal until then."""
    skipped: list[str]
    """Checkpoints that the next attempt passes over."""

    def row(self) -> str:
        """The line of the table."""
        what = self.after.report["signal"] if self.after.report else self.after.message.partition(";")[0]
        before = f"{self.before.name} at {'-' if self.before.step is None else self.before.step}"
        skipped = f"; skipped {', '.join(self.skipped)}" if self.skipped else ""
        return f"{self.victim:<11}{self.phase:<11}{before:<17}{self.after.name:<8}{self.seconds:>6.1f} s  {what}{skipped}"


HEAD = f"{'killed':<11}{'phase':<11}{'shown before':<17}{'then':<8}{'after':>8}  why"


def until(true: Callable[[], object], limit: float = PATIENCE, every: float = 0.01) -> None:
    """Wait until `true()`; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)


def begin(root: Path, name: str, kills: int, attempt: int) -> None:
    """Launch or resume the chain's run."""
    launch(recipe(kills, paced=True), on=Local(), name=name, resume=attempt > 1, durable=False, root=root)


def kernel(root: str, name: str, kills: str, attempt: str) -> None:
    """As a notebook's kernel: launch or resume the chain's run, and live until killed."""
    begin(Path(root), name, int(kills), int(attempt))
    print("launched", flush=True)
    time.sleep(3600)


class Chain:
    """One run, its kernel of the moment, and what was done to it."""

    def __init__(self, root: Path, name: str, kills: int, seed: int) -> None:
        self.root, self.name, self.kills = root, name, kills
        self.chance = random.Random(seed)
        self.attempt = 0
        self.kernel: subprocess.Popen[bytes] | None = None
        self.settings: list[dict[str, float | str]] = []
        """What was changed on the way, as the run stores it."""

    def start(self, *, dies: bool = False) -> None:
        """Begin the next attempt, from a kernel of its own where that one `dies`, else from this process."""
        self.attempt += 1
        if dies:
            code = "import sys; from tests.faults.chain import kernel; kernel(*sys.argv[1:])"
            command = [sys.executable, "-c", code, str(self.root), self.name, str(self.kills), str(self.attempt)]
            self.kernel = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE)
            assert self.kernel.stdout is not None and self.kernel.stdout.readline() == b"launched\n"
        else:
            begin(self.root, self.name, self.kills, self.attempt)
        self.run = Run.attach(self.name, self.root)

    def close(self) -> None:
        """End the kernel of this attempt, and the run where it goes on."""
        if self.attempt and self.run.alive:
            self.run.kill()
        if self.kernel is not None:
            self.kernel.kill()
            self.kernel.communicate()
            self.kernel = None

    def kill(self, victim: str, phase: str) -> Kill:
        """Start the next attempt, kill `victim` in `phase`, and hold what is shown and left against the truth."""
        self.start(dies=victim == "kernel")
        until(lambda: len(self.state().processes) == 3)
        self.reach(phase)
        before = self.state()
        supervisor, *workers = before.processes
        meeting = read_json(self.run.folder / f"meet-{self.attempt}.json", {})
        begun = time.monotonic()
        ours = self.kernel.pid if self.kernel is not None else 0
        target = {"worker": workers[1], "rank 0": workers[0], "supervisor": supervisor, "kernel": ours}[victim]
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            assert phase == "stop"  # It was faster.
        until(lambda: true_of(self.state(), victim), SHOWN)
        seconds = time.monotonic() - begun
        until(lambda: self.state().final)
        after = self.state()
        expected = {"supervisor": "lost", "kernel": "stopped"}.get(victim, "failed")
        assert after.name == expected or (phase == "stop" and after.name == "stopped"), after
        if after.name == "failed":
            assert after.report is not None
            assert (after.report["rank"], after.report["signal"]) == (int(victim == "worker"), "SIGKILL")
            assert set(after.report["tails"]) == {"0", "1"} and after.report["likely"] and after.report["remedy"]
        self.close()
        self.nothing_left(before.processes, meeting.get("port"))
        if phase == "pause" and not (self.root / "forgotten").exists():
            (self.root / "forgotten").touch()
            self.forget_since_setting()
        from toolkit.checkpoint import newest  # Here: the kernels that import this file need no torch.

        found, skipped = newest(self.run.folder / "checkpoints")
        assert found is None or (found / "manifest.json").exists()
        return Kill(
            victim=victim, phase=phase, before=before, after=after, seconds=seconds,
            skipped=[f"{path.name} ({why})" for path, why in skipped],
        )  # fmt: skip

    def state(self) -> State:
        """What is shown of the present attempt."""
        state = self.run.state
        assert state.attempt <= self.attempt
        return state if state.attempt == self.attempt else State(name="starting", attempt=self.attempt)

    def reach(self, phase: str) -> None:
        """Wait until the run is in `phase`, and a random moment more."""
        if phase == "starting":
            time.sleep(self.chance.uniform(0.0, 3.0))
            return

        def running() -> bool:
            state = self.state()
            assert not state.final, state
            return state.name == "running" and state.step is not None

        until(running)
        first = self.state().step or 0
        if phase == "checkpoint":
            folder = self.run.folder / "checkpoints"
            until(lambda: any(name.endswith(".partial") for name in os.listdir(folder)), every=0.0005)
        elif phase == "step":
            further = first + self.chance.randrange(1, 8)
            until(lambda: (self.state().step or 0) >= further)
            time.sleep(self.chance.uniform(0.0, 0.1))
        elif phase == "pause":
            if not self.settings:
                self.steer()
            self.run.pause()
            until(lambda: self.state().name in ("pausing", "paused"))
            time.sleep(self.chance.uniform(0.0, 0.5))
        elif phase == "stop":
            self.run.stop()
            until(lambda: self.state().name in ("stopping", "stopped"))
            time.sleep(self.chance.uniform(0.0, 0.05))

    def steer(self) -> None:
        """Pause, call, change a setting, save, go on: obeyed at one step, and told."""
        self.run.pause()
        until(lambda: self.state().name == "paused")
        held = self.state().step
        assert self.run.call(lambda module: module.global_step, timeout=PATIENCE) == [held, held]
        sent = self.run.set("lr", 0.05), self.run.checkpoint()
        until(lambda: self.run.acknowledgement(max(sent)))
        for number in sent:
            answer = self.run.acknowledgement(number)
            assert answer is not None and answer["applied"] == held and "error" not in answer
        assert (self.state().name, self.state().step) == ("paused", held)
        assert (self.run.folder / "checkpoints" / f"step-{held}" / "manifest.json").is_file()
        self.run.resume()
        until(lambda: (self.state().step or 0) > held + 1)
        self.settings = [{"step": held, "name": "lr", "value": 0.05}]

    def forget_since_setting(self) -> None:
        """As if no checkpoint since the setting had ever been: the next attempt begins before it, and makes it again."""
        for path in (self.run.folder / "checkpoints").glob("step-*"):
            if int(re.findall(r"\d+", path.name)[0]) >= self.settings[0]["step"]:
                path.rename(self.root / f"gone-{path.name}")

    def nothing_left(self, pids: tuple[int, ...], port: int | None) -> None:
        """No process, lock, port or shared memory."""
        until(lambda: self.name not in processes_of_runs().values(), SHOWN, every=0.2)
        until(lambda: not is_locked(self.run.folder / "lock"), SHOWN)  # A process that ends has no environment before no files.
        until(lambda: port is None or not answers(port), SHOWN)  # The kernel closes it after the process is gone.
        numbers = re.compile("|".join(rf"(?<!\d){pid}(?!\d)" for pid in pids))
        assert not [name for name in os.listdir("/dev/shm") if numbers.search(name)]

    def finish(self) -> Run:
        """The last attempt, which nobody disturbs."""
        self.start()
        assert self.run.wait(PATIENCE * 3).state == "finished"
        self.close()
        assert self.run.state.attempt == self.attempt
        return self.run


def undisturbed(one: Chain) -> Run:
    """The same training with the same changes of settings, never killed."""
    folder, _ = make_folder(one.root, "undisturbed")
    replace_json(folder / "settings.json", one.settings)
    run = launch(recipe(one.kills, paced=False), on=Local(), name="undisturbed", resume=True, root=one.root)
    assert run.wait(PATIENCE * 3).state == "finished"
    return run


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def true_of(state: State, victim: str) -> bool:
    """Whether what is shown is true after `victim` was killed; without a kernel the run may still be keeping its work."""
    return state.final or (victim == "kernel" and state.name == "stopping")


def columns(run: Run) -> str:
    """Every number that the run recorded, but for what a clock or the memory says."""
    names = ("loss", "eval_loss", "grad_norm", "lr")
    return json.dumps({name: [column.tolist() for column in run.metrics(name, max_points=10**6)[name]] for name in names})


def last_tensors(run: Run) -> list[bytes]:
    """The files of the last checkpoint's tensors."""
    from toolkit.checkpoint import newest

    path, _ = newest(run.folder / "checkpoints")
    assert path is not None
    return [file.read_bytes() for file in sorted(path.glob("*.safetensors"))]
