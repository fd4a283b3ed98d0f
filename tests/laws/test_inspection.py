"""A quick look at a source finds what is wrong with it, in one line, without reading it whole."""

import json
import re
import subprocess
import sys
import time

import pytest

from toolkit.data import DataFacts, Hub, JsonLines, Manual, Mixture, Saved, TextFiles, inspect_data, save

ROWS = [{"q": f"question {number}", "a": f"answer {number}"} for number in range(90)]
SAID = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "said.jsonl").write_text(json.dumps({"messages": SAID, "text": [1]}) + "\n")
    (tmp_path / "a.txt").write_text("one\ntwo\n")


def size(name: str) -> int:
    """Bytes of a file of the test's folder."""
    with open(name, "rb") as file:
        return len(file.read())


def test_facts_of_every_source(tmp_path):
    rows = JsonLines(path="rows.jsonl", prompt="q", answer="a")
    assert inspect_data(Manual()) == DataFacts(documents=79, files=1, bytes=None, chat=False)
    assert inspect_data(TextFiles(paths=("*.txt",))) == DataFacts(documents=1, files=1, bytes=8, chat=False)
    assert inspect_data(rows) == DataFacts(documents=None, files=1, bytes=size("rows.jsonl"), chat=False)
    assert inspect_data(JsonLines(path="said.jsonl", messages="messages", held_out=0.0)).chat
    assert inspect_data(JsonLines(path="rows.jsonl", prompt="q", answer="a", chat=True)).chat
    saved = save([row["a"] for row in ROWS])
    assert inspect_data(saved).documents == 90
    both = inspect_data(Mixture(parts=(Manual(), saved)))
    assert (both.documents, both.files, both.bytes, both.chat) == (169, 2, None, False)
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "rows.jsonl").rename(folder / "train.jsonl")
    assert not inspect_data(Hub(name=str(folder), prompt="q", answer="a")).chat


@pytest.mark.parametrize(
    ("content", "data", "message"),
    [
        (b'{"a": "1"}\n\n{', JsonLines(path="x", prompt=None, answer="a"), "x, line 3: not JSON"),
        (b'{"a": "\xff"}', JsonLines(path="x", prompt=None, answer="a"), "x, line 1: not UTF-8"),
        (b"[1]", JsonLines(path="x"), "x, line 1: expected an object, got list"),
        (b'{"q": "?"}', JsonLines(path="x", prompt="q", answer="a"), "x, line 1: no key 'a', only q"),
        (b'{"q": "?", "a": 1}', JsonLines(path="x", prompt="q", answer="a"), "x, line 1: 'a' is not text"),
        (b'{"q": 1}', JsonLines(path="x", messages="m"), "x, line 1: no key 'm', only q"),
        (b'{"m": []}', JsonLines(path="x", messages="m"), "x, line 1: 'm' holds no message"),
        (b'{"m": {}}', JsonLines(path="x", messages="m"), "x, line 1: 'm' holds no message"),
        (b'{"m": "hello"}', JsonLines(path="x", messages="m"), "x, line 1: 'm' is text, not a list of messages"),
        (b'{"m": [{"role": "user"}]}', JsonLines(path="x", messages="m"), "x, line 1: 'm', message 0: no content"),
        (b'{"m": [{"from": "gpt"}]}', JsonLines(path="x", messages="m"), "message 0: expected {\"role\""),
        (b'{"m": [{"role": "user", "content": "?"}]}', JsonLines(path="x", messages="m"), "no message of the assistant"),
        (b"a\nb\xff", TextFiles(paths=("x",)), "x, line 2: not UTF-8"),
        (b" \n", TextFiles(paths=("x",)), "x is empty"),
        (b"", TextFiles(paths=("a.txt", "x")), "x is empty"),
        (b"", JsonLines(path="x"), "x is empty"),
        (b"\n \n", JsonLines(path="x"), "x is empty"),
        (b"a", TextFiles(paths=("y*",)), "'y*' matches no file"),
        (b"a", TextFiles(paths=("y",)), "'y' matches no file"),
        (b"a", TextFiles(paths=()), "paths is empty"),
        (b"a", TextFiles(paths=(".",)), ". cannot be read: Is a directory"),
        (b"a", JsonLines(path="y"), "'y' matches no file"),
        (b"a", Saved(path="y"), "y holds no saved data"),
        (b"a", TextFiles(paths=("x",)), "cannot be divided"),
        (json.dumps({"m": SAID}).encode(), JsonLines(path="x", messages="m"), "x, line 1: one conversation cannot be divided"),
        (b"a", Hub(name="nobody/nothing"), "the hub data set 'nobody/nothing' cannot be read"),
        (b"a", Mixture(parts=(Manual(), Saved(path="y"))), "y holds no saved data"),
    ],
)
def test_what_is_wrong_is_one_clear_line(content, data, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        inspect_data(data)
    assert "\n" not in str(raised.value)


def test_a_wrong_column_of_a_hub_set_is_named_with_those_there_are(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "set/train.jsonl")
    name = str(tmp_path / "set")
    with pytest.raises(ValueError, match=r"has no column 'text', only q, a$"):
        inspect_data(Hub(name=name))
    with pytest.raises(ValueError, match=r"cannot be read \(Bad split: x. Available splits: \['train'\]\)"):
        inspect_data(Hub(name=name, split="x", answer="a"))


def test_only_the_beginning_is_read(tmp_path):
    with open(tmp_path / "large.jsonl", "wb") as file:
        file.write(b"\n".join(json.dumps(row).encode() for row in ROWS) + b"\n")
        file.truncate(1 << 34)  # a hole: 16 GiB that take no room
    began = time.perf_counter()
    facts = inspect_data(JsonLines(path="large.jsonl", prompt="q", answer="a"))
    assert facts.bytes == 1 << 34
    assert inspect_data(TextFiles(paths=("large.jsonl",))).bytes == 1 << 34
    assert time.perf_counter() - began < 1.0


def test_no_torch_is_loaded():
    code = (
        "import sys; from toolkit.data import JsonLines, Manual, TextFiles, inspect_data; inspect_data(Manual());"
        "inspect_data(TextFiles(paths=('a.txt',)));"
        "inspect_data(JsonLines(path='rows.jsonl', prompt='q', answer='a')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
