"""Laws of streams: constant memory, every document once a pass, and the same steps for any number of ranks, also resumed."""

import json
import os
import re
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from toolkit.data import (
    Conversation,
    Hub,
    JsonLines,
    Manual,
    Mixture,
    StepLoader,
    Stream,
    TextFiles,
    documents,
    pack,
    stream_reading,
)
from toolkit.models import load_tokenizer

BYTES = load_tokenizer("bytes")
ROWS = [{"q": f"q{number}", "a": f"answer {number} " + "é" * (number % 7)} for number in range(120)]


@pytest.fixture(autouse=True)
def small_pieces(tmp_path, monkeypatch):
    """Blocks of 200 bytes, three a piece, so that a small file has many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stream_reading, "BLOCK", 200)
    monkeypatch.setattr(stream_reading, "BLOCKS", 3)
    for name, rows in (("one", ROWS[:70]), ("two", ROWS[70:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def lines(**changes) -> JsonLines:
    return JsonLines(**{"path": "*.jsonl", "prompt": None, "answer": "a", "stream": True, "held_out": 0.0, **changes})


HUB = {"prompt": None, "answer": "a", "stream": True, "held_out": 0.0}
SOURCES = {"lines": lambda: lines(), "hub": lambda: Hub(name="hub", **HUB)}


def loader(data, *, rank: int = 0, ranks: int = 1, step: int = 4, seed: int = 0) -> StepLoader:
    rows = pack(documents(data)[0], BYTES, 16, seed)
    return StepLoader(rows, sequences_per_step=step, micro_sequences=1, rank=rank, ranks=ranks, seed=seed)


def tokens(step) -> list[list[int]]:
    """The rows of a step."""
    return [row for micro in step for row in micro["tokens_BT"].tolist()]


def together(shares) -> list[list[int]]:
    """The rows of a step whose parts several ranks hold."""
    return [row for share in shares for row in tokens(share)]


@pytest.mark.parametrize("source", SOURCES)
def test_a_pass_holds_every_document_once(source):
    learned, held_out = documents(SOURCES[source]())
    assert sorted(text.text for text in learned) == sorted(row["a"] for row in ROWS)
    assert not len(held_out)
    rows = pack(learned, BYTES, 64)
    assert isinstance(rows, Stream)
    found, number, mark = [], 0, None
    while len(found) < len(ROWS):
        texts, mark = learned.piece(number, mark, 0)
        found += texts
        number += 1
    assert sorted(found) == sorted(learned)
    if source == "lines":
        assert number == learned.pieces_a_pass > 3
        assert learned.piece(0, None, 0) != learned.piece(0, None, 1)
        assert learned.piece(0, None, 0) != learned.piece(number, None, 0)


def test_text_files_come_in_pieces_of_whole_lines(tmp_path):
    text = "".join(f"line {number} é\n" for number in range(100))
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "short.txt").write_text("one line")
    learned, _ = documents(TextFiles(paths=("long.txt", "short.txt"), stream=True, held_out=0.0))
    found = [document.text for document in learned]
    assert "".join(found) == text + "one line"
    assert all(part.endswith("\n") for part in found[:-1])
    assert len(found) == -(-len(text.encode()) // 200) + 1


def test_held_out_documents_are_never_learned():
    learned, held_out = documents(lines(held_out=0.3))
    kept = [text.text for text in held_out]
    assert kept
    rest = [text.text for text in learned]
    assert not set(kept) & set(rest)
    assert set(kept) < {row["a"] for row in ROWS}
    assert 60 < len(rest) < 110  # beyond the beginning they are left out as well
    plain_learned, plain_held_out = documents(lines(held_out=0.3, stream=False))
    assert {text.text for text in plain_learned} == set(rest)
    assert set(kept) <= {text.text for text in plain_held_out}


@pytest.mark.parametrize("source", SOURCES)
def test_any_number_of_ranks_sees_the_same_steps(source):
    data = SOURCES[source]()
    whole = [tokens(step) for step in islice(loader(data), 30)]
    for ranks in (2, 4):
        parts = [islice(loader(data, rank=rank, ranks=ranks), 30) for rank in range(ranks)]
        assert [together(shares) for shares in zip(*parts, strict=True)] == whole
    assert whole != [tokens(step) for step in islice(loader(data, seed=1), 30)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("position", [0, 1, 7, 26, 55])
def test_a_stream_resumes_at_any_step_on_any_number_of_ranks(source, position):
    data = SOURCES[source]()
    steady = [loader(data, rank=rank, ranks=2) for rank in range(2)]
    assert len([*zip(*(islice(one, position) for one in steady), strict=True)]) == position
    states = [json.loads(json.dumps(one.state_dict())) for one in steady]
    want = [together(shares) for shares in zip(*(islice(one, 12) for one in steady), strict=True)]
    for state in states:  # that of any rank serves
        resumed = loader(data)
        resumed.load_state_dict(state)
        assert [tokens(step) for step in islice(resumed, 12)] == want


def test_a_step_is_the_same_whenever_it_is_asked_for():
    one = loader(lines())
    steps = [tokens(one.step(number)) for number in range(40)]
    assert [tokens(one.step(number)) for number in (39, 3, 20)] == [steps[39], steps[3], steps[20]]


def test_pieces_are_forgotten(tmp_path):
    cache = tmp_path / "cache/scalebook/data"
    left = [cache / name for name in ("stream-left-3", ".stream-left-4.partial", ".stream-left.lock")]
    for path in left:  # by a run that was killed long ago
        path.mkdir(parents=True) if path.suffix != ".lock" else path.touch()
        os.utime(path, (0, 0))
    one = loader(lines())
    for _ in islice(one, 60):
        assert len(list(cache.glob("stream-*"))) <= 3
    one.rows._ahead.shutdown()
    assert sorted(path.name for path in cache.iterdir() if path.is_file()) == [f".{one.rows.stream.folder(0).name[:-2]}.lock"]
    assert len(list(cache.iterdir())) <= 4, "the newest pieces and one lock"


def test_the_next_piece_is_made_ahead(tmp_path):
    one = loader(lines())
    one.step(0)
    one.rows._ahead.shutdown()
    assert {path.name[-2:] for path in (tmp_path / "cache/scalebook/data").glob("stream-*")} == {"-0", "-1"}


def test_a_state_of_another_file_is_refused(tmp_path):
    state = loader(lines()).state_dict()
    (tmp_path / "two.jsonl").write_text((tmp_path / "two.jsonl").read_text().replace("answer 119", "answer 911"))
    with pytest.raises(ValueError, match="the state was saved with rows="):
        loader(lines()).load_state_dict(state)


def test_a_mixture_of_a_stream_and_a_set_resumes_exactly():
    data = Mixture(parts=(lines(), Manual()), weights=(3, 1))
    steady = loader(data)
    list(islice(steady, 9))
    state = json.loads(json.dumps(steady.state_dict()))
    resumed = loader(data)
    resumed.load_state_dict(state)
    assert [tokens(step) for step in islice(resumed, 5)] == [tokens(step) for step in islice(steady, 5)]
    with pytest.raises(ValueError, match="nobody knows how large a stream is"):
        Mixture(parts=(lines(), Manual()))


def test_conversations_stream_too(tmp_path):
    said = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    (tmp_path / "said").write_text(json.dumps({"m": said}) + "\n")
    learned, _ = documents(JsonLines(path="said", messages="m", stream=True, held_out=0.0))
    assert [text.turns for text in learned] == [said]
    assert isinstance(next(iter(learned)), Conversation)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "1"}\n\n{"b": "2"}', "x, line 3: no key 'a', only b"),
        (b'{"a": "1"}\n{"a": "\xff"}\n', "x, line 2: not UTF-8"),
        (b"\n\n", "x is empty"),
        (b"", "x is empty"),
    ],
)
def test_a_bad_line_is_named(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        list(documents(lines(path="x"))[0])
    assert "\n" not in str(raised.value)


def test_a_stream_without_anything_to_learn_says_so(tmp_path):
    (tmp_path / "x").write_text('{"a": ""}\n' * 40)
    with pytest.raises(ValueError, match="nothing to learn"):
        loader(lines(path="x")).step(0)
    (tmp_path / "x").write_text('{"a": "only one"}\n')
    with pytest.raises(ValueError, match="one document cannot be divided while it streams"):
        documents(lines(path="x", held_out=0.5))


MEMORY = """
import os, resource
from toolkit.data import JsonLines, StepLoader, documents, encoding, pack, reading, stream_reading
from toolkit.models import load_tokenizer
reading._KEPT_BYTES, encoding._LETTERS, stream_reading.BLOCK, stream_reading.BLOCKS = 0, 1 << 16, 1 << 17, 1  # as the text
tokenizer = load_tokenizer("bytes")

