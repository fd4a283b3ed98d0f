"""Chat in a real JupyterLab, with SmolLM2 twice side by side: its tokens, their alternatives, a branch, and every law."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Locator, expect

from tests.browser import laws
from tests.browser.laws import Lab, Notebook

CHAT = ".sb-chat"
CELL = """
import torch
from toolkit.models import load_model, load_tokenizer
from toolkit.serve import Engine, Sampling
from widgets import Chat
torch.set_num_threads(1)  # the browser and the server need a core too, and threads that wait for one another for a core wait long
engine = Engine(load_model("smollm2-135m"), load_tokenizer("smollm2-135m"))
chat = Chat({"one": engine, "two": engine}, sampling=Sampling(max_tokens=8))
chat
"""
ANSWERED = 60_000


@dataclass
class Talk:
    """A chat on the page."""

    book: Notebook
    root: Locator

    def says(self, text: str) -> None:
        """Type a message and send it with Enter; both answers come."""
        turns = self.root.locator(".sb-chat-turn")
        before = turns.count()
        self.root.get_by_label("Your message").fill(text)
        self.root.get_by_label("Your message").press("Enter")
        expect(turns).to_have_count(before + 1)
        expect(self.root.get_by_role("button", name="Again", exact=True)).not_to_have_attribute(
            "aria-disabled", "true", timeout=ANSWERED
        )
        expect(turns.last.locator(".sb-chat-meta")).to_contain_text(["tokens/s", "tokens/s"])

    def goes_on(self) -> None:
        """It answers."""
        self.says("Say one word.")


@pytest.fixture(scope="module")
def talk(lab: Lab) -> Iterator[Talk]:
    book = lab.open(CELL)
    try:
        yield Talk(book, laws.renders(book, CHAT, cell=0))
    finally:
        book.close()


def test_two_models_answer_side_by_side(talk: Talk) -> None:
    talk.says("What is the capital of France?")
    answers = talk.root.locator(".sb-chat-answer")
    expect(answers).to_have_count(2)
    expect(answers.locator("b")).to_have_text(["one", "two"])
    texts = answers.locator(".sb-chat-text").all_inner_texts()
    assert "Paris" in texts[0] and texts[0] == texts[1]
    left, right = (one.bounding_box() for one in answers.all())
    assert left and right and left["x"] + left["width"] <= right["x"] and left["y"] == right["y"]


def test_a_token_shows_what_else_was_likely_and_the_answer_goes_on_from_it(talk: Talk) -> None:
    laws.acts(talk.root, "Probabilities", lambda: expect(talk.root.locator(".sb-token[aria-label]").first).to_be_visible())
    first = talk.root.locator("[data-place='0-0']")
    tokens = first.locator("button.sb-token")
    assert "".join(tokens.all_inner_texts()).startswith(first.locator(".sb-chat-text").inner_text()[:10])
    expect(tokens.first).to_have_attribute("aria-label", re.compile(r"^The, \d.*%$"))
    tokens.first.focus()
    talk.book.page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    talk.book.page.keyboard.press("Enter")
    likely = first.get_by_role("group", name="Likely tokens here").get_by_role("button")
    expect(likely).to_have_count(8)
    other = talk.root.locator("[data-place='0-1'] .sb-chat-text").inner_text()
    chosen = likely.nth(1).inner_text()
    likely.nth(1).click()
    taken = chosen.rsplit(" ", 2)[0].strip()
    expect(tokens.nth(1)).to_have_text(re.compile(re.escape(taken)), timeout=ANSWERED)
    assert talk.root.locator("[data-place='0-1'] .sb-chat-text").inner_text() == other
    assert talk.book.execute("print(chat.conversation[0]['answers']['one'].split()[1])").startswith(taken)


def test_keyboard_alone_is_enough(talk: Talk) -> None:
    laws.is_reached_by_keyboard(talk.book, talk.root, 0, ["Stop", "Again", "Clear", "Probabilities", "Keys"])
    talk.book.page.keyboard.press("p")
    expect(talk.root.locator("button.sb-token")).to_have_count(0)
    talk.book.page.keyboard.press("p")
    expect(talk.root.locator("button.sb-token").first).to_be_visible()


def test_both_themes(talk: Talk) -> None:
    laws.follows_theme(talk.book, talk.root, "chat")


def test_double_zoom(talk: Talk) -> None:
    laws.fits_at_double_zoom(talk.book, talk.root, "chat")


def test_settings_are_checked_where_they_are_used(talk: Talk) -> None:
    talk.root.locator("summary", has_text="Settings").click()
    longest = talk.root.get_by_label(re.compile("^Longest answer"))
    longest.fill("6")
    longest.press("Tab")
    talk.goes_on()
    assert talk.book.execute("print(chat.sampling.max_tokens, chat._turns[-1]['answers'][0]['count'] <= 6)") == "6 True"


def test_markup_stays_text(talk: Talk) -> None:
    talk.says("<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>")
    expect(talk.root.locator(".sb-chat-user").last).to_contain_text("<script>")
    assert talk.root.locator("script, img, iframe").count() == 0
    assert talk.root.evaluate("() => window.hacked") is None
    assert talk.root.evaluate(laws.HANDLERS) == []


def test_a_second_tab_shows_the_same(talk: Talk) -> None:
    def act(root: Locator) -> None:
        expect(root.locator(".sb-chat-turn")).to_have_count(talk.root.locator(".sb-chat-turn").count())
        Talk(talk.book, root).goes_on()
        expect(talk.root.locator(".sb-chat-turn")).to_have_count(root.locator(".sb-chat-turn").count())

    laws.lives_in_two_tabs(talk.book, CHAT, act)


def test_a_reloaded_page_goes_on(talk: Talk) -> None:
    laws.survives_reload(talk.book, talk.root, talk.goes_on)


def test_the_saved_notebook_holds_the_conversation(talk: Talk) -> None:
    twin = next(output for output in talk.book.save().cells[0].outputs if "sb-twin" in output.data.get("text/html", ""))
    assert "Paris" in twin.data["text/html"] and "<img" not in twin.data["text/html"].replace("&lt;img", "")


def test_a_restarted_kernel_begins_anew(talk: Talk) -> None:
    laws.survives_restart(talk.book, talk.root, 0, talk.goes_on)


def test_nothing_left_the_machine_or_complained(talk: Talk) -> None:
    laws.stays_here(talk.book)
