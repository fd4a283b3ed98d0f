"""How the processes of a run find one another: a store on a port that the system chose, on this machine's own address."""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from toolkit.runs.files import read_json, replace_json

HOST = "127.0.0.1"
LONG = timedelta(days=365)


class Meeting:
    """The store, the default process group and the control group of one rank; made by `Meeting(...)`, ended by `leave`."""

    def __init__(
        self, folder: Path, attempt: int, rank: int, world_size: int, device: str, silence: float | None = None
    ) -> None:
        import torch
        import torch.distributed as distributed

        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        self._rank, self._world_size = rank, world_size
        self._store = self._open(folder / f"meet-{attempt}.json")
        on_gpu = device != "cpu"
        if on_gpu:
            torch.cuda.set_device(torch.device(device))
        # The supervisor sees a hang first, and says more about it.
        limit = LONG if silence is None else max(timedelta(minutes=30), timedelta(seconds=2 * silence))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=self._store,
            rank=rank,
            world_size=world_size,
            timeout=limit,
            device_id=torch.device(device) if on_gpu else None,
        )
        self.control_group = distributed.new_group(backend="gloo", timeout=limit)

    def _open(self, announced: Path) -> Any:
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        if self._rank == 0:
            listening = socket.socket()
            listening.bind((HOST, 0))
            listening.listen(2048)
            port = listening.getsockname()[1]
            store = TCPStore(
                HOST, port, self._world_size, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
            )
            replace_json(announced, {"port": port}, sync=False)
        else:
            while (found := read_json(announced)) is None:
                time.sleep(0.01)
            port = found["port"]
            store = TCPStore(HOST, port, self._world_size, is_master=False)
        os.environ.update(MASTER_ADDR=HOST, MASTER_PORT=str(port))
        return store

    def leave(self) -> None:
        """End the groups once every rank is done; rank 0, which holds the store, is the last to go."""
        import torch.distributed as distributed

        ranks = range(self._world_size)
        self._store.set(f"scalebook/done/{self._rank}", "1")
        self._store.wait([f"scalebook/done/{rank}" for rank in ranks], LONG)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        self._store.set(f"scalebook/left/{self._rank}", "1")
        if self._rank == 0:
            self._store.wait([f"scalebook/left/{rank}" for rank in ranks], timedelta(seconds=30))
