"""What the launched runs of these tests do. Imports nothing heavy: every worker reads this file."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from toolkit.launch.code import resolver
from toolkit.runs import Context, current
from toolkit.runs.control import perform_call, read_commands
from toolkit.values import check, load_root


def add_up(steps: int) -> dict[str, Any]:
    """All-reduce once and write some metrics; what rank 0 sees of its surroundings."""
    import torch
    import torch.distributed as dist

    context = current()
    total = torch.full((2,), float(context.rank + 1))
    dist.all_reduce(total)
    dist.all_reduce(torch.zeros(1), group=context.control_group)
    for step in range(1, steps + 1):
        context.events.write("metrics", {"loss": 1 / step, "bad": float("nan")}, step=step)
    print(f"rank {context.rank} of {context.world_size} is done")
    names = ("MASTER_ADDR", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "SCALEBOOK_RUN")
    return {"sum": total.tolist(), "threads": torch.get_num_threads(), "nan": float("nan"),
            **{name: os.environ[name] for name in names}}  # fmt: skip


def wait_for_ever() -> None:
    """Sleep; `finally` leaves a mark when the run is stopped, not when it is killed."""
    try:
        while True:
            time.sleep(0.05)
    finally:
        (current().folder / "ended").touch()


def fail_on_rank_1() -> None:
    """Rank 1 fails; the others then lose their connection in a collective."""
    import torch
    import torch.distributed as dist

    if current().rank == 1:
        raise ValueError("the data is <b>wrong</b>")
    dist.all_reduce(torch.ones(1))


def leave_a_process() -> int:
    """Start a process that would outlive the run."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid


def return_nonsense() -> object:
    """Something that is not JSON."""
    return object()


def never_end() -> None:
    """Refuse to end when asked."""
    current().events.write("metrics", {"deaf": 1}, step=1)
    while True:
        try:
            while True:
                time.sleep(0.05)
        except BaseException:
            print("no")


def second_time() -> str:
    """Wait in the first attempt, return in the second."""
    if current().attempt == 1:
        wait_for_ever()
    return "back"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grow:
    """Multiply the learning rate."""

    by: float = 1.0
    """Factor."""

    __post_init__ = check

    def __call__(self, lr: float) -> float:
        """The new learning rate."""
        return lr * self.by


@dataclass(frozen=True, kw_only=True, slots=True)
class Toy:
    """A recipe that counts steps and obeys commands."""

    entry: ClassVar[str] = "tests.faults.work:train"
    loader: ClassVar[str | None] = None
    loads: ClassVar[str | None] = None
    steps: int = 1_000_000
    """Steps to count."""
    grow: Grow = Grow()
    """What is done to the learning rate at the start."""
    keeping: float = 0.0
    """Seconds that it takes to obey a command."""

    __post_init__ = check


def train(recipe: dict[str, Any], context: Context) -> dict[str, Any]:
    """Count, and obey on every rank as a training does: rank 0 reads, all apply."""
    import torch.distributed as dist

    grow = load_root(recipe, Toy, notebook=resolver(context.folder)).grow
    step, seen, lr, paused, going = 0, 0, grow(1.0), False, True
    context.events.write("state", {"state": "running", "controls": True, "total_steps": recipe["steps"]}, step=0)
    while going and step < recipe["steps"]:
        found: list[Any] = [read_commands(context.folder, seen) if context.rank == 0 else None]
        dist.broadcast_object_list(found, group=context.control_group)
        for command in found[0]:
            seen, name = command["n"], command["command"]
            answer: dict[str, Any] = {"n": seen, "command": name, "applied": step}
            time.sleep(recipe["keeping"])
            if name in ("pause", "resume", "stop"):
                paused, going = name == "pause", name != "stop"
                state = {"pause": "paused", "resume": "running", "stop": "stopping"}[name]
                context.events.write("state", {"state": state}, step=step)
            elif name == "set":
                lr = command["value"]
            elif name == "checkpoint":
                (context.folder / "checkpoints" / f"step-{step}").mkdir(exist_ok=True)
                (context.folder / "checkpoints" / f"step-{step}" / "manifest.json").write_text("{}")
            elif name == "call":
                answer |= perform_call(context.folder, command, context.rank, step)
            context.events.write("command", answer, step=step)
        if not paused:
            step += 1
            context.events.write("metrics", {"loss": lr / step}, step=step)
        time.sleep(0.01)
    return {"steps": step, "lr": lr}


