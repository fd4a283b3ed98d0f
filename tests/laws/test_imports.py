"""Imports point one way, and what is light stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each part may import the parts of the lines below it.
LAYERS = [
    {"widgets"},
    {"recipes"},
    {"training"},
    {"adapters", "checkpoint", "parallel", "serve"},
    {"models", "data"},
    {"values"},
]
ALSO = {
    *(("data", "models"), ("adapters", "parallel"), ("checkpoint", "parallel")),
    *(("launch", "runs"), ("launch", "values"), ("runs", "values")),
    *((part, below) for part in ("widgets", "recipes", "training") for below in ("runs", "launch")),
}
PART = {"fields": "values", "class_source": "values", "source_text": "values"}  # the files that values.py is split into
ON_TOP = ("__main__", "clean", "cli", "doctor", "flags", "systems", "tour")  # what starts with these may import anything
FILES = sorted(file for folder in ("toolkit", "widgets") for file in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a file's module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """The part of Scalebook that a module belongs to; "" for the package itself and for anything else.

    >>> part_of("toolkit.adapters.lora"), part_of("toolkit.fields"), part_of("widgets.view"), part_of("torch.nn")
    ('adapters', 'values', 'widgets', '')
    """
    top, _, rest = module.partition(".")
    if top == "toolkit":
        name = rest.partition(".")[0]
        return PART.get(name, name)
    return top if top in ("widgets", "benchmarks", "tests") else ""


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            known = (ROOT / "toolkit", ROOT / "widgets")
            inner = [name for name in (alias.name for alias in node.names) if module == "toolkit" and _is_part(name, known)]
            yield from (f"{module}.{name}" for name in inner)
            if len(inner) < len(node.names):
                yield module


def _is_part(name: str, folders: tuple[Path, ...]) -> bool:
    return any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for folder in folders)


def allowed(importer: str, target: str) -> bool:
    """Whether files of one part may import another; the library works without the shell."""
    if target == "cli":
        return importer in ("cli", "__main__")
    if not target or importer == target or importer.startswith(ON_TOP) or (importer, target) in ALSO:
        return True
    rank = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    return importer in rank and target in rank and rank[importer] < rank[target]


def test_imports_point_one_way():
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in FILES
        for module in imported(path)
        if not allowed(part_of(module_of(path)), part_of(module))
    ]
    assert not wrong


HEAVY = ("torch", "lightning", "numpy", "transformers", "pandas", "matplotlib", "IPython", "jupyter_client")


LIGHT = ("toolkit", "toolkit.values", "toolkit.runs", "toolkit.launch", "toolkit.recipes", "toolkit.__main__")


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_bring_nothing_heavy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", f"import {module}: {done.stdout}{done.stderr}"


def test_help_imports_no_torch():
    run = [sys.executable, "-P", "-X", "importtime", "-m", "toolkit", "--help"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not names & set(HEAVY)
