"""Attacks: links, pipes, foreign owners, open permissions, names that lead elsewhere, pickles, forged files. All are refused.

What an attack would gain is a file `stolen` or `struck` outside of the run; no test may find one.
"""

import json
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from toolkit.checkpoint import CheckpointError, choose, load_into, newest, read_rank_state, read_state, save, verify
from toolkit.launch import launch, restart
from toolkit.launch.code import work_of
from toolkit.launch.keeper import Keeper
from toolkit.models import load_model
from toolkit.recipes import FineTune
from toolkit.runs import EventWriter, Run, metrics, pulse, read_commands, read_events, read_series, send
from toolkit.runs.control import load_shipped, perform_call, resolver
from toolkit.runs.files import UntrustedFile, is_locked, replace_json, take_lock
from toolkit.runs.report import tail
from toolkit.runs.roots import make_folder
from toolkit.runs.series import series_path
from toolkit.runs.shipping import ship
from toolkit.values import dump_root, load_root

OPEN = 0o022


class Strike:
    """A pickle that writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.target, "w")


def a_run(root: Path, **said: object) -> Path:
    """A run folder as the launcher leaves it."""
    folder, _ = make_folder(root, "amber")
    replace_json(folder / "launch.json", {"processes": 1, "title": "toy", "entry": None, **said})
    replace_json(folder / "recipe.json", {})
    return folder


def checkpoint(folder: Path, step: int = 3) -> Path:
    """A small checkpoint."""
    tensors = {"w": torch.ones(4)}
    return save(folder, step=step, tensors=tensors, state={}, rank_state={"r": torch.ones(1)}, rank=0, world_size=1)


# ---- permissions ---------------------------------------------------------------------------------------------------


def test_nothing_of_a_run_is_open_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = a_run(tmp_path)
        lock = take_lock(folder / "lock")
        assert lock is not None
        keeper = Keeper(folder, lock, 1, 1)
        writer = EventWriter(folder, 0, 1)
        writer.write("metrics", {"loss": 1.0}, step=1)
        send(folder, "pause")
        digest = ship(folder, lambda: 1, what="function")
        perform_call(folder, {"n": 1, "code": digest}, 0)
        checkpoint(folder / "checkpoints")
        keeper.tick()
        keeper.finish("failed", message="no")
    finally:
        os.umask(before)
    found = [folder, *folder.rglob("*")]
    assert len(found) > 20
    assert not [path for path in found if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("attack", ["owner", "mode"])
@pytest.mark.parametrize("name", ["control.jsonl", "launch.json", "recipe.json", "code"])
def test_files_that_command_or_run_code_must_be_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, name: str
) -> None:
    """A file that someone else owns or may write is not obeyed: the first line of what is told names it."""
    folder = a_run(tmp_path, entry="json:dumps", restart="toolkit.launch:restart")
    digest = ship(folder, lambda: 1, what="function")
    send(folder, "kill")
    path = folder / "code" / f"{digest}.pickle" if name == "code" else folder / name
    if attack == "mode":
        path.chmod(0o600 | OPEN)
    elif os.geteuid() == 0:
        os.chown(path, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1 << 30)
    read = {
        "control.jsonl": lambda: read_commands(folder, 0),
        "launch.json": lambda: restart(Run(folder)),
        "recipe.json": lambda: work_of({"entry": "json:dumps"}, folder),
        "code": lambda: load_shipped(folder, digest),
    }[name]
    with pytest.raises(UntrustedFile, match="others may write it" if attack == "mode" else "owned by user"):
        read()


# ---- links and pipes -----------------------------------------------------------------------------------------------


def writes(folder: Path) -> dict[str, Callable[[], object]]:
    """File of a run -> what writes it."""
    data = {"loss": 1.0}
    return {
        "events-0.jsonl": lambda: EventWriter(folder, 0, 1).write("metrics", data, step=1),
        "control.jsonl": lambda: send(folder, "stop"),
        "control.lock": lambda: send(folder, "stop"),
        "lock": lambda: take_lock(folder / "lock"),
        "heartbeat": lambda: pulse.beat(folder),
        "state.json": lambda: replace_json(folder / "state.json", data),
        f".state.json.{os.getpid()}": lambda: replace_json(folder / "state.json", data),
        "checkpoints/step-3.partial": lambda: checkpoint(folder / "checkpoints"),
        "checkpoints/step-3": lambda: checkpoint(folder / "checkpoints"),
    }


@pytest.mark.parametrize("name", list(writes(Path())))
def test_a_link_planted_in_a_run_is_not_written_through(tmp_path: Path, name: str) -> None:
    folder = a_run(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    if "checkpoints" in name:
        elsewhere.mkdir()
        (elsewhere / "mine").write_text("precious")
    else:
        elsewhere.write_text("precious")
    (folder / name).symlink_to(elsewhere)
    with suppress(OSError, CheckpointError):
        writes(folder)[name]()
    kept = elsewhere / "mine" if elsewhere.is_dir() else elsewhere
    assert kept.read_text() == "precious" and list(tmp_path.glob("elsewhere/*")) in ([], [kept])


READ = {
    "state.json": lambda folder: Run(folder).state,
    "launch.json": lambda folder: Run(folder).launched,
    "lock": lambda folder: is_locked(folder / "lock"),
    "control.jsonl": lambda folder: read_commands(folder, 0),
    "events-0.jsonl": lambda folder: read_events(folder),
    "rank-0.log": lambda folder: tail(folder / "rank-0.log", 5),
    "series/loss.f64": lambda folder: read_series(folder, "loss"),
    "result.json": lambda folder: Run(folder)._result(Run(folder).state),
}


@pytest.mark.parametrize("plant", ["link", "pipe"])
@pytest.mark.parametrize("name", list(READ))
def test_links_and_pipes_planted_in_a_run_are_not_read(tmp_path: Path, name: str, plant: str) -> None:
    """Neither shows what lies elsewhere, nor keeps the reader waiting for ever."""
    folder = a_run(tmp_path)
    replace_json(folder / "state.json", {"name": "finished"})
    secret = tmp_path / "secret"
    secret.write_text('{"name": "secret"}')
    (folder / name).unlink(missing_ok=True)
    if plant == "link":
        (folder / name).symlink_to(secret)
    else:
        os.mkfifo(folder / name)
    told: list[object] = []

    def look() -> None:
        try:
            told.append(READ[name](folder))
        except (OSError, KeyError) as error:
            told.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert told, f"{name}: reading it never ended"
    assert "secret" not in str(told[0]).replace(str(tmp_path), "")
    assert isinstance(told[0], Exception)


# ---- names ---------------------------------------------------------------------------------------------------------

OUTSIDE = ("../struck", "../../struck", "/tmp/struck", "..", ".", "a/../../struck", "struck\x00", "\ud800")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_from_outside_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = a_run(tmp_path)
    path = series_path(folder, name)
    assert path is None or path.parent == folder / "series"
    (folder / "events-0.jsonl").write_text(
        json.dumps({"seq": 1, "time": 1.0, "attempt": 1, "rank": 0, "step": 1, "kind": "metrics", "data": {name: 1.0}},
                   separators=(",", ":")) + "\n"
    )  # fmt: skip
    metrics(folder)
    for refused in (
        lambda: Run.attach(name, tmp_path),
        lambda: launch(print, name=name, root=tmp_path),
        lambda: load_shipped(folder, name),
        lambda: choose(folder / "checkpoints", name),
        lambda: Run(folder).set(name, 1.0),
        lambda: send(folder, name),
    ):
        with pytest.raises((ValueError, FileNotFoundError)):
            refused()
    outside = {entry.name for entry in tmp_path.iterdir()} | {entry.name for entry in (tmp_path / "runs").iterdir()}
    assert outside == {"runs", "amber"} and not Path("/tmp/struck").exists()


@pytest.mark.parametrize("key", ["restart", "loader", "loads"])
@pytest.mark.parametrize("name", ["os:system", "toolkit.launch.local:os.system", "subprocess:call", "toolkit:__loader__.x"])
def test_a_run_folder_names_nothing_outside_of_the_toolkit(tmp_path: Path, key: str, name: str) -> None:
    folder = a_run(tmp_path, **{"restart": "toolkit.launch:restart", key: name})
    act = {"restart": lambda run: run.restart(), "loader": lambda run: run.load(), "loads": lambda run: run.recipe}[key]
    with pytest.raises(ValueError, match=r"expected toolkit\.<module>:<name>"):
        act(Run(folder))


# ---- pickles -------------------------------------------------------------------------------------------------------


def planted(folder: Path, struck: Path) -> list[Path]:
    """A checkpoint folder whose every file is, in turn, a pickle that strikes; and a folder of torch's own format."""
    found = []
    for name in ("manifest.json", "state.json", "rank-0.json", "rank-0.safetensors"):
        path = checkpoint(folder / name.replace(".", "-"))
        (path / name).write_bytes(pickle.dumps(Strike(struck)))
        found.append(path)
    torch_own = folder / "own" / "step-3"
    torch_own.mkdir(parents=True)
    (torch_own / ".metadata").write_bytes(pickle.dumps(Strike(struck)))
    torch.save({"w": torch.ones(4)}, torch_own / "meta.pt")
    return [*found, torch_own]


