"""Checkpoints of one process: what goes in comes out, damage is named, and nothing outside the folder is touched."""

import json
import os
import random
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file

from toolkit.checkpoint import (
    CheckpointError,
    Manifest,
    load_into,
    newest,
    prune,
    read_manifest,
    read_rank_state,
    read_state,
    save,
    verify,
)
from toolkit.checkpoint.manifest import DTYPES
from toolkit.checkpoint.ranges import overlap


def tensors():
    """Every dtype, a scalar, an empty tensor, a transposed one and a slice."""
    torch.manual_seed(0)
    found = {f"of.{name}": (torch.randn(5, 3) * 2).to(dtype) for name, (_, dtype) in DTYPES.items()}
    wide = torch.randn(6, 4)
    shapes = {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "transposed": wide.T, "slice": wide[1::2, :2]}
    return found | shapes | {"parameter": torch.nn.Parameter(torch.randn(2))}


def zeros(like):
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}


def write(folder, step=3, values=None, state=None, rank_state=None):
    values = {"w": torch.full((4, 2), float(step)), "b": torch.arange(3)} if values is None else values
    one = {"rank": 0, "world_size": 1}
    return save(folder, step=step, tensors=values, state=state or {}, rank_state=rank_state or {}, **one)


def edit_manifest(path, change):
    """Apply `change` to the manifest and sign it again, as someone hostile would."""
    from toolkit.checkpoint import manifest as module

    data = json.loads((path / "manifest.json").read_text())
    del data["sha256"]
    change(data)
    (path / "manifest.json").write_text(json.dumps(data | {"sha256": module.digest(data)}))


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8) if a.dim() else a, b.view(torch.uint8) if b.dim() else b)


def test_tensors_of_every_dtype_and_shape_come_back_bit_for_bit(tmp_path):
    values = tensors()
    path = write(tmp_path / "checkpoints", values=values)
    assert path == tmp_path / "checkpoints" / "step-3"
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "rank-0.json", "rank-0.safetensors", "state.json"]
    found = zeros(values)
    load_into(path, found)
    for name, value in values.items():
        assert same(found[name].contiguous(), value.detach().contiguous()), name
    verify(path)
    stored = load_file(path / "rank-0.safetensors")  # the writer is our own: the format's own reader agrees
    assert {name for name in values if name != "empty"} == set(stored)
    assert all(same(stored[name], values[name].detach().contiguous()) for name in stored)


def test_states_come_back_with_tensors_inside(tmp_path):
    rank_state = {"torch": torch.get_rng_state(), "python": random.getstate(), "nested": {"list": [1, {"t": torch.ones(2)}]}}
    path = write(tmp_path, state={"tokens": 5, "best": None, "name": "é"}, rank_state=rank_state)
    assert read_state(path) == {"tokens": 5, "best": None, "name": "é", "step": 3}
    found = read_rank_state(path, 0)
    assert torch.equal(found["torch"], rank_state["torch"]) and torch.equal(found["nested"]["list"][1]["t"], torch.ones(2))
    version, numbers, gauss = found["python"]
    random.setstate((version, tuple(numbers), gauss))
    with pytest.raises(CheckpointError, match="saved by 1 processes and has no rank 1"):
        read_rank_state(path, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": {"loss": float("nan")}}, "state cannot be written as JSON"),
        ({"state": {"t": torch.ones(1)}}, "state holds tensors"),
        ({"state": {"step": 9}}, "state says step 9"),
        ({"rank_state": {"f": print}}, "rank_state cannot be written as JSON and tensors"),
        ({"rank_state": {1: 2}}, "keys must be strings"),
        ({"values": {"rank_state/0": torch.ones(1)}}, "may not be named 'rank_state/0'"),
        ({"values": {"x": torch.ones(1).to_sparse()}}, "could not save"),
        ({"values": {"x": torch.ones(1, dtype=torch.complex128)}}, "tensors of torch.complex128 cannot be saved"),
    ],
)
def test_what_cannot_be_saved_leaves_the_earlier_checkpoints(tmp_path, arguments, message):
    before = write(tmp_path, step=1)
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path, step=2, **arguments)
    assert newest(tmp_path) == (before, [])  # What it had written is gone: on a full disk it would take the room.
    assert write(tmp_path, step=2) == newest(tmp_path)[0]
    assert not list(tmp_path.glob("*.partial"))


