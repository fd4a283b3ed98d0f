"""A run is killed again and again and ends as if nothing had happened."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import chain
from toolkit.adapters import LoRA
from toolkit.data import Manual
from toolkit.launch import Local, launch
from toolkit.parallel import Plan
from toolkit.recipes import FineTune
from toolkit.runs import Run

TRAINED = "tests.faults.work:slow_model"
PATIENCE = 120.0


def steps_for(faults: int) -> int:
    """Enough that the last fault comes well before the end."""
    return 4 * faults + 30


def recipe(steps: int) -> FineTune:
    return FineTune(
        model=TRAINED, tokenizer="smollm2-135m", data=Manual(), adapters={"*_proj": LoRA(rank=2, dropout=0.1)},
        plan=Plan(dp_shard=2), steps=steps, batch_tokens=256, context=64, eval_rows=4, eval_every=4, checkpoint_every=3,
        lr=1e-2,
    )


def column(run: Run, name: str) -> list[tuple[float, float]]:
    steps, values = run.metrics(name)[name]
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def until_step(run: Run, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while (run.state.step or 0) < step:
        assert run.alive, run.state
        assert time.monotonic() < deadline, run.state
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, faults: int) -> Run:
    run = launch(chain.recipe(faults, paced=False), on=Local(), root=tmp_path_factory.mktemp("undisturbed"))
    assert run.wait(chain.PATIENCE * 3).state == "finished"
    return run


def test_kills_at_any_moment_change_nothing(
    undisturbed: Run, tmp_path: Path, kills: tuple[tuple[str, str], ...], soak: bool, tell: Callable[[str], None]
) -> None:
    """SIGKILL to a worker, to rank 0, to the supervisor, to the kernel, in every phase; every loss is bit for bit the same."""
    seed = random.SystemRandom().randrange(1 << 32) if soak else 7
    one = chain.Chain(tmp_path, "chain", len(kills), seed)
    order = list(kills)
    if soak:
        one.chance.shuffle(order)
    done = []
    try:
        for victim, phase in order:
            done.append(one.kill(victim, phase))
            tell(done[-1].row())
        run = one.finish()
    finally:
        one.close()
    same = chain.columns(run) == chain.columns(undisturbed), chain.last_tensors(run) == chain.last_tensors(undisturbed)
    slowest = max(kill.seconds for kill in done)
    tell(
        f"{len(done)} kills (seed {seed}), true after {slowest:.1f} s at most; of {run.state.step} steps bit for bit as "
        f"undisturbed: losses {same[0]}, last checkpoint {same[1]}"
    )
    assert same == (True, True)


def test_commands_are_obeyed_and_survive_a_resume(tmp_path: Path) -> None:
    """Pause, set, call, checkpoint, stop and keep, then resume from before the setting: the same numbers again."""
    run = launch(recipe(steps=400), on=Local(), root=tmp_path)
    until_step(run, 2)
    run.pause()
    while run.state.name != "paused":
        assert run.alive, run.state
        time.sleep(0.02)
    held = run.state.step
    assert run.call(lambda module: module.global_step) == [held, held]
    run.set("lr", 0.5)
    run.checkpoint()
    time.sleep(0.5)
    assert run.state.name == "paused" and run.state.step == held
    run.resume()
    until_step(run, held + 6)
    run.stop(save=True)
    result = run.wait(PATIENCE)
    assert result.state == "stopped" and result.checkpoint is not None
    stopped = run.state.step
    before = column(run, "loss")
    rates = dict(column(run, "lr"))
    assert rates[held + 1] == pytest.approx(0.5, rel=0.05) and rates[held] < 0.02
    for path in (run.folder / "checkpoints").glob("step-*"):  # as if the later checkpoints had never been
        if int(path.name[5:]) >= held:
            path.rename(run.folder / f"gone-{path.name}")
    run = run.restart()
    until_step(run, stopped + 1)
    run.stop(save=False)
    assert run.wait(PATIENCE).state == "stopped"
    assert column(run, "loss")[: len(before)] == before
    answers = [event["data"] for event in run.events(kinds=("command",))]
    assert all("error" not in answer for answer in answers), answers


def test_the_model_comes_back(undisturbed: Run) -> None:
    """`run.load` gives the trained adapters: its own checkpoint tensors, and the held-out loss that was recorded."""
    import torch

    from toolkit.data import documents, held_out_batches, pack
    from toolkit.models import load_tokenizer
    from toolkit.training.language import loss_sum

    model = undisturbed.load("last")
    settings = undisturbed.recipe
    tokenizer = load_tokenizer("smollm2-135m")
    rows = pack(documents(settings.data)[1], tokenizer, settings.context, settings.seed)[: settings.eval_rows]
    with torch.no_grad():
        batches = list(held_out_batches(rows, micro_sequences=4))
        total = sum(float(loss_sum(model, batch)) for batch in batches)
    tokens = sum(int((batch["targets_BT"] != -100).sum()) for batch in batches)
    assert total / tokens == pytest.approx(column(undisturbed, "eval_loss")[-1][1], rel=1e-5)
    with pytest.raises(ValueError, match="no checkpoint of step 1"):
        undisturbed.load(1)
    assert json.loads((undisturbed.folder / "recipe.json").read_text())["type"] == "FineTune"
