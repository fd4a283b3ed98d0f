"""The command line: flags and values agree, exit statuses and one-line complaints, what each command prints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import toolkit.launch
from toolkit.cli import main, program
from toolkit.cli_run import Watch, duration, kebab
from toolkit.launch import InProcess, launch
from toolkit.parallel import Plan
from toolkit.recipes import FineTune
from toolkit.runs import Run, current
from toolkit.runs.state import State
from toolkit.values import dump_root

Json = dict[str, Any]


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, output and error output of one command."""
    try:
        status = main(arguments)
    except SystemExit as left:
        status = left.code
    told = capsys.readouterr()
    return status, told.out, told.err


def work(loss: float) -> Json:
    """Three steps of a training that only tells."""
    context = current()
    context.events.write("state", {"state": "running", "controls": False, "total_steps": 3}, step=0)
    for step in (1, 2, 3):
        context.events.write("metrics", {"loss": loss / step, "tokens_per_second": 1000.0}, step=step)
    context.events.write("sample", {"prompt": "Once", "text": "[upon] a time"}, step=3)
    if loss < 0:
        raise ArithmeticError(f"loss {loss} is below zero")
    return {"loss": loss}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one finished and one failed run."""
    place = tmp_path_factory.mktemp("project")
    launch(work, 6.0, on=InProcess(), root=place, name="good")
    with pytest.raises(ArithmeticError):
        launch(work, -1.0, on=InProcess(), root=place, name="bad")
    return place


COMPLAINTS = {
    "unknown command": (["rnu"], "invalid choice: 'rnu'"),
    "unknown recipe": (["run", "finetune"], "invalid choice: 'finetune' (choose from 'fine-tune')"),
    "unknown flag": (["run", "fine-tune", "--stesp", "3"], "unknown argument --stesp, did you mean --steps?"),
    "abbreviated flag": (["run", "fine-tune", "--batch", "3"], "unknown argument --batch"),
    "wrong value": (["run", "fine-tune", "--lr", "high"], "--lr: expected a number"),
    "refused combination": (["run", "fine-tune", "--context", "300"], "--batch-tokens: 1024 is not a multiple"),
    "no such recipe file": (["run", "fine-tune", "--recipe", "nowhere.json"], "nowhere.json: No such file"),
    "resume what": (["run", "fine-tune", "--resume"], "--resume: needs --name"),
    "plan and processes": (["run", "fine-tune", "--plan.dp-shard=2", "--processes=3"], "needs 2 processes"),
    "no such run": (["runs", "show", "nowhere"], "no run 'nowhere'"),
    "no run in a folder": (["runs", "show", "../x/.."], "it has no launch.json"),
    "no such setting": (["runs", "set", "good", "color", "1"], "invalid choice: 'color'"),
    "no such action": (["job"], "required: ACTION"),
    "no bundle": (["job", "run", "."], "is no bundle"),
    "no notebook": (["export", "nowhere.ipynb", "--out", "x"], "nowhere.ipynb"),
    "no such place": (["export", "nowhere.ipynb", "--to", "moon", "--out", "x"], "'moon'"),
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


def test_a_recipe_file_with_an_error_names_file_and_path(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "recipe.json"
    for content, message in {
        "{": "--recipe {path}: Expecting property name",
        '{"schema": 1, "type": "FineTune", "steps": 0}': "--recipe {path}: $.steps: expected an integer of at least 1, got 0",
        "[" * 100_000: "--recipe {path}: ",
    }.items():
        path.write_text(content)
        status, _, err = command("run", "fine-tune", "--recipe", str(path), capsys=capsys)
        assert status == 2
        assert message.format(path=path) in err


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[tuple[Any, Json]]:
    """What `run` gives to `launch`, which starts nothing here and returns the finished run."""
    calls: list[tuple[Any, Json]] = []

    def fake(recipe: Any, **options: Any) -> Run:
        calls.append((recipe, options))
        return Run.attach("bad" if recipe.seed == 1 else "good", root=root)

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


def test_watch_prints_metrics_as_json_lines(root: Path, capsys: Any) -> None:
    status, out, _ = command("runs", "watch", "good", "--root", str(root), "--json", capsys=capsys)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line.get("loss") for line in lines[:-1]] == [6.0, 3.0, 2.0]
    assert lines[-1]["metrics"] == {"loss": 6.0}


def test_watch_on_a_terminal(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, out, _ = command("runs", "watch", "good", "--root", str(root), capsys=capsys)
    assert status == 0
    assert "Run good finished in" in out


def test_runs_lists_newest_first(root: Path, capsys: Any) -> None:
    status, out, _ = command("runs", "--root", str(root), capsys=capsys)
    assert status == 0
    header, *rows = out.splitlines()
    assert header.split()[:2] == ["run", "state"]
    assert [row.split()[:2] for row in rows] == [["bad", "failed"], ["good", "finished"]]
    found = json.loads(command("runs", "--root", str(root), "--json", capsys=capsys)[1])
    assert [(run["run"], run["state"], run["step"]) for run in found] == [("bad", "failed", 3), ("good", "finished", 3)]


def test_runs_show(root: Path, capsys: Any) -> None:
    status, out, _ = command("runs", "show", "good", "--root", str(root), capsys=capsys)
    assert status == 0
    assert "loss               2 at step 3" in out
    shown = json.loads(command("runs", "--root", str(root), "--json", "show", "good", capsys=capsys)[1])
    assert shown["metrics"]["loss"] == {"step": 3, "value": 2.0}
    assert "ArithmeticError" in command("runs", "show", "bad", "--root", str(root), capsys=capsys)[1]


def test_runs_tail(root: Path, capsys: Any) -> None:
    (root / "runs" / "good" / "rank-0.log").write_text("one\ntwo\nthree\n")
    assert command("runs", "tail", "good", "-n", "2", "--root", str(root), capsys=capsys)[1] == "two\nthree\n"
    status, _, err = command("runs", "tail", "good", "--rank", "../0", "--root", str(root), capsys=capsys)
    assert status == 2
    assert "--rank: expected a number" in err


@pytest.mark.parametrize("action", [["pause"], ["resume"], ["checkpoint"], ["stop"], ["set", "lr", "0.1"]])
def test_a_run_that_is_over_obeys_nothing(action: list[str], root: Path, capsys: Any) -> None:
    status, _, err = command("runs", action[0], "good", *action[1:], "--root", str(root), capsys=capsys)
    assert status == 2
    assert "run good is finished" in err


COMMANDS = {
    "pause": (["pause"], ("pause",)),
    "resume": (["resume"], ("resume",)),
    "checkpoint": (["checkpoint"], ("checkpoint",)),
    "stop": (["stop"], ("stop", True)),
    "stop without saving": (["stop", "--no-save"], ("stop", False)),
    "stop now": (["stop", "--now"], ("kill",)),
    "set": (["set", "lr", "1e-4"], ("set", "lr", 1e-4)),
    "set a whole number": (["set", "max_steps", "12"], ("set", "max_steps", 12)),
}


@pytest.mark.parametrize(("action", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_commands_reach_the_run(
    action: list[str], expected: tuple[Any, ...], root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    told: list[tuple[Any, ...]] = []
    for name in ("pause", "resume", "checkpoint", "set", "kill"):
        monkeypatch.setattr(Run, name, lambda self, *given, name=name: told.append((name, *given)) or 7)
    monkeypatch.setattr(Run, "stop", lambda self, save=True: told.append(("stop", save)) or 7)
    arguments = ["runs", action[0], "good", *action[1:], "--root", str(root)]
    status, out, _ = command(*arguments, capsys=capsys)
    assert status == 0
    assert out.startswith("Told run good: ")
    assert json.loads(command(*arguments, "--json", capsys=capsys)[1])["n"] == 7
    assert told == [expected, expected]
    assert [type(item) for item in told[0]] == [type(item) for item in expected]


def test_restart(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(Run, "restart", lambda self: self)
    status, out, _ = command("runs", "restart", "good", "--root", str(root), capsys=capsys)
    assert status == 0
    assert "Run good starts again" in out


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


def test_time_left_is_told_from_the_mean_pace() -> None:
    watch = Watch.__new__(Watch)
    watch.metrics, watch._first, watch._last = {"loss": 2.0, "eval_loss": "NaN"}, (10, 100.0), (14, 108.0)
    assert watch.seconds_left(20) == 12
    assert watch.line(State(name="running", step=14, total_steps=20)) == "running · step 14 of 20 · loss 2.000 · 12 s left"
    assert watch.line(State(name="paused", step=14)) == "paused · step 14 · loss 2.000"
    watch._first = watch._last
    assert watch.seconds_left(20) is None


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