def test_a_pickle_in_a_checkpoint_is_never_read(tmp_path: Path) -> None:
    struck = tmp_path / "struck"
    for path in planted(tmp_path, struck):
        assert newest(path.parent)[0] is None and newest(path.parent)[1]
        with pytest.raises(CheckpointError, match="step-3"):
            verify(path)
        for read in (read_state, lambda path: read_rank_state(path, 0), lambda path: load_into(path, {"w": torch.ones(4)})):
            with suppress(CheckpointError):
                read(path)
        with pytest.raises(CheckpointError):
            choose(path.parent, "last")
    assert not struck.exists()


def test_a_pickled_model_is_refused_by_name(tmp_path: Path) -> None:
    struck, folder = tmp_path / "struck", tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Strike(struck)))
    with pytest.raises((ValueError, OSError)):
        load_model(str(folder))
    assert not struck.exists()


def test_code_in_a_run_folder_runs_only_as_it_was_shipped(tmp_path: Path) -> None:
    struck, folder = tmp_path / "struck", a_run(tmp_path)
    digest = ship(folder, lambda: 1, what="function")
    path = folder / "code" / f"{digest}.pickle"
    path.write_bytes(pickle.dumps(Strike(struck)))
    with pytest.raises(ValueError, match="it was changed"):
        load_shipped(folder, digest)
    assert "it was changed" in perform_call(folder, {"n": 1, "code": digest}, 0)["error"]
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(pickle.dumps(Strike(struck)))
    with pytest.raises(UntrustedFile, match="a link"):
        load_shipped(folder, digest)
    assert not struck.exists()


# ---- forged recipes ------------------------------------------------------------------------------------------------


def forged(**changes: object) -> dict[str, object]:
    """The JSON of a recipe, changed."""
    return {**dump_root(FineTune()), **changes}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (forged(type="os:system"), "os:system"),
        (forged(data={"type": "subprocess.Popen", "args": ["touch", "struck"]}), "data"),
        (forged(adapters={"*": {"type": "notebook:Evil", "code": "0" * 64}}), "Evil"),
        (forged(adapters={"*": {"type": "LoRA", "rank": -1}}), "rank"),
        (forged(steps="__import__('os').system('touch struck')"), "steps"),
        (forged(plan={"type": "Plan", "dp_shard": 1e9}), "dp_shard"),
        (forged(__class__="os"), "__class__"),
        (forged(schema=2), "schema"),
        (forged(lr=float("nan")), "lr"),
        ([], "object"),
    ],
)
def test_a_forged_recipe_is_refused_with_the_place(tmp_path: Path, data: object, told: str) -> None:
    folder = a_run(tmp_path, code={})
    with pytest.raises((ValueError, TypeError)) as raised:
        load_root(data, FineTune, notebook=resolver(folder))
    assert told in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("struck"))
