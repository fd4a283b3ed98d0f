"""RunMonitor in a real JupyterLab, on a run that was really launched. The tests share it and leave it running."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Locator, expect

from tests.browser import laws, toy
from tests.browser.hostile import make_hostile
from tests.browser.laws import Lab, Notebook
from toolkit.runs import Run

LAUNCH = """
from toolkit.launch import launch
from tests.browser.toy import train
run = launch(train, 600, name="toy", root={root!r})
"""
WATCH = """
from toolkit.runs import Run
from widgets import RunMonitor
monitor = RunMonitor(Run.attach({folder!r}))
monitor
"""
MONITOR = ".sb-monitor"
SAVED_LIMIT = 200_000


@dataclass
class Watched:
    """A run, and the notebook that shows its monitor."""

    book: Notebook
    root: Locator
    run: Run

    def step(self) -> int:
        """The step that the monitor shows."""
        found = re.search(r"step (\d+)", self.root.locator(".sb-monitor-facts").inner_text())
        assert found
        return int(found[1])

    def moves(self) -> None:
        """The shown step grows."""
        before, until = self.step(), time.monotonic() + 5
        while self.step() < before + 3:
            assert time.monotonic() < until, f"the monitor stays at step {before}"
            time.sleep(0.1)

    def shows(self, state: str) -> None:
        """The badge says `state`, and so does the run."""
        expect(self.root.locator(".sb-monitor-badge")).to_have_text(state, timeout=30_000)
        assert self.run.state.name == state


@pytest.fixture(scope="module")
def watched(lab: Lab) -> Iterator[Watched]:
    folder = lab.work / "runs" / "toy"
    book = lab.open(LAUNCH.format(root=str(lab.work)), WATCH.format(folder=str(folder)), "import time; time.sleep(4)")
    book.run_cell(0)
    try:
        root = laws.renders(book, MONITOR, cell=1)
        found = Watched(book, root, Run(folder))
        found.shows("running")
        yield found
    finally:
        if (folder / "launch.json").exists() and Run(folder).alive:
            Run(folder).kill()
        book.close()


def test_charts_follow_the_run(watched: Watched) -> None:
    charts = watched.root.locator(".sb-chart")
    expect(charts).to_have_count(6)
    expect(charts.locator("figcaption > b")).to_have_text(
        ["Loss", "Learning rate", "Speed", "Gradient norm", "Memory", "Step time"]
    )
    expect(charts.first.get_by_role("img")).to_have_attribute("aria-label", re.compile(r"^Loss, steps 1 to \d+: train 3\.\d+ to"))
    expect(watched.root).to_contain_text(toy.TEXT)
    watched.moves()


def test_it_stays_live_while_a_cell_blocks(watched: Watched) -> None:
    watched.book.run_cell(2)
    watched.book.page.wait_for_function(f"() => {laws.KERNEL}.status === 'busy'")
    watched.moves()
    assert watched.book.page.evaluate(f"() => {laws.KERNEL}.status") == "busy"
    watched.book.wait_idle()


def test_pause_and_resume_by_click(watched: Watched) -> None:
    laws.acts(watched.root, "Pause", lambda: watched.shows("paused"))
    at = watched.step()
    assert at == watched.run.state.step
    expect(watched.root.locator(".sb-monitor-marks")).to_contain_text(f"step {at}: paused")
    laws.acts(watched.root, "Resume", lambda: watched.shows("running"))
    watched.moves()


def test_keyboard_alone_is_enough(watched: Watched) -> None:
    laws.is_reached_by_keyboard(watched.book, watched.root, 1, ["Pause", "Checkpoint now", "Stop and keep", "Keys"])
    keyboard, root = watched.book.page.keyboard, watched.root
    keyboard.press("p")
    watched.shows("paused")
    keyboard.press("c")
    expect(root.locator(".sb-monitor-marks")).to_contain_text("checkpoint")
    keyboard.press("p")
    watched.shows("running")
    tab_to(watched, root.get_by_role("group", name="Charts."))
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    expect(root.locator(".sb-chart-step").first).to_have_text("step 2")
    expect(root.get_by_role("status")).to_contain_text(re.compile(r"^Step 2: train \d\.\d+"))
    keyboard.press("t")
    expect(root.get_by_role("table")).to_contain_text("held out")
    keyboard.press("t")
    expect(root.get_by_role("tab", name="Samples")).to_have_attribute("aria-selected", "true")
    assert watched.book.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length") == 3


def tab_to(watched: Watched, wanted: Locator) -> None:
    """Press Tab until the focus is there."""
    for _ in range(20):
        watched.book.page.keyboard.press("Tab")
        if wanted.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {wanted}")


def test_both_themes(watched: Watched) -> None:
    laws.follows_theme(watched.book, watched.root, "run-monitor")


def test_the_saved_state_is_small_and_has_a_static_twin(watched: Watched) -> None:
    size = int(watched.book.execute("import json; print(len(json.dumps(monitor.get_state())))"))
    assert size < SAVED_LIMIT
    twin = next(output for output in watched.book.save().cells[1].outputs if "sb-twin" in output.data.get("text/html", ""))
    html = twin.data["text/html"]
    assert re.search(r'<img alt="Run \w+, step \d+ of 600\. Loss, train: 3[^"]+" src="data:image/svg\+xml;base64,', html)
    assert "<td>" in html
    assert twin.data["text/plain"].startswith("toy: Run ")


def test_a_reloaded_page_goes_on(watched: Watched) -> None:
    laws.survives_reload(watched.book, watched.root, watched.moves)


def test_a_restarted_kernel_attaches(watched: Watched) -> None:
    laws.survives_restart(watched.book, watched.root, 1, watched.moves)
    expect(watched.root.locator(".sb-monitor-marks")).to_contain_text("paused")


def test_settings_from_here_and_from_elsewhere(watched: Watched) -> None:
    root, notice = watched.root, watched.root.locator(".sb-monitor-notice")
    root.get_by_role("textbox", name="New value").fill("ten")
    root.get_by_role("button", name="Set", exact=True).click()
    expect(notice).to_have_text('lr: expected a number such as 1e-4, got "ten"')
    root.get_by_role("textbox", name="New value").fill("3e-4")
    watched.book.page.keyboard.press("Enter")
    expect(root.locator(".sb-monitor-marks")).to_contain_text("lr = 3e−4")
    watched.run.set("lr", 1e-4)  # another notebook, or a shell
    expect(notice).to_contain_text(re.compile(r"set lr to 0\.0001, sent elsewhere: in force after step \d+"))
    watched.run.set("lr", -1)
    expect(notice).to_contain_text("refused: expected a number of at least 0")
    root.get_by_role("tab", name="Commands").click()
    rows = root.get_by_role("tabpanel").locator("tbody tr")
    expect(rows.first).to_contain_text(re.compile("set lr to -1.*elsewhere.*refused"))
    expect(rows.nth(2)).to_contain_text(re.compile(r"set lr to 0\.0003.*here.*in force after step"))


def test_two_tabs_steer_the_same_run(watched: Watched) -> None:
    def pause(other: Locator) -> None:
        laws.acts(other, "Pause", lambda: watched.shows("paused"))
        expect(other.locator(".sb-monitor-badge")).to_have_text("paused")
        laws.acts(other, "Resume", lambda: watched.shows("running"))

    laws.lives_in_two_tabs(watched.book, MONITOR, pause)


def test_stop_and_keep_then_resume(watched: Watched) -> None:
    laws.acts(watched.root, "Stop and keep", lambda: watched.shows("stopped"))
    commands = watched.root.get_by_role("group", name="Commands").get_by_role("button")
    expect(commands).to_have_text(["Resume run", "Keys"])
    stopped_at = watched.step()
    laws.acts(watched.root, "Resume run", lambda: watched.shows("running"))
    expect(watched.root.locator(".sb-monitor-facts")).to_contain_text("attempt 2")
    watched.moves()
    assert watched.step() > stopped_at
    watched.root.get_by_role("button", name="Pause").focus()
    watched.book.page.keyboard.press("s")
    watched.shows("stopped")


def test_resume_from_an_older_checkpoint_says_what_is_dropped(watched: Watched) -> None:
    kept = [step for step, _, _ in watched.run.checkpoints()]
    watched.root.get_by_role("tab", name="Checkpoints").click()
    panel = watched.root.get_by_role("tabpanel")
    expect(panel.locator("tbody tr")).to_have_count(len(kept))
    expect(panel.locator("tbody tr", has_text="best")).to_contain_text(f"step {kept[-1]}")
    older = panel.get_by_role("button", name=f"Resume from step {kept[0]}", exact=True)
    older.click()
    expect(older).to_have_text(f"Press again: steps {kept[0] + 1} to {watched.step()} are dropped, newer checkpoints set aside")
    laws.picture(watched.book, watched.root, "run-monitor-checkpoints")
    older.click()
    watched.shows("running")
    expect(watched.root.locator(".sb-monitor-facts")).to_contain_text("attempt 3")
    assert watched.step() < kept[1]
    assert [step for step, _, _ in watched.run.checkpoints()] == kept[:1]
    assert (watched.run.folder / "checkpoints" / f"step-{kept[-1]}.aside").is_dir()
    charts = watched.root.get_by_role("img", name=re.compile("^Loss"))
    expect(charts).not_to_have_attribute("aria-label", re.compile(rf"steps 1 to {kept[-1]}\b"))


def test_a_stop_that_hangs_can_be_made_hard(watched: Watched) -> None:
    (watched.run.folder / "stuck").touch()
    watched.root.get_by_role("button", name="Stop and keep").click()
    expect(watched.root.locator(".sb-monitor-badge")).to_have_text("stopping")
    hard = watched.root.get_by_role("button", name="Hard stop")
    hard.click()
    sure = watched.root.get_by_role("button", name="Press again: what is in no checkpoint is lost")
    assert watched.run.state.name == "stopping"
    sure.click()
    watched.shows("stopped")
    expect(watched.root.locator(".sb-monitor-facts")).to_contain_text("killed")


def test_nothing_left_the_machine_or_complained(watched: Watched) -> None:
    laws.stays_here(watched.book)


def test_notebook_7_shows_the_same(watched: Watched, lab: Lab) -> None:
    book = lab.open(WATCH.format(folder=str(watched.run.folder)), app="notebook")
    book.console.clear()  # what Notebook 7 complains about while it starts
    try:
        root = laws.renders(book, MONITOR, cell=0)
        expect(root.locator(".sb-monitor-badge")).to_have_text(watched.run.state.name)
        expect(root.locator(".sb-chart canvas")).to_have_count(6)
        laws.picture(book, root, "run-monitor-notebook7")
        laws.stays_here(book)
    finally:
        book.close()


def test_a_hostile_run_is_inert(lab: Lab) -> None:
    folder, beside = lab.work / "runs" / "hostile", lab.work / "runs" / "<img src=x onerror=window.hacked=1>"
    for place in (folder, beside):
        make_hostile(place)
    book = lab.open(WATCH.format(folder=str(folder)).replace("\nmonitor\n", f"\nmonitor.add({str(beside)!r})\nmonitor\n"))
    try:
        root = laws.renders(book, MONITOR, cell=0)
        expect(root.locator(".sb-monitor-badge")).to_have_text("failed")
        expect(root.locator(".sb-chart")).to_have_count(6)
        expect(root.locator("figcaption > b")).to_contain_text(["<img src=x onerror=window.hacked=1>"])
        expect(root.locator(".sb-monitor-failure")).to_contain_text("Rank 0: <b>ValueError</b>")
        expect(root).to_contain_text("<script>window.hacked = 1</script> red evil.txt")
        panel = root.get_by_role("tabpanel")
        for tab, shown in {
            "Checkpoints": "step 20",
            "Ranks": "rank 1",
            "Logs": "<script>window.hacked = 1</script> red",
            "Commands": "set <u>lr</u> to </script>",
            "Table": "not finite",
        }.items():
            root.get_by_role("tab", name=tab).click()
            expect(panel).to_contain_text(shown)
            laws.is_inert(root)
        differs = root.get_by_role("region", name="What differs")
        expect(differs).to_contain_text("<b>hostile</b>")
        expect(differs).to_contain_text("<img src=x onerror=window.hacked=1>")
        root.get_by_role("button", name="Hide <img").click()  # what is drawn is that of the other one
        text = root.inner_text()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
        assert len(text) < 30_000
        size = int(book.execute("import json; print(len(json.dumps(monitor.get_state())))"))
        assert size < SAVED_LIMIT
        twin = "".join(output.data.get("text/html", "") for output in book.save().cells[0].outputs)
        assert "sb-twin" in twin
        assert not re.search(r"<(script|img src=x|b>V)", twin)
        laws.picture(book, root, "run-monitor-failed")
        laws.is_accessible(book, root)
        laws.stays_here(book)
    finally:
        book.close()
