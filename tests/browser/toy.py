"""A training without a model: writes what a training writes and obeys what a training obeys, a step every 0.1 s."""

import math
import random
import time
from pathlib import Path

from toolkit.runs import EventWriter, current, read_commands
from toolkit.runs.files import plain, replace_json

RESTART = "toolkit.launch:restart"
PROMPT = "The with statement"
TEXT = " is used to wrap the execution of a block with methods defined by a context manager."


def train(steps: int, seconds: float = 0.1) -> dict[str, float]:
    """Work of a run, for `launch(train, 600)`. While there is a file `stuck` in the folder, it hangs when it is to stop."""
    context = current()
    assert context is not None
    events, done, state = context.events, 0, "running"
    start = step = newest(context.folder)
    whole = {"controls": True, "total_steps": steps}

    def say(name: str, step: int) -> str:
        events.write("state", {"state": name, **whole}, step=step)
        return name

    events.write("state", {"state": "running", "resumed": start or -1, **whole}, step=start)
    for step in range(start + 1, steps + 1):
        write_step(events, step, steps)
        time.sleep(seconds)
        while True:
            for command in read_commands(context.folder, done):
                done, name = command["n"], command["command"]
                if name in ("checkpoint", "stop"):
                    make_checkpoint(context.folder, step, curve(step))
                state = say({"pause": "paused", "resume": "running", "stop": "stopping"}.get(name, state), step)
                refused = {"error": "expected a number of at least 0"} if command.get("value", 0) < 0 else {}
                events.write("command", {**command, "applied": step, **refused}, step=step)
            if state != "paused":
                break
            time.sleep(0.05)
        if state == "stopping":
            while (context.folder / "stuck").exists():
                time.sleep(0.1)
            break
    return {"loss": curve(step)}


def newest(folder: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    names = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def curve(step: int) -> float:
    """A loss that falls."""
    return 2.45 + 0.6 * math.exp(-step / 40)


def write_step(events: EventWriter, step: int, steps: int, seed: int = 0, more: int = 0) -> None:
    """One step's metrics, `more` beyond the usual seven, and now and then a held-out loss and a sample."""
    draw = random.Random(step + 1000 * seed)
    metrics = {
        "loss": curve(step) - 0.05 * seed + draw.gauss(0, 0.03),
        "lr": 1e-3 * min(1, step / 5) * 0.5 * (1 + math.cos(math.pi * step / steps)),
        "tokens": step * 1024,
        "tokens_per_second": 300 + draw.gauss(0, 15),
        "step_seconds": 3.4 + draw.gauss(0, 0.1),
        "grad_norm": 0.4 + 0.2 * math.exp(-step / 30) + abs(draw.gauss(0, 0.05)),
        "memory_bytes": 1.4e9 + draw.gauss(0, 1e6),
    }
    metrics |= {f"entropy_{number}": draw.random() for number in range(more)}
    if step == 1 or step % 20 == 0:
        metrics["eval_loss"] = curve(step) + 0.02 - 0.04 * seed
        events.write("sample", {"prompt": PROMPT, "text": f"{TEXT} So it read at step {step}."}, step=step)
    events.write("metrics", metrics, step=step)


def make_folder(folder: Path) -> EventWriter:
    """A run folder without a run; `end` gives it a final state."""
    for part in ("series", "blobs", "calls", "code", "checkpoints"):
        (folder / part).mkdir(parents=True)
    replace_json(folder / "launch.json", {"entry": None, "processes": 1, "on": {"type": "Local"}, "restart": RESTART})
    replace_json(folder / "recipe.json", {"function": "tests.browser.toy:train"})
    return EventWriter(folder, 0, 1)


def write_rank(events: EventWriter, rank: int, step: int) -> None:
    """What a rank other than 0 says of a step; rank 17 is slow."""
    draw = random.Random(1000 * step + rank)
    seconds = 3.4 + (0.9 if rank == 17 else 0.0) + draw.gauss(0, 0.1)
    events.write("metrics", {"step_seconds": seconds, "memory_bytes": 1.4e9 + rank * 1e6 + draw.gauss(0, 1e6)}, step=step)


def make_finished(folder: Path, *, steps: int, seed: int = 0, ranks: int = 1) -> None:
    """A finished run of a recipe, with logs and checkpoints."""
    events = make_folder(folder)
    for step in range(1, steps + 1):
        write_step(events, step, steps, seed)
    events.close()
    for rank in range(ranks):
        (folder / f"rank-{rank}.log").write_text("".join(f"rank {rank}: step {step} done\n" for step in range(steps)))
        if rank:
            events = EventWriter(folder, rank, 1)
            for step in range(1, steps + 1):
                write_rank(events, rank, step)
            events.close()
    adapters = {"*.q_proj": {"type": "LoRA", "rank": 4 << seed, "alpha": 8.0}}
    recipe = {"schema": 1, "type": "FineTune", "model": "smollm2-135m", "adapters": adapters, "lr": 1e-3 / (1 + seed)}
    replace_json(folder / "recipe.json", recipe | {"steps": steps})
    launch = {"entry": "toolkit.recipes.fine_tune:train", "processes": ranks, "on": {"type": "Local"}, "restart": RESTART}
    replace_json(folder / "launch.json", launch)
    for step in range(100, steps + 1, 100):
        make_checkpoint(folder, step, curve(step) + 0.02 - 0.04 * seed)
    end(folder, "finished", steps)


def make_checkpoint(folder: Path, step: int, loss: float) -> None:
    """What a list of checkpoints looks at."""
    place = folder / "checkpoints" / f"step-{step}"
    place.mkdir(parents=True, exist_ok=True)
    replace_json(place / "manifest.json", {})
    replace_json(place / "state.json", plain({"step": step, "metrics": {"eval_loss": loss}}))
    (place / "rank-0.safetensors").write_bytes(bytes(1_000_000))


def end(folder: Path, name: str, step: int, **more: object) -> None:
    """Write the state a supervisor would have left."""
    now = time.time()
    state = {"name": name, "attempt": 1, "step": step, "total_steps": step, "started": now - 125, "since": now}
    replace_json(folder / "state.json", state | more)
