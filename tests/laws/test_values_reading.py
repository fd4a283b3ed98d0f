"""What values refuse, in JSON, in text and in the constructor, and how the error says where."""

import contextlib
import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.laws.samples import Method, Scalars, Whole, Wrapper
from toolkit.values import Range, Sites, check, dump, field_of, load, load_root, parse, spec

WRONG = {
    "wrong type": ({"flag": 1}, "$.flag: expected true or false, got 1"),
    "bool is no integer": ({"count": True}, "$.count: expected an integer of at least 1, got true"),
    "out of range": ({"count": -3}, "$.count: expected an integer of at least 1, got -3"),
    "two ends": ({"digits": 10}, "$.digits: expected an integer of at least 0 and of at most 9, got 10"),
    "open end": ({"ratio": 0}, "$.ratio: expected a number above 0 and of at most 1, got 0"),
    "nan in a range": ({"ratio": "nan"}, '$.ratio: expected a number above 0 and of at most 1, got "nan"'),
    "integer too large for a float": ({"number": 10**400}, "$.number: expected a number, got 1000000"),
    "null": ({"text": None}, "$.text: expected text, got null"),
    "literal": ({"mode": 1}, '$.mode: expected "fast", "exact", 3 or true, got 1'),
    "unknown field": ({"cuont": 1}, "$.cuont: Scalars has no such field; did you mean count?"),
    "unlike any field": ({"zzz": 1}, "$.zzz: Scalars has no such field; it has flag, count, "),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_an_error_names_the_json_path(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        load({"type": "Scalars", **fields}, Scalars)
    nested = {"type": "Whole", "name": "a", "methods": {'*.q "x"': {"type": "Scalars", **fields}}}
    deeper = message.replace("$", '$.methods["*.q \\"x\\""]', 1)
    with pytest.raises(ValueError, match="^" + re.escape(deeper)):
        load_root({"schema": 1, **nested}, Whole)


WRONG_WHOLE = {
    "no type": ({}, "$.type: expected Whole, got null"),
    "unknown type": ({"type": "Hole"}, '$: unknown type "Hole", expected Whole; did you mean Whole?'),
    "missing field": ({"type": "Whole"}, "$.name: missing, expected text"),
    "unknown type in a union": (
        {"type": "Whole", "name": "", "layers": [{"type": "Scalar"}]},
        '$.layers[0]: unknown type "Scalar", expected Scalars, Optional_ or Wrapper; did you mean Scalars?',
    ),
    "wrong type in a tuple": ({"type": "Whole", "name": "", "layers": "ab"}, "$.layers: expected a list (each item"),
    "wrong type in sites": ({"type": "Whole", "name": "", "methods": []}, "$.methods: expected an object from"),
    "wrong item": ({"type": "Whole", "name": "", "sizes": {"a": 1.5}}, '$.sizes["a"]: expected an integer, got 1.5'),
    "empty pattern": ({"type": "Whole", "name": "", "sizes": {"": 1}}, "$.sizes: expected patterns that are text"),
    "notebook class": (
        {"type": "Whole", "name": "", "fallback": {"type": "notebook:Mine", "code": "00"}},
        "$.fallback: Mine was written in a notebook; what holds it loads only inside the run that wrote it",
    ),
    "notebook class without code": (
        {"type": "notebook:Mine"},
        "$.code: expected the sha256 of the notebook class Mine, got null",
    ),
}


@pytest.mark.parametrize(("data", "message"), WRONG_WHOLE.values(), ids=WRONG_WHOLE)
def test_an_error_of_a_composed_value_names_the_json_path(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        load(data, Whole)


def test_load_refuses_nesting_without_end() -> None:
    data: dict[str, Any] = {"type": "Wrapper"}
    for _ in range(100_000):
        data = {"type": "Wrapper", "inner": data}
    with pytest.raises(ValueError, match=r"^\$: nested too deeply$"):
        load(data, Wrapper)


@pytest.mark.parametrize("schema", [None, 2, "1", True])
def test_a_document_says_its_schema(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"^\$\.schema: expected 1, got "):
        load_root({**dump(Scalars()), "schema": schema}, Scalars)
    with pytest.raises(ValueError, match=r'^\$: expected an object with "schema" and "type", got \[\]$'):
        load_root([], Scalars)


def test_the_constructor_names_class_and_field() -> None:
    with pytest.raises(ValueError, match=r"^Scalars\.count: expected an integer of at least 1, got 0$"):
        Scalars(count=0)
    with pytest.raises(ValueError, match=r'^Whole\.methods\["\*"\]: expected Scalars, Optional_ or Wrapper, got 3$'):
        Whole(name="a", methods={"*": 3})
    with pytest.raises(ValueError, match=r"^Whole\.fallback: expected Scalars, got \{'type': 'Scalars'\}$"):
        Whole(name="a", fallback={"type": "Scalars"})


def test_the_refusal_of_a_class_of_its_own_combination_carries_the_path() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Pair:
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            check(self)
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")

    with pytest.raises(ValueError, match=r"^\$\[0\]: low 3 is above high 1$"):
        load([{"type": "Pair", "low": 3}], tuple[Pair, ...])


HOSTILE = {
    "import": '__import__("os").system("true")',
    "attribute": "Scalars.__init__(flag=True)",
    "position": "Scalars(True)",
    "unpacking": "Scalars(**{'flag': True})",
    "unpacked dict": "{**{'a': 1}}",
    "starred": "[*'ab']",
    "comprehension": "[x for x in 'ab']",
    "lambda": "(lambda: 1)()",
    "call": "eval('1')",
    "f-string": "f'{1}'",
    "operator": "Scalars(count=1 + 1)",
    "power": "Scalars(count=9**9**9)",
    "bytes": "b'a'",
    "two statements": "Scalars(); Scalars()",
    "import between": "Scalars()\nimport os\nScalars()",
    "nothing": "",
    "twice": "Scalars(flag=True, flag=False)",
    "pattern twice": "{'a': 1, 'a': 2}",
    "not text": "{1: 2}",
    "no Python": "Scalars(",
    "unknown call": "open(file='x')",
    "float of text": "float('1')",
    "negative text": "-'a'",
    "parentheses": "(" * 10_000 + "1" + ")" * 10_000,
    "calls": "f(x=" * 10_000 + "1" + ")" * 10_000,
    "signs": "-" * 100_000 + "1",
    "sum": "1+" * 100_000 + "1",
    "attributes": "a" + ".b" * 100_000,
    "digits": "1" * 10_000,
    "zero byte": "'\0'",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_parse_refuses_all_but_literals_and_calls_with_named_fields(text: str) -> None:
    with pytest.raises(ValueError, match=r"^\$"):
        parse(text, Method | Sites[int] | int | str)


def test_parse_never_imports() -> None:
    text = "import toolkit_that_does_not_exist\nfrom nowhere import Scalars as Other\n\nOther(count=2)"
    assert parse(text, Method) == Scalars(count=2)


@given(text=st.text(alphabet="Scalars(Wpe=12.,'\"{}[]:-\n)"))
@settings(max_examples=100)
def test_parse_gives_a_value_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text, Method | Sites[int])


@pytest.mark.parametrize(
    "annotation", [list[int], dict, Any, tuple[int, int], float | str, Literal["inf"] | float, Annotated[str, Range(1)]]
)
def test_a_type_that_json_cannot_hold_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError):
        field_of(annotation)


def test_a_name_that_json_needs_is_refused() -> None:
    taken = dataclasses.make_dataclass("Taken", [("type", str, "")], frozen=True, kw_only=True)
    with pytest.raises(TypeError, match=r"^Taken\.type: "):
        spec(taken)
    with pytest.raises(TypeError, match="expected a frozen dataclass, got <class 'int'>"):
        spec(int)
    with pytest.raises(TypeError, match="expected a value"):
        dump(3)
