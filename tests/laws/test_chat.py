"""What a chat says and keeps, with a small random model in the kernel; the page itself is in tests/browser."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser import toy
from toolkit.data import TextFiles
from toolkit.launch import InProcess, launch
from toolkit.models import Transformer, TransformerConfig, load_tokenizer
from toolkit.recipes import FineTune
from toolkit.runs import Run
from toolkit.runs.files import replace_json, take_lock
from toolkit.runs.state import write_holder
from toolkit.serve import Sampling
from widgets.chat import Chat
from widgets.chat_state import fit_to_save
from widgets.speakers import speakers

CONFIG = TransformerConfig(
    vocab_size=260, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=8, max_position_embeddings=64,
)  # fmt: skip


def model(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(CONFIG)


def chat(*who: Any, **more: Any) -> Chat:
    return Chat(*(who or (model(),)), tokenizer=load_tokenizer("bytes"), **{"sampling": Sampling(max_tokens=8), **more})


def answer(one: Chat, turn: int = 0, at: int = 0) -> dict[str, Any]:
    return one._turns[turn]["answers"][at]


def ask(one: Chat, **message: Any) -> None:
    one._receive(None, message, None)
    if one._writer.ident:
        one._writer.join()


def test_without_a_template_a_text_is_continued_and_every_token_has_its_probability() -> None:
    talk = chat()
    said = talk.say("abc")
    assert said == {"model": answer(talk)["text"]} and talk.mode == "continue"
    assert answer(talk)["prompt"] == load_tokenizer("bytes").encode("abc", special=True)
    tokens = answer(talk)["tokens"]
    assert len(tokens) == len(answer(talk)["ids"]) == 8
    likely = talk._alternatives(0, 0, 3)
    chosen = {id_: probability for _, probability, id_ in likely}[answer(talk)["ids"][3]]  # greedy: the likeliest
    assert chosen == pytest.approx(tokens[3][1], abs=1e-4) and likely[0][1] == chosen


def test_a_branch_keeps_what_stood_before_and_goes_on_from_the_chosen_token() -> None:
    talk = chat({"one": model(0), "two": model(1)})
    talk.say("abc")
    before, other = list(answer(talk)["ids"]), answer(talk, at=1)
    chosen = talk._alternatives(0, 0, 2)[3][2]
    ask(talk, kind="branch", turn=0, speaker=0, token=2, id=chosen)
    assert answer(talk)["ids"][:3] == [*before[:2], chosen] and answer(talk, at=1) is other
    plain = chat(model(0))
    plain.say("abc")
    ask(plain, kind="branch", turn=0, speaker=0, token=2, id=before[2])
    assert answer(plain)["ids"][:8] == before, "the same token again gives the same answer"


def test_again_takes_the_next_seed_and_replaces_the_answer() -> None:
    talk = chat(sampling=Sampling(max_tokens=8, temperature=1.0, seed=4))
    first = talk.say("abc")
    ask(talk, kind="again")
    assert len(talk.conversation) == 1 and talk.sampling.seed == 5 and talk.conversation[0]["answers"] != first


def test_stop_ends_an_answer_and_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widgets.chat.SPEAK_EVERY", 0.0)  # the page hears every token
    talk = chat(sampling=Sampling(max_tokens=60))
    talk.observe(lambda change: change["new"] and talk.stop(), "live")
    talk.say("a")
    assert answer(talk)["reason"] == "cancelled" and 0 < answer(talk)["count"] < 60
    assert not talk.talk["busy"] and talk.live == {}


def test_the_page_is_told_what_it_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = chat()
    told: list[str] = []
    monkeypatch.setattr(talk, "send", lambda message: told.append(message["text"]))
    ask(talk, kind="settings", temperature=-1.0)
    ask(talk, kind="settings", rank=3)
    ask(talk, kind="alternatives", turn=5, speaker=0, token=0)
    ask(talk, kind="nonsense")
    assert len(told) == 3 and "temperature" in told[0] and "rank" in told[1]
    talk.say("x" * 70)
    assert "clear it and begin anew" in answer(talk)["error"] and talk.speakers[0].state == "failed"


def test_a_run_answers_as_it_is_at_each_message(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All that a model has to learn is here. " * 20)
    recipe = FineTune(
        model="tests.distributed.training_bodies:tiny", tokenizer="bytes", data=TextFiles(paths=(str(text),)), steps=1,
        batch_tokens=32, context=16, eval_rows=1, lr=1.0,
    )  # fmt: skip
    run = launch(recipe, on=InProcess(devices="cpu"), root=tmp_path, name="one")
    talk = Chat({"now": run, "then": (run, 1)}, sampling=Sampling(max_tokens=4), mode="continue")
    talk.say("abc")
    assert talk.talk["speakers"][0]["shown"] == "now, step 1" and answer(talk)["step"] == 1
    assert answer(talk)["ids"] == answer(talk, at=1)["ids"]
    loaded = talk.speakers[0].engine()
    talk.say("abc")
    assert talk.speakers[0].engine() is loaded, "nothing moved, so nothing is loaded"
    launch(replace(recipe, steps=2), on=InProcess(devices="cpu"), root=tmp_path, name="one", resume=True)
    ask(talk, kind="branch", turn=1, speaker=0, token=1, id=7)
    assert talk.speakers[0].engine() is loaded, "an answer is gone on with by the model that began it"
    talk.say("abc")
    assert [answer(talk, turn)["step"] for turn in range(3)] == [1, 1, 2]
    assert [one["shown"] for one in talk.talk["speakers"]] == ["now, step 2", "then"]
    assert talk.speakers[0].engine() is not loaded
    assert answer(talk, 2, at=1)["ids"] == answer(talk, 0, at=1)["ids"], "what has a step stays there"


def test_a_run_that_writes_no_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor lives, and its work hangs."""
    monkeypatch.setattr("widgets.speakers.PATIENCE", 0.2)
    folder = tmp_path / "runs" / "one"
    toy.make_folder(folder).close()
    toy.make_checkpoint(folder, 3, 2.5)
    lock = take_lock(folder / "lock")
    assert lock is not None
    try:
        write_holder(lock, 1, keeper=True)
        replace_json(folder / "state.json", {"name": "running", "attempt": 1, "step": 5, "controls": True})
        talk = Chat(Run(folder))
        talk.say("abc")
    finally:
        os.close(lock)
    told = "RuntimeError: run one is running and did not write the checkpoint"
    assert answer(talk)["error"].startswith(told) and 'Chat((run, "last"))' in answer(talk)["error"]


def test_who_cannot_speak_is_named() -> None:
    with pytest.raises(ValueError, match="nobody to talk to"):
        Chat()
    with pytest.raises(ValueError, match="needs its tokenizer"):
        Chat(model())
    with pytest.raises(TypeError, match="int cannot speak"):
        Chat(3)
    assert [one.name for one in speakers(["a", "a", {"b": "a"}])] == ["a", "a (2)", "b"]


def test_the_saved_state_stays_small() -> None:
    token = ["word", 0.5]
    turns = [
        {"text": "x" * 5000, "answers": [{"text": "y" * 20_000, "tokens": [token] * 2000, "reason": "stop"}]} for _ in range(30)
    ]
    fitted = fit_to_save({"turns": turns})
    assert len(fitted["turns"]) == 30 and fitted["turns"][-1]["answers"][0]["tokens"]
    assert len(json.dumps(fitted)) < 200_000
