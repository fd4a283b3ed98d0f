"""A view that is taken off the page leaves nothing behind, also where its kernel is gone: every widget, without a notebook."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import pytest
from playwright.sync_api import Browser

from tests.browser import toy
from toolkit.recipes import FineTune
from widgets import Chat, Form, RunMonitor, view

VIEW = """async ([state, tab]) => {
    const heard = [], followed = [];
    let open = true;
    const observers = new Set();
    const { addEventListener, removeEventListener } = window;
    window.addEventListener = (...given) => { followed.push(given); addEventListener.apply(window, given); };
    window.removeEventListener = (name, act, ...more) => {
        followed.splice(followed.findIndex(([known, with_]) => known === name && with_ === act), 1);
        removeEventListener.call(window, name, act, ...more);
    };
    for (const name of ["ResizeObserver", "MutationObserver"]) {
        const Base = window[name];
        window[name] = class extends Base {
            observe(...given) { observers.add(this); super.observe(...given); }
            disconnect() { observers.delete(this); super.disconnect(); }
        };
    }
    const model = {  // what anywidget hands to a view
        get: name => state[name],
        set: (name, value) => { state[name] = value; },
        save_changes: () => { if (!open) throw new Error("the connection is closed"); },
        send: () => { if (!open) throw new Error("the connection is closed"); },
        on: (event, act) => heard.push([event, act]),
        off: (event, act) => {
            const at = heard.findIndex(([known, with_]) => known === event && with_ === act);
            if (at >= 0) heard.splice(at, 1);
        },
    };
    const el = document.body.appendChild(document.createElement("div"));
    const end = widget.render({ model, el });
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    const counted = () => [heard.length, followed.length, observers.size];
    if (tab) [...el.querySelectorAll("[role=tab]")].find(one => one.textContent === tab).click();
    const during = counted();
    open = false;
    for (const [event, act] of [...heard]) if (event === "comm_live_update") act();
    const stale = el.querySelector(".sb-view").hasAttribute("data-stale");
    const text = el.textContent;
    for (const button of el.querySelectorAll(".sb-button")) button.click();
    end();
    el.remove();
    return { during, after: counted(), stale, text };
}"""


def monitor(folder: Path) -> RunMonitor:
    toy.make_finished(folder / "runs" / "one", steps=40, ranks=2)
    return RunMonitor(folder / "runs" / "one")


CASES: dict[str, tuple[str, Callable[[Path], anywidget.AnyWidget], str]] = {
    "monitor, logs open": ("run_monitor.js", monitor, "Logs"),
    "monitor, ranks open": ("run_monitor.js", monitor, "Ranks"),
    "chat": ("chat.js", lambda _: Chat("smollm2-135m"), ""),
    "form": ("form.js", lambda _: Form(FineTune()), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_view_whose_kernel_is_gone_is_cleaned_up(browser: Browser, tmp_path: Path, case: str) -> None:
    file, make, tab = CASES[case]
    made = make(tmp_path)
    state: dict[str, Any] = {name: getattr(made, name) for name in made.traits(sync=True) if not name.startswith("_")}
    made.close()
    kept = {name: value for name, value in state.items() if isinstance(value, (dict, list, str, int, float))}
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.add_script_tag(content=view.module(file).replace("export default", "window.widget ="), type="module")
        page.wait_for_function("() => window.widget")
        found = page.evaluate(VIEW, [kept, tab])
        assert min(found["during"]) > 0 and found["stale"]
        assert found["after"] == [0, 0, 0]
        assert "kernel" in found["text"]
        assert errors == []
    finally:
        page.close()
