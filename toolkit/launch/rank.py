"""What makes a process a rank of a run: the variables torchrun would set, the process groups, the context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.launch.keeper import RETURNED
from toolkit.launch.processes import PLACE, TOKEN
from toolkit.runs.context import Context
from toolkit.runs.events import EventWriter
from toolkit.runs.files import plain, replace_json


def torchrun_variables(launched: dict[str, Any], folder: Path, rank: int) -> dict[str, str]:
    """Environment of one rank, as torchrun would set it, and the run that it belongs to."""
    ranks = str(launched["processes"])
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": ranks,
        "TORCHELASTIC_RUN_ID": folder.name,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "OMP_NUM_THREADS": str(launched["threads"]),
        TOKEN: folder.name,
        PLACE: str(folder),
    }


def join(folder: Path, launched: dict[str, Any], rank: int) -> tuple[Context, Callable[[], None]]:
    """This rank's context, with the process groups up, and what takes them down again."""
    import torch

    from toolkit.launch.meeting import Meeting

    torch.set_num_threads(launched["threads"])
    device = f"cuda:{rank}" if launched["devices"] else "cpu"
    meeting = Meeting(folder, launched["attempt"], rank, launched["processes"], device, launched.get("silence"))
    events = EventWriter(folder, rank, launched["attempt"])
    return Context(
        folder=folder,
        id=folder.name,
        rank=rank,
        world_size=launched["processes"],
        local_rank=rank,
        attempt=launched["attempt"],
        device=device,
        threads=launched["threads"],
        events=events,
        control_group=meeting.control_group,
    ), meeting.leave


def keep(folder: Path, returned: Any) -> None:
    """Store what rank 0 returned. Raises TypeError for what JSON cannot hold."""
    try:
        metrics = plain(returned)
    except TypeError as error:
        raise TypeError(f"what the work returns goes into result.json: {error}") from None
    replace_json(folder / RETURNED, {"metrics": metrics})
