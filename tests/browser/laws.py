"""What holds for every widget: functions that a widget's test calls on its notebook in a real JupyterLab."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import axe_playwright_python
import nbformat
from playwright.sync_api import Browser, BrowserContext, Dialog, Locator, Page, expect

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
HERE = {"127.0.0.1", "localhost"}
SERIOUS = {"serious", "critical"}
START_MILLISECONDS = 60_000
FAILED = "[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error']"
HANDLERS = """node => [...node.querySelectorAll('*')].flatMap(one => one.getAttributeNames())
    .filter(name => name.startsWith('on'))"""
TROUBLES = Path(__file__).with_name("troubles.js").read_text()
NOT_OURS = ("widget model not found", "Could not restore the debugger state")
"""What JupyterLab itself logs when a kernel is restarted."""
FOLLOWED = """async (node, width) => {
    const place = () => {
        const { left, top, right, bottom } = node.getBoundingClientRect();
        return [innerWidth, innerHeight, left, top, right, bottom].join();
    };
    let [last, same, left] = ["", 0, 300];
    while (same < 12 && left-- > 0) {
        await new Promise(requestAnimationFrame);
        const now = place();
        same = now === last && innerWidth === width ? same + 1 : 0;
        last = now;
    }
    return same >= 12;
}"""
"""Whether the page has followed the window: its width, and for a dozen frames nothing has moved."""
KERNEL = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab server."""

    browser: Browser
    address: str
    token: str
    work: Path
    artifacts: Path

    def open(self, *cells: str, app: Literal["lab", "notebook"] = "lab") -> Notebook:
        """Write a notebook of code cells and open it in a browser profile of its own; nothing is executed yet."""
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        return self.show(made, app=app)

    def show(self, notebook: nbformat.NotebookNode, *, app: Literal["lab", "notebook"] = "lab") -> Notebook:
        """Open this notebook, as `open` does."""
        name = f"{uuid.uuid4().hex[:8]}.ipynb"
        nbformat.write(notebook, self.work / name)
        context = self.browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(30_000)
        return self.tab(context, self.work / name, app)

    def tab(self, context: BrowserContext, path: Path, app: Literal["lab", "notebook"] = "lab") -> Notebook:
        """Open a notebook file in one more tab of a browser profile."""
        page = context.new_page()
        book = Notebook(lab=self, page=page, path=path)
        page.on("request", lambda request: book.requests.append(request.url))
        page.on("websocket", lambda socket: book.requests.append(socket.url))
        page.on("console", lambda message: book.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: book.console.append(f"error: {error}"))
        page.on("dialog", book.answer)
        place = f"lab/workspaces/{uuid.uuid4().hex}/tree" if app == "lab" else "notebooks"
        page.goto(f"{self.address}/{place}/{path.name}?reset&token={self.token}")
        book.wait_idle()
        return book


