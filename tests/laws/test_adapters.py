"""Every adapter obeys the same laws, and the host keeps its promises. A new method is tested by being in the union."""

import copy
import pickle
import typing
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toolkit.adapters import Adapted, Adapter, AdapterLike, LoRA, Params, adapt, disabled, merge_
from toolkit.values import check, dump, load, parse, source, spec

MEMBERS = typing.get_args(Adapter) or (Adapter,)


def variants(member):
    """The default value of a method, and for each field one value that differs from it in that field only."""
    yield member()
    for field in spec(member).fields:
        if field.kind == "bool":
            yield member(**{field.name: not field.default})
        elif field.kind == "int":
            yield member(**{field.name: field.default + 1 if field.default == field.low else field.default - 1})
        elif field.kind == "float":
            yield member(**{field.name: field.default / 2 if field.default else 0.25})
        elif field.kind == "literal":
            yield from (member(**{field.name: choice}) for choice in field.choices if choice != field.default)


METHODS = [method for member in MEMBERS for method in variants(member)]
each_method = pytest.mark.parametrize("method", METHODS, ids=repr)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def model_of(dtype=torch.float64) -> nn.Module:
    """Two blocks of rectangular linears, one with a bias and one without, and a head."""
    torch.manual_seed(0)
    blocks = [nn.ModuleDict({"up": nn.Linear(6, 10), "down": nn.Linear(10, 6, bias=False)}) for _ in range(2)]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(blocks)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            for block in self.layers:
                x = x + block["down"](torch.tanh(block["up"](x)))
            return self.head(x)

    return Model().to(dtype).eval()


