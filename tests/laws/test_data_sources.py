"""Laws of where text comes from: nothing lost, each document on its side, and one clear line for what is wrong."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import (
    Conversation,
    Data,
    Document,
    Hub,
    JsonLines,
    Manual,
    Mixture,
    Saved,
    TextFiles,
    conversation,
    documents,
    reading,
    save,
)
from toolkit.data.reading import split
from toolkit.values import dump, load, parse, source

SAID = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        Manual(held_out=0.2),
        TextFiles(paths=["a.txt", "b/*.md"]),
        JsonLines(path="x.jsonl", prompt=None, answer="text"),
        Hub(name="o/n", revision="abc", split="train[:10]", prompt="q", answer="a"),
        Saved(path="folder", chat=True),
        JsonLines(path="x/*.jsonl", messages="m", stream=True),
        Mixture(parts=[Manual(), Saved(path="f")], weights=[3, 1]),
    ],
)
def test_data_are_values(data):
    assert parse(source(data), Data) == data
    assert load(dump(data), Data) == data


def test_the_manual_is_divided_the_same_each_time():
    train, held_out = documents(Manual())
    assert (train, held_out) == documents(Manual())
    assert not set(train) & set(held_out)
    assert 0.04 < len(held_out) / (len(train) + len(held_out)) < 0.2
    assert sum(len(document.text) for document in train) > 300_000
    assert documents(Manual(held_out=0.0))[1] == []


@given(st.lists(st.builds(Document, st.text(max_size=3), st.text(max_size=9)), min_size=2, max_size=30, unique=True))
def test_both_sides_have_documents_and_nothing_is_lost(found):
    train, held_out = split(found, 0.3)
    assert train
    assert held_out
    assert sorted(train + held_out) == sorted(found)


def test_a_document_keeps_its_side_whatever_is_added():
    found = [Document("", f"document {number}") for number in range(300)]
    few, many = split(found[:150], 0.3), split(found, 0.3)
    assert set(few[1]) == set(many[1]) & set(found[:150])
    assert 60 < len(many[1]) < 120


def test_one_document_is_cut_at_a_line(tmp_path):
    (tmp_path / "one.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    train, held_out = documents(TextFiles(paths=("one.txt",)))
    assert train[0].text.endswith("\n")
    assert train[0].text + held_out[0].text == (tmp_path / "one.txt").read_text()
    assert 8 <= held_out[0].text.count("\n") <= 11


def test_files_and_patterns(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(f"{name} é\r\nend".encode())
    found = documents(TextFiles(paths=("a.txt", "**/c.txt", "?.txt"), held_out=0.0))[0]
    assert [document.text for document in found] == [f"{name} é\r\nend" for name in ("a.txt", "deep/er/c.txt", "a.txt", "b.txt")]


def test_json_lines(tmp_path):
    rows = [{"q": "one?", "a": "1"}, {"q": "two?", "a": "2", "more": [3]}]
    (tmp_path / "x.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    got = documents(JsonLines(path="x.jsonl", prompt="q", answer="a", held_out=0.0))[0]
    assert got == [Document("one?", "1"), Document("two?", "2")]
    assert documents(JsonLines(path="x.jsonl", prompt=None, answer="a", held_out=0.0))[0][0] == Document("", "1")


@pytest.mark.parametrize(
    ("content", "data", "message"),
    [
        (b'{"a": "1"}\n{', JsonLines(path="x", prompt=None, answer="a"), "x, line 2: not JSON"),
        (b"[1]", JsonLines(path="x"), "x, line 1: expected an object, got list"),
        (b'{"q": "?"}', JsonLines(path="x", prompt="q", answer="a"), "x, line 1: no key 'a', only q"),
        (b'{"q": "?", "a": 1}', JsonLines(path="x", prompt="q", answer="a"), "x, line 1: 'a' is not text"),
        (b"a\nb\xff", TextFiles(paths=("x",)), "x, line 2: not UTF-8"),
        (b" \n", TextFiles(paths=("x",)), "x is empty"),
        (b"", JsonLines(path="x"), "x is empty"),
        (b"a", TextFiles(paths=("y*",)), "'y*' matches no file"),
        (b"a", TextFiles(paths=()), "paths is empty"),
        (b"a", JsonLines(path="y"), "'y' matches no file"),
        (b"a", Saved(path="y"), "y holds no saved data"),
        (b"a", TextFiles(paths=("x",)), "cannot be divided"),
        (b"a", Hub(name="nobody/nothing"), "the hub data set 'nobody/nothing' cannot be read"),
    ],
)
def test_bad_data_is_one_clear_line(content, data, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        documents(data)
    assert "\n" not in str(raised.value)


def test_what_lives_in_a_notebook_is_saved_by_content(tmp_path):
    rows = ["plain", {"text": "as text"}, {"prompt": "q", "answer": "a", "more": 1}, Document("p", "t")]
    saved = save(rows)
    assert documents(Saved(path=saved.path, held_out=0.0))[0] == [
        Document("", "plain"),
        Document("", "as text"),
        Document("q", "a"),
        Document("p", "t"),
    ]
    assert save(iter(rows)) == saved != save(rows[:2])
    assert save(rows, tmp_path / "here").path.startswith(str(tmp_path / "here"))
    for bad in ([], [{"content": "x"}], [3]):
        with pytest.raises(ValueError, match="save: "):
            save(bad)


def test_data_sets_of_the_datasets_library_go_in_and_out():
    import datasets

    saved = save(datasets.Dataset.from_dict({"prompt": ["q", "r"], "answer": ["a", "b"]}))
    assert documents(Saved(path=saved.path, held_out=0.0))[0] == [Document("q", "a"), Document("r", "b")]
    assert datasets.Dataset.from_file(f"{saved.path}/documents.arrow")["text"] == ["a", "b"]


def test_a_line_separator_inside_a_row_is_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": "one\u2028two\u0085three"}\n{"prompt": "b", "answer": "four"}\n', encoding="utf-8")
    learned, held_out = documents(JsonLines(path=str(path), held_out=0.0))
    assert sorted(document.text for document in [*learned, *held_out]) == ["four", "one\u2028two\u0085three"]


# ---- conversations


def test_messages_and_pairs_become_conversations(tmp_path):
    rows = [{"m": SAID, "q": "1 + 1?", "a": "2"}]
    (tmp_path / "x").write_text("\n".join(map(json.dumps, rows)))
    whole = {"path": "x", "held_out": 0.0}
    assert documents(JsonLines(messages="m", **whole))[0] == [conversation(SAID)]
    (pair,) = documents(JsonLines(prompt="q", answer="a", chat=True, **whole))[0]
    assert pair.turns == [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def test_conversations_are_saved_and_come_back():
    import datasets

    rows = [SAID, {"messages": SAID, "id": 3}, conversation(SAID), "text", {"prompt": "q", "answer": "a"}]
    back = documents(Saved(path=save(rows).path, held_out=0.0))[0]
    assert back == [conversation(SAID)] * 3 + [Document("", "text"), Document("q", "a")]
    table = datasets.Dataset.from_list([{"talk": SAID}, {"talk": [{**SAID[1], "name": "x"}]}])
    both = documents(Saved(path=save(table, messages="talk").path, held_out=0.0))[0]
    assert [len(text.turns) for text in both] == [2, 1]
    assert both[0] == conversation(SAID)  # the key that only the other row has is not made up
    with pytest.raises(ValueError, match="a single str; put it into a list"):
        save("text")
    pair = save([{"prompt": "q", "answer": "a"}])
    assert isinstance(documents(Saved(path=pair.path, chat=True, held_out=0.0))[0][0], Conversation)
    with pytest.raises(ValueError, match="chat=True needs a prompt"):
        documents(Saved(path=save(["text"]).path, chat=True, held_out=0.0))


def test_a_hub_set_is_a_folder_of_files_as_well(tmp_path):
    (tmp_path / "set").mkdir()
    lines = [json.dumps({"messages": SAID, "text": f"row {number}"}) for number in range(30)]
    (tmp_path / "set/train.jsonl").write_text("\n".join(lines))
    learned, held_out = documents(Hub(name="set"))
    assert sorted(text.text for text in [*learned, *held_out]) == sorted(f"row {number}" for number in range(30))
    assert documents(Hub(name="set", messages="messages", split="train[:2]", held_out=0.0))[0] == [conversation(SAID)] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JsonLines(path="x", messages="m", chat=True), "goes through the chat template anyway"),
        (lambda: Hub(name="x", chat=True), "an answer to no prompt is no conversation"),
        (lambda: Mixture(parts=()), "it is empty"),
        (lambda: Mixture(parts=(Manual(),), weights=(1.0, 2.0)), "2 weights for 1 parts"),
        (lambda: Mixture(parts=(Manual(),), weights=(0.0,)), "above 0"),
        (lambda: Mixture(parts=(Manual(),), weights=(float("inf"),)), "expected finite numbers"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- read when asked for


def test_documents_read_from_files_are_those_kept_in_memory(tmp_path, monkeypatch):
    for name in "ab":
        rows = [json.dumps({"text": f"{name} {number} é"}) + "\n" * (1 + number % 2) for number in range(50)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    data = JsonLines(path="*.jsonl", prompt=None, answer="text")
    kept = documents(data)
    monkeypatch.setattr(reading, "_KEPT_BYTES", 0)
    read = documents(data)
    assert [list(side) for side in read] == [list(side) for side in kept]
    assert [side.fingerprint for side in read] == [side.fingerprint for side in kept]
    learned, whole = read[0], list(read[0])
    assert [learned[3], *learned[-2:]] == [whole[3], *whole[-2:]]
    assert learned.take(reading.np.array([5, 1])) == [whole[5], whole[1]]
    assert learned[:4] == whole[:4]
    assert learned[:4].fingerprint != learned.fingerprint
    assert repr(learned) == f"<{len(learned)} documents>"
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n\n{"text": 1}')
    with pytest.raises(ValueError, match=r"b.jsonl, line 3: 'text' is not text"):
        documents(data)


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    (tmp_path / "x").write_text('{"a": "fine"}\n{"a": "\\ud800"}')
    with pytest.raises(ValueError, match="x, line 2: half of a surrogate pair"):
        documents(JsonLines(path="x", prompt=None, answer="a"))


def test_a_mixture_holds_out_of_every_part(tmp_path):
    saved = save([f"text {number}" for number in range(40)])
    learned, held_out = documents(Mixture(parts=(Manual(), saved), weights=(1, 2)))
    assert [len(part) for part in learned.parts] == [len(documents(part)[0]) for part in (Manual(), saved)]
    assert sum(1 for _ in held_out) == len(held_out) == sum(len(documents(part)[1]) for part in (Manual(), saved))
    assert set(learned) & set(held_out) == set()
    assert not documents(Mixture(parts=(Manual(held_out=0.0),)))[1]
