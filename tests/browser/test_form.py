"""Form in a real JupyterLab, on the recipe that people start with. The tests share it and change it in turn."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Locator, expect

from tests.browser import laws
from tests.browser.laws import Lab, Notebook

SHOW = """
from toolkit.adapters import LoRA
from toolkit.recipes import FineTune
from widgets import Form
seen = []
form = Form(FineTune(adapters={"*.q_proj": LoRA(rank=4)}, steps=40))
form.observe(lambda change: seen.append(change["new"].steps), "value")
form
"""
WAIT = """
import os, time
while not os.path.exists("go-on"):
    time.sleep(0.05)
"""
FORM = ".sb-form"
SAVED_LIMIT = 200_000


@dataclass
class Shown:
    """A form, and the notebook that shows it."""

    book: Notebook
    root: Locator

    def box(self, path: str, root: Locator | None = None) -> Locator:
        """The control at a path of the draft, such as `steps` or `plan/ep`."""
        steps = path.split("/")
        around = ["", *steps]  # the number after `of` names a member of a union, any other one an item
        parts = [int(step) if step.isdecimal() and before != "of" else step for before, step in zip(around, steps)]
        key = json.dumps(parts, separators=(",", ":"))
        return (root or self.root).locator(f"[data-key={json.dumps(key)}]")

    def has(self, field: str, text: str) -> None:
        """The kernel comes to have this value."""
        until = time.monotonic() + 10
        code = f"try: print(repr(form.value.{field}))\nexcept ValueError as error: print(error)"
        while (found := self.book.execute(code)) != text:
            assert time.monotonic() < until, f"{field} is {found}, expected {text}"

    def says(self, text: str | re.Pattern[str]) -> None:
        """The badge comes to say this."""
        expect(self.root.locator(".sb-badge")).to_have_text(text)


@pytest.fixture(scope="module")
def shown(lab: Lab) -> Iterator[Shown]:
    book = lab.open(SHOW, WAIT)
    try:
        yield Shown(book, laws.renders(book, FORM, cell=0))
    finally:
        book.close()


def test_fields_carry_their_help(shown: Shown) -> None:
    shown.says("valid, 3 changed")
    steps = shown.root.get_by_label("steps", exact=True)
    expect(steps).to_have_value("40")
    expect(steps).to_have_accessible_description(re.compile(r"^Optimizer steps\..*1 or more$"))
    expect(shown.root.locator(".sb-count")).to_have_text("30 of 210 linear layers")
    code = shown.root.get_by_role("region", name="Code")
    expect(code).to_contain_text("FineTune(adapters={'*.q_proj': LoRA(rank=4)}, steps=40)")


def test_an_edit_reaches_the_kernel_and_a_wrong_one_is_named(shown: Shown) -> None:
    box = shown.box("steps")
    box.fill("60")
    shown.has("steps", "60")
    assert shown.book.execute("print(seen[-1])") == "60"
    box.press("ArrowUp")
    shown.has("steps", "61")
    box.fill("none")
    expect(box).to_have_attribute("aria-invalid", "true")
    expect(box).to_have_accessible_description(re.compile('expected an integer of at least 1, got "none"'))
    shown.says("1 problem")
    refused = shown.book.execute("try: form.value\nexcept ValueError as error: print(error)")
    assert '$.steps: expected an integer of at least 1, got "none"' in refused
    shown.box("batch_tokens").fill("1000")  # two fields that disagree: the class itself says so
    box.fill("61")
    expect(shown.root.locator(".sb-problems")).to_have_text("$.batch_tokens 1000 is not a multiple of context 256; take 768")
    shown.root.get_by_role("button", name="$.batch_tokens").click()
    expect(shown.box("batch_tokens")).to_be_focused()
    shown.book.page.keyboard.press("Control+z")
    expect(box).to_have_value("none")
    for _ in range(4):
        shown.book.page.keyboard.press("Control+z")
    expect(box).to_have_value("40")
    shown.says("valid, 3 changed")
    shown.root.get_by_role("button", name="Redo").click()
    expect(box).not_to_have_value("40")
    shown.root.get_by_role("button", name="Undo").click()
    shown.has("steps", "40")


def test_a_union_shows_the_fields_of_its_choice_and_keeps_what_was_typed(shown: Shown) -> None:
    data = shown.box("data")
    options = data.locator("option").all_inner_texts()
    data.select_option("JsonLines")
    path = shown.box(f"data/of/{options.index('JsonLines')}/path")
    expect(path).to_have_attribute("placeholder", "required")
    shown.says("1 problem")
    path.fill("talk.jsonl")
    shown.says(re.compile("^valid"))
    data.select_option("Manual")
    shown.has("data", "Manual(held_out=0.1)")
    data.select_option("JsonLines")
    expect(path).to_have_value("talk.jsonl")
    shown.has("data.path", "'talk.jsonl'")
    shown.root.get_by_role("button", name="Reset data to its default").click()
    shown.has("data", "Manual(held_out=0.1)")


def test_patterns_are_counted_as_they_are_typed(shown: Shown) -> None:
    shown.root.get_by_role("button", name="Add pattern to adapters").click()
    pattern = shown.box("adapters/of/0/1/0")
    expect(pattern).to_be_focused()
    pattern.press_sequentially("*.qproj")
    counts = shown.root.locator(".sb-count")
    expect(counts.nth(1)).to_have_text("matches no linear layer; near: *.q_proj and *.v_proj")
    pattern.fill("*.layers.0.*_proj")
    expect(counts.nth(1)).to_have_text("7 of 210 linear layers; 1 of them also match *.q_proj, but a layer takes one pattern")
    pattern.fill("*.v_proj")
    expect(counts.nth(1)).to_have_text("30 of 210 linear layers")
    shown.root.get_by_role("button", name="Move up adapters 2").click()
    expect(shown.box("adapters/of/0/0/0")).to_have_value("*.v_proj")
    shown.has("adapters", "{'*.v_proj': LoRA(rank=8, alpha=8.0, rslora=False, dropout=0.0), "
              "'*.q_proj': LoRA(rank=4, alpha=8.0, rslora=False, dropout=0.0)}")  # fmt: skip
    shown.root.get_by_role("button", name="Remove adapters 1").click()
    shown.has("adapters", "{'*.q_proj': LoRA(rank=4, alpha=8.0, rslora=False, dropout=0.0)}")


def test_keyboard_alone_is_enough(shown: Shown) -> None:
    laws.is_reached_by_keyboard(shown.book, shown.root, 0, ["Undo", "Redo", "Reset all", "Keys"])
    keyboard = shown.book.page.keyboard
    keyboard.press("?")
    expect(shown.root.locator(".sb-keys")).to_be_visible()
    keyboard.press("?")
    expect(shown.root.locator(".sb-keys")).to_be_hidden()
    keyboard.press("/")
    expect(shown.root.get_by_role("searchbox")).to_be_focused()
    keyboard.type("expert")
    expect(shown.box("plan/ep")).to_be_visible()
    expect(shown.box("steps")).to_be_hidden()
    for _ in range(12):
        keyboard.press("Tab")
        if shown.box("plan/ep").evaluate("node => node === document.activeElement"):
            break
    keyboard.press("Control+a")
    keyboard.type("2")
    shown.says("1 problem")
    expect(shown.root.get_by_role("status")).to_have_text(re.compile(r"^\$\.plan\.ep: 2 must divide"))
    keyboard.press("Control+z")
    shown.says("valid, 3 changed")
    shown.root.get_by_role("searchbox").fill("")
    expect(shown.box("steps")).to_be_visible()
    assert shown.book.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length") == 2


def test_code_and_json_go_in_and_out(shown: Shown) -> None:
    book, root = shown.book, shown.root
    book.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    root.get_by_role("button", name="Copy Code").click()
    expect(root.get_by_role("status")).to_have_text("Code copied.")
    assert "FineTune(" in book.page.evaluate("() => navigator.clipboard.readText()")
    root.locator("summary", has_text="Read code or JSON").click()
    area = root.get_by_label("Code or JSON to read")
    area.fill("FineTune(steps=__import__('os').getpid())")
    root.get_by_role("button", name="Read into the form").click()
    expect(root.get_by_role("alert")).to_contain_text("$: expected a literal or a call with named fields")
    area.fill('{"schema": 1, "type": "FineTune", "steps": 7, "plan": {"type": "Plan", "dp_shard": 4}}')
    root.get_by_role("button", name="Read into the form").click()
    expect(shown.box("steps")).to_have_value("7")
    shown.has("plan.dp_shard", "4")
    book.page.keyboard.press("Control+z")
    shown.has("steps", "40")
    root.locator("summary", has_text="Read code or JSON").click()


def test_both_themes_and_zoom(shown: Shown) -> None:
    laws.follows_theme(shown.book, shown.root, "form")
    laws.fits_at_double_zoom(shown.book, shown.root, "form")


def test_it_answers_while_a_cell_blocks(shown: Shown) -> None:
    shown.book.run_cell(1)
    shown.book.page.wait_for_function(f"() => {laws.KERNEL}.status === 'busy'")
    shown.box("steps").fill("0")
    expect(shown.root.get_by_text("expected an integer of at least 1, got 0").first).to_be_visible(timeout=500)
    shown.says(re.compile("^(1 problem|the kernel is busy)$"))  # a kernel with subshells answers, another is waited for
    shown.box("steps").fill("41")
    (shown.book.lab.work / "go-on").touch()
    shown.book.wait_idle()
    shown.has("steps", "41")
    shown.says("valid, 3 changed")


def test_two_tabs_show_one_form(shown: Shown) -> None:
    def act(other: Locator) -> None:
        expect(shown.box("steps", other)).to_have_value("41")
        shown.box("steps", other).fill("42")
        shown.box("lr").fill("0.5")  # at the same time, in the first tab
        for root in (shown.root, other):
            expect(shown.box("steps", root)).to_have_value("42")
            expect(shown.box("lr", root)).to_have_value("0.5")
        shown.box("lr", other).press("Control+z")
        shown.box("lr").fill("0.001")

    laws.lives_in_two_tabs(shown.book, FORM, act)
    shown.has("steps", "42")
    shown.has("lr", "0.001")


def test_the_saved_state_is_small_and_has_a_static_twin(shown: Shown) -> None:
    size = int(shown.book.execute("import json; print(len(json.dumps(form.get_state())))"))
    assert size < SAVED_LIMIT
    twin = next(output for output in shown.book.save().cells[0].outputs if "sb-twin" in output.data.get("text/html", ""))
    assert '<th scope="row">steps</th><td>42</td><td>100</td>' in twin.data["text/html"]
    assert "LoRA(rank=4)}, steps=42)" in twin.data["text/html"].partition("<code>")[2]
    assert twin.data["text/plain"].startswith("FineTune: ")


def test_a_reloaded_page_and_a_restarted_kernel(shown: Shown) -> None:
    laws.survives_reload(shown.book, shown.root, lambda: expect(shown.box("steps")).to_have_value("42"))
    shown.box("steps").fill("43")
    shown.has("steps", "43")
    laws.survives_restart(shown.book, shown.root, 0, lambda: expect(shown.box("steps")).to_have_value("40"))
    laws.stays_here(shown.book)


HOSTILE = """
from dataclasses import dataclass
from toolkit.values import Sites, check
from widgets import Form

