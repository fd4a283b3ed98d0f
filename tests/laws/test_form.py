"""Laws of forms without a browser: every value of every union survives its draft, and every wrong draft is named."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from torch import nn

from tests.laws.samples import Method, Optional_, Scalars, Whole, Wrapper, executed
from tests.laws.test_notebook_classes import CELL
from tests.laws.test_values import TYPES, strategy_for
from toolkit.adapters import LoRA
from toolkit.fields import field_of
from toolkit.models import Transformer, TransformerConfig, save_model
from toolkit.recipes import FineTune
from toolkit.values import Sites, check, dump_root, parse, source
from widgets import Form
from widgets.form_draft import LONG, MISSING, Reader, Writer, put
from widgets.form_patterns import counts, layers_of
from widgets.form_schema import schema, shape_of

quick = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
SAVED_LIMIT = 200_000
TINY = {
    "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "tie_word_embeddings": True,
}  # fmt: skip


def tell(form: Form, path: list[str | int], node: Any, n: int = 1) -> None:
    """What a page does when a person types."""
    form._receive(form, {"kind": "edit", "page": "p", "n": n, "path": path, "node": node}, [])


@pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
@quick
@given(data=st.data())
def test_a_value_survives_its_draft(type_: Any, data: st.DataObject) -> None:
    field = field_of(type_)
    value = data.draw(strategy_for(field))
    shape, kept = shape_of(field, value), {}
    draft = json.loads(json.dumps(Writer(shape, kept).draft(value, field)))
    reader = Reader(shape, kept)
    assert reader.value(draft) == value
    assert reader.problems == []


@pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
@quick
@given(data=st.data())
def test_any_draft_is_read_or_named(type_: Any, data: st.DataObject) -> None:
    """A page may send anything: one node of a draft becomes something else."""
    field = field_of(type_)
    shape = shape_of(field)
    draft = Writer(shape, {}).draft(data.draw(strategy_for(field)), field)
    places = [path for path, _ in nodes(draft)]
    strange = st.sampled_from([None, True, 7, 1.5, "", "nan", "9" * 400, [], [[]], [["*", None]], {}, {"at": 99}, {"kept": "x"}])
    wrong = put(draft, data.draw(st.sampled_from(places)), data.draw(strange))
    reader = Reader(shape, {})
    assert (reader.value(wrong) is MISSING) == bool(reader.problems)
    assert all(problem.place.startswith("$") and problem.reason and "\n" not in str(problem) for problem in reader.problems)


def nodes(draft: Any, path: tuple[str | int, ...] = ()) -> list[tuple[list[str | int], Any]]:
    """Every path in a draft, with what is there."""
    inner = draft.items() if isinstance(draft, dict) else enumerate(draft) if isinstance(draft, list) else ()
    return [(list(path), draft), *(found for key, node in inner for found in nodes(node, (*path, key)))]


@pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
def test_the_schema_is_json_with_a_sound_default_for_every_field(type_: Any) -> None:
    field = field_of(type_)
    shape = shape_of(field)
    writer = Writer(shape, {})
    made = json.loads(json.dumps(schema(shape, writer.draft, writer.blank), allow_nan=False))
    for class_ in made["classes"].values():
        for one in class_["fields"]:
            assert one["required"] or one["default"] is not None
            assert set(one) == {"name", "help", "required", "default", "control"}


@quick
@given(data=st.data())
def test_brief_source_says_the_same(data: st.DataObject) -> None:
    value = data.draw(strategy_for(field_of(Whole | Method)))
    assert parse(source(value, brief=True), Whole | Method) == value
    assert len(source(value, brief=True)) <= len(source(value))


def test_an_edit_gives_the_value_or_names_what_is_wrong() -> None:
    form, seen = Form(FineTune()), []
    form.observe(lambda change: seen.append(change["new"].steps), "value")
    tell(form, ["steps"], "7")
    assert form.value == FineTune(steps=7)
    assert seen == [7]
    assert form.verdict["brief"].endswith("FineTune(steps=7)\n")
    tell(form, ["steps"], "0", 2)
    with pytest.raises(ValueError, match=r"\$\.steps: expected an integer of at least 1, got 0; mend the field, or undo"):
        form.value  # noqa: B018
    assert form.verdict["code"] == ""
    assert form.draft["seen"] == {"p": 2}
    form.value = FineTune(steps=7)  # the same value as before, and yet the controls follow
    assert form.draft["root"]["steps"] == "7"
    tell(form, ["plan", "ep"], "3", 3)
    assert form.verdict["problems"] == [[["plan", "ep"], "$.plan.ep", "3 must divide dp_shard x cp x tp = 1 x 1 x 1 = 1"]]


@pytest.mark.parametrize("write", [source, lambda value: json.dumps(dump_root(value)), repr])
def test_texts_come_back(write: Any) -> None:
    form, value = Form(FineTune), FineTune(steps=3, adapters={"*.q_proj": LoRA(rank=2)}, prompts=("a", "b\n"))
    form.read(write(value))
    assert form.value == value
    assert parse(form.code, FineTune) == value
    assert json.loads(form.json) == dump_root(value)


def test_what_cannot_be_read_changes_nothing() -> None:
    form = Form(FineTune(steps=5))
    for text, reason in [
        ("FineTune(steps=open('x'))", "expected a literal or a call"),
        ('{"type": "FineTune", "step": 1}', r"\$\.step: FineTune has no such field; did you mean steps"),
        ('{"schema": 2, "type": "FineTune"}', r"\$\.schema: expected 1"),
        ("{", r"\$: not JSON"),
        ("Plan()", "unknown type"),
    ]:
        with pytest.raises(ValueError, match=reason):
            form.read(text)
    assert form.value == FineTune(steps=5)
    with pytest.raises(ValueError, match="expected FineTune, got"):
        form.value = LoRA()
    with pytest.raises(TypeError, match="a form shows a value"):
        Form(3)


def test_a_class_without_defaults_waits_for_them() -> None:
    form = Form(Whole)
    assert form.verdict["problems"] == [[["name"], "$.name", "missing, expected text"]]
    tell(form, ["name"], "n")
    assert form.value == Whole(name="n")
    assert isinstance(Form(Method).value, Scalars)


def test_patterns_are_counted_by_the_rule_of_the_host() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    told = counts(["0", "2.*", "*.0", "1"], layers_of(model))
    assert [one["text"].split(";")[0] for one in told] == ["1 of 2 linear layers"] * 3 + ["matches no linear layer"]
    assert [one["tone"] for one in told] == ["", "bad", "bad", "bad"]
    assert "also match *.0" in told[1]["text"]
    assert layers_of("somewhere.module:build")[0] == ()
    assert "not on this machine" in layers_of("no-such/model-anywhere")[1]
    form = Form(FineTune(adapters={"*": LoRA()}), model=model)
    assert form.verdict["counts"] == [[["adapters", "of", "0"], counts(["*"], layers_of(model))]]
    assert len(layers_of("smollm2-135m")[0]) == 210


def test_a_model_that_comes_later_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert layers_of(str(folder))[0] == () and layers_of(str(folder))[1]
    save_model(Transformer(TransformerConfig(**TINY)), folder)
    assert len(layers_of(str(folder))[0]) == 7


def test_a_secret_is_no_field() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Login:
        api_key: str | None = None
        max_tokens: int = 3

    with pytest.raises(ValueError, match=r"Login\.api_key: a secret cannot stand in a form"):
        Form(Login())


def test_long_texts_stay_in_the_kernel() -> None:
    methods = Sites({str(n): Wrapper() for n in range(500)})
    value = Whole(name="n" * 1_000_000, methods=methods, layers=(Optional_(names=("\ud800",)),))
    form = Form(value)
    assert form.value == value
    assert len(json.dumps(form.get_state())) < SAVED_LIMIT
    assert form.draft["root"]["name"]["about"] == "1,000,000 characters"
    tell(form, ["name"], "m" * (LONG + 1))
    assert form.value.name == "m" * (LONG + 1)
    assert "kept" in form.draft["root"]["name"]


def test_edits_of_two_pages_meet() -> None:
    form = Form(FineTune())
    tell(form, ["lr"], "0.5")
    form._receive(form, {"kind": "edit", "page": "q", "n": 1, "path": ["steps"], "node": "9"}, [])
    form._receive(form, {"kind": "edit", "page": "q", "n": 2, "path": ["gone", 3], "node": "9"}, [])
    form._receive(form, {"kind": "edit", "page": "q"}, [])
    assert (form.value.lr, form.value.steps) == (0.5, 9)
    assert form.draft["seen"] == {"p": 1, "q": 2}


def test_a_class_from_a_notebook_cell_is_offered_beside_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = executed(CELL, __name__="__main__", check=check)["Mine"]
    monkeypatch.setattr(sys.modules["__main__"], "In", [CELL], raising=False)
    value = FineTune(adapters={"*.q_proj": mine(rank=3)})
    form = Form(value)
    assert form.value == value
    (item,) = [one["control"]["options"][0]["item"] for one in fields_of(form) if one["name"] == "adapters"]
    assert item["options"][-1]["label"] == "Mine"
    tell(form, ["adapters", "of", "0", 0, 1, "of", str(len(item["options"]) - 1), "rank"], "5")
    assert form.value.adapters["*.q_proj"] == mine(rank=5)
    form.read(form.json)
    assert form.value.adapters["*.q_proj"] == mine(rank=5)


def fields_of(form: Form) -> list[dict[str, Any]]:
    """The fields of the form's own class."""
    return form.schema["classes"][form.schema["root"]["class"]]["fields"]


def test_the_twin_says_what_differs() -> None:
    html, text = Form(FineTune(steps=3))._static()
    assert '<th scope="row">steps</th><td>3</td><td>100</td>' in html
    assert text.startswith("FineTune: 1 of ")
    assert "FineTune(steps=3)" in text
    html, text = Form(Whole)._static()
    assert "$.name: missing, expected text" in text


