"""Laws of learning-rate schedules and optimizers: what each step uses, and which parameters decay."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from toolkit.training import SGD, WSD, Adafactor, AdamW, Constant, Cosine, Linear, Muon, Schedule
from toolkit.training.whole import WholeAdafactor, WholeMuon

FALLING = [Linear, Cosine, WSD]
warmups = st.integers(0, 20)
floors = st.floats(0, 1)


def schedules(warmup: int, floor: float) -> list[Schedule]:
    falling = [kind(warmup=warmup, floor=floor) for kind in FALLING]
    return [Constant(warmup=warmup), *falling, WSD(warmup=warmup, floor=floor, shape="linear", decay=0.5)]


@settings(max_examples=40)
@given(warmups, floors, st.integers(1, 60), st.integers(0, 80))
def test_a_factor_is_a_share_and_the_warm_up_is_a_line(warmup: int, floor: float, steps: int, step: int) -> None:
    for schedule in schedules(warmup, floor):
        factor = schedule.factor(step, steps)
        assert 0.0 <= factor <= 1.0
        if step < warmup:
            assert factor <= (step + 1) / warmup
        else:
            assert factor >= min(floor, 1.0) - 1e-12
            assert schedule.factor(step + 1, steps) <= factor + 1e-12, "after the warm-up nothing rises"


@settings(max_examples=20)
@given(floors, st.integers(2, 60))
def test_falling_schedules_end_at_their_floor(floor: float, steps: int) -> None:
    for kind in (Linear, Cosine, partial(WSD, decay=0.5)):
        assert kind(warmup=0, floor=floor).factor(steps, steps) == pytest.approx(floor, abs=1e-12)
        assert kind(warmup=1, floor=floor).factor(0, steps + 1) == 1.0


def test_what_the_papers_say_of_single_steps() -> None:
    assert [Cosine(warmup=0).factor(step, 4) for step in range(5)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    )
    wsd = WSD(warmup=2, decay=0.2)
    assert [wsd.factor(step, 100) for step in (0, 1, 2, 79, 80)] == [0.5, 1, 1, 1, 1]
    assert wsd.factor(95, 100) == pytest.approx(1 - math.sqrt(15 / 20))
    assert Linear(warmup=10).factor(55, 100) == pytest.approx(0.5)


def test_a_longer_wsd_run_shares_its_stable_part() -> None:
    """What makes WSD resumable at another length: before the decay nothing depends on the end."""
    wsd = WSD(warmup=5, decay=0.1)
    assert [wsd.factor(step, 100) for step in range(90)] == [wsd.factor(step, 1000) for step in range(90)]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 4)
        self.tall, self.wide = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)
        self.norm = nn.LayerNorm(4)

    def forward(self, ids):
        return self.norm(self.wide(torch.tanh(self.tall(self.embed_tokens(ids)))))


def trained(model: nn.Module, optimizers: list, steps: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    target = torch.randn(6, 4, dtype=next(model.parameters()).dtype)
    for _ in range(steps):
        (model(torch.arange(6)) - target).square().mean().backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = 0.05, 0.1
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def fresh(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(1)
    return Model().to(dtype)


@pytest.mark.parametrize("value", [AdamW(), SGD(), Adafactor(), Muon()], ids=lambda value: type(value).__name__)
def test_matrices_decay_and_vectors_do_not(value) -> None:
    model = fresh()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [group for optimizer in value.make(dict(model.named_parameters())) for group in optimizer.param_groups]
    decaying = {names[one]: group["decays"] for group in groups for one in group["params"]}
    assert decaying == {name: parameter.ndim == 2 for name, parameter in model.named_parameters()}


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = fresh()
    muon, adamw = Muon().make(dict(model.named_parameters()))
    assert isinstance(muon, WholeMuon)
    assert type(adamw) is torch.optim.AdamW
    hidden = [one for group in muon.param_groups for one in group["params"]]
    assert [id(one) for one in hidden] == [id(model.tall.weight), id(model.wide.weight)]
    with pytest.raises(ValueError, match="nothing that trains is a hidden matrix; take AdamW"):
        Muon().make({"norm.weight": model.norm.weight})


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_on_whole_tensors_is_that_of_torch_bit_for_bit(nesterov: bool) -> None:
    ours, theirs = fresh(), fresh()
    options = dict(nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
    results = [
        trained(model, [kind([model.tall.weight, model.wide.weight], **options)])
        for model, kind in ((ours, WholeMuon), (theirs, torch.optim.Muon))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][1], fresh().tall.weight)


def test_adafactor_on_whole_tensors_is_that_of_torch_bit_for_bit() -> None:
    ours, theirs = fresh(), fresh()
    results = [
        trained(model, [kind(list(model.parameters()), foreach=False)])
        for model, kind in ((ours, WholeAdafactor), (theirs, torch.optim.Adafactor))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_learning_rate_serves_both_parts_of_muon() -> None:
    """An update of Muon has the root mean square of one of AdamW, 0.2 to 0.4 of the rate."""
    model = fresh(torch.float64)
    before = model.tall.weight.detach().clone()
    muon, _ = Muon(exact=True).make(dict(model.named_parameters()))
    model(torch.arange(6)).square().sum().backward()
    muon.param_groups[0]["lr"] = 1.0
    muon.step()
    assert 0.1 < float((model.tall.weight.detach() - before).square().mean().sqrt()) < 0.5
