"""`runs watch`: live charts of a run in the terminal, and keys that steer it; lines where there is no terminal."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.cli.answers import duration
from toolkit.cli.chart import Curve, braille
from toolkit.cli.follow import Watch, told
from toolkit.runs import Run, RunInactive
from toolkit.runs.state import State

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

MOMENT = 0.25
"""Seconds between two pictures."""
POINTS = 1000
"""Points of a curve that are read for a picture."""
CHARTS = (("loss", "loss", "cyan"), ("eval_loss", "held-out loss", "green"), ("lr", "learning rate", "yellow"),
          ("tokens_per_second", "tokens a second", "magenta"))  # fmt: skip
COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red", "lost": "red", "paused": "yellow"}
SAID = 6.0
"""Seconds that the answer to a key is shown."""
SMALLEST = 5
"""Lines of the smallest chart, its title included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What a key does to a run."""

    help: str
    """One or two words for the last line."""
    act: Callable[[Run], int]
    """Sends the command."""


KEYS = {
    "p": Key(help="pause", act=lambda run: run.pause()),
    "r": Key(help="resume", act=lambda run: run.resume()),
    "c": Key(help="checkpoint", act=lambda run: run.checkpoint()),
    "s": Key(help="stop and keep", act=lambda run: run.stop()),
}


def show(watch: Watch, console: Console | None = None) -> bool:
    """Draw until the run is over, or the user presses q (then False): the picture stays on the screen when it ends."""
    from rich.console import Console
    from rich.live import Live

    console = console or Console(highlight=False)
    said, until, lines, final = "", 0.0, [], False
    with keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while not final:
            state, events = watch.poll()
            lines = (lines + [line for event in events for line in (told(event) or "").splitlines()])[-3:]
            live.update(_picture(watch, state, console, lines, said if time.monotonic() < until else ""), refresh=True)
            final = state.final
            for key in () if final else pressed(MOMENT):
                if key == "q":
                    return False
                said, until = press(watch.run, key), time.monotonic() + SAID
    console.print(_picture(watch, state, console, lines, None))
    return True


def press(run: Run, key: str) -> str:
    """Do what a key says and tell what was done, or why not."""
    if key not in KEYS:
        return ""
    if key == "s" and run.state.name == "stopping":
        return "it is stopping already; `runs stop --now` ends it at once"
    try:
        number = KEYS[key].act(run)
    except (RunInactive, OSError) as error:
        return " ".join(str(error).split())
    return f"told it (command {number}): {KEYS[key].help}, after the next step"


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for keys and returns those that were pressed; none without a terminal."""
    import termios
    import tty

    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield lambda seconds: time.sleep(seconds) or ""
        return

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 64).decode(errors="ignore").lower() if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _picture(watch: Watch, state: State, console: Console, lines: list[str], said: str | None) -> RenderableType:
    """Everything that is on the screen; without the keys when `said` is None, for a run that is over."""
    from rich.console import Group
    from rich.text import Text

    width, height = console.size
    head = [_headline(watch, state), _progress(watch, state, width)]
    foot = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines]
    if said is not None:
        help_ = "  ".join(["q quit", *(f"{key} {what.help}" for key, what in KEYS.items())])
        both = ((said, "bold"), (help_, "dim"))
        foot += [Text(text, style=style, no_wrap=True, overflow="ellipsis") for text, style in both if text]
    room = height - len(head) - len(foot) - (said is None)
    return Group(*head, *_charts(watch.run, width, room), *foot)


def _headline(watch: Watch, state: State) -> Text:
    from rich.text import Text

    text = Text(f"{watch.run.id}  ", style="bold", no_wrap=True, overflow="ellipsis")
    return text.append(watch.line(state), style=COLOURS.get(state.name, "blue"))


def _progress(watch: Watch, state: State, width: int) -> Text:
    from rich.text import Text

    part = state.progress
    if part is None:
        return Text("")
    left = watch.seconds_left(state.total_steps)
    told = f" {part:4.0%}" + (f" · {duration(left)} left" if left is not None and not state.final else "")
    room = max(4, width - len(told))
    return Text("━" * round(part * room), style="green").append("─" * (room - round(part * room)), style="dim").append(told)


def _charts(run: Run, width: int, room: int) -> list[Text]:
    """As many of the charts as there is room for; two side by side where it is wide."""
    found = [(title, colour, curve) for name, title, colour in CHARTS if (curve := _curve(run, name)) is not None]
    across = 2 if width >= 100 and len(found) > 1 else 1
    down = max(1, min(-(-len(found) // across), room // SMALLEST))
    height = min(16, room // down)
    if not found or height < 3:
        return []
    drawn = [_chart(*chart, width=width // across - (across > 1), height=height) for chart in found[: down * across]]
    rows = [drawn[start : start + across] for start in range(0, len(drawn), across)]
    return [_beside(line) for row in rows for line in zip(*row)]


def _chart(title: str, colour: str, curve: Curve, *, width: int, height: int) -> list[Text]:
    from rich.text import Text

    head = Text(f"{title} {curve[1][-1]:.4g}"[:width].ljust(width), style="bold", no_wrap=True)
    lines = braille(curve, width=width, height=height - 1)
    return [head, *(Text(line.ljust(width), style=colour, no_wrap=True) for line in lines)]


def _beside(parts: tuple[Text, ...]) -> Text:
    from rich.text import Text

    return Text("  ").join(parts)


def _curve(run: Run, name: str) -> Curve | None:
    try:
        steps, values = run.metrics(name, max_points=POINTS)[name]
    except (KeyError, OSError):
        return None
    return (steps.tolist(), values.tolist()) if len(steps) else None

