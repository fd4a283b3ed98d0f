"""Warm workers for distributed tests: processes started once, in which test bodies run one after another.

A body is a function named `module:function`. It is called on `world` ranks with JSON arguments, in a default process
group (gloo) of exactly these ranks that was made for this case alone, and returns JSON. An exception on one rank is
reported with its traceback; only when other ranks then hang in a collective are the workers made anew.
"""

import importlib
import json
import os
import shutil
import socket
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

from tests.harness import leftovers
from toolkit.launch import Local, launch
from toolkit.runs import Context, RunFailed, RunInactive, current
from toolkit.runs.context import enter

PROCESSES = 4
LIMIT = 60.0  # seconds for a body
START_LIMIT = 120.0  # seconds until all workers are up
GRACE = 5.0  # seconds that the others get once one rank has failed


class BodyFailed(AssertionError):
    """A body raised, hung or crashed; the message names the rank and shows its traceback."""


class Pool:
    """The workers as a test sees them. They start at the first use, and again after a crash."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self.processes = processes
        self.starts = 0
        """How often workers were started."""
        self._connections: dict[int, Connection] = {}
        self._case = 0

    def run(self, body: str, *, world: int = 2, limit: float = LIMIT, **arguments: Any) -> list[Any]:
        """What `body` returned on each of `world` ranks, by rank. BodyFailed: a rank raised, hung or crashed.

        norms = workers.run("tests.distributed.bodies:gradient_norms", world=2, dp_shard=2)
        """
        if not 1 <= world <= self.processes:
            raise ValueError(f"world {world}: the pool has {self.processes} workers")
        if not self._connections:
            self._start()
        self._case += 1
        order = json.dumps({"case": self._case, "world": world, "body": body, "arguments": arguments}).encode()
        ranks = {rank: self._connections[rank] for rank in range(world)}
        try:
            for connection in ranks.values():
                connection.send_bytes(order)
            answers = self._gather(ranks, limit)
        except BaseException:
            self.close(patience=0)
            raise
        errors = {rank: answer["error"] for rank, answer in answers.items() if "error" in answer}
        silent = sorted(set(ranks) - set(answers))
        if silent:
            self.close(patience=0)
        if errors or silent:
            raise BodyFailed(_message(body, errors, silent))
        return [answers[rank]["result"] for rank in sorted(answers)]

    def close(self, patience: float = GRACE) -> None:
        """End the workers: those that wait for work return, what still runs after `patience` seconds is killed."""
        if not self._connections:
            return
        for connection in self._connections.values():
            connection.close()  # a worker that waits reads the end of the stream and returns
        self._connections = {}
        with suppress(RunFailed):  # what made it fail was reported as the failure of a body
            try:
                self._run.wait(timeout=patience)
            except TimeoutError:
                with suppress(RunInactive):
                    self._run.kill()
                self._run.wait(timeout=START_LIMIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self.starts += 1
        self._folder = Path(tempfile.mkdtemp(prefix="pool-"))
        address = str(self._folder / "socket")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen(self.processes)
            listening.settimeout(1.0)
            on = Local(processes=self.processes, devices="cpu", threads=1)
            self._run = launch(serve, address, on=on, durable=False, root=self._folder)
            leftovers.kept.add(self._run.id)
            deadline, found = time.monotonic() + START_LIMIT, {}
            while len(found) < self.processes:
                try:
                    connection = Connection(listening.accept()[0].detach())
                    found[json.loads(connection.recv_bytes())["rank"]] = connection
                except TimeoutError:
                    if not self._run.alive or time.monotonic() > deadline:
                        self._run.wait(timeout=0)  # raises with the reason
                        raise
        self._connections = found

    def _gather(self, ranks: dict[int, Connection], limit: float) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        waiting = {connection: rank for rank, connection in ranks.items()}
        deadline = time.monotonic() + limit
        while waiting and (left := deadline - time.monotonic()) > 0:
            for connection in wait(list(waiting), left):
                rank = waiting.pop(connection)  # type: ignore[arg-type]
                try:
                    answers[rank] = json.loads(connection.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, ConnectionError):
                    continue  # this process is gone
                if "error" in answers[rank]:
                    deadline = min(deadline, time.monotonic() + GRACE)
        return answers


def _message(body: str, errors: dict[int, str], silent: list[int]) -> str:
    """The errors in the order in which they came: the first is the likeliest cause of the others."""
    lines = [f"{body} failed"]
    if silent:
        lines.append(f"ranks {silent} did not answer: they hung in a collective, or crashed (new workers start next time)")
    return "\n".join([*lines, *(f"--- rank {rank} ---\n{text}" for rank, text in errors.items())])


def serve(address: str) -> None:
    """What each worker of the pool does: run the bodies that it is sent, until the sender hangs up."""
    warnings.filterwarnings("error", module=r"(toolkit|widgets|tests)(\..*)?$")
    context = current()
    assert context is not None
    store = _own_store(context.rank, context.world_size)
    with Client(address, "AF_UNIX") as connection:
        connection.send_bytes(json.dumps({"rank": context.rank}).encode())
        while True:
            try:
                order = json.loads(connection.recv_bytes())
            except (EOFError, ConnectionError):
                break
            connection.send_bytes(json.dumps(_perform(order, store, context)).encode())


def _own_store(rank: int, ranks: int) -> Any:
    """A store for the groups of all cases, in place of the group that the run came with."""
    import torch
    import torch.distributed as distributed

    port = torch.zeros(1, dtype=torch.int64)
    store = None
    if rank == 0:
        store = distributed.TCPStore("127.0.0.1", 0, ranks, is_master=True, wait_for_workers=False)
        port.fill_(store.port)
    distributed.broadcast(port, 0)
    distributed.destroy_process_group()
    return store or distributed.TCPStore("127.0.0.1", int(port), ranks, is_master=False)


def _perform(order: dict[str, Any], store: Any, context: Context) -> dict[str, Any]:
    """The result of one body, or its traceback."""
    import torch.distributed as distributed

    world = order["world"]
    os.environ.update(RANK=str(context.rank), LOCAL_RANK=str(context.rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    try:
        module, _, name = order["body"].partition(":")
        body = getattr(importlib.import_module(module), name)
        own = distributed.PrefixStore(f"case-{order['case']}", store)
        limit = timedelta(seconds=LIMIT)
        distributed.init_process_group("gloo", store=own, rank=context.rank, world_size=world, timeout=limit)
        group = distributed.new_group(backend="gloo")
        enter(replace(context, world_size=world, control_group=group))
        answer = {"result": body(**order["arguments"])}
        json.dumps(answer)
    except Exception:
        answer = {"error": traceback.format_exc()}
    finally:
        enter(context)
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return answer