def test_saving_a_step_again_replaces_it(tmp_path):
    write(tmp_path, values={"w": torch.zeros(2)})
    path = write(tmp_path, values={"w": torch.ones(2)})
    found = {"w": torch.zeros(2)}
    load_into(path, found)
    assert found["w"].tolist() == [1, 1] and [entry.name for entry in tmp_path.iterdir()] == ["step-3"]


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path, again):
    """Every call that changes the disk is made to be the last one, in turn."""
    from pathlib import Path

    class Crash(BaseException):
        pass

    def cut_off(after):
        """Raise at the call number `after` of those that change the disk."""
        count = 0

        def wrap(function):
            def counted(*arguments, **named):
                nonlocal count
                count += 1
                if count > after:
                    raise Crash
                return function(*arguments, **named)

            return counted

        patch = pytest.MonkeyPatch()
        for owner, name in [(os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "unlink"), (shutil, "rmtree")]:
            patch.setattr(owner, name, wrap(getattr(owner, name)))
        return patch

    seen = set()
    for after in range(40):
        folder = tmp_path / str(after)
        write(folder, step=4)
        patch = cut_off(after)
        try:
            write(folder, step=4 if again else 5, values={"w": torch.full((4, 2), 5.0), "b": torch.arange(3)})
            finished = True
        except Crash:
            finished = False
        finally:
            patch.undo()
        path, _ = newest(folder)
        found = {"w": torch.zeros(4, 2), "b": torch.zeros(3, dtype=torch.int64)}
        load_into(path, found)
        value = found["w"].unique().item()
        seen.add(value)
        assert value == 5.0 if finished else value in (4.0, 5.0)
        write(folder, step=6)
        expected = ["step-4", "step-6"] if again or value == 4.0 else ["step-4", "step-5", "step-6"]
        assert sorted(entry.name for entry in folder.iterdir()) == expected
        if again:
            load_into(folder / "step-4", found)
            assert found["w"].unique().item() == value
        if finished:
            break
    assert finished and after > 6 and seen == {4.0, 5.0}


