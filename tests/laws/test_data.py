"""Laws of documents, packing and the order of batches."""

import json
import re
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import (
    IGNORED,
    Data,
    Document,
    Hub,
    JsonLines,
    Manual,
    Packed,
    Saved,
    StepLoader,
    TextFiles,
    documents,
    held_out_batches,
    pack,
    save,
)
from toolkit.data.encoding import encode
from toolkit.data.reading import split
from toolkit.data.row_files import rows_of
from toolkit.models import load_tokenizer
from toolkit.values import dump, load, parse, source

BYTES = load_tokenizer("bytes")
END = BYTES.eos_id


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


some_documents = st.lists(st.builds(Document, st.text(max_size=9), st.text(max_size=30)), min_size=1, max_size=12)


def packed_rows(num_rows: int, context: int = 4) -> Packed:
    """Rows that can be told apart by their first token."""
    first = np.arange(num_rows, dtype=np.int32)[:, None] * 1000
    tokens = first + np.arange(context, dtype=np.int32)
    return Packed(tokens_NT=tokens, targets_NT=tokens + 1, documents_NT=np.zeros_like(tokens))


def cut(found: list[Document], context: int, chunk: int = 5) -> Packed:
    """Packed rows, from chunks of documents."""
    chunks = (encode(found[first : first + chunk], BYTES) for first in range(0, len(found), chunk))
    arrays = [np.concatenate(parts) for parts in zip(*rows_of(chunks, context=context, end=END), strict=True)]
    return Packed(tokens_NT=arrays[0], targets_NT=arrays[1], documents_NT=arrays[2])


# ---- where text comes from