@dataclass(frozen=True, kw_only=True, slots=True)
class Hostile:
    '''<img src=x onerror=window.hacked=1> \\x1b[31mred</script>'''

    text: str = "<script>window.hacked = 1</script>"
    '''<b onclick=window.hacked=1>help</b> \\u202eevil'''
    long: str = ""
    sites: Sites[str] = Sites({})
    lines: tuple[str, ...] = ()
    password_file: str = ""

    __post_init__ = check

form = Form(Hostile(long="<i>y</i>" * 130_000, sites={"<u>*</u>\\x00": "\\ud800 </textarea><script>window.hacked=1</script>"},
                    lines=("a\\x07\\nb", "<svg onload=window.hacked=1>", *["w" * 3000] * 200)))
form
"""


def test_a_hostile_value_is_inert(lab: Lab) -> None:
    book = lab.open(HOSTILE)
    try:
        root = laws.renders(book, FORM, cell=0)
        expect(root.locator(".sb-badge")).to_have_text(re.compile("^valid"))
        expect(root).to_contain_text("<img src=x onerror=window.hacked=1> red</script>")
        expect(root).to_contain_text("Replace (1,040,000 characters)")
        root.locator("summary", has_text="Values as a table").click()
        laws.is_inert(root)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", root.inner_text())
        assert book.execute("print(form.value.long == '<i>y</i>' * 130_000, len(form.value.lines))") == "True 202"
        assert int(book.execute("import json; print(len(json.dumps(form.get_state())))")) < SAVED_LIMIT
        twin = "".join(output.data.get("text/html", "") for output in book.save().cells[0].outputs)
        assert "sb-twin" in twin
        assert not re.search(r"<(script|img|svg|i>|b )", twin)
        laws.is_accessible(book, root)
        laws.stays_here(book)
    finally:
        book.close()
