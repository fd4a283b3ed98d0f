"""Every kind of text trains, from the source to the record: a conversation, a mixture, a stream, and a stop in the middle."""

import json
from pathlib import Path

import pytest

from toolkit.data import JsonLines, Manual, Mixture, Saved, documents, pack, save
from toolkit.data.sources import part_names
from toolkit.launch import InProcess, launch
from toolkit.models import load_tokenizer
from toolkit.recipes import FineTune
from toolkit.runs import Run
from widgets.run_facts import chart_groups

TALK = [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four, and it always was."}]


def tune(data: object, root: Path, **more: object) -> Run:
    recipe = FineTune(
        model="tests.distributed.training_bodies:tiny", tokenizer="smollm2-135m", data=data, steps=3, batch_tokens=64,
        context=32, **dict(eval_rows=2, eval_every=3, checkpoint_every=1) | more,
    )  # fmt: skip
    return launch(recipe, on=InProcess(devices="cpu"), root=root)


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps({"messages": TALK, "prompt": "Two?", "answer": f"No, {n}."}) + "\n" for n in range(60)))
    return str(path)


def kinds(lines: str, tmp_path: Path) -> dict[str, object]:
    saved: Saved = save([{"messages": TALK} for _ in range(20)], tmp_path)
    return {
        "conversation": JsonLines(path=lines, messages="messages"),
        "pairs in the template": JsonLines(path=lines, chat=True),
        "stream": JsonLines(path=lines, stream=True),
        "mixture": Mixture(parts=(saved, Manual(), JsonLines(path=lines, stream=True)), weights=(1.0, 2.0, 1.0)),
    }


@pytest.mark.parametrize("kind", ["conversation", "pairs in the template", "stream", "mixture"])
def test_it_trains(kind: str, lines: str, tmp_path: Path) -> None:
    run = tune(kinds(lines, tmp_path)[kind], tmp_path)
    assert run.state.name == "finished"
    assert len(run.metrics("loss")["loss"][1]) == 3
    assert run.metrics("eval_loss")["eval_loss"][1][-1] < 15
    by_part = [name for name in run.metrics() if name.startswith("eval_loss/")]
    assert len(by_part) == (2 if kind == "mixture" else 0), "two rows are of two parts"


def test_the_held_out_loss_of_each_part_adds_up_to_that_of_all(lines: str, tmp_path: Path) -> None:
    """With as many tokens as each part has; the parts are drawn in a chart of their own."""
    parts = (Manual(), JsonLines(path=lines), Manual(held_out=0.0), JsonLines(path=lines, chat=True))
    data = Mixture(parts=parts, weights=(1.0,) * 4)
    held_out = pack(documents(data)[1], load_tokenizer("smollm2-135m"), 32)
    assert part_names(data)[2] == "Manual 2"
    assert held_out.names == part_names(data)[:2] + part_names(data)[3:] == ("Manual", "talk", "talk 2")
    first = slice(5)
    parts = held_out.apart(first)
    rows = [tuple(row) for part in parts.values() for row in part.tokens_NT]
    assert sorted(rows) == sorted(tuple(row) for row in held_out[first].tokens_NT)
    run = tune(data, tmp_path, eval_rows=5)
    found = {name: run.metrics(name)[name][1] for name in run.metrics() if name.startswith("eval_loss")}
    assert found.keys() == {"eval_loss", "eval_loss/Manual", "eval_loss/talk", "eval_loss/talk 2"}
    tokens = {name: part.num_targets for name, part in parts.items()}
    together = sum(found[f"eval_loss/{name}"] * number for name, number in tokens.items()) / sum(tokens.values())
    assert together == pytest.approx(found["eval_loss"], rel=1e-6)
    charts = {group["title"]: [one["name"] for one in group["series"]] for group in chart_groups(list(run.metrics()))}
    assert charts["Loss"] == ["loss", "eval_loss"]
    assert charts["Held-out loss by part"] == [f"eval_loss/{name}" for name in ("Manual", "talk", "talk 2")]


def test_a_stream_goes_on_where_it_was(lines: str, tmp_path: Path) -> None:
    """From the checkpoint of step 1 the same losses come again."""
    mixture = Mixture(parts=(JsonLines(path=lines, stream=True), JsonLines(path=lines, chat=True)), weights=(1.0, 1.0))
    run = tune(mixture, tmp_path)
    before = run.metrics("loss")["loss"][1].tolist()
    for step in (2, 3):  # as if it had been killed in the second step
        (run.folder / "checkpoints" / f"step-{step}").rename(run.folder / f"gone-{step}")
    run = launch(run.recipe, on=InProcess(devices="cpu"), root=tmp_path, name=run.id, resume=True)
    assert run.state.name == "finished" and run.state.attempt == 2
    assert [step for step, _, _ in run.checkpoints()] == [2, 3]
    assert run.metrics("loss")["loss"][1].tolist() == before