def slow_model() -> Any:
    """A tiny model with steps of at least 40 ms on any machine, so that a fault still finds the run at work."""
    from tests.distributed.training_bodies import tiny

    model = tiny()
    model.register_forward_pre_hook(lambda *_: time.sleep(0.04))
    return model


NOTEBOOK = """
import sys
from dataclasses import dataclass

from tests.faults.work import Toy
from toolkit.launch import Local, launch
from toolkit.values import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Shrink:
    by: float = 4.0

    __post_init__ = check

    def __call__(self, lr: float) -> float:
        return lr / self.by


if __name__ == "__main__":
    run = launch(Toy(steps=1, grow=Shrink()), on=Local(devices="cpu", threads=1), root=sys.argv[1])
    print(run.id, run.wait(60).metrics["lr"])
"""


def start_two_and_die(root: str) -> None:
    """As a kernel: launch a durable run and one that is not, write their ids, and be killed."""
    from toolkit.launch import Local, launch

    on = Local(devices="cpu", threads=1)
    ids = [launch(wait_for_ever, on=on, durable=durable, root=root).id for durable in (True, False)]
    assert "torch" not in sys.modules
    Path(root, "ids.json").write_text(json.dumps(ids))
    time.sleep(600)


def rounds() -> None:
    """All-reduce again and again, and say so; once there is a file `spin`, rank 1 computes for ever instead."""
    import torch
    import torch.distributed as dist

    def spin() -> None:
        while True:
            pass

    context = current()
    step = 0
    while True:
        step += 1
        if context.rank == 1 and (context.folder / "spin").exists():
            spin()
        dist.all_reduce(torch.ones(1))
        context.events.write("metrics", {"round": step}, step=step)
        time.sleep(0.02)


def eat() -> None:
    """Take more memory than this process may have."""
    import resource

    import torch

    with open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
    torch.ones(1 << 30)


def save_until_full(limit: int | None) -> list[float]:
    """Save growing checkpoints, go on from the newest one, and end at step 4; `limit` in bytes of a file, or the disk."""
    import resource

    import torch

    from toolkit import checkpoint as checkpoints

    context = current()
    folder = context.folder / "checkpoints"
    found, _ = checkpoints.newest(folder)
    done = 0 if found is None else checkpoints.read_state(found)["step"]
    if limit is not None and context.attempt == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for step in range(done + 1, 5):
        tensors = {"w": torch.full((step * 200_000,), float(step))}
        state = {"seen": [*range(1, step + 1)]}
        checkpoints.save(folder, step=step, tensors=tensors, state=state, rank_state={}, rank=0, world_size=1)
        context.events.write("metrics", {"saved": step}, step=step)
    return [done, step]


def send_from_elsewhere(root: str, name: str, many: int) -> None:
    """As another notebook: send `many` commands, and print their numbers."""
    from toolkit.runs import Run

    run = Run.attach(name, root)
    print(json.dumps([run.set("lr", float(n)) for n in range(many)]))


def launch_and_die(root: str, name: str, where: str) -> None:
    """As a kernel that is killed in the middle of launching: before the call that `where` names, or after it ("...!")."""
    import importlib

    from toolkit.launch import Local, launch

    place, after = where.removesuffix("!"), where.endswith("!")
    module, _, attribute = place.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    call = getattr(owner, last)

    def die(*arguments: Any, **named: Any) -> Any:
        if after:
            call(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, last, die)
    launch(second_time, name=name, on=Local(devices="cpu", threads=1), root=root)


def leave_a_process_and_wait() -> None:
    """Start a process that outlives this one, write its number, and wait."""
    from toolkit.runs.files import replace_bytes

    replace_bytes(current().folder / "left", str(leave_a_process()).encode())
    wait_for_ever()
