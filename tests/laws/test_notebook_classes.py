"""Value classes written in a notebook cell: their source, their help, and how they travel."""

import dataclasses
import sys

import pytest

from tests.laws.samples import Method, Whole, executed
from toolkit.values import check, class_source, code_of, dump, dump_root, load, load_root, notebook_classes, source, spec

CELL = '''
import dataclasses

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mine:
    """A method of my own."""

    rank: int = 4
    """Rank of mine."""

    __post_init__ = check
'''


@pytest.fixture
def notebook_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class as a notebook cell makes it: in `__main__`, its source known to IPython's history alone."""
    made = executed(CELL, __name__="__main__", check=check)["Mine"]
    older = CELL.replace("Rank of mine", "An older text")
    history = ["", older, "%not python", CELL, "Mine(rank=8)"]
    monkeypatch.setattr(sys.modules["__main__"], "In", history, raising=False)
    return made


def test_a_notebook_class_has_source_and_help(notebook_class: type) -> None:
    assert class_source(notebook_class) == CELL.partition("import dataclasses\n\n")[2]
    assert spec(notebook_class).fields[0].help == "Rank of mine."
    assert source(notebook_class()) == "Mine(rank=4)\n"


def test_a_notebook_class_travels_by_name_and_hash(notebook_class: type) -> None:
    value = Whole(name="a", methods={"*.q": notebook_class(rank=2)}, fallback=notebook_class())
    code = code_of(notebook_class)
    assert dump(value)["methods"] == {"*.q": {"type": "notebook:Mine", "code": code, "rank": 2}}
    assert notebook_classes(value) == {"Mine": notebook_class}
    asked = []

    def resolve(name: str, sha256: str) -> type:
        asked.append((name, sha256))
        return notebook_class

    assert load_root(dump_root(value), Whole, notebook=resolve) == value
    assert set(asked) == {("Mine", code)}
    assert load(dump(notebook_class()), Method | notebook_class) == notebook_class()
    with pytest.raises(ValueError, match=r'^\$\.methods\["\*\.q"\]: Mine was written in a notebook'):
        load(dump(value), Whole)


def test_a_notebook_class_keeps_its_hash_where_its_source_is_out_of_reach(notebook_class: type) -> None:
    here = dataclasses.make_dataclass("Mine", [("rank", int, 4)], frozen=True, kw_only=True)
    here.__module__ = "elsewhere"
    data = {"type": "notebook:Mine", "code": "0" * 64, "rank": 5}
    value = load(data, Method, notebook=lambda name, code: here)
    assert isinstance(value, here)
    assert dump(value) == data
    assert Whole(name="a", fallback=value).fallback is value


def test_two_notebook_classes_of_one_name_are_refused(notebook_class: type) -> None:
    again = executed(CELL, __name__="__main__", check=check)["Mine"]
    value = Whole(name="a", layers=(notebook_class(), again()))
    with pytest.raises(ValueError, match="two notebook classes are named Mine"):
        notebook_classes(value)


def test_a_class_without_source_has_no_help_and_no_json() -> None:
    unseen = executed(CELL.replace("Mine", "Unseen"), __name__="__main__", check=check)["Unseen"]
    assert spec(unseen).fields[0].help == ""
    with pytest.raises(OSError, match="the source of Unseen is not known"):
        dump(unseen())
