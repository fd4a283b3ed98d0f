"""Laws of weights and tokenizers on their way in and out, and of the folders that keep them."""

import contextlib
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws.test_models import SHAPES, built, every_shape
from toolkit.models import Tokenizer, Transformer, load_model, load_tokenizer, model_files, resolve_dtype, save_model, saving
from toolkit.models.storage import build_once, remove_unused, verify


@every_shape
@pytest.mark.parametrize("shard", [5_000_000_000, 4096], ids=["one file", "shards"])
def test_a_saved_model_comes_back(config, shard, tmp_path):
    model = built(config)
    save_model(model, tmp_path, max_shard_bytes=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == 4096)
    again = load_model(str(tmp_path), dtype="float64")
    assert again.config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert load_model(str(tmp_path), device="meta").model.norm.weight.is_meta


def test_a_second_save_leaves_nothing_of_the_first(tmp_path):
    save_model(built(SHAPES["llama"], seed=1), tmp_path, max_shard_bytes=4096)
    save_model(built(SHAPES["llama"], seed=2), tmp_path, load_tokenizer("bytes"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "files.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again = load_model(str(tmp_path), dtype="float64").state_dict()
    assert torch.equal(again["model.norm.weight"], built(SHAPES["llama"], seed=2).model.norm.weight)


@pytest.mark.parametrize("moves", range(4))
def test_a_save_that_ends_while_files_move_leaves_no_mixture(moves, tmp_path, monkeypatch):
    save_model(built(SHAPES["llama"], seed=1), tmp_path)
    left = iter(range(moves))

    def replace(old: Path, new: Path) -> None:
        if new.parent == tmp_path and next(left, None) is None:
            raise KeyboardInterrupt
        old.rename(new)

    monkeypatch.setattr(saving.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt) if moves < 3 else contextlib.nullcontext():
        save_model(built(SHAPES["llama"], seed=2), tmp_path)
    with pytest.raises(ValueError, match=r"has no config\.json") if moves < 3 else contextlib.nullcontext():
        load_model(str(tmp_path))


def test_a_changed_model_is_not_saved(tmp_path):
    model = built(SHAPES["llama"])
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.model.layers[0].mlp.up_proj)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj"):
        save_model(model, tmp_path)


def tiny() -> Transformer:
    """A builder, named below as tests.laws.test_weights:tiny."""
    return Transformer(SHAPES["llama"])


def test_a_builder_builds():
    assert load_model("tests.laws.test_weights:tiny").model.norm.weight.dtype == torch.float32
    assert load_model("tests.laws.test_weights:tiny", dtype="bfloat16").model.norm.weight.dtype == torch.bfloat16
    for name in ("tests.laws.test_weights:absent", "tests.laws.absent:tiny", "tests.laws.test_weights:built"):
        with pytest.raises((ValueError, TypeError), match=r"builder|built"):
            load_model(name)


def test_a_type_that_is_none():
    with pytest.raises(ValueError, match="dtype='int8'"):
        resolve_dtype("int8")


def test_the_converted_folder_is_whole_and_checked(tmp_path):
    folder = model_files("smollm2-135m")
    held = json.loads((folder / "files.json").read_text())["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} < held.keys()
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in held:
        (copy / name).symlink_to(folder / name)
    shutil.copy(folder / "files.json", copy)
    verify(copy)
    (copy / "config.json").unlink()
    (copy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json differs from the sha256"):
        verify(copy)


def test_a_folder_is_built_once_or_not_at_all(tmp_path):
    target, calls = tmp_path / "made", []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "part").write_text("content")

    threads = [threading.Thread(target=build_once, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1

    (target / "part").write_text("torn")
    assert (build_once(target, build) / "part").read_text() == "content"
    assert len(calls) == 2

    def fail(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        build_once(tmp_path / "never", fail)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["made"]


def test_a_lock_goes_only_while_nobody_holds_it(tmp_path):
    lock, begun, go_on = tmp_path / "lock", threading.Event(), threading.Event()

    def build(folder: Path) -> None:
        begun.set()
        go_on.wait(10)

    builder = threading.Thread(target=build_once, args=(tmp_path / "made", build), kwargs={"lock": lock})
    builder.start()
    assert begun.wait(10)
    remove_unused(lock)
    assert lock.exists()
    go_on.set()
    builder.join()
    remove_unused(lock)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_record_reaches_no_other_folder(tmp_path):
    (tmp_path / "outside").write_text("text")
    for name in ("../outside", str(tmp_path / "outside")):
        made = build_once(tmp_path / "made", lambda folder: (folder / "part").write_text("text"))
        record = (made / "files.json").read_text()
        (made / "files.json").write_text(record.replace("part", name))
        with pytest.raises(ValueError, match=r"made/files\.json is not a record of files"):
            verify(made)
        assert "part" in (build_once(made, lambda folder: (folder / "part").write_text("")) / "files.json").read_text()
        shutil.rmtree(made)


# SmolLM2's vocabulary lacks six control characters and the bytes that begin unassigned planes; it drops them.
@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Co", "Cn")), max_size=200))
@settings(max_examples=100)
def test_text_comes_back_from_its_ids(text):
    for name in ("bytes", "smollm2-135m"):
        tokenizer = _tokenizer(name)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, special=True) == text
        assert tokenizer.encode_batch([text, "x"])[0] == ids
        assert all(0 <= number < tokenizer.vocab_size for number in ids)


_known: dict[str, Tokenizer] = {}


def _tokenizer(name: str) -> Tokenizer:
    if name not in _known:
        _known[name] = load_tokenizer(name)
    return _known[name]


def test_bytes_are_their_own_ids():
    tokenizer = load_tokenizer("bytes")
    text = "".join(map(chr, range(128))) + "äß語🙂"
    assert tokenizer.encode(text) == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (257, 256, None)


def test_digits_stand_alone_and_special_tokens_are_one():
    tokenizer = _tokenizer("smollm2-135m")
    assert [tokenizer.decode([number]) for number in tokenizer.encode("in 2024")] == ["in", " ", "2", "0", "2", "4"]
    assert tokenizer.encode("<|im_start|>user") == [tokenizer.bos_id, *tokenizer.encode("user")]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, {2})


def test_chats_are_rendered_by_the_models_template_in_a_sandbox():
    tokenizer = _tokenizer("smollm2-135m")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {{ 1 + 1 }}"}]
    assert tokenizer.render_chat(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ 1 + 1 }}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.render_chat(messages, False).endswith("<|im_end|>\n")
    assert tokenizer.encode_chat(messages)[0] == tokenizer.bos_id
    hostile = Tokenizer(tokenizer.rust, {**tokenizer.settings, "chat_template": "{{ ''.__class__.__mro__ }}"})
    with pytest.raises(Exception, match="unsafe"):
        hostile.render_chat(messages)
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer("bytes").render_chat(messages)


def test_a_saved_tokenizer_comes_back(tmp_path):
    tokenizer = _tokenizer("smollm2-135m")
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.settings, again.stop_ids, again.bos_id) == (tokenizer.settings, tokenizer.stop_ids, tokenizer.bos_id)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