@pytest.mark.parametrize(
    "data",
    [
        Manual(held_out=0.2),
        TextFiles(paths=["a.txt", "b/*.md"]),
        JsonLines(path="x.jsonl", prompt=None, answer="text"),
        Hub(name="o/n", revision="abc", split="train[:10]", prompt="q", answer="a"),
        Saved(path="folder"),
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


# ---- packing


@given(some_documents, st.integers(2, 9))
def test_nothing_is_lost_and_targets_are_the_next_tokens(found, context):
    packed = cut(found, context)
    flat = [packed.tokens_NT.ravel(), packed.targets_NT.ravel()]
    want_tokens, want_targets = [], []
    for prompt, text in found:
        head, tail = list(prompt.encode()), [*text.encode(), END]
        want_tokens += head + tail
        learned = [IGNORED] * len(head) + tail
        want_targets += [*learned[1:], IGNORED]
    assert flat[0].tolist() == want_tokens + [END] * (len(flat[0]) - len(want_tokens))
    assert flat[1].tolist() == want_targets + [IGNORED] * (len(flat[1]) - len(want_targets))
    assert len(flat[0]) - len(want_tokens) < context
    assert packed.num_targets == sum(target != IGNORED for target in want_targets)


@given(some_documents, st.integers(2, 9))
def test_document_numbers_change_where_documents_do(found, context):
    packed = cut(found, context)
    lengths = [len((prompt + text).encode()) + 1 for prompt, text in found]
    rest = packed.tokens_NT.size - sum(lengths)
    numbers = np.repeat(np.arange(len(lengths) + 1), [*lengths, rest]).reshape(-1, context)
    assert (packed.documents_NT == numbers - numbers[:, :1]).all()
    assert packed.documents_NT.dtype == packed.tokens_NT.dtype == packed.targets_NT.dtype == np.int32


def test_packing_is_kept_and_depends_on_everything(tmp_path):
    found = [Document("", f"text number {number}") for number in range(30)]
    first = pack(found, BYTES, 16, 0)
    folders = lambda: {path.name for path in (tmp_path / "cache/scalebook/data").glob("packed-*")}  # noqa: E731
    kept = folders()
    again = pack(found, BYTES, 16, 0)
    assert folders() == kept
    assert (first.tokens_NT == again.tokens_NT).all()
    assert len(first) == len(again) == -(-sum(len(d.text) + 1 for d in found) // 16)
    other = pack(found, BYTES, 16, 1)
    assert sorted(other.tokens_NT.ravel()) == sorted(first.tokens_NT.ravel())
    assert (other.tokens_NT != first.tokens_NT).any()
    pack(found[1:], BYTES, 16, 0)
    pack(found, BYTES, 17, 0)
    assert len(folders()) == 4
    for bad, context in (([], 16), (found, 1)):
        with pytest.raises(ValueError, match="pack: "):
            pack(bad, BYTES, context)


def test_slices_and_batches():
    packed = packed_rows(5)
    assert (len(packed[1:3]), packed.context, packed.num_targets) == (2, 4, 20)
    batch = packed.batch(np.array([4, 0]))
    assert batch.keys() == {"tokens_BT", "targets_BT", "documents_BT"}
    assert batch["tokens_BT"][:, 0].tolist() == [4000, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


# ---- order


def loader(rows: int = 10, *, step: int = 4, micro: int = 1, rank: int = 0, ranks: int = 1, seed: int = 0) -> StepLoader:
    return StepLoader(packed_rows(rows), sequences_per_step=step, micro_sequences=micro, rank=rank, ranks=ranks, seed=seed)


def firsts(step: list[dict[str, torch.Tensor]]) -> list[int]:
    """Numbers of the rows of one step."""
    return [number // 1000 for micro in step for number in micro["tokens_BT"][:, 0].tolist()]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2])
def test_ranks_and_micro_batches_together_are_one_step(ranks, micro):
    whole = [firsts(step) for step in islice(loader(step=8, micro=8), 6)]
    parts = [islice(loader(step=8, micro=micro, rank=rank, ranks=ranks), 6) for rank in range(ranks)]
    for step, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert [number for share in shares for number in firsts(share)] == step
        assert all(len(share) == 8 // ranks // micro for share in shares)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_every_pass_has_every_row_once(rows, step, seed):
    steps = -(-3 * rows // step)
    stream = [number for batch in islice(loader(rows, step=step, seed=seed), steps) for number in firsts(batch)]
    for start in range(0, 3 * rows, rows):
        assert sorted(stream[start : start + rows]) == list(range(rows))


def test_passes_and_seeds_differ():
    one, two = loader(50, step=50), loader(50, step=50, seed=1)
    orders = [firsts(one.step(0)), firsts(one.step(1)), firsts(two.step(0))]
    assert len({tuple(order) for order in orders}) == 3
    assert len(loader(10, step=4)) == 3


@given(st.integers(0, 30))
def test_resume_anywhere(position):
    steady = loader()
    before = [firsts(step) for step in islice(steady, position)]
    assert len(before) == position
    state = json.loads(json.dumps(steady.state_dict()))
    resumed = loader(ranks=2, rank=1)
    resumed.load_state_dict(state)
    for step, half in zip(islice(steady, 5), islice(resumed, 5), strict=True):
        assert firsts(step)[2:] == firsts(half)


def test_the_position_counts_steps_handed_over():
    one = loader()
    assert one.state_dict()["position"] == 0
    for number, _ in enumerate(islice(one, 3)):
        assert one.state_dict()["position"] == number + 1
    assert firsts(next(iter(one))) == firsts(one.step(3))
    assert one.state_dict()["position"] == 4


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 8}, {"rows": 11}])
def test_a_state_of_another_order_is_refused(change):
    with pytest.raises(ValueError, match="the state was saved with"):
        loader(**change).load_state_dict(loader().state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 6, "ranks": 4}, "6 sequences a step do not divide over 4 ranks x 1 a micro-batch = 4"),
        ({"step": 4, "micro": 3}, "4 sequences a step do not divide over 1 ranks x 3 a micro-batch = 3"),
        ({"micro": 0}, "must be at least 1"),
        ({"rank": 2, "ranks": 2}, "rank=2"),
        ({"rows": 0}, "no rows"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loader(**change)


@given(st.integers(1, 13), st.integers(1, 4), st.integers(1, 4))
def test_held_out_rows_come_once_on_ranks_that_agree(rows, micro, ranks):
    batches = [list(held_out_batches(packed_rows(rows), micro, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in batches}) == 1
    seen = []
    for batch in (batch for share in batches for batch in share):
        assert batch["tokens_BT"].shape == (micro, 4)
        with_targets = (batch["targets_BT"] != IGNORED).all(1)
        assert ((batch["targets_BT"] != IGNORED).any(1) == with_targets).all()
        seen += (batch["tokens_BT"][with_targets, 0] // 1000).tolist()
    assert sorted(seen) == list(range(rows))


def test_lightning_counts_as_the_loader_does():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: list[tuple[list[int], int]] = []

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def training_step(self, batch: list[dict[str, torch.Tensor]], batch_idx: int) -> None:
            self.optimizers().step()
            self.seen.append((firsts(batch), batches.state_dict()["position"]))

    module, batches = Module(), loader()
    lightning.Trainer(
        accelerator="cpu",
        max_steps=8,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, batches)
    assert module.seen == [(firsts(loader().step(number)), number + 1) for number in range(8)]
    assert batches.state_dict()["position"] == 8


def test_a_line_separator_inside_a_row_is_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": "one\u2028two\u0085three"}\n{"prompt": "b", "answer": "four"}\n', encoding="utf-8")
    learned, held_out = documents(JsonLines(path=str(path), held_out=0.0))
    assert sorted(document.text for document in [*learned, *held_out]) == ["four", "one\u2028two\u0085three"]
