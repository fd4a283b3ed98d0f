"""Laws of values, over every type listed here: text, JSON and pickle keep a value; help and defaults are described."""

import dataclasses
import importlib
import json
import pickle
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, reject, settings

from tests.laws.samples import Method, Optional_, Scalars, Whole, Wrapper, executed
from toolkit.values import Field, Sites, dump, dump_root, field_of, load, load_root, parse, source, spec

UNIONS = [
    "toolkit.adapters:Adapter",
    "toolkit.data:Data",
    "toolkit.launch:Local",
    "toolkit.models:RopeScaling",
    "toolkit.parallel:Plan",
    "toolkit.recipes:Recipe",
    "toolkit.serve:Sampling",
    "toolkit.training:Optimizer",
    "toolkit.training:Schedule",
]
"""Types of the toolkit that the laws run over, as `module:name`: add the union of a new family here."""


TYPES = {"Method": Method, "Whole": Whole, "Sites": Sites[tuple[Method, ...]]}
TYPES |= {name: getattr(importlib.import_module(name.split(":")[0]), name.split(":")[1]) for name in UNIONS}


def strategy_for(field: Field) -> st.SearchStrategy:
    """Values of a field, from its specification alone."""
    match field.kind:
        case "bool":
            return st.booleans()
        case "int":
            low = field.low if field.low is None else int(field.low) + field.exclusive_low
            return st.integers(low, field.high)
        case "float":
            low = None if field.low is None else float(field.low)
            high = None if field.high is None else float(field.high)
            return st.floats(low, high, exclude_min=field.exclusive_low, allow_nan=False)
        case "str":
            return st.text()
        case "none":
            return st.none()
        case "literal":
            return st.sampled_from(field.choices)
        case "tuple":
            return st.lists(strategy_for(field.item), max_size=3).map(tuple)
        case "sites":
            return st.dictionaries(st.text(min_size=1), strategy_for(field.item), max_size=3).map(Sites)
        case "union":
            return st.one_of([strategy_for(option) for option in field.options])
    return st.deferred(lambda: values_of(field.type))


@st.composite
def values_of(draw: st.DrawFn, type_: type) -> Any:
    """A value whose fields are all drawn, or only a few of them: most draws of many would contradict one another."""
    names = [field.name for field in spec(type_).fields]
    chosen = draw(st.one_of(st.just(names), st.lists(st.sampled_from(names or [""]), max_size=3)))
    fields = [field for field in spec(type_).fields if field.required or field.name in chosen]
    arguments = {field.name: draw(strategy_for(field)) for field in fields}
    try:
        return type_(**arguments)
    except ValueError:  # A class may refuse combinations of legal fields.
        reject()


quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
@quick
@given(data=st.data())
def test_a_value_survives_text_json_and_pickle(type_: Any, data: st.DataObject) -> None:
    value = data.draw(strategy_for(field_of(type_)))
    assert parse(repr(value), type_) == value
    assert parse(source(value), type_) == value
    assert hash(parse(source(value), type_)) == hash(value)
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 (our own bytes)
    if dataclasses.is_dataclass(value):
        assert load(json.loads(json.dumps(dump(value), allow_nan=False)), type_) == value
        assert load_root(json.loads(json.dumps(dump_root(value), allow_nan=False)), type_) == value
        assert list(dump_root(value))[:2] == ["schema", "type"]


@pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
@quick
@given(data=st.data())
def test_source_runs_as_python(type_: Any, data: st.DataObject) -> None:
    value = data.draw(strategy_for(field_of(type_)))
    imports, _, expression = ("\n" + source(value)).rpartition("\n\n")
    assert eval(expression, executed(imports)) == value


@pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
def test_every_field_of_the_toolkit_has_help(type_: Any) -> None:
    for class_ in field_of(type_).classes.values():
        if class_.__module__.startswith("toolkit."):
            assert spec(class_).help
            assert [field.name for field in spec(class_).fields if not field.help] == []


