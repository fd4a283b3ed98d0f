"""The self-test: two real worker processes, started as any run is, meet and compute a sum together."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from toolkit.doctor.finding import Finding

LONGEST = 180.0
"""Seconds after which the self-test counts as failed."""


def add_up() -> dict[str, Any]:
    """What each worker does: sum the ranks over all of them, on its device, and say what torch is like here."""
    import torch
    import torch.distributed as distributed

    from toolkit.runs import current

    context = current()
    assert context is not None, "add_up() is called by a worker of a run"
    number = torch.full((1024,), float(context.rank + 1), device=context.device)
    distributed.all_reduce(number)
    return {
        "sum": number[0].item(),
        "same": bool((number == number[0]).all()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": torch.cuda.device_count(),
        "device": context.device,
    }


def about_workers(tell: Callable[[str], object] = lambda what: None) -> Iterator[Finding]:
    """The self-test on the CPU, and on two GPUs, or the one there is."""
    from toolkit.launch import Local
    from toolkit.launch.devices import DevicesBusy, gpus

    tell("two processes meet and compute a sum")
    returned, seconds, trouble = run_of(Local(processes=2, devices="cpu", threads=1))
    yield judged("two processes", 2, returned, seconds, trouble)
    shown = gpus()
    if returned is None or not shown:
        return
    if not returned["gpus"]:
        text = f"torch {returned['torch']} sees none of the {len(shown)} GPUs"
        remedy = "install a torch that is built for CUDA: https://pytorch.org/get-started" if returned["cuda"] is None else (
            "the driver is too old for it, or CUDA_VISIBLE_DEVICES hides them")  # fmt: skip
        yield Finding(group="workers", name="torch and GPUs", state="problem", found=text, remedy=remedy)
        return
    number = min(2, len(shown))
    tell(f"{number} GPU{'s' * (number > 1)} compute a sum")
    on = Local(processes=number, devices=tuple(gpu.index for gpu in shown[:number]), threads=1)
    try:
        returned, seconds, trouble = run_of(on)
    except DevicesBusy as busy:
        yield Finding(group="workers", name="GPUs together", state="note", found=str(busy), remedy="the same again later")
    else:
        yield judged("GPUs together", number, returned, seconds, trouble)


def run_of(on: Any) -> tuple[dict[str, Any] | None, float, str]:
    """Launch `add_up` in a folder of its own: what it returned or None, seconds, and why it returned nothing."""
    from toolkit.launch import launch
    from toolkit.runs import RunFailed

    root = Path(tempfile.mkdtemp(prefix="scalebook-doctor-"))
    began = time.monotonic()
    try:
        run = launch(add_up, on=on, root=root, durable=False)
        try:
            return run.wait(LONGEST).metrics, time.monotonic() - began, ""
        except RunFailed as failed:
            return None, time.monotonic() - began, str(failed)
        except BaseException as error:
            if run.alive:
                run.kill()
                _over(run)
            if isinstance(error, TimeoutError):
                return None, time.monotonic() - began, f"it was not done after {LONGEST:.0f} s"
            raise
    finally:
        shutil.rmtree(root, ignore_errors=True)


def judged(name: str, processes: int, returned: dict[str, Any] | None, seconds: float, trouble: str) -> Finding:
    """The finding about one self-test: the sum of the ranks must be right on every element."""
    if returned is None:
        remedy = "the last lines above say why" if "\n" in trouble else "close other programs and try again"
        return Finding(group="workers", name=name, state="problem", found=trouble, remedy=remedy)
    wanted = processes * (processes + 1) / 2
    if returned["sum"] != wanted or not returned["same"]:
        text = f"the sum of {processes} ranks came out as {returned['sum']}, not {wanted}"
        return Finding(group="workers", name=name, state="problem", found=text, remedy="do not train on this machine: report it")
    place = "the CPU" if returned["device"] == "cpu" else f"GPU (CUDA {returned['cuda']})"
    return Finding(group="workers", name=name, state="ok", found=f"{processes} on {place} agreed in {seconds:.1f} s")


def _over(run: Any) -> None:
    until = time.monotonic() + 10
    while run.alive and time.monotonic() < until:
        time.sleep(0.1)
