"""The command line: flags and values agree, exit statuses and one-line complaints, recipes and how they are followed."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import toolkit.launch
from tests.laws.command_line import Json, command
from toolkit.cli import main, recipes
from toolkit.cli.answers import duration, printable, program
from toolkit.cli.follow import Watch
from toolkit.cli.main import COMMANDS, parser_for
from toolkit.cli.recipes import kebab
from toolkit.parallel import Plan
from toolkit.recipes import FineTune
from toolkit.runs import Run
from toolkit.runs.amounts import size
from toolkit.values import dump_root

COMPLAINTS = {
    "unknown command": (["rnu"], "unknown command 'rnu', did you mean run?"),
    "unknown recipe": (["run", "finetune"], "unknown recipe 'finetune', did you mean fine-tune?"),
    "unknown flag": (["run", "fine-tune", "--stesp", "3"], "unknown argument --stesp, did you mean --steps?"),
    "abbreviated flag": (["run", "fine-tune", "--batch", "3"], "unknown argument --batch"),
    "wrong value": (["run", "fine-tune", "--lr", "high"], "--lr: expected a number"),
    "refused combination": (["run", "fine-tune", "--context", "300"], "--batch-tokens: 1024 is not a multiple"),
    "no such recipe file": (["run", "fine-tune", "--recipe", "nowhere.json"], "nowhere.json: No such file"),
    "resume what": (["run", "fine-tune", "--resume"], "--resume: needs --name"),
    "plan and processes": (["run", "fine-tune", "--plan.dp-shard=2", "--processes=3"], "needs 2 processes"),
    "unknown action": (["runs", "pausee", "good"], "unknown action 'pausee', did you mean pause?"),
    "no such setting": (["runs", "set", "good", "color", "1"], "unknown name 'color': expected one of lr, "),
    "no such family": (["systems", "--family", "adaptors"], "--family: unknown 'adaptors', did you mean adapters?"),
    "no such action": (["job"], "required: ACTION"),
    "no bundle": (["job", "run", "."], "is no bundle"),
    "no notebook": (["export", "nowhere.ipynb", "--out", "x"], "nowhere.ipynb"),
    "no such place": (["export", "nowhere.ipynb", "--to", "moon", "--out", "x"], "'moon'"),
    "one run to compare": (["runs", "compare", "good"], "expected 2 to 26 runs, got 1"),
    "no time": (["runs", "clean", "--older", "soon"], "argument --older: expected a time such as 30d, 12h or 2w, got 'soon'"),
    "no size": (["runs", "clean", "--larger", "1X"], "argument --larger: expected a size such as 500M or 1G, got '1X'"),
    "no final state": (["runs", "clean", "--state", "running"], "unknown state 'running': expected one of finished, "),
    "no such shell": (["completion", "csh"], "unknown shell 'csh'"),
}


@pytest.mark.parametrize(("arguments", "message"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*arguments, capsys=capsys)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "runs").exists()


NO_RUN = {
    "no such run": (["runs", "show", "goof"], "no run 'goof' under {root}, did you mean good?"),
    "no run at all like it": (["runs", "show", "nowhere"], "; `runs --all` lists what there is"),
    "no run in a folder": (["runs", "show", "../x/.."], "it has no launch.json"),
    "over": (["runs", "pause", "good"], "run good is finished: it obeys no command any more"),
    "one of two": (["runs", "compare", "good", "nowhere"], "no run 'nowhere'"),
}


@pytest.mark.parametrize(("arguments", "message"), NO_RUN.values(), ids=NO_RUN)
def test_a_run_that_is_not_there_or_is_over_is_status_3(arguments: list[str], message: str, project: Path, capsys: Any) -> None:
    status, out, err = command(*arguments, "--root", str(project), capsys=capsys)
    assert (status, out) == (3, "")
    assert err.count("\n") == 1
    assert message.format(root=project) in err


def test_a_pattern_that_names_nothing_is_refused_before_the_start(tmp_path: Path, capsys: Any) -> None:
    given = ["--adapters", '{"*.q_porj": LoRA(rank=4)}', "--root", str(tmp_path)]
    status, out, err = command("run", "fine-tune", *given, capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--adapters: '*.q_porj' matches no module" in err
    assert "'*.q_proj'" in err
    assert not list((tmp_path / "runs").glob("*"))


def test_a_name_that_exists_is_refused_before_anything_is_read(project: Path, capsys: Any) -> None:
    status, out, err = command("run", "fine-tune", "--name", "good", "--root", str(project), capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--name good: exists" in err
    assert "--resume" in err


def test_a_recipe_file_with_an_error_names_file_and_path(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "recipe.json"
    for content, message in {
        "{": "--recipe {path}: not JSON: Expecting property name",
        '{"schema": 1, "type": "FineTune", "steps": 0}': "--recipe {path}: $.steps: expected an integer of at least 1, got 0",
        "[" * 100_000: "--recipe {path}: ",
    }.items():
        path.write_text(content)
        status, _, err = command("run", "fine-tune", "--recipe", str(path), capsys=capsys)
        assert status == 2
        assert message.format(path=path) in err


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, project: Path) -> list[tuple[Any, Json]]:
    """What `run` gives to `launch`, which starts nothing here and returns the finished run."""
    calls: list[tuple[Any, Json]] = []

    def fake(recipe: Any, **options: Any) -> Run:
        calls.append((recipe, options))
        return Run.attach("bad" if recipe.seed == 1 else "good", root=project)

    monkeypatch.setattr(toolkit.launch, "launch", fake)
    return calls


def test_run_builds_the_recipe_and_follows_it(launched: list[tuple[Any, Json]], capsys: Any) -> None:
    arguments = ["--steps", "4", "--adapters", '{"*.q_proj": LoRA(rank=4)}', "--plan.dp-shard", "2", "--name", "mine"]
    status, out, err = command("run", "fine-tune", *arguments, "--threads", "1", capsys=capsys)
    (recipe, options), *others = launched
    assert not others
    assert (recipe.steps, recipe.adapters["*.q_proj"].rank, recipe.plan) == (4, 4, Plan(dp_shard=2))
    assert options["name"] == "mine"
    assert options["on"].threads == 1
    assert (status, err) == (0, "")
    assert "finished · step 3 of 3 · loss 2.000 · 1,000 tokens/s" in out
    assert 'step 3 · "Once" -> [upon] a time' in out
    assert "Run good finished in" in out


def test_run_from_a_recipe_file_with_flags_on_top(launched: list[tuple[Any, Json]], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(dump_root(FineTune(steps=7, lr=0.5))))
    assert command("run", "fine-tune", "--recipe", str(path), "--lr", "0.25", "--detach", capsys=capsys)[0] == 0
    assert launched[0][0] == FineTune(steps=7, lr=0.25)


def test_a_detached_run_says_how_to_watch_and_stop(launched: list[tuple[Any, Json]], capsys: Any) -> None:
    status, out, _ = command("run", "fine-tune", "--detach", capsys=capsys)
    assert status == 0
    assert f"{program()} runs watch good" in out
    assert f"{program()} runs stop good" in out
    status, out, _ = command("run", "fine-tune", "--detach", "--json", capsys=capsys)
    assert json.loads(out)["run"] == "good"


def test_a_failed_run_is_status_1_with_its_report(launched: list[tuple[Any, Json]], capsys: Any) -> None:
    status, _, err = command("run", "fine-tune", "--seed", "1", capsys=capsys)
    assert status == 1
    assert "run bad failed" in err
    assert "ArithmeticError: loss -1.0 is below zero" in err
    status, out, _ = command("run", "fine-tune", "--seed", "1", "--json", capsys=capsys)
    assert status == 1
    assert json.loads(out.splitlines()[-1])["state"] == "failed"


def test_an_interrupt_ends_the_watching_only(
    launched: list[tuple[Any, Json]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(self: Watch) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "poll", interrupted)
    status, _, err = command("run", "fine-tune", capsys=capsys)
    assert status == 130
    assert "Run good goes on" in err
    assert f"{program()} runs stop good" in err


def test_a_failure_of_ours_that_is_no_failed_run_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import toolkit.systems

    class Strange(RuntimeError):
        pass

    def stumble() -> None:
        raise Strange("not one of ours")

    monkeypatch.setattr(toolkit.systems, "read_systems", stumble)
    with pytest.raises(Strange):
        main(["systems"])


def test_systems_lists_entries(capsys: Any) -> None:
    status, out, _ = command("systems", capsys=capsys)
    assert status == 0
    assert out.splitlines()[0].split() == ["key", "family", "arxiv", "module", "title"]
    found = json.loads(command("systems", "--json", "--family", "adapters", capsys=capsys)[1])
    assert "lora" in [entry["key"] for entry in found]
    assert {entry["family"] for entry in found} == {"adapters"}


def test_without_a_command_the_help_is_shown(capsys: Any) -> None:
    status, out, err = command(capsys=capsys)
    assert (status, err) == (0, "")
    assert out == command("--help", capsys=capsys)[1]
    assert "fine-tune" in command("run", "--help", capsys=capsys)[1]


def test_export_and_job_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import nbformat

    from toolkit.launch import notebook as notebooks

    cell = nbformat.v4.new_code_cell("steps = 3", metadata={"tags": ["parameters"]})
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    status, out, err = command("export", str(path), "--out", str(tmp_path / "job"), capsys=capsys)
    assert (status, err) == (0, "")
    assert f"job run {tmp_path / 'job'}" in out
    ran: list[Any] = []
    monkeypatch.setattr(notebooks, "run_job", lambda folder, **options: ran.append(options) or 1)
    assert command("job", "run", str(tmp_path / "job"), "--set", "steps=5", capsys=capsys)[0] == 1
    assert ran == [{"parameters": {"steps": 5}, "out": None}]
    status, _, err = command("job", "run", str(tmp_path / "job"), "--set", "steps=many", capsys=capsys)
    assert status == 2
    assert "--set: parameter steps takes int" in err
    status, _, err = command("job", "run", str(tmp_path / "job"), "--set", "stesp=5", capsys=capsys)
    assert status == 2
    assert "did you mean steps?" in err


def test_durations_and_names_in_words() -> None:
    assert [duration(seconds) for seconds in (0, 0.2, 59.5, 95, 3600, 7_325)] == [
        "0 s",
        "1 s",
        "1 min 0 s",
        "1 min 35 s",
        "1 h 0 min",
        "2 h 2 min",
    ]
    assert [kebab(name) for name in ("FineTune", "PolicyOptimize", "Pretrain")] == [
        "fine-tune",
        "policy-optimize",
        "pretrain",
    ]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from toolkit.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "lightning", "numpy", "rich", "nbformat", "toolkit.runs", "toolkit.launch", "toolkit.values"}
    assert not heavy & set(done.stdout.split())


def test_the_module_runs_and_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command_line = [sys.executable, "-P", "-m", "toolkit", "systems", "--json"]
    done = subprocess.run(command_line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


JSON = {
    "list": (["runs"], True),
    "show": (["runs", "show", "good"], False),
    "tail": (["runs", "tail", "good"], False),
    "compare": (["runs", "compare", "good", "bad"], False),
    "clean": (["runs", "clean"], False),
    "systems": (["systems"], True),
    "doctor": (["doctor", "--no-self-test"], False),
    "completion": (["completion", "bash"], False),
}


@pytest.mark.parametrize(("arguments", "many"), JSON.values(), ids=JSON)
def test_json_has_the_keys_that_the_help_promises(arguments: list[str], many: bool, project: Path, capsys: Any) -> None:
    (project / "runs" / "good" / "rank-0.log").touch()
    place = [] if arguments[0] in ("systems", "completion") else ["--root", str(project)]
    status, out, _ = command(*arguments, "--json", *place, capsys=capsys)
    assert status == 0
    found = json.loads(out)
    found = found[0] if many else found
    told = " ".join(command(*arguments, "--help", capsys=capsys)[1].split())
    assert f"--json prints {'a list of objects' if many else 'one object'} with: {', '.join(found)}" in told


def test_every_command_has_json() -> None:
    def leaves(parser: Any) -> list[Any]:
        below = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        return [leaf for choices in below for one in choices for leaf in leaves(one)] or [parser]

    filled = [leaf for name in COMMANDS for leaf in leaves(parser_for([name])._subparsers._group_actions[0].choices[name])]
    assert len(filled) > 15
    assert [leaf.prog for leaf in filled if "--json" not in leaf._option_string_actions] == []
    assert [leaf.prog for leaf in filled if "--json prints" not in (leaf.epilog or "")] == []


def test_exit_statuses_are_told(capsys: Any) -> None:
    told = command("--help", capsys=capsys)[1]
    assert all(f"\n  {status} " in told for status in (0, 1, 2, 3, 130))


def test_flags_of_recipes_are_read_once_and_again_when_the_source_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = recipes.recipes()
    (stored,) = (tmp_path / "scalebook").iterdir()
    asked: list[str] = []
    real = recipes.flags_of
    monkeypatch.setattr(recipes, "flags_of", lambda type_: asked.append(type_.__name__) or real(type_))
    assert recipes.recipes() == first
    assert asked == []
    for broken in ("{", '{"digest": 1}', json.dumps({**json.loads(stored.read_text()), "recipes": [{"name": "FineTune"}]})):
        stored.write_text(broken)
        assert recipes.recipes() == first
    monkeypatch.setattr(recipes, "_digest", lambda: "changed")
    assert recipes.recipes() == first
    assert asked == 4 * [recipe.name for recipe in first.values()]


def test_what_a_run_says_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\nd\x07é\u202e") == "a\\x1b[2Jb\tc\nd\\x07é\\u202e"
    assert [size(number) for number in (0, 1023, 1024, 3 << 29, 5 << 40)] == ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "5.0 TiB"]