def test_spec_describes_the_fields() -> None:
    described = spec(Scalars)
    assert (described.name, described.title) == ("Scalars", "Every kind of plain field.")
    assert described.help.endswith("A second paragraph.")
    fields = {field.name: field for field in described.fields}
    assert list(fields) == ["flag", "count", "digits", "ratio", "number", "text", "mode"]
    assert [field.kind for field in fields.values()] == ["bool", "int", "int", "float", "float", "str", "literal"]
    assert fields["flag"].help == "Whether it is so."
    assert fields["count"].help == "Number of things,\n1 or more."
    assert fields["digits"].help == ""
    assert (fields["digits"].low, fields["digits"].high) == (0, 9)
    assert fields["ratio"].exclusive_low
    assert isinstance(fields["ratio"].default, float)
    assert fields["mode"].choices == ("fast", "exact", 3, True)
    assert spec(Optional_).title == "Optional_"
    assert spec(Optional_).help == ""


def test_spec_of_composed_fields() -> None:
    name, methods, layers, sizes, fallback = spec(Whole).fields
    assert name.required
    assert not methods.required
    assert methods.item.classes == {"Scalars": Scalars, "Optional_": Optional_, "Wrapper": Wrapper}
    assert layers.item == methods.item
    assert [option.kind for option in sizes.options] == ["sites", "value", "none"]
    assert fallback.default == Scalars()
    size, rate, both, *_ = spec(Optional_).fields
    assert [option.kind for option in size.options] == ["int", "none"]
    assert rate.options[0].low == 0.0
    assert [option.kind for option in both.options] == ["literal", "int", "float"]


def test_the_constructor_converts() -> None:
    value = Whole(name="a", methods={"*.q": Scalars(ratio=1)}, layers=[Wrapper(code=[[1], (2, 3)])])
    assert value.methods == Sites({"*.q": Scalars(ratio=1.0)})
    assert isinstance(value.methods["*.q"].ratio, float)
    assert value.layers[0].code == ((1,), (2, 3))
    assert isinstance(Optional_(rate=1).rate, float)
    assert isinstance(Optional_(both=1).both, int)


def test_sites_is_an_immutable_ordered_mapping() -> None:
    sites = Sites({"b": 1, "a": 2})
    assert sites == {"b": 1, "a": 2}
    assert sites != {"a": 2, "b": 1}
    assert sites != [("b", 1), ("a", 2)]
    assert repr(sites) == "{'b': 1, 'a': 2}"
    assert hash(sites) == hash(Sites({"b": 1, "a": 2}))
    with pytest.raises(AttributeError, match="Sites is immutable"):
        sites._items = {}
    with pytest.raises(TypeError):
        sites["c"] = 1


def test_non_finite_floats_are_text_in_json_and_calls_in_source() -> None:
    value = Scalars(number=-float("inf"))
    assert dump(value)["number"] == "-inf"
    assert 'number=float("-inf")' in repr(value)
    assert parse("Scalars(number=-float('inf'))", Scalars) == value
    assert parse("Scalars(number=1e999)", Scalars) == Scalars(number=float("inf"))
    nan = Scalars(number=float("nan"))
    assert dump(nan)["number"] == "nan"
    assert repr(load(dump(nan), Scalars)) == repr(nan) == repr(parse(source(nan), Scalars))


def test_source_wraps_long_lines_and_imports_from_the_public_package() -> None:
    from toolkit.adapters import LoRA

    text = source(LoRA())
    assert text.startswith("from toolkit.adapters import LoRA\n\nLoRA(rank=8, ")
    long = source(Whole(name="n" * 90))
    assert long.startswith("from tests.laws.samples import Scalars, Whole, Wrapper\n\n")
    assert "\nWhole(\n    name='nnn" in long


def test_classes_of_one_name_get_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(module: str) -> type:
        made = dataclasses.make_dataclass("Same", [("number", int, 1)], frozen=True, kw_only=True)
        made.__module__ = module
        return made

    first, second = make("first"), make("second")
    pair = dataclasses.make_dataclass("Pair", [("left", first), ("right", second)], frozen=True, kw_only=True)
    pair.__module__ = "third"
    value = pair(left=first(), right=second(number=2))
    assert "from second import Same as Same_2\n" in source(value)
    assert "right=Same_2(number=2)" in source(value)
    assert parse(source(value), pair) == value
