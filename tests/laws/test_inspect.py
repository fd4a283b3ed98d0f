"""Bad models are found before anything starts: one line that names the file or tensor and the remedy, without torch."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.laws.test_models import SHAPES, built, every_shape
from toolkit.models import ModelFacts, inspect_model, inspect_tokenizer, load_model, load_tokenizer, save_model
from toolkit.models.weight_files import read_header

LLAMA = SHAPES["llama"]


@every_shape
def test_facts_are_those_of_the_model(config, tmp_path):
    model = built(config).bfloat16()
    save_model(model, tmp_path, load_tokenizer("bytes"), max_shard_bytes=4096)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert inspect_model(str(tmp_path)) == ModelFacts(
        name=str(tmp_path),
        kind="folder",
        family=json.loads((tmp_path / "config.json").read_text())["model_type"],
        native=True,
        max_context=64,
        vocab_size=61,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype="bfloat16",
        bytes_on_disk=size,
        has_tokenizer=True,
        config=config,
    )
    assert inspect_tokenizer(str(tmp_path)) == 257


def test_the_packaged_model_and_builders():
    facts = inspect_model("smollm2-135m")
    assert (facts.kind, facts.family, facts.num_parameters, facts.max_context) == ("gguf", "llama", 134_515_008, 8192)
    assert inspect_tokenizer("smollm2-135m") == 49152
    assert inspect_tokenizer("bytes") == 257
    facts = inspect_model("tests.laws.test_weights:tiny")
    assert (facts.kind, facts.native, facts.num_parameters, facts.config) == ("builder", False, None, None)


def test_it_brings_no_torch(tmp_path):
    save_model(built(LLAMA), tmp_path, load_tokenizer("bytes"))
    code = (
        "import sys; from toolkit.models import inspect_model, inspect_tokenizer as t; "
        f"[inspect_model(n) for n in ({str(tmp_path)!r}, 'smollm2-135m', 'no_module:f')[:2]]; t({str(tmp_path)!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file, its data left as it is."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a safetensors file."""
    held: dict[str, Any] = load_file(path)
    change(held)
    save_file(held, path)


def index(folder: Path, name: str, file: str) -> None:
    """Make an index that places every tensor rightly, but this one in `file`."""
    weight_map = dict.fromkeys(read_header(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map | {name: file}}))


