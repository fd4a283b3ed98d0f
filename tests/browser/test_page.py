"""The offline page of a notebook, opened in Chromium without a network, with hostile cells and outputs."""

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Browser

from tests.browser import laws, toy
from toolkit.launch.page import write_page
from widgets import RunMonitor

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TEXT = """# Tune a language model

A short text with *emphasis*, `code`, [a link](https://example.org) and a table:

| Layer | Parameters | Trained |
|:--|--:|:--|
| q_proj | 331,776 | yes |
| embed_tokens | 28,311,552 | no |

The loss is $\\sum_t -\\log p_t$ over the *target* tokens.

```python
run = launch(FineTune(steps=40), on=Local(processes=2))
```
"""
CODE = '''@dataclass(frozen=True)
class LoRA:
    """Two thin matrices beside a frozen one."""

    rank: int = 8  # at least 1

recipe = FineTune(model="smollm2-135m", adapters={"*.q_proj": LoRA(rank=8)}, steps=40)
run = launch(recipe)
RunMonitor(run)'''
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20">
<script>window.hacked = 1</script><rect width="60" height="20" fill="teal"/></svg>"""
HOSTILE = """
<script>window.hacked = 1</script><SCRIPT src="https://evil.example/a.js"></SCRIPT>
<img src=x onerror="window.hacked = 1"><img src="https://evil.example/pixel.png" alt="pixel">
<svg onload="window.hacked = 1"><use href="https://evil.example/#x"></use></svg>
<iframe srcdoc="<script>parent.hacked = 1</script>"></iframe><object data="https://evil.example"></object>
<link rel="stylesheet" href="https://evil.example/a.css">
<style>@import url(https://evil.example/b.css); body { display: none }</style>
<base href="https://evil.example"><meta http-equiv="refresh" content="0; url=https://evil.example">
<a href="javascr&#105;pt:window.hacked=1">one</a><a href="data:text/html,<script>1</script>">two</a>
<div style="background: url(https://evil.example/c.png); position: fixed; color: red" onclick="window.hacked = 1">styled</div>
<form action="https://evil.example"><input autofocus onfocus="window.hacked = 1"><button>go</button></form>
<video src="https://evil.example/v.mp4"></video><p background="https://evil.example/d.png">kept text</p>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=1&gt;">
"""


KEPT = (
    "kept text",
    "styled",
    "step 60\ndone txt",
    "ZeroDivisionError: <b>by</b>",
    "An output of 9 MB is left out",
    "[up: a picture that is not in the notebook's folder]",
)
PICTURES = "all => all.map(one => [one.alt, one.src.slice(0, 11), one.naturalWidth > 0])"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A notebook with a monitor's twin, pictures and attacks, as a page."""
    folder = tmp_path / "runs" / "20260102-030405-amber"
    events = toy.make_folder(folder)
    for step in range(1, 61):
        toy.write_step(events, step, 60)
    toy.end(folder, "finished", 60)
    monitor = RunMonitor(folder)
    html, text = monitor._static()
    monitor.close()
    live = {"application/vnd.jupyter.widget-view+json": {"model_id": "0", "version_major": 2}, "text/plain": "RunMonitor(live)"}
    png = {"image/png": DOT, "text/plain": "<Figure size 640x480>"}
    svg = {"image/svg+xml": SVG}
    attack = {"text/html": HOSTILE, "application/javascript": "window.hacked = 1", "text/plain": "attack"}
    only_script = {"application/javascript": "window.hacked = 1"}
    notebook = new_notebook(
        cells=[
            new_markdown_cell(TEXT),
            new_code_cell(
                CODE,
                outputs=[
                    new_output("display_data", live),
                    new_output("display_data", {"text/html": html, "text/plain": text}),
                    new_output("stream", name="stdout", text="step 1\rstep 2\rstep 60\n\x1b[32mdone\x1b[0m \u202etxt\n"),
                ],
            ),
            new_code_cell(
                "1 / 0",
                outputs=[
                    new_output("error", ename="Error", evalue="", traceback=["\x1b[31mZeroDivisionError\x1b[0m: <b>by</b>"]),
                    new_output("display_data", png, metadata={"image/png": {"alt": 'A "red" <dot>'}}),
                    new_output("display_data", svg, metadata={"alt": "A bar"}),
                    new_output("stream", name="stdout", text="z" * 9_000_000),
                ],
            ),
            new_markdown_cell("![](https://evil.example/e.png) ![up](../../secret.png) [x](javascript:window.hacked=1)"),
            new_markdown_cell(HOSTILE),
            new_code_cell("attack", outputs=[new_output("display_data", attack), new_output("display_data", only_script)]),
        ]
    )
    nbformat.write(notebook, tmp_path / "attack.ipynb")
    return write_page(tmp_path / "attack.ipynb", tmp_path / "page.html")


def test_the_page_opens_offline_and_is_inert(written: Path, browser: Browser, artifacts: Path) -> None:
    for theme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme=theme, offline=True)
        page = context.new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto(written.as_uri())
        page.wait_for_load_state("networkidle")
        assert [url for url in asked if not url.startswith("data:")] == [written.as_uri()]
        assert page.title() == "Tune a language model"
        assert page.evaluate("() => window.hacked") is None
        assert page.locator("script, iframe, object, svg, form, input, video, base").count() == 0
        assert page.locator("main").locator("link, style, meta").count() == 0
        assert page.locator("main").evaluate(laws.HANDLERS) == []
        pictures = page.locator("img").evaluate_all(PICTURES)
        assert all(start == "data:image/" and loaded for _, start, loaded in pictures)
        alts = [alt for alt, _, _ in pictures]
        assert alts[0].startswith("Run finished, step 60 of 60. Loss, train: 3.0")
        assert alts[1:] == ['A "red" <dot>', "A bar"]
        text = page.locator("main").inner_text()
        assert "RunMonitor(live)" not in text
        assert "hacked = 1" not in text
        for kept in KEPT:
            assert kept in text
        links = page.locator("a[href]").evaluate_all("all => all.map(one => one.getAttribute('href'))")
        assert set(links) == {"https://example.org", "#harmful-link"}
        page.screenshot(path=artifacts / f"page-{theme}.png", full_page=True)
        laws.has_no_serious_violation(page, "main")
        assert said == []
        context.close()


def test_the_page_forbids_what_it_does_not_need(written: Path) -> None:
    page = written.read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page.lower()
    assert base64.b64decode(re.search(r"data:image/svg\+xml;base64,([^\"]+)", page)[1]).startswith(b"<svg ")


def test_what_is_not_a_notebook_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ipynb").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ipynb: not a notebook"):
        write_page(tmp_path / "text.ipynb", tmp_path / "page.html")
