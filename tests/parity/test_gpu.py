"""On a CUDA device the same numbers come out as on the CPU, and a launched training runs there."""

from pathlib import Path

import pytest
import torch

from tests.distributed.training_bodies import tiny
from toolkit.adapters import LoRA, adapt
from toolkit.launch import Local, launch
from toolkit.models import Transformer, load_tokenizer
from toolkit.parallel import Plan
from toolkit.recipes import FineTune
from toolkit.serve import Engine, Sampling
from toolkit.training.language import loss_sum

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2e-2}


def adapted(device: str, dtype: torch.dtype = torch.float32) -> Transformer:
    """A tiny transformer with LoRA whose product is not zero; the same numbers on every device."""
    torch.manual_seed(0)
    model = adapt(tiny(), {"*_proj": LoRA(rank=2)}, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("b_OR"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return model.to(device, dtype)


def batch(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(0, 49152, (3, 32), generator=generator)
    documents_BT = (torch.arange(32) >= 20).long().expand(3, 32).contiguous()
    micro = {"tokens_BT": tokens_BT, "targets_BT": tokens_BT.roll(-1, 1), "documents_BT": documents_BT}
    return {name: tensor.to(device) for name, tensor in micro.items()}


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    difference = (found.detach().cpu().double() - expected.detach().double()).abs().max()
    return bool(difference <= tolerance * expected.detach().double().abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_loss_and_gradients_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    here, there = adapted("cpu", dtype), adapted("cuda", dtype)
    losses = [loss_sum(here, batch("cpu")), loss_sum(there, batch("cuda"))]
    assert close(losses[1], losses[0], TOLERANCE[dtype])
    if dtype == torch.bfloat16:
        return  # gradients of so few rounded numbers say nothing
    for loss in losses:
        loss.backward()
    expected = {name: p.grad for name, p in here.named_parameters() if p.grad is not None}
    assert expected
    for name, parameter in there.named_parameters():
        if name in expected:
            assert parameter.grad is not None and close(parameter.grad, expected[name], TOLERANCE[dtype]), name


def test_greedy_generation_is_that_of_the_cpu() -> None:
    tokenizer, sampling = load_tokenizer("smollm2-135m"), Sampling(max_tokens=16, group=2)
    prompts = ["The with statement", "A function"]
    here = Engine(adapted("cpu", torch.float64), tokenizer).generate(prompts, sampling)
    there = Engine(adapted("cuda", torch.float64), tokenizer).generate(prompts, sampling)
    assert there.token_ids == here.token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_launched_training_runs_on_every_gpu(dtype: str, tmp_path: Path) -> None:
    gpus = min(2, torch.cuda.device_count())
    recipe = FineTune(
        model="tests.distributed.training_bodies:tiny", tokenizer="smollm2-135m", adapters={"*_proj": LoRA(rank=2)},
        plan=Plan(dp_shard=gpus), steps=4, batch_tokens=256, context=64, eval_every=4, eval_rows=2, lr=1e-2, dtype=dtype,
    )  # fmt: skip
    run = launch(recipe, on=Local(processes=gpus), root=tmp_path)
    assert run.wait(300).state == "finished"
    losses = run.metrics("loss")["loss"][1]
    assert len(losses) == 4 and torch.isfinite(torch.tensor(losses)).all()
    assert len(run.state.devices) == gpus


def test_a_gpu_training_is_that_of_the_cpu(tmp_path: Path) -> None:
    recipe = FineTune(
        model="tests.distributed.training_bodies:tiny", tokenizer="smollm2-135m", adapters={"*_proj": LoRA(rank=2)},
        steps=6, batch_tokens=256, context=64, eval_every=6, eval_rows=2, lr=1e-2, dtype="float32",
    )  # fmt: skip
    runs = [
        launch(recipe, on=Local(processes=1, devices=devices), root=tmp_path, name=name)
        for name, devices in (("cpu", "cpu"), ("gpu", "auto"))
    ]
    assert [run.wait(300).state for run in runs] == ["finished", "finished"]
    here, there = (torch.tensor(run.metrics("loss")["loss"][1]) for run in runs)
    assert close(there, here, 1e-4)
