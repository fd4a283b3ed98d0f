"""Completion: each shell gets a script, and what it asks for at Tab is read from the same parsers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.laws.command_line import command, command_json, living, write_run
from tests.laws.test_imports import HEAVY
from toolkit.cli.completion import KEYS, candidates
from toolkit.cli.shells import COMMAND, SHELLS


def words(*typed: str) -> list[str]:
    """What may stand in the place of the last word."""
    return [word for word, _ in candidates(typed)[1]]


def test_commands_recipes_flags_and_choices() -> None:
    assert words("ru") == ["run", "runs"]
    assert "doctor" in words("")
    assert "fine-tune" in words("run", "")
    assert {"--plan", "--plan.dp-shard"} <= set(words("run", "fine-tune", "--pl"))
    assert words("run", "fine-tune", "--dtype", "") == ["auto", "float32", "bfloat16"]
    assert "lr" in words("runs", "set", "some-run", "")
    assert words("runs", "clean", "--state", "f") == ["finished", "failed"]
    assert words("runs", "--root", ".", "comp") == ["compare"]
    assert words("completion", "") == ["bash", "zsh", "fish"]
    assert words("nonsense", "") == []
    assert all(meaning for _, meaning in candidates(["runs", "--"])[1])


@pytest.mark.parametrize(
    ("typed", "kind"),
    [(["export", ""], "notebook"), (["export", "--out", ""], "folder"), (["run", "fine-tune", "--recipe", ""], "file")],
)
def test_files_are_left_to_the_shell(typed: list[str], kind: str) -> None:
    assert candidates(typed) == (kind, [])


def test_runs_by_what_can_be_done_with_them(tmp_path: Path) -> None:
    for name in ("over", "lives"):
        write_run(tmp_path, name)
    place = ["runs", "--root", str(tmp_path)]
    with living(tmp_path / "runs" / "lives"):
        assert sorted(words(*place, "show", "")) == ["lives", "over"]
        assert words(*place, "pause", "") == ["lives"]
        assert words(*place, "restart", "") == ["over"]
        assert words(*place, "compare", "over", "") == ["lives"]
        assert dict(candidates([*place, "show", ""])[1])["over"] == "finished FineTune"
        for name in ("state.json", "launch.json"):  # a damaged one hides no other
            (write_run(tmp_path, f"torn-{name[0]}") / name).write_text('{"na')
            assert words(*place, "restart", "") == ["over"]
            assert dict(candidates([*place, "show", ""])[1])[f"torn-{name[0]}"] == "damaged"


def test_an_answer_imports_nothing_heavy() -> None:
    """So that a Tab takes a moment: 0.2 s on a machine with nothing else to do."""
    words("run", "")  # the flags are read once for all
    asked = [sys.executable, "-P", "-X", "importtime", "-m", "toolkit", COMMAND, "run", "fine-tune", "--st"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert "--steps\t" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "toolkit.cli.main" in imported and not imported & set(HEAVY)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts(shell: str, capsys: Any) -> None:
    status, out, _ = command("completion", shell, capsys=capsys)
    assert status == 0
    assert f"{sys.executable} -P -m toolkit {COMMAND}" in out
    assert "@" not in out.replace('"$@"', "").replace("(@f)", "").replace("(@)", "").replace("[@]", "")
    assert command_json("completion", shell, "--json", capsys=capsys) == dict(zip(KEYS, (shell, out), strict=True))
    program = shutil.which(shell)
    if program:  # bash is everywhere here
        subprocess.run([program, "-n"], input=out, text=True, check=True)


def test_bash_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    script = command("completion", capsys=capsys)[1]
    write_run(tmp_path, "first")
    code = f"""{script}
    tab() {{ COMP_WORDS=(scalebook "$@"); COMP_CWORD=$#; _scalebook; echo "${{COMPREPLY[*]}}"; }}
    tab runs sto
    tab runs --root {tmp_path} show ""
    """
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, env={**os.environ}, check=True)
    assert done.stdout.splitlines() == ["stop", "first"]