@pytest.mark.parametrize("name", ["rank-0.safetensors", "rank-0.json", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "link"])
def test_damage_is_named_and_the_newest_whole_one_is_found(tmp_path, name, damage):
    older, newer = write(tmp_path, step=9), write(tmp_path, step=10, state={"a": 1}, rank_state={"b": 2})
    assert newest(tmp_path) == (newer, [])
    file = newer / name
    if damage == "flipped":
        flip(file, len(file.read_bytes()) // 2)
    elif damage == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.rename(tmp_path / "elsewhere")
        if damage == "link":
            file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as raised:
        verify(newer)
    assert str(file) in str(raised.value)
    assert "use an older checkpoint" in str(raised.value) or "do not load it" in str(raised.value)
    assert newest(tmp_path) == (older, [(newer, str(raised.value))])


def test_any_flipped_byte_is_found(tmp_path):
    path = write(tmp_path)
    for file in path.iterdir():
        size = file.stat().st_size
        for place in range(0, size, max(1, size // 25)):
            flip(file, place)
            with pytest.raises(CheckpointError, match=file.name):
                verify(path)
            flip(file, place)
    verify(path)


def test_folders_without_a_whole_checkpoint_say_so(tmp_path):
    assert newest(tmp_path) == (None, []) and newest(tmp_path / "none") == (None, [])
    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-3").symlink_to(tmp_path)
    (tmp_path / "step-x").mkdir()
    found, skipped = newest(tmp_path)
    assert found is None and [path.name for path, _ in skipped] == ["step-2"]
    assert "manifest.json is missing" in skipped[0][1]


@pytest.mark.parametrize("name", ["../step-1/state.json", "/etc/passwd", "rank-0.json/..", "other.bin", "rank-00.json", ""])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = write(tmp_path)

    def rename(data):
        data["files"][name] = data["files"].pop("rank-0.safetensors")
        for entry in data["tensors"].values():
            for piece in entry["pieces"]:
                piece["file"] = name

    edit_manifest(path, rename)
    for attempt in (verify, read_manifest, lambda path: load_into(path, {"w": torch.zeros(4, 2)}, strict=False)):
        with pytest.raises(CheckpointError, match="which is none of a checkpoint"):
            attempt(path)


def _outside(data):
    data["tensors"]["w"]["pieces"][0]["offset"] = [1, 0]


def _unlisted(data):
    del data["files"]["rank-0.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_outside, "a piece of w lies outside"),
        (_unlisted, "not listed under files"),
        (lambda data: data.update(step=-1), "expected a whole number, got -1"),
        (lambda data: data.update(step=True), "expected a whole number, got True"),
        (lambda data: data.update(schema=2), "schema 2, expected 1"),
        (lambda data: data.update(tensors=[]), "damaged"),
        (lambda data: data["tensors"]["w"].update(dtype="object"), "unknown dtype 'object'"),
        (lambda data: data["tensors"]["w"]["pieces"].clear(), "w has 0 of the 8 values"),
        (lambda data: data["tensors"]["w"].update(shape=[4, 3]), "w is float32"),
        (lambda data: data["tensors"]["w"]["pieces"][0].update(shape=[2, 2]), "w is not as the manifest says"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(tmp_path, change, message):
    path = write(tmp_path)
    edit_manifest(path, change)
    with pytest.raises(CheckpointError, match=message):
        load_into(path, {"w": torch.zeros(4, 2), "b": torch.zeros(3, dtype=torch.int64)})


def test_a_manifest_changed_by_hand_is_refused(tmp_path):
    path = write(tmp_path)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"step": 3', '"step": 4'))
    with pytest.raises(CheckpointError, match=r"manifest\.json was changed after it was written"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("wanted", "strict", "message"),
    [
        ({"w": torch.zeros(4, 2)}, True, "also has b; load with strict=False"),
        ({"w": torch.zeros(4, 2), "v": torch.zeros(1)}, False, "lacks v"),
        ({"w": torch.zeros(2, 4)}, False, r"w is float32 \(4, 2\), but here float32 \(2, 4\)"),
        ({"w": torch.zeros(4, 2, dtype=torch.bfloat16)}, False, r"but here bfloat16"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_anything_is_filled(tmp_path, wanted, strict, message):
    path = write(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_into(path, wanted, strict=strict)
    assert not wanted["w"].any()


def test_pruning_keeps_the_newest_whole_ones_and_the_protected(tmp_path):
    paths = [write(tmp_path, step=step) for step in (1, 2, 3, 10, 20)]
    os.truncate(paths[-1] / "state.json", 0)
    (tmp_path / "notes").mkdir()
    assert prune(tmp_path, 2, protect=[1]) == [paths[1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-1", "step-10", "step-20", "step-3"]
    assert newest(tmp_path)[0] == paths[3]
    assert prune(tmp_path, 2, protect=[1]) == []
    with pytest.raises(ValueError, match="keep: expected at least 1, got 0"):
        prune(tmp_path, 0)


def test_the_manifest_says_what_is_where(tmp_path):
    manifest = read_manifest(write(tmp_path))
    assert isinstance(manifest, Manifest) and (manifest.step, manifest.world_size) == (3, 1)
    entry = manifest.tensors["w"]
    assert (entry.shape, entry.dtype) == ((4, 2), "float32")
    assert [(piece.file, piece.offset, piece.shape) for piece in entry.pieces] == [("rank-0.safetensors", (0, 0), (4, 2))]


@given(some.lists(some.tuples(*[some.integers(0, 5)] * 4), min_size=1, max_size=3))
def test_overlaps_are_those_of_index_sets(dims):
    first = tuple(d[0] for d in dims), tuple(d[1] for d in dims)
    second = tuple(d[2] for d in dims), tuple(d[3] for d in dims)
    grid = torch.arange(11 ** len(dims)).reshape([11] * len(dims))

    def box(offset, shape):
        return grid[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]

    both = overlap(first, second)
    common = set(box(*first).flatten().tolist()) & set(box(*second).flatten().tolist())
    if both is None:
        assert not common
    else:
        mine, other = box(*first)[both[0]], box(*second)[both[1]]
        assert torch.equal(mine, other) and set(mine.flatten().tolist()) == common
