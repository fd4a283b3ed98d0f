"""Export a notebook as a bundle: one folder with everything that a batch job needs.

    notebook.ipynb   the notebook without outputs       constraints.txt    the exact versions installed here
    script.py        the same cells as a script         git.json           the commit it stands on
    job.yaml         its name and its parameters        uncommitted.patch  what differs from that commit
"""

import datetime
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from nbformat import NotebookNode

from toolkit.launch import notebook as notebooks
from toolkit.launch.leaks import find_secrets, known_secrets
from toolkit.launch.parameters import Json, Parameter, read_parameters
from toolkit.launch.script import script

TARGETS = ("local",)
KEYS = ("schema", "name", "parameters")
"""What may stand in job.yaml."""
README = """\
# {name}: a notebook as a batch job

Install: Scalebook at the commit in git.json (with uncommitted.patch, if there is one), its libraries by constraints.txt.
Run: `python -P -m toolkit job run .` here (outputs go to a run folder), or `python -P script.py --help`.
The values of its parameters, seeds among them, stand in job.yaml; change them there.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What job.yaml says."""

    name: str
    """The notebook's name, in letters that are safe everywhere."""
    parameters: dict[str, Parameter]
    """The notebook's parameters by name, with the values that the job runs with as defaults."""
    folder: Path
    """The bundle."""

    @property
    def notebook(self) -> Path:
        """The notebook that is executed."""
        return self.folder / "notebook.ipynb"


def export(notebook: str | Path, *, to: str = "local", out: str | Path) -> Path:
    """Write the bundle of `notebook` into the folder `out` and return it; an earlier bundle there is replaced.

    ValueError: another target than "local" (this version has no other), an `out` that holds something else, a cell
    that is not plain Python, or something that looks like a secret - the message names the cell, not the secret.

        bundle = export("notebooks/00-start-here.ipynb", to="local", out="runs/tour/job")
        run_job(bundle, parameters={"fast": True})    # toolkit.launch.notebook
    """
    if to not in TARGETS:
        raise ValueError(f"cannot export to {to!r}: only 'local' is available in this version")
    notebook, out = Path(notebook), Path(out).resolve()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "job.yaml").is_file())):
        raise ValueError(f"{out} exists and is no bundle: choose another folder")
    node = notebooks.load(notebook)
    git, patch = _git(notebook.resolve().parent)
    _refuse_secrets(node, patch)
    name = _safe_name(notebook.stem)
    files = {
        "script.py": script(node),
        "job.yaml": yaml.safe_dump(_job(name, read_parameters(node)), sort_keys=False, allow_unicode=True),
        "constraints.txt": _installed(),
        "git.json": json.dumps(git, indent=2) + "\n",
        "README.md": README.format(name=name),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    for file, text in files.items():
        (aside / file).write_text(text, encoding="utf-8")
    if patch:
        (aside / "uncommitted.patch").write_bytes(patch)
    notebooks.save(_without_outputs(node), aside / "notebook.ipynb")
    if out.exists():
        shutil.rmtree(out)
    os.replace(aside, out)
    return out


def read_job(folder: str | Path) -> Job:
    """The job of a bundle. ValueError names what is missing or wrong in its job.yaml."""
    folder = Path(folder).resolve()
    file = folder / "job.yaml"
    if not file.is_file():
        raise ValueError(f"{folder} is no bundle: it has no job.yaml")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != 1:
        raise ValueError(f"{file}: expected `schema: 1`")
    unknown = [str(key) for key in data if key not in KEYS]
    if unknown:
        raise ValueError(f"{file}: unknown {', '.join(unknown)}; expected {', '.join(KEYS)}")
    if not isinstance(data.get("parameters") or {}, dict):
        raise ValueError(f"{file}: parameters: expected `name: {{value: ...}}` lines")
    known = read_parameters(notebooks.load(folder / "notebook.ipynb"))
    chosen = {}
    for name, entry in (data.get("parameters") or {}).items():
        if name not in known or not isinstance(entry, dict) or "value" not in entry:
            raise ValueError(f"{file}: parameters.{name}: expected `value:` of one of {', '.join(known) or 'none'}")
        if not entry.keys() <= {"type", "value"} or entry.get("type", known[name].type) != known[name].type:
            raise ValueError(f"{file}: parameters.{name}: expected `type: {known[name].type}` and `value:`, nothing else")
        value = known[name].check(entry["value"])
        chosen[name] = Parameter(name=name, type=known[name].type, default=value)
    return Job(name=_safe_name(str(data.get("name", "job"))), parameters=known | chosen, folder=folder)


def _job(name: str, parameters: dict[str, Parameter]) -> dict[str, Json]:
    return {
        "schema": 1,
        "name": name,
        "parameters": {name: {"type": each.type, "value": each.default} for name, each in parameters.items()},
    }


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:48] or "job"


def _without_outputs(node: NotebookNode) -> NotebookNode:
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    node.metadata.pop("widgets", None)
    return node


def _refuse_secrets(node: NotebookNode, patch: bytes) -> None:
    known = known_secrets()
    places = {"the notebook's metadata": "\n".join(_strings(node.metadata))}
    for number, cell in enumerate(node.cells, 1):
        places[f"cell {number}"] = "\n".join([cell.source, *_strings(cell.metadata)])
        places[f"the output of cell {number}"] = "\n".join(_strings(cell.get("outputs", [])))
    lines = patch.decode("utf-8", "replace").splitlines()
    places |= {f"uncommitted changes, line {number}": line for number, line in enumerate(lines, 1)}
    found = [f"{place}: {what}" for place, text in places.items() for what in find_secrets(text, known)]
    if found:
        raise ValueError("secrets do not travel with a bundle; remove them first:\n  " + "\n  ".join(found[:20]))


def _strings(value: object) -> list[str]:
    """Every string in a JSON value, as the reader sees it (a dump would escape line ends and quotes)."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else []


def _git(folder: Path) -> tuple[dict[str, Json], bytes]:
    """What git.json says of the repository of `folder`, and what is not committed there as a patch."""
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if not commit:
        return {"commit": None, "exported": _now()}, b""
    patch = _ask_git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    names = _ask_git(folder, "ls-files", "--others", "--exclude-standard", "-z", ":/").decode("utf-8", "replace")
    untracked: list[Json] = [name for name in names.split("\0") if name]
    return {"commit": commit.decode().strip(), "dirty": bool(patch), "untracked": untracked, "exported": _now()}, patch


def _ask_git(folder: Path, *arguments: str) -> bytes:
    """What git prints; nothing where there is no git, no repository or no commit."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, env=environment, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _installed() -> str:
    pins = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    lines = [f"{name}=={version.partition('+')[0]}" for name, version in pins.items() if name and name != "scalebook"]
    return "\n".join(sorted(set(lines), key=str.lower)) + "\n"