def peak(path, stream):
    rows = pack(documents(JsonLines(path=path, prompt=None, answer="a", held_out=0.0, stream=stream))[0], tokenizer, 256)
    if stream:
        loader = StepLoader(rows, sequences_per_step=64, micro_sequences=64, rank=0, ranks=1, seed=0)
        for number in range(os.path.getsize(path) // 256 // 64):
            loader.step(number)
    else:
        assert rows.tokens_NT.size > 0.9 * os.path.getsize(path)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = [peak("small", stream) for stream in (True, False)]
print(*(peak("large", stream) - before[1] for stream in (True, False)))  # KiB
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    """3 million tokens, which are 36 MB when packed: a path that held them grows by 39 MiB and more, one that does not by 1."""
    line = json.dumps({"a": "".join(chr(97 + number % 26) for number in range(1000))}) + "\n"
    (tmp_path / "small").write_text(line * (1 << 9))
    (tmp_path / "large").write_text(line * (3 << 10))
    run = [sys.executable, "-P", "-c", MEMORY]
    steady = {"RAYON_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1"}  # or each thread keeps memory of its own
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, **steady})
    assert done.returncode == 0, done.stderr[-2000:]
    grown = [int(size) >> 10 for size in done.stdout.split()]
    assert max(grown) < 20, f"{grown} MiB"


def test_rows_are_int32_of_one_document_count(tmp_path):
    rows = pack(documents(lines())[0], BYTES, 16)
    packed, _ = rows.piece(0, None)
    assert packed.tokens_NT.dtype == np.int32
    assert (packed.documents_NT[:, 0] == 0).all()