def config(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a name away."""
    data = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


WINDOWS = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in the data": (lambda f: weights(f).write_bytes(weights(f).read_bytes()[:-50]), "model.safetensors is cut short: "),
    "cut in the header": (lambda f: weights(f).write_bytes(weights(f).read_bytes()[:90]), "cut short or not safetensors (90"),
    "empty": (lambda f: weights(f).write_bytes(b""), "model.safetensors is damaged, cut short or not safetensors (0 bytes"),
    "bytes behind": (lambda f: weights(f).write_bytes(weights(f).read_bytes() + b"x"), "is longer than its header says"),
    "header of garbage": (
        lambda f: weights(f).write_bytes(weights(f).read_bytes()[:8] + b"\xff" * 80 + weights(f).read_bytes()[88:]),
        "its header is not JSON",
    ),
    "huge header": (lambda f: weights(f).write_bytes(b"\xff" * 200), "(200 bytes, a header of 18446744073709551615)"),
    "overlap": (lambda f: rewrite(weights(f), lambda h: h[NORM].update(data_offsets=[0, 24 * 8])), "starts at byte"),
    "shape and bytes": (lambda f: rewrite(weights(f), lambda h: h[NORM].update(shape=[25])), f"{NORM!r} has the shape (25,) in"),
    "negative": (lambda f: rewrite(weights(f), lambda h: h[NORM].update(shape=[-24])), f"{NORM!r} has a damaged entry"),
    "strange type": (lambda f: rewrite(weights(f), lambda h: h[NORM].update(dtype="F65")), f"{NORM!r} has a damaged entry"),
    "no entry": (lambda f: rewrite(weights(f), lambda h: h.update({NORM: 3})), f"{NORM!r} has a damaged entry"),
    "index outside": (lambda f: index(f, NORM, "../model.safetensors"), "names '../model.safetensors', which is not"),
    "index absolute": (lambda f: index(f, NORM, "/etc/passwd"), "names '/etc/passwd', which is not a safetensors file"),
    "index missing": (lambda f: index(f, NORM, "model-2.safetensors"), "names 'model-2.safetensors', which is not"),
    "index wrong": (lambda f: index(f, "model.other", "model.safetensors"), "places the tensor model.other in"),
    "index empty": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "is not an index of weights"),
    "index not JSON": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index.json is not JSON"),
    "tensor missing": (lambda f: edit(weights(f), lambda t: t.pop(DOWN)), f"config.json asks for the tensor {DOWN}, which"),
    "tensors missing": (lambda f: config(f, num_hidden_layers=4), "model.layers.2.self_attn.q_proj.weight and 17 more, which"),
    "tensor surplus": (lambda f: edit(weights(f), lambda t: t.update(extra=torch.ones(2))), "the weights hold extra, for which"),
    "tensors surplus": (lambda f: config(f, num_hidden_layers=1), " and 8 more, for which config.json has no place"),
    "other shape": (lambda f: config(f, hidden_size=32), "has the shape (61, 24), but config.json says (61, 32)"),
    "untied": (lambda f: config(f, tie_word_embeddings=False), "asks for the tensor lm_head.weight"),
    "pickled": (lambda f: weights(f).rename(f / "pytorch_model.bin"), "pytorch_model.bin is a pickle, which can run"),
    "other name": (lambda f: weights(f).rename(f / "consolidated.safetensors"), "holds no model.safetensors, only consolidated"),
    "no weights": (lambda f: weights(f).unlink(), "holds no model.safetensors; save the model there"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json must hold one JSON object"),
    "config without kind": (lambda f: config(f, model_type=None), "config.json has no model_type"),
    "config of nobody": (lambda f: config(f, model_type="fancy"), "model_type 'fancy' is not one of llama"),
    "config of text": (lambda f: config(f, hidden_size="24"), "config.json: hidden_size='24' must be a whole number"),
    "config without heads": (lambda f: config(f, num_attention_heads=0), "num_attention_heads"),
    "config of kinds": (lambda f: config(f, model_type=["llama"]), "config.json: model_type=['llama'] must be a word"),
    "config of a path": (lambda f: config(f, model_type="../models"), "config.json: model_type='../models' must be a word"),
    "config too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not JSON: maximum recursion"),
    "layers without end": (lambda f: config(f, num_hidden_layers=10**9), "num_hidden_layers"),
    "another's vocabulary": (lambda f: config(f, model_type="gpt2", vocab_size="x"), "config.json: vocab_size='x' must be"),
    "layers of text": (lambda f: config(f, **WINDOWS, num_hidden_layers="1"), "num_hidden_layers='1' must be a whole number"),
    "windows from text": (lambda f: config(f, **WINDOWS, max_window_layers="1"), "max_window_layers='1' must be a whole"),
    "kinds of layers": (lambda f: config(f, **WINDOWS, layer_types=5), "config.json: layer_types must be a list of words"),
    "one kind of layer": (lambda f: config(f, **WINDOWS, layer_types=["local"] * 2), "config.json: layer_types names 'local'"),
    "rope of text": (lambda f: config(f, rope_scaling={"type": "linear", "factor": "2"}), "factor='2' must be a number"),
    "rope twice": (lambda f: config(f, rope_scaling={"type": "linear"}, rope_parameters="x"), "config.json: rotary settings"),
    "rope of nobody": (lambda f: config(f, rope_scaling={"type": ["x"]}), "config.json: rotary scaling ['x'] is not"),
    "rope of words": (
        lambda f: config(f, rope_scaling={"type": "longrope", "short_factor": ["x"]}), "short_factor must be a list of numbers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_bad_folder_is_one_clear_line(how, tmp_path):
    save_model(built(LLAMA), tmp_path)
    damage, message = DAMAGE[how]
    damage(tmp_path)
    for read in (inspect_model, load_model):
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            read(str(tmp_path))
        assert "\n" not in str(raised.value)
        assert str(raised.value).count(str(tmp_path)) == 1


def test_harmless_surplus_is_let_pass(tmp_path):
    model = built(LLAMA)
    save_model(model, tmp_path)
    surplus = {"lm_head.weight": torch.zeros(61, 24), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    edit(weights(tmp_path), lambda t: t.update(surplus))
    (tmp_path / "files.json").unlink()
    again = load_model(str(tmp_path), dtype="float64")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_names_that_mean_nothing_say_what_is_near_and_what_there_is(tmp_path):
    save_model(built(LLAMA), tmp_path / "my-model")
    (tmp_path / "model.bin").write_bytes(b"")
    for name, message in {
        "smollm2-135": r"unknown model 'smollm2-135' \(did you mean 'smollm2-135m'\?\): give 'smollm2-135m', an existing folder",
        str(tmp_path / "my_model"): r"unknown model .*my_model' \(did you mean '.*my-model'\?\)",
        str(tmp_path / "model.bin"): r"model\.bin is a pickle, which can run code when read; convert it to safetensors",
        str(tmp_path / "my-model" / "config.json"): r"config\.json is a file: name the folder that holds it",
        "absent.gguf": r"unknown model 'absent\.gguf'",
        "no_such_module:build": r"builder 'no_such_module:build' cannot be imported: there is no module 'no_such_module'",
        "no_such.module:build": r"builder 'no_such\.module:build' cannot be imported: there is no module 'no_such\.module'",
        "tests.laws.test_weights.inner:build": r"there is no module 'tests\.laws\.test_weights\.inner' on the path",
        "tests.laws.test_weights:absent": r"cannot be imported: .*test_weights\.py defines no 'absent'",
        "nobody/nothing": r"the hub model 'nobody/nothing' cannot be fetched \(.*\); 'smollm2-135m' works offline",
    }.items():
        for read in (inspect_model, load_model) if ":" not in name else (inspect_model,):
            with pytest.raises(ValueError, match=message) as raised:
                read(name)
            assert "\n" not in str(raised.value)


def test_nothing_of_a_builder_is_run(tmp_path, monkeypatch):
    for name, text in {
        "own/__init__.py": "raise SystemExit",
        "own/inner/models.py": "def build(): ...",  # inner is a folder without an __init__.py
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert inspect_model("own.inner.models:build").kind == "builder"
    with pytest.raises(ValueError, match=r"models\.py defines no 'other'"):
        inspect_model("own.inner.models:other")
    with pytest.raises(ValueError, match=r"no module 'own\.models' on the path"):
        inspect_model("own.models:build")
    assert not [name for name in sys.modules if name.startswith("own")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json; save one there .*, or name the tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json is not a tokenizer"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), r"tokenizer_config\.json is not JSON"),
        (lambda f: [(f / n).unlink() for n in ("tokenizer_config.json", "generation_config.json")], r"no eos_token"),
    ],
    ids=["missing", "garbage", "settings", "no end"],
)
def test_a_bad_tokenizer_is_one_clear_line(change, message, tmp_path):
    load_tokenizer("bytes").save(tmp_path)
    assert inspect_tokenizer(str(tmp_path)) == 257
    change(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        inspect_tokenizer(str(tmp_path))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="name the tokenizer of a model that has"):
        inspect_tokenizer("tests.laws.test_weights:tiny")


def test_changed_bytes_are_found_when_the_weights_are_read(tmp_path):
    save_model(built(LLAMA), tmp_path / "one")
    one = weights(tmp_path / "one")
    data = bytearray(one.read_bytes())
    data[-5] ^= 1
    one.write_bytes(data)
    inspect_model(str(tmp_path / "one"))  # headers alone do not tell
    for _ in range(2):
        with pytest.raises(ValueError, match=r"differs from the sha256 recorded .* or remove .*files\.json if"):
            load_model(str(tmp_path / "one"))
    data[-5] ^= 1
    one.write_bytes(data)  # as it was, at another time: read through once more, and the time noted
    before = (tmp_path / "one/files.json").read_text()
    load_model(str(tmp_path / "one"))
    assert (tmp_path / "one/files.json").read_text() != before
    (tmp_path / "one/files.json").write_text("[]")
    with pytest.raises(ValueError, match=r"files\.json is not a record of files; remove it"):
        load_model(str(tmp_path / "one"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond this, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_converting_leaves_nothing(tmp_path, monkeypatch):
    from tests.laws.test_gguf import FAMILIES, write_gguf

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "m.gguf", built(FAMILIES["llama"]).float(), "llama")
    with largest_file(50_000), pytest.raises(ValueError, match=r"no space left in .*/models .*set XDG_CACHE_HOME") as raised:
        load_model(str(tmp_path / "m.gguf"))
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "cache/scalebook/models").iterdir() if path.is_dir()] == []
    assert load_model(str(tmp_path / "m.gguf"), device="meta").model.norm.weight.is_meta


def test_too_little_space_is_said_before_converting(tmp_path, monkeypatch):
    from tests.laws.test_gguf import FAMILIES, write_gguf
    from toolkit.models import inspect as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "m.gguf", built(FAMILIES["llama"]).float(), "llama")
    free = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match=r"m\.gguf takes [\d,]+ bytes converted, but .* has 1,000 free; make room, or set XDG"):
        inspect_model(str(tmp_path / "m.gguf"))


def test_a_disk_that_fills_while_saving_keeps_the_model_that_was_there(tmp_path):
    save_model(built(LLAMA, seed=1), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    with largest_file(20_000), pytest.raises(ValueError, match=r"no space left in .*name another folder"):
        save_model(built(LLAMA, seed=2), tmp_path, max_shard_bytes=30_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    again = load_model(str(tmp_path), dtype="float64").state_dict()
    assert torch.equal(again[NORM], built(LLAMA, seed=1).state_dict()[NORM])
