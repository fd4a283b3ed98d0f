"""House rules that a reader would otherwise have to check by eye."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("toolkit", "widgets", "tests", "benchmarks")
LONGEST = 400  # lines
FILES = sorted(
    file
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*")
    if file.suffix in (".py", ".js", ".css") and "vendor" not in file.parts and "__pycache__" not in file.parts
)
SOURCES = [file for file in FILES if file.suffix == ".py" and file.relative_to(ROOT).parts[0] in ("toolkit", "widgets")]
# Code travels one way, from the kernel to workers that it started: this is where they unpickle it.
UNPICKLES = "toolkit/runs/control.py"
FORBIDDEN = (
    *("shell=True", "weights_only=False", "os.system(", "os.fork(", "innerHTML", "/work/"),
    *("TODO", "FIXME", "NotImplementedError", "pytest.skip", "pytest.xfail", "mark.skip", "mark.xfail"),
)
HERE = Path(__file__).resolve()


def read(path: Path) -> str:
    """A file's text."""
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    """A file's path from the root of the project."""
    return path.relative_to(ROOT).as_posix()


def test_files_are_short():
    long = {name_of(path): lines for path in FILES if (lines := len(read(path).splitlines())) > LONGEST}
    assert not long


def test_files_are_named_for_what_they_do():
    assert not [name_of(path) for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_nothing_forbidden_is_written():
    assert not [f"{name_of(path)}: {word}" for path in FILES if path != HERE for word in FORBIDDEN if word in read(path)]


def test_only_one_file_unpickles():
    assert not [name_of(path) for path in SOURCES if "pickle.load" in read(path) and name_of(path) != UNPICKLES]


def test_what_is_public_says_what_it_does():
    silent = []
    for path in SOURCES:
        tree = ast.parse(read(path))
        if tree.body and not ast.get_docstring(tree):
            silent.append(name_of(path))
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        public = [node for node in public if "overload" not in map(ast.unparse, node.decorator_list)]
        silent += [f"{name_of(path)}: {node.name}" for node in public if not ast.get_docstring(node)]
    assert not silent


def is_value(node: ast.AST) -> bool:
    """Whether a statement defines a value class: one that checks its fields when it is made."""
    return isinstance(node, ast.ClassDef) and any("__post_init__" in ast.unparse(part) for part in node.body)


def test_every_field_of_a_value_has_its_help():
    classes = [(path, node) for path in SOURCES for node in ast.parse(read(path)).body if is_value(node)]
    silent = []
    for path, node in classes:
        for statement, following in zip(node.body, [*node.body[1:], None]):
            if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
                name = ast.unparse(statement.target)
                told = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                silent += [f"{name_of(path)}: {node.name}.{name}"] if not told and not name.startswith("_") else []
    assert classes
    assert not silent


def test_project_files_name_no_machine():
    for name in ("Makefile", "environment.yml", "constraints.txt", "pyproject.toml", ".ci/run", "README.md"):
        assert not re.search(r"/(work|root|home)/", (ROOT / name).read_text()), name


@pytest.mark.parametrize("command", [["ruff", "check", "--output-format=concise"], ["codespell_lib"]], ids=["ruff", "codespell"])
def test_linters_are_content(command):
    done = subprocess.run([sys.executable, "-P", "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