@dataclass
class Notebook:
    """One notebook in one browser tab, with all that the page asked for and complained about."""

    lab: Lab
    page: Page
    path: Path
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def answer(self, dialog: Dialog) -> None:
        """Leave a page with unsaved changes, such as a twin drawn after the save; a dialog nobody answers freezes the page."""
        if dialog.type != "beforeunload":
            self.console.append(f"error: dialog {dialog.message}")
        dialog.accept()

    def settle(self, promise: str, argument: object = None) -> Any:
        """The value of a JavaScript async function, or an error when it takes more than a minute: `evaluate` has no limit."""
        return self.page.evaluate(
            f"""async argument => {{
                const late = new Promise((_, fail) => setTimeout(() => fail(new Error("not settled")), {START_MILLISECONDS}));
                return await Promise.race([({promise})(argument), late]);
            }}""",
            argument,
        )

    def wait_idle(self) -> None:
        """Wait until there is a kernel and it has nothing to do."""
        self.page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=START_MILLISECONDS)

    def command(self, name: str, **arguments: object) -> None:
        """Start a command of the application; do not wait for its end."""
        self.page.evaluate("([name, given]) => { window.jupyterapp.commands.execute(name, given) }", [name, arguments])

    def run_cell(self, index: int) -> None:
        """Start one cell."""
        self.page.evaluate(
            "index => { const book = window.jupyterapp.shell.currentWidget.content; book.activeCellIndex = index; }", index
        )
        self.command("notebook:run-cell")

    def execute(self, code: str) -> str:
        """Run code in the kernel, beside the cells, and return what it printed."""
        return self.settle(
            f"""async (code) => {{
                const future = {KERNEL}.requestExecute({{ code, store_history: false }});
                let text = "";
                future.onIOPub = ({{ header, content }}) => {{
                    if (header.msg_type === "stream") text += content.text;
                    if (header.msg_type === "error") text += content.traceback.join("\\n");
                }};
                const reply = await future.done;
                if (reply.content.status !== "ok") throw new Error(text);
                return text.trim();
            }}""",
            code,
        )

    def save(self) -> nbformat.NotebookNode:
        """Save, and read what was saved."""
        self.settle("async () => { await window.jupyterapp.commands.execute('docmanager:save') }")
        return nbformat.read(self.path, as_version=4)

    def close(self) -> None:
        """Shut the kernel down and close the tab."""
        try:
            self.settle("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
        finally:
            self.page.context.close()

    def restart(self) -> None:
        """Restart the kernel, as the menu does."""
        self.settle(f"async () => {{ await {KERNEL}.restart() }}")


def renders(book: Notebook, selector: str, cell: int) -> Locator:
    """Run a cell; the widget appears, once."""
    book.run_cell(cell)
    root = book.page.locator(selector)
    failed = book.page.locator(FAILED)
    expect(root.or_(failed).first).to_be_visible(timeout=START_MILLISECONDS)
    assert failed.count() == 0, failed.first.inner_text()
    expect(root).to_have_count(1)
    return root


def acts(root: Locator, button: str, happened: Callable[[], None]) -> None:
    """A click on a button does what it says; `happened` waits for that and asserts it."""
    root.get_by_role("button", name=button, exact=True).click()
    happened()


def survives_reload(book: Notebook, root: Locator, live: Callable[[], None]) -> None:
    """The notebook was saved and the page reloaded: the widget is there and live, no cell is executed again."""
    book.save()
    book.page.reload()
    book.wait_idle()
    expect(root).to_be_visible(timeout=START_MILLISECONDS)
    live()


def survives_restart(book: Notebook, root: Locator, cell: int, live: Callable[[], None]) -> None:
    """The kernel is restarted: the view says that it is stale; reloaded, the static twin stands there; `cell` attaches."""
    twin = book.page.locator(".sb-twin")
    expect(twin).to_be_hidden()
    book.save()
    book.restart()
    expect(root).to_have_attribute("data-stale", "")
    book.page.reload()
    book.wait_idle()
    expect(twin).to_be_visible()
    expect(root).to_have_count(0)
    book.run_cell(cell)
    expect(root).to_have_count(1, timeout=START_MILLISECONDS)
    live()


def lives_in_two_tabs(book: Notebook, selector: str, act: Callable[[Locator], None]) -> None:
    """The same notebook in a second tab shows the same widget; `act` works there, asserts, and may look at the first tab too."""
    book.save()
    other = book.lab.tab(book.page.context, book.path)
    try:
        root = other.page.locator(selector)
        expect(root).to_have_count(1, timeout=START_MILLISECONDS)
        act(root)
        stays_here(other)
    finally:
        other.page.close()
        book.page.bring_to_front()


def fits_at_double_zoom(book: Notebook, root: Locator, name: str) -> None:
    """At 200 % zoom nothing is cut off, no two controls overlap and the widget does not scroll sideways; leaves a picture.

    Zoom halves the window in CSS pixels, here to 640 of them; the file browser is folded, as a person would.
    """
    size = book.page.viewport_size or {"width": 1280, "height": 1000}
    book.command("application:toggle-left-area")
    book.page.set_viewport_size({"width": 640, "height": 500})
    try:
        follows_window(root, 640)
        troubles = root.evaluate(TROUBLES)
        book.page.set_viewport_size({"width": 640, "height": int(root.bounding_box()["height"]) + 300})
        follows_window(root, 640)
        root.screenshot(path=book.lab.artifacts / f"{name}-zoom.png", animations="disabled")
        assert not troubles, "\n".join(troubles)
    finally:
        book.page.set_viewport_size(size)
        book.command("application:toggle-left-area")


def follows_window(root: Locator, width: int) -> None:
    """Wait until the application, which follows the window a moment later, stands still in one of this width."""
    root.evaluate("node => node.scrollIntoView({ block: 'start' })")
    assert root.evaluate(FOLLOWED, width), "the application does not follow the window"


def follows_theme(book: Notebook, root: Locator, name: str) -> None:
    """Light and dark are those of JupyterLab; both pass axe, and both leave a picture."""
    book.page.evaluate("() => document.activeElement.blur()")
    for theme, word in (("JupyterLab Light", "light"), ("JupyterLab Dark", "dark"), ("JupyterLab Light", None)):
        book.command("apputils:change-theme", theme=theme)
        expect(root).to_have_attribute("data-theme", word or "light")
        if word:
            book.page.locator("#jupyterlab-splash").wait_for(state="detached")
            picture(book, root, f"{name}-{word}")
            is_accessible(book, root)


def is_accessible(book: Notebook, root: Locator) -> None:
    """axe-core finds nothing serious inside the widget."""
    root.evaluate("node => node.setAttribute('data-examined', '')")
    has_no_serious_violation(book.page, "[data-examined]")


def has_no_serious_violation(page: Page, selector: str) -> None:
    """axe-core finds nothing serious inside the element."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("async (at) => (await axe.run(at, { resultTypes: ['violations'] })).violations", selector)
    serious = [
        f"{rule['id']}: {rule['help']}: {[node['html'][:200] for node in rule['nodes'][:3]]}"
        for rule in found
        if rule["impact"] in SERIOUS
    ]
    assert not serious, "\n".join(serious)


def is_reached_by_keyboard(book: Notebook, root: Locator, cell: int, names: list[str]) -> None:
    """From the cell that it belongs to, Tab reaches the buttons `names` in this order, and the focus can be seen."""
    book.page.evaluate(
        """index => {
            const book = window.jupyterapp.shell.currentWidget.content;
            book.activeCellIndex = index;
            book.mode = "command";
            book.activeCell.node.focus();
        }""",
        cell,
    )
    reached: list[str] = []
    for _ in range(40):
        book.page.keyboard.press("Tab")
        focus = root.evaluate(
            """node => {
                const at = document.activeElement;
                if (!node.contains(at)) return null;
                return [at.tagName === "BUTTON" ? at.textContent : "", getComputedStyle(at).outlineStyle];
            }"""
        )
        if focus is None:
            if reached:
                break
            continue
        assert focus[1] != "none", f"no focus ring on {focus[0] or 'an element'}"
        if focus[0]:
            reached.append(focus[0])
        if reached == names:
            return
    raise AssertionError(f"Tab reached {reached}, expected {names}")


def picture(book: Notebook, root: Locator, name: str) -> None:
    """Keep a picture of the widget, in a window in which it fits."""
    size = book.page.viewport_size or {"width": 1280, "height": 1000}
    book.page.set_viewport_size({"width": size["width"], "height": max(1000, int(root.bounding_box()["height"]) + 300)})
    follows_window(root, size["width"])
    root.screenshot(path=book.lab.artifacts / f"{name}.png", animations="disabled")
    book.page.set_viewport_size(size)


def is_inert(root: Locator) -> None:
    """Nothing that came as text became an element, and no script ran."""
    assert root.locator("script, img, iframe, object, embed, link, style, a, svg, form").count() == 0
    assert root.evaluate("() => window.hacked") is None
    assert root.evaluate(HANDLERS) == []


def stays_here(book: Notebook) -> None:
    """No request left the machine, and nothing complained."""
    away = [url for url in book.requests if urlparse(url).scheme not in ("data", "blob") and urlparse(url).hostname not in HERE]
    assert not away, "\n".join(away)
    complaints = [line for line in book.console if line.startswith("error") and not any(known in line for known in NOT_OURS)]
    assert not complaints, "\n".join(complaints)
