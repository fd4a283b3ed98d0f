"""A quick look at a source finds what is wrong with it, in one line, without reading it whole."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.data import DataFacts, Hub, JsonLines, Manual, Mixture, Saved, TextFiles, documents, inspect_data, save, tables

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


class Counting(io.FileIO):
    """A file that counts the bytes read of it."""

    read_bytes = 0

    def readinto(self, buffer) -> int:
        size = super().readinto(buffer)
        Counting.read_bytes += size
        return size


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Path, "open", lambda path, mode="r", *_, **__: io.BufferedReader(Counting(path, mode)))
    monkeypatch.setattr(Counting, "read_bytes", 0)


def test_only_the_beginning_is_read(tmp_path, counted):
    with open(tmp_path / "large.jsonl", "wb") as file:
        file.write(b"\n".join(json.dumps(row).encode() for row in ROWS) + b"\n")
        file.truncate(1 << 34)  # a hole: 16 GiB that take no room
    facts = inspect_data(JsonLines(path="large.jsonl", prompt="q", answer="a"))
    assert facts.bytes == 1 << 34
    assert inspect_data(TextFiles(paths=("large.jsonl",))).bytes == 1 << 34
    assert 1 << 20 <= Counting.read_bytes < 2 << 20


@pytest.mark.parametrize("stream", [True, False])
def test_a_line_without_an_end_is_refused_before_it_is_in_memory(stream, tmp_path, monkeypatch, counted):
    monkeypatch.setattr(tables, "LINE", 1 << 20)
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(1 << 30)
    data = JsonLines(path="large.json", stream=stream)
    for read in (inspect_data, documents):
        with pytest.raises(ValueError, match=r"large\.json: the line at byte 0 is longer than 1 MiB; divide it"):
            read(data)
    assert Counting.read_bytes < 4 << 20


@pytest.mark.parametrize("before", range(4))
def test_where_the_look_ends_a_character_may_be_cut(before, tmp_path):
    """Chinese and Japanese books may have no line break in the first MiB."""
    text = ("." * before + "漢" * (1 << 19)).encode()
    for number in range(6):
        (tmp_path / f"{number}.text").write_bytes(text)
    names = tuple(f"{number}.text" for number in range(6))
    assert inspect_data(TextFiles(paths=names)).bytes == 6 * len(text) > 8 << 20
    (tmp_path / "5.text").write_bytes(text[:-1])
    (tmp_path / "4.text").write_bytes(text[:300_000] + b"\xff" + text)
    with pytest.raises(ValueError, match=r"4\.text, line 1: not UTF-8"):
        inspect_data(TextFiles(paths=names))
    with pytest.raises(ValueError, match=r"5\.text, line 1: not UTF-8"):
        inspect_data(TextFiles(paths=names[5:]))


def test_no_torch_is_loaded():
    code = (
        "import sys; from toolkit.data import JsonLines, Manual, TextFiles, inspect_data; inspect_data(Manual());"
        "inspect_data(TextFiles(paths=('a.txt',)));"
        "inspect_data(JsonLines(path='rows.jsonl', prompt='q', answer='a')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