def disturb(model: nn.Module) -> nn.Module:
    """Move every trained value away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.3 * noise).to(parameter.dtype))
    return model


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def inputs(dtype=torch.float64):
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def assert_close(a, b, tolerance):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= tolerance * b.abs().max()


BOTH = ("layers.*.up", "layers.*.down")


def adapted_model(method, dtype=torch.float64, **options):
    return adapt(model_of(dtype), dict.fromkeys(BOTH, method), **options)


@each_method
@each_dtype
def test_starts_as_the_base_model_and_keeps_the_dtype(method, dtype):
    model = adapted_model(method, dtype)
    base = model_of(dtype)(inputs(dtype))
    assert model(inputs(dtype)).dtype == dtype
    if getattr(method, "starts_as_base", True):
        assert torch.equal(model(inputs(dtype)), base)


@each_method
@each_dtype
def test_apply_equals_linear_of_the_merged_weight(method, dtype):
    model = disturb(adapted_model(method, dtype))
    for module in [module for module in model.modules() if isinstance(module, Adapted)]:
        x = torch.randn(4, 3, module.in_features, dtype=torch.float64).to(dtype)
        y = module(x)
        assert (y - module.base(x)).abs().max() > 1e-3 * y.abs().max()
        assert_close(y, F.linear(x, module.weight, module.bias), TOLERANCE[dtype])


@each_method
@each_dtype
def test_merging_keeps_the_output_and_removes_the_wrappers(method, dtype):
    model = disturb(adapted_model(method, dtype))
    before = model(inputs(dtype))
    assert merge_(model) is model
    assert_close(model(inputs(dtype)), before, TOLERANCE[dtype])
    assert str(model) == str(model_of(dtype)) and list(model.state_dict()) == list(model_of(dtype).state_dict())


@each_method
def test_gradients_are_those_of_the_merged_weight(method):
    model = disturb(adapted_model(method))
    through_merge = copy.deepcopy(model)
    for module in through_merge.modules():
        if isinstance(module, Adapted):
            module.forward = lambda x, module=module: F.linear(x, *module.merged())
    x, other_x = inputs().requires_grad_(), inputs().requires_grad_()
    model(x).pow(3).sum().backward()
    through_merge(other_x).pow(3).sum().backward()
    assert_close(x.grad, other_x.grad, 1e-10)
    for name, parameter in trained(through_merge).items():
        assert parameter.grad.abs().max() > 0
        assert_close(trained(model)[name].grad, parameter.grad, 1e-10)


@each_method
def test_gradients_are_those_of_finite_differences(method):
    model = disturb(adapted_model(method))
    parameters = trained(model)

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (x,))

    x = inputs()[:1, :2].requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters.values()), fast_mode=True)


@each_method
def test_only_the_adapter_gets_gradients(method):
    model = adapted_model(method)
    disturb(model)(inputs()).sum().backward()
    for name, parameter in model.named_parameters():
        mine = not name.endswith((".weight", ".bias"))
        assert parameter.requires_grad == mine and (parameter.grad is not None) == mine, name


@each_method
def test_round_trips_through_text_and_json(method):
    assert parse(source(method), Adapter) == method
    assert load(dump(method), Adapter) == method
    assert isinstance(method, AdapterLike) and eval(repr(method), {type(method).__name__: type(method)}) == method


@each_method
def test_copies_pickles_and_state_dicts_give_the_same_model(method):
    model = disturb(adapted_model(method))
    y = model(inputs())
    assert torch.equal(copy.deepcopy(model)(inputs()), y)
    again = adapted_model(method, seed=7)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(inputs()), y)
    layer = model.get_submodule("layers.0.up")
    assert torch.equal(pickle.loads(pickle.dumps(layer))(inputs()), layer(inputs()))  # noqa: S301


@each_method
def test_what_is_drawn_depends_on_seed_and_path_only(method):
    model = adapted_model(method)
    alone = adapt(model_of(), {"layers.1.up": method})
    drawn = model.get_submodule("layers.1.up").params.trained
    for name, tensor in alone.get_submodule("layers.1.up").params.trained.items():
        assert torch.equal(tensor, drawn[name])
    other = adapted_model(method, seed=1).state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(t, model.get_submodule("layers.0.up").params.trained[n]) for n, t in drawn.items())


@each_method
def test_disabled_is_the_base_model_and_multipliers_interpolate(method):
    model, base = disturb(adapted_model(method)), model_of()
    y = model(inputs())
    with disabled(model):
        assert torch.equal(model(inputs()), base(inputs()))
        assert not model(inputs()).requires_grad
    assert torch.equal(model(inputs()), y)
    layer = model.get_submodule("layers.0.up")
    full, none = layer(inputs()), layer.base(inputs())
    layer.multiplier = 0.25
    assert_close(layer(inputs()), none + 0.25 * (full - none), 1e-10)
    assert_close(F.linear(inputs(), layer.weight, layer.bias), layer(inputs()), 1e-10)


@each_method
@pytest.mark.parametrize(("base", "kept"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_trained_values_are_kept_in_float32_or_better(method, base, kept):
    dtypes = {parameter.dtype for parameter in trained(adapted_model(method, getattr(torch, base))).values()}
    assert dtypes == {getattr(torch, kept)}
    asked = adapt(model_of(getattr(torch, base)), {"*.up": method}, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in trained(asked).values()} == {torch.bfloat16}


def test_state_dict_names_are_stable():
    model = adapt(model_of(), {"layers.0.up": LoRA(rank=2)})
    assert [name for name in model.state_dict() if name.startswith("layers.0.up")] == [
        "layers.0.up.a_RI",
        "layers.0.up.b_OR",
        "layers.0.up.base.weight",
        "layers.0.up.base.bias",
    ]


def test_lora_is_scaled_as_published():
    assert LoRA(rank=16, alpha=8.0).scale == 0.5 and LoRA(rank=16, alpha=8.0, rslora=True).scale == 2.0
    layer = adapt(nn.Sequential(nn.Linear(5, 3)), {"0": LoRA(rank=4, alpha=6.0)})[0]
    nn.init.ones_(layer.b_OR)
    assert_close(layer.weight - layer.base.weight, 1.5 * layer.b_OR @ layer.a_RI, 1e-5)
    assert layer.a_RI.abs().max() <= 5**-0.5


def test_lora_keeps_only_the_input_and_its_projection():
    layer = adapt(nn.Sequential(nn.Linear(64, 96)), {"0": LoRA(rank=4)})[0]
    x, sizes = torch.randn(32, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    weights = [tuple(layer.base.weight.shape), tuple(layer.a_RI.shape), tuple(layer.b_OR.shape)]
    assert sorted(sizes) == sorted([(32, 64), (32, 4), *weights])


def test_dropout_acts_while_training_only_and_not_on_the_base():
    model = disturb(adapt(nn.Sequential(nn.Linear(6, 4)), {"0": LoRA(rank=3, dropout=0.5)}))
    layer, x = model[0], torch.randn(7, 6)
    without = replace(layer.method, dropout=0.0).apply(x, layer.base, layer.params, None)
    model.eval()
    assert torch.equal(layer(x), without)
    model.train()
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
    assert (mean - without).abs().max() < 0.1 * without.abs().max()
    layer.method = replace(layer.method, dropout=1.0)
    assert torch.equal(layer(x), layer.base(x))


def test_lora_computes_the_same_with_hooks_autocast_and_a_trained_base():
    layer = disturb(adapt(nn.Sequential(nn.Linear(6, 4)), {"0": LoRA(rank=3)}))[0]
    x = torch.randn(7, 6)
    y = layer(x)
    calls = []
    handle = layer.base.register_forward_hook(lambda *_: calls.append(1))
    assert_close(layer(x), y, 1e-6)
    handle.remove()
    assert calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(layer(x), y.bfloat16(), 2e-2)
    layer.base.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.base.weight.grad is not None
    assert_close(layer(x), y, 1e-6)


def test_activation_checkpointing_gives_the_same_gradients():
    model = disturb(adapted_model(LoRA(rank=2, dropout=0.3))).train()
    grads = []
    for use in (False, True):
        torch.manual_seed(5)
        x = inputs().requires_grad_()
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if use else model(x)
        y.sum().backward()
        grads.append([parameter.grad.clone() for parameter in trained(model).values()])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedFactor:
    """A method as a notebook cell would have it: one frozen matrix for all sites, a trained scale and bias a site."""

    rank: int = 3
    __post_init__ = check

    def init_shared(self, sites, *, gradients=None, generator):
        widest = max(site.shape[1] for site in sites)
        return Params(frozen={"basis_RI": torch.randn(self.rank, widest, generator=generator)}, trained={"gain": torch.ones(1)})

    def init(self, site, weight_OI, shared, *, generator):
        return Params(trained={"v_OR": torch.zeros(site.shape[0], self.rank), "shift_O": torch.zeros(site.shape[0])})

    def merge(self, site, weight_OI, bias_O, params, shared):
        change_OI = shared["gain"] * params["v_OR"] @ shared["basis_RI"][:, : site.shape[1]]
        bias_O = params["shift_O"] if bias_O is None else bias_O + params["shift_O"]
        return weight_OI + change_OI.to(weight_OI.dtype), bias_O.to(weight_OI.dtype)


def test_a_method_from_a_notebook_shares_tensors_changes_the_bias_and_needs_no_apply():
    model = adapt(model_of(), {"*.up": SharedFactor(), "*.down": SharedFactor()})
    assert torch.equal(model(inputs()), model_of()(inputs()))
    shared = [name for name in model.state_dict() if "adapter_shared" in name]
    assert shared == ["adapter_shared.0.gain", "adapter_shared.0.basis_RI"]
    disturb(model)(inputs()).sum().backward()
    assert model.get_parameter("adapter_shared.0.gain").grad is not None
    again = copy.deepcopy(model)
    y = again(inputs())
    nn.init.zeros_(again.get_parameter("adapter_shared.0.gain"))
    assert not torch.equal(again(inputs()), y) and torch.equal(model(inputs()), y)
    assert_close(merge_(model)(inputs()), y, 1e-10)
    assert model.layers[0]["down"].bias is not None and not hasattr(model, "adapter_shared")
