"""Bodies that compare a sharded model with the same model whole, in one process."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from toolkit.adapters import LoRA, adapt, disabled, load_adapter, merge_, save_adapter
from toolkit.parallel import Plan, apply_fsdp, data_rank, mesh


class Block(nn.Module):
    """A feed-forward block of odd sizes, so that shards are uneven and some are empty."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3)
        self.down = nn.Linear(3, width, bias=False)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    """Embedding, three blocks and a head that may share the embedding's weight."""

    def __init__(self, *, tied: bool):
        super().__init__()
        self.embed = nn.Embedding(13, 9)
        self.layers = nn.ModuleList(Block(9) for _ in range(3))
        self.head = nn.Linear(9, 13, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens_BT):
        x = self.embed(tokens_BT)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def build(*, dtype: str = "float64", adapted: bool = False, tied: bool = False) -> Model:
    torch.manual_seed(0)
    model = Model(tied=tied).to(getattr(torch, dtype))
    if adapted:
        adapt(model, {"*.up": LoRA(rank=2, alpha=1.0), "*.down": LoRA(rank=1, alpha=1.0)})
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("b_OR"):
                nn.init.normal_(parameter, generator=generator)
    return model


def loss_sum(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    return model(tokens_BT).float().square().sum() if len(tokens_BT) else model(tokens_BT).sum()


def largest_differences(model: nn.Module, whole: nn.Module, *, of_gradients: bool) -> dict[str, float]:
    """max|a-b| / max|b| for each parameter (or gradient) by name; the two models must have the same ones."""
    found = {}
    for (name, mine), (other_name, other) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert name == other_name and mine.requires_grad == other.requires_grad and isinstance(mine, DTensor)
        if of_gradients:
            assert (mine.grad is None) == (other.grad is None) == (not mine.requires_grad), name
            mine, other = mine.grad, other.grad
        if mine is not None:
            assert mine.dtype == other.dtype, name
            difference, size = (mine.full_tensor() - other).detach().abs().max(), other.detach().abs().max()
            found[name] = float(difference / size) if difference else 0.0  # the biases of norms start at zero
            assert size.isfinite(), name
    return found


def compare(
    *,
    plan: dict[str, int],
    dtype: str = "float64",
    adapted: bool = False,
    tied: bool = False,
    param_dtype: str | None = None,
    reshard: bool = True,
    steps: int = 3,
) -> dict[str, object]:
    """Train a few steps on unequal shares of a batch, sharded and whole; the worst differences of each."""
    layout = Plan(**plan)
    whole = build(dtype=dtype, adapted=adapted, tied=tied)
    model = copy.deepcopy(whole)
    devices = mesh(layout, "cpu")
    options = {"param_dtype": getattr(torch, param_dtype) if param_dtype else None, "reshard_after_forward": reshard}
    assert apply_fsdp(model, devices, **options) is model
    share, shares = data_rank(devices)
    optimizers = [torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=1e-4) for each in (model, whole)]
    # Unequal shares: a mean over ranks would be another number than the sum over all tokens.
    bounds = [7 * index**2 // shares**2 for index in range(shares + 1)]
    gradients: dict[str, float] = {}
    for step in range(steps):
        tokens_BT = torch.randint(13, (7, 5), generator=torch.Generator().manual_seed(step))
        mine_BT = tokens_BT[bounds[share] : bounds[share + 1]]
        loss_sum(model, mine_BT).backward()
        loss_sum(whole, tokens_BT).backward()
        gradients = largest_differences(model, whole, of_gradients=True)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    weights = largest_differences(model, whole, of_gradients=False)
    return {
        "gradients": max(gradients.values()),
        "weights": max(weights.values()),
        "share": [share, shares],
        "axes": list(devices.mesh_dim_names),
        "elements": sum(parameter.to_local().numel() for parameter in model.parameters()),
        "whole": sum(parameter.numel() for parameter in whole.parameters()),
    }


def accumulate(*, plan: dict[str, int]) -> float:
    """Two micro-batches before the gradients are summed over ranks, against the whole batch."""
    whole = build(adapted=True)
    model = copy.deepcopy(whole)
    devices = mesh(Plan(**plan), "cpu")
    apply_fsdp(model, devices)
    share, shares = data_rank(devices)
    tokens_BT = torch.randint(13, (4 * shares, 5), generator=torch.Generator().manual_seed(0))
    mine_BT = tokens_BT[4 * share : 4 * share + 4]
    for part in range(2):
        model.set_requires_gradient_sync(part == 1)
        loss_sum(model, mine_BT[2 * part : 2 * part + 2]).backward()
    loss_sum(whole, tokens_BT).backward()
    return max(largest_differences(model, whole, of_gradients=True).values())


def half_precision(*, plan: dict[str, int]) -> dict[str, object]:
    """Computation in bfloat16 over float32 parameters: dtypes, and the distance from plain bfloat16 computation."""
    whole = build(dtype="float32", adapted=True)
    model = copy.deepcopy(whole)
    apply_fsdp(model, mesh(Plan(**plan), "cpu"), param_dtype=torch.bfloat16)
    tokens_BT = torch.randint(13, (6, 5), generator=torch.Generator().manual_seed(0))
    y = model(tokens_BT)
    y.float().square().sum().backward()
    rounded = whole.to(torch.bfloat16)
    expected = rounded(tokens_BT)
    expected.float().square().sum().backward()
    references = dict(rounded.named_parameters())
    gradients = {
        name: (parameter.grad.full_tensor(), references[name].grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    world = dist.get_world_size()
    return {
        "dtype": str(y.dtype),
        "output": float((y - expected).detach().abs().max() / expected.detach().abs().max()),
        "gradient_dtypes": sorted({str(mine.dtype) for mine, _ in gradients.values()}),
        "gradients": max(float((mine / world - other).abs().max() / other.abs().max()) for mine, other in gradients.values()),
    }


def adapters_of_a_sharded_model(*, folder: str) -> dict[str, object]:
    """Save the adapters from shards, switch them off, and see what is refused once the model is sharded."""
    whole = build(adapted=True)
    model = copy.deepcopy(whole)
    apply_fsdp(model, mesh(Plan(dp_shard=dist.get_world_size()), "cpu"))
    tokens_BT = torch.randint(13, (2, 5), generator=torch.Generator().manual_seed(0))
    y = model(tokens_BT)
    with disabled(model):
        base = model(tokens_BT)
    save_adapter(model, folder)
    dist.barrier()
    again = load_adapter(build(), folder)
    messages = []
    sharded = build()
    apply_fsdp(sharded, mesh(Plan(dp_shard=dist.get_world_size()), "cpu"))
    attempts = [
        lambda: adapt(sharded, {"*.up": LoRA()}),
        lambda: load_adapter(sharded, folder),
        lambda: load_adapter(model, folder),
        lambda: merge_(model),
    ]
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            messages.append(str(error))
    return {
        "same": torch.equal(again(tokens_BT), whole(tokens_BT)) and torch.equal(y, whole(tokens_BT)),
        "base": torch.equal(base, build()(tokens_BT)),
        "messages": messages,
    }


def refusals() -> list[str]:
    """What apply_fsdp and mesh refuse."""
    devices = mesh(Plan(dp_shard=dist.get_world_size()), "cpu")
    across = Model(tied=False)
    across.layers[1].up.weight = across.layers[0].up.weight
    outside = Model(tied=False)
    outside.layers[0].norm.weight = nn.Parameter(torch.zeros(9))
    outside.extra = outside.layers[0].norm
    outside.register_parameter("alias", outside.layers[0].norm.weight)
    mixed = Model(tied=False)
    mixed.layers[0].up.bfloat16()
    attempts = [
        lambda: mesh(Plan(dp_shard=3), "cpu"),
        lambda: apply_fsdp(across, devices),
        lambda: apply_fsdp(outside, devices),
        lambda: apply_fsdp(mixed, devices),
        lambda: apply_fsdp(Model(tied=False), devices, blocks=[Block(9)]),
    ]
    messages = []
    for attempt in attempts:
        try:
            attempt()
            messages.append("nothing was refused")
        except ValueError as error:
            messages.append(str(error))
    return messages
