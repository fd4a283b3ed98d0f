"""A run is killed and steered again and again and ends as if it had never been killed."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import chain
from toolkit.runs import Run


def test_kills_at_any_moment_change_nothing(
    tmp_path: Path, kills: tuple[tuple[str, str], ...], soak: bool, tell: Callable[[str], None]
) -> None:
    """SIGKILL to a worker, to rank 0, to the supervisor, to the kernel, in every phase; every loss is bit for bit the same.

    Where it is paused on the way, a setting is changed meanwhile, and the run is resumed from before that step.
    """
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
    undisturbed = chain.undisturbed(one)
    same = chain.columns(run) == chain.columns(undisturbed), chain.last_tensors(run) == chain.last_tensors(undisturbed)
    slowest = max(kill.seconds for kill in done)
    tell(
        f"{len(done)} kills (seed {seed}), true after {slowest:.1f} s at most; of {run.state.step} steps bit for bit as "
        f"undisturbed: losses {same[0]}, last checkpoint {same[1]}"
    )
    assert same == (True, True)
    if any(phase == "pause" for _, phase in kills):
        rates = dict(zip(*(column.tolist() for column in run.metrics("lr")["lr"])))
        held = one.settings[0]["step"]
        assert rates[held + 1] / rates[held] == pytest.approx(5.0, rel=0.1)
    assert [e["data"] for e in run.events(kinds=("command",)) if "error" in e["data"]] == []
    the_model_comes_back(run)


def the_model_comes_back(run: Run) -> None:
    """`run.load` gives the trained adapters: its own checkpoint tensors, and the held-out loss that was recorded."""
    import torch

    from toolkit.data import documents, held_out_batches, pack
    from toolkit.models import load_tokenizer
    from toolkit.training.language import loss_sum

    model = run.load("last")
    settings = run.recipe
    tokenizer = load_tokenizer("smollm2-135m")
    rows = pack(documents(settings.data)[1], tokenizer, settings.context, settings.seed)[: settings.eval_rows]
    with torch.no_grad():
        batches = list(held_out_batches(rows, micro_sequences=4))
        total = sum(float(loss_sum(model, batch)) for batch in batches)
    tokens = sum(int((batch["targets_BT"] != -100).sum()) for batch in batches)
    assert total / tokens == pytest.approx(run.metrics("eval_loss")["eval_loss"][1][-1], rel=1e-5)
    with pytest.raises(ValueError, match="no checkpoint of step 1"):
        run.load(1)
    assert json.loads((run.folder / "recipe.json").read_text())["type"] == "FineTune"
