"""Data: from a file of JSON lines to packed rows of tokens on disk, beside the `datasets` library and a plain script.

About 10 MiB of CPython's manual and library sources, in documents of some 1,400 letters, tokenised for SmolLM2. All three read
the same file and give rows of 512 tokens; the peer is what one would write with `datasets`: load, map(tokenise), map(group).
The plain path is the limit: parse the lines, encode them in one call, cut one array. It checks, shuffles and stores nothing.
"""

import json
import os
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results import Row

REPEATS = 5
MIB = 10
CONTEXT = 512
LETTERS = 1400


def rows() -> Iterable[Row]:
    """Text to packed tokens."""
    yield pack()


def pack() -> Row:
    """Wall times as multiples of the plain path's, the three in turn; the first round warms up."""
    from toolkit.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    times: dict[str, list[float]] = {"plain": [], "ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.jsonl"
        size = write_text(file)
        for turn in range(REPEATS + 1):
            for name, path in (("plain", plain), ("ours", ours), ("peer", peer)):
                with fresh_cache(Path(folder) / f"{name}-{turn}"):
                    began = time.perf_counter()
                    path(file, tokenizer, Path(folder) / f"{name}-{turn}")
                    times[name].append(time.perf_counter() - began)
    plain_, ours_, peer_ = (times[name][1:] for name in ("plain", "ours", "peer"))
    ratios = [mine / bare for mine, bare in zip(ours_, plain_)]
    return Row(
        what=f"pack: {size / 2**20:.0f} MiB of JSON lines to packed rows; the plain path takes {median(plain_):.2f} s",
        ours=median(ratios),
        peer=median([theirs / bare for theirs, bare in zip(peer_, plain_)]),
        limit=1.0,
        target=1.1,
        spread=max(ratios) - min(ratios),
        unit="x plain path",
    )


def ours(file: Path, tokenizer: Any, folder: Path) -> None:
    """Scalebook's path: read and check every line, hash, shuffle, tokenise, pack, store."""
    from toolkit.data import JsonLines, documents
    from toolkit.data import pack as pack_documents

    learned, _ = documents(JsonLines(path=str(file), prompt=None, answer="text", held_out=0.0))
    assert len(pack_documents(learned, tokenizer, CONTEXT))


def plain(file: Path, tokenizer: Any, folder: Path) -> None:
    """The least that gives the same rows, in their order in the file and in memory only."""
    import numpy as np

    texts = [json.loads(line)["text"] for line in file.open(encoding="utf-8")]
    ids = [encoding.ids for encoding in tokenizer.rust.encode_batch_fast(texts, add_special_tokens=False)]
    end = np.array([tokenizer.eos_id], dtype=np.int32)
    tokens_M = np.concatenate([part for one in ids for part in (np.asarray(one, dtype=np.int32), end)])
    assert len(tokens_M[: len(tokens_M) // CONTEXT * CONTEXT].reshape(-1, CONTEXT))


def peer(file: Path, tokenizer: Any, folder: Path) -> None:
    """The `datasets` way, as in the language-modelling examples of transformers."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer.rust, eos_token=tokenizer.settings["eos_token"])

    def tokenise(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids = reference(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*one, tokenizer.eos_id] for one in ids]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = [id_ for one in batch["input_ids"] for id_ in one]
        whole = len(joined) // CONTEXT * CONTEXT
        return {"input_ids": [joined[at : at + CONTEXT] for at in range(0, whole, CONTEXT)]}

    found = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder))
    found = found.map(tokenise, batched=True, remove_columns=found.column_names)
    assert len(found.map(group, batched=True))


def write_text(file: Path) -> int:
    """The benchmark's text, the same on every machine with this Python: documents of whole lines. Returns its bytes."""
    with file.open("w", encoding="utf-8") as out:
        for document in _documents():
            out.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            if out.tell() >= MIB << 20:
                break
    return file.stat().st_size


def _documents() -> Iterator[str]:
    from pydoc_data.topics import topics

    library = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in library if "site-packages" not in path.parts)
    for text in (*topics.values(), *sources):
        document = ""
        for line in text.splitlines(keepends=True):
            document += line
            if len(document) >= LETTERS:
                yield document
                document = ""
        if document:
            yield document


@contextmanager
def fresh_cache(folder: Path) -> Iterator[None]:
    """No one finds what an earlier round left; progress bars stay off."""
    import datasets

    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
