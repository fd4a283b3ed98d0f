"""Laws of packing: nothing lost, targets within documents, answers alone learned, kept once, and no disk too full to say so."""

import resource

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import IGNORED, Conversation, Document, Mixture, Packed, conversation, documents, encoding, pack, save
from toolkit.data.encoding import encode, encode_chunks, in_chunks
from toolkit.data.row_files import read_rows, rows_of, write_rows
from toolkit.models import load_tokenizer

BYTES = load_tokenizer("bytes")
SMOLLM2 = load_tokenizer("smollm2-135m")  # here, where the user's cache holds it
END = BYTES.eos_id
some_documents = st.lists(st.builds(Document, st.text(max_size=9), st.text(max_size=30)), min_size=1, max_size=12)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def cut(found: list[Document], context: int, chunk: int = 5) -> Packed:
    """Packed rows, from chunks of documents."""
    chunks = (encode(found[first : first + chunk], BYTES) for first in range(0, len(found), chunk))
    arrays = [np.concatenate(parts) for parts in zip(*rows_of(chunks, context=context, end=END), strict=True)]
    return Packed(tokens_NT=arrays[0], targets_NT=arrays[1], documents_NT=arrays[2])


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
    first = np.arange(5, dtype=np.int32)[:, None] * 1000
    tokens = first + np.arange(4, dtype=np.int32)
    packed = Packed(tokens_NT=tokens, targets_NT=tokens + 1, documents_NT=np.zeros_like(tokens))
    assert (len(packed[1:3]), packed.context, packed.num_targets) == (2, 4, 20)
    batch = packed.batch(np.array([4, 0]))
    assert batch.keys() == {"tokens_BT", "targets_BT", "documents_BT"}
    assert batch["tokens_BT"][:, 0].tolist() == [4000, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@given(some_documents, st.integers(1, 40))
def test_chunks_are_of_no_consequence(found, letters):
    before = encoding._LETTERS
    encoding._LETTERS = letters
    try:
        chunks = list(encode_chunks(in_chunks(found), len(found), BYTES))
    finally:
        encoding._LETTERS = before
    whole = encode(found, BYTES)
    for name in ("tokens_M", "starts_M", "learned_M"):
        assert (np.concatenate([getattr(chunk, name) for chunk in chunks]) == getattr(whole, name)).all()
    assert sum(chunk.num_said for chunk in chunks) == whole.num_said == sum(len(text.encode()) for _, text in found)


def test_rows_are_written_as_they_come(tmp_path):
    rng = np.random.default_rng(0)
    blocks = [tuple(rng.integers(0, 99, (size, 7), dtype=np.int32) for _ in range(3)) for size in (3, 0, 1234)]
    assert write_rows(tmp_path, blocks, 7) == 1237
    for number, array in enumerate(read_rows(tmp_path)):
        assert (array == np.concatenate([block[number] for block in blocks])).all()
    assert write_rows(tmp_path, (), 7) == 0
    assert read_rows(tmp_path)[0].shape == (0, 7)


SAID = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]


def test_of_a_conversation_the_answers_alone_are_learned():
    tokenizer = SMOLLM2
    found = [conversation(SAID), Document("A prompt ", "and a text"), conversation(SAID + SAID)]
    whole = encode(found, tokenizer)
    ids = [tokenizer.encode_chat(text.turns, False) for text in found if isinstance(text, Conversation)]
    starts = np.flatnonzero(whole.starts_M)
    assert whole.tokens_M[: len(ids[0])].tolist() == ids[0]
    assert whole.tokens_M[starts[2] :].tolist() == ids[1]
    answer = tokenizer.encode("It is 4.<|im_end|>")
    learned = [whole.tokens_M[a:b][whole.learned_M[a:b]].tolist() for a, b in zip(starts, [*starts[1:], None])]
    assert learned == [answer, [*tokenizer.encode("and a text"), tokenizer.eos_id], answer + answer]
    packed = pack(found, tokenizer, 16)
    assert packed.num_targets == sum(map(len, learned))
    with pytest.raises(ValueError, match="the byte tokenizer has no chat template; take the tokenizer of an instruct model"):
        pack(found, BYTES, 16)


def test_nothing_to_learn_is_said_and_not_kept(tmp_path):
    for texts in ([Document("", "")], [Document("a prompt", ""), Document("another", "")]):
        with pytest.raises(ValueError, match=f"the texts or answers of all {len(texts)} documents are empty"):
            pack(texts, BYTES, 8)
    assert not list((tmp_path / "cache/scalebook/data").glob("packed-*"))


def test_a_full_disk_is_one_line_and_the_next_attempt_works(tmp_path):
    """The limit of this process stands for the disk's: the system then refuses to let a file grow, as a full disk does."""
    texts = [Document("", "x" * 1000)] * 1000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises((ValueError, OSError), match="XDG_CACHE_HOME") as raised:
            pack(texts, BYTES, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "cache/scalebook/data").glob("*packed-*[!k]"))
    assert len(pack(texts, BYTES, 64)) == -(-1001 * 1000 // 64)


def test_parts_of_a_mixture_are_packed_by_themselves():
    parts = (save([f"a{number}" for number in range(90)]), save([f"b{number}" for number in range(30)]))
    learned, held_out = documents(Mixture(parts=parts, weights=(1, 2)))
    mixed = pack(learned, BYTES, 8)
    assert mixed.shares == (1, 2)
    for part, data in zip(mixed.parts, parts):
        assert (part.tokens_NT == pack(documents(data)[0], BYTES, 8).tokens_NT).all()
    rows = pack(held_out, BYTES, 8)[:6]
    assert isinstance(rows, Packed)
    assert len(rows) == 6
    by_size = pack(documents(Mixture(parts=parts))[0], BYTES, 8)
    assert by_size.shares[0] * len(by_size.parts[1]) == by_size.shares[1] * len(by_size.parts[0])
    assert torch.equal(by_size[:].batch(np.arange(2))["tokens_BT"], by_size[:2].batch(np.arange(2))["tokens_BT"])
