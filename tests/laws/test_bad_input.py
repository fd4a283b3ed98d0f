"""What a person types that cannot run: one line that names the thing, status 2, and nothing was started or left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.laws.command_line import command
from tests.laws.test_gguf import FAMILIES, write_gguf
from tests.laws.test_inspect import DOWN, edit, weights
from tests.laws.test_models import built
from toolkit.models import TransformerConfig, load_tokenizer, save_model
from toolkit.recipes import preflight

SHAPE = TransformerConfig(
    vocab_size=257, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=64,
)  # fmt: skip
ROW = json.dumps({"prompt": "two and two", "answer": "is four"})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, which every case copies."""
    folder = tmp_path_factory.mktemp("sound")
    save_model(built(SHAPE).float(), folder)
    load_tokenizer("bytes").save(folder)
    write_gguf(folder.parent / "sound.gguf", built(FAMILIES["llama"]).float(), "gemma3")
    return folder


@pytest.fixture
def here(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The person's folder: model/, rows.jsonl, other.gguf. Nothing may be added to it."""
    shutil.copytree(sound, tmp_path / "model")
    shutil.copy(sound.parent / "sound.gguf", tmp_path / "other.gguf")
    (tmp_path / "rows.jsonl").write_text("\n".join([ROW.replace("two", str(n)) for n in range(200)]))
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flip(path: Path) -> None:
    """Change one bit near the end, as a bad disk or somebody else may."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def line(number: int, text: bytes) -> Callable[[Path], object]:
    """Another text in one line of rows.jsonl."""

    def change(folder: Path) -> None:
        rows = (folder / "rows.jsonl").read_bytes().split(b"\n")
        rows[number - 1] = text
        (folder / "rows.jsonl").write_bytes(b"\n".join(rows))

    return change


def text(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def config(**changes: Any) -> Callable[[Path], object]:
    """Other values in config.json."""

    def change(folder: Path) -> None:
        path = folder / "model/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def nothing(folder: Path) -> None:
    """The folder is as it should be."""


GGUF = ["--model", "other.gguf"]
MODEL = ["--model", "model", "--context", "32", "--batch-tokens", "64"]
ROWS = [*MODEL, "--data", "JsonLines(path='rows.jsonl')"]
BAD: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "unknown model": (nothing, ["--model", "smollm-135m"], "unknown model 'smollm-135m' (did you mean 'smollm2-135m'?)"),
    "unknown folder": (nothing, ["--model", "./absent"], "unknown model './absent'"),
    "unknown hub model": (nothing, ["--model", "nobody/nothing"], "the hub model 'nobody/nothing' cannot be fetched"),
    "unknown builder": (nothing, ["--model", "no.such:thing", "--tokenizer", "bytes"], "'no.such:thing' cannot be imported"),
    "truncated weights": (
        lambda f: weights(f / "model").write_bytes(weights(f / "model").read_bytes()[:-50]), MODEL, "safetensors is cut short"
    ),
    "tampered weights": (lambda f: flip(weights(f / "model")), MODEL, "model.safetensors differs from the sha256 recorded"),
    "tampered header": (
        lambda f: weights(f / "model").write_bytes(b"\xff" * 200), MODEL, "model.safetensors is damaged, cut short or not",
    ),
    "wider than its weights": (config(hidden_size=32), MODEL, "has the shape (257, 24), but config.json says (257, 32)"),
    "a tensor is missing": (lambda f: edit(weights(f / "model"), lambda t: t.pop(DOWN)), MODEL, f"asks for the tensor {DOWN}"),
    "config not JSON": (text("model/config.json", b"{"), MODEL, "config.json is not JSON"),
    "family of nobody": (config(model_type="fancy"), MODEL, "model_type 'fancy' is not one of llama"),
    "GGUF of another family": (nothing, GGUF, "architecture 'gemma3'"),
    "GGUF cut short": (
        lambda f: (f / "other.gguf").write_bytes((f / "other.gguf").read_bytes()[:100]), GGUF, "other.gguf is damaged"
    ),
    "pickled checkpoint": (
        lambda f: weights(f / "model").rename(f / "model/pytorch_model.bin"), MODEL, "pytorch_model.bin is a pickle"
    ),
    "pickled file": (text("model.pt", b"\x80"), ["--model", "model.pt"], "model.pt is a pickle, which can run code"),
    "no tokenizer": (lambda f: (f / "model/tokenizer.json").unlink(), MODEL, "--tokenizer: 'model' has none; name a model"),
    "no tokenizer of a builder": (nothing, ["--model", "tests.distributed.training_bodies:tiny"], "--tokenizer: 'tests."),
    "damaged tokenizer": (text("model/tokenizer.json", b"{}"), MODEL, "tokenizer.json is not a tokenizer"),
    "tokenizer too large": (nothing, [*MODEL, "--tokenizer", "smollm2-135m"], "it has 49152 ids, the model only 257"),
    "no data file": (nothing, [*MODEL, "--data", "JsonLines(path='row.jsonl')"], "JsonLines: 'row.jsonl' matches no file"),
    "empty data file": (text("rows.jsonl", b""), ROWS, "rows.jsonl is empty"),
    "a line of garbage": (line(150, b'{"prompt": '), ROWS, "rows.jsonl, line 150: "),
    "a line that is no text": (line(7, b'{"prompt": "\xff"}'), ROWS, "rows.jsonl, line 7: "),
    "a wrong column": (
        nothing, [*MODEL, "--data", "JsonLines(path='rows.jsonl', answer='text')"],
        "rows.jsonl, line 1: no key 'text', only prompt, answer",
    ),
    "text that is none": (
        text("book.txt", b"one\ntwo\n\xff\xfe\n"),
        [*MODEL, "--data", "TextFiles(paths=('book.txt',))"],
        "book.txt, line 3: not UTF-8",
    ),
    "an unreadable source": (nothing, [*MODEL, "--data", "TextFiles(paths=('model',))"], "model cannot be read: Is a directory"),
    "a batch that does not divide": (
        nothing, ["--plan.dp-shard=3"], "--batch-tokens: 4 rows of 256 tokens do not divide over 3 data-parallel processes"
    ),
    "half a row": (nothing, [*MODEL, "--batch-tokens", "80"], "--batch-tokens: 80 is not a multiple of context 32; take 64"),
    "a context too long": (
        nothing, ["--model", "model", "--context", "128"], "--context: 128 tokens are more than the 64 of 'model'; take at"
    ),
    "a pattern for nothing": (nothing, [*MODEL, "--adapters", '{"*.qproj": LoRA()}'], "--adapters: '*.qproj' matches no module"),
}  # fmt: skip


def refused(arguments: list[str], message: str, here: Path, capsys: Any) -> None:
    before, children = sorted(here.rglob("*")), psutil.Process().children()
    status, out, err = command("run", "fine-tune", *arguments, capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert sorted(here.rglob("*")) == before, "nothing is left"
    assert psutil.Process().children() == children, "nothing was started"


@pytest.mark.parametrize("case", BAD)
def test_it_is_one_line_and_status_2(case: str, here: Path, capsys: Any) -> None:
    damage, arguments, message = BAD[case]
    damage(here)
    refused(arguments, message, here, capsys)


def test_a_disk_too_full_for_the_cache(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    free = shutil.disk_usage(here)._replace(free=1000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: free)
    refused(ROWS, "--data: 9,179 bytes of text take more than that packed, but ", here, capsys)
