"""The static twin of a view: a picture, a table and a text that need no kernel, no script and no style sheet.

Small line charts over steps as SVG in tones that read on light and on dark ground; published through a display id, so
that a saved notebook, its HTML export and a code host show the last state of what the live view showed.
"""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from IPython.display import publish_display_data

from widgets.view import compact, quantity, thin

__all__ = ["Twin", "picture", "twin_html"]

COLORS = ("#3a7fd0", "#d06a1e", "#2f9470", "#a866c4", "#8f8f22")
TEXT, FAINT, LINE, MARK = "#7a828e", "#7a828e", "#9aa3b044", "#b0852f"
COLUMNS, WIDTH, HEIGHT, GAP = 3, 300, 168, 20
LEFT, TOP, BOTTOM, RIGHT = 50, 26, 22, 8
POINTS, TITLE = 160, 24

Points = list[tuple[int, float | None]]
Series = Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float | None] | np.ndarray]]


class Twin:
    """One output beside a live view: `show` displays it, `update` replaces what it shows, from any thread."""

    def __init__(self) -> None:
        self._id = f"scalebook-{uuid.uuid4()}"
        self._shown: tuple[str, str] | None = None
        self._in_cell: tuple[str, str] | None = None

    @property
    def displayed(self) -> bool:
        """Whether it was displayed: before, there is nothing to update."""
        return self._shown is not None

    def show(self, html: str, text: str) -> None:
        """Display the twin; a second call displays it once more, and both follow `update`."""
        self._publish(html, text, update=False)

    def update(self, html: str, text: str) -> None:
        """Replace what is displayed, if it was displayed and differs."""
        if self._shown not in (None, (html, text)):
            self._publish(html, text, update=True)

    def update_in_cell(self, html: str, text: str) -> None:
        """As `update`, from inside a running cell. Who executes a notebook without a page hears only this."""
        if self._shown is not None and self._in_cell != (html, text):
            self._publish(html, text, update=True)
            self._in_cell = (html, text)

    def _publish(self, html: str, text: str, *, update: bool) -> None:
        publish_display_data({"text/html": html, "text/plain": text}, transient={"display_id": self._id}, update=update)
        self._shown = (html, text)


def twin_html(
    title: str, summary: str, svg: str, columns: Sequence[str], rows: Sequence[Sequence[str]], code: str = ""
) -> str:
    """The twin as HTML of plain elements: summary, picture with the summary as its alternative text, table, code.

    Every text is escaped here; `svg` is the text of `picture`, or empty.
    """
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img alt="{escape(summary)}" src="data:image/svg+xml;base64,{data}" style="max-width: 100%">' if svg else ""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    block = f"<pre><code>{escape(code)}</code></pre>" if code else ""
    return f'<div class="sb-twin"><p><strong>{escape(title)}</strong> {escape(summary)}</p>{image}{table}{block}</div>'


def picture(groups: Sequence[Mapping[str, Any]], series: Series, marks: Sequence[int] = ()) -> str:
    """Small line charts of `groups` ([{title, unit, series: [{name, label, sparse}]}]) as SVG text; empty if none has values.

    `series` maps a name to (steps, values); `marks` are steps at which a dashed line stands.
    """
    drawn = [group for group in groups if any(len(series.get(one["name"], ((), ()))[0]) for one in group["series"])]
    if not drawn:
        return ""
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    width, height = columns * (WIDTH + GAP) - GAP, rows * (HEIGHT + GAP) - GAP
    cells = []
    for index, group in enumerate(drawn):
        x, y = index % columns * (WIDTH + GAP), index // columns * (HEIGHT + GAP)
        cells.append(f'<g transform="translate({x} {y})">{_cell(group, series, marks)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{TEXT}">{"".join(cells)}</svg>'
    )


def _cell(group: Mapping[str, Any], series: Series, marks: Sequence[int]) -> str:
    found: list[tuple[int, Mapping[str, Any], Points]] = []
    for index, one in enumerate(group["series"]):
        steps, values = series.get(one["name"], ((), ()))
        points = thin(np.asarray(steps), np.asarray(values, dtype=np.float64), POINTS)
        found.append((index, one, list(zip(*points, strict=True))))
    drawn = [(step, value) for _, _, points in found for step, value in points if value is not None]
    name = group["title"] if len(group["title"]) <= TITLE else group["title"][: TITLE - 1] + "…"
    title = f'<text y="12" font-weight="600">{escape(name)}</text>' + _legend(found, group["unit"])
    if not drawn:
        return title
    steps, values = [step for step, _ in drawn], [value for _, value in drawn]
    low, high = _spread(min(values), max(values), from_zero=bool(group["unit"]))
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def at(step: float, value: float) -> tuple[float, float]:
        across = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [title]
    ticks = _ticks(low, high, 2 if group["unit"] == "bytes" else 10)
    for tick, label in zip(ticks, _labels(ticks, group["unit"]), strict=True):
        _, y = at(first, tick)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="{LINE}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
    for step, anchor in ((first, "start"), (max(steps), "end")):
        x, _ = at(step, low)
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{"step " if anchor == "start" else ""}{step}</text>')
    for step in marks:
        if first <= step <= last:
            x, _ = at(step, low)
            parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="{MARK}" stroke-dasharray="3 3"/>')
    for index, one, points in found:
        parts.append(_line(index, one, [None if value is None else at(step, value) for step, value in points]))
    return "".join(parts)


def _line(index: int, one: Mapping[str, Any], places: list[tuple[float, float] | None]) -> str:
    """A line through the places, broken where there is none; dots where the series is sparse or a place stands alone."""
    color = COLORS[index % len(COLORS)]
    dash = ' stroke-dasharray="5 3"' if one["sparse"] else ""
    path, dots, before = "", [], None
    for at, place in enumerate(places):
        if place is not None:
            path += f"{'M' if before is None else 'L'}{place[0]} {place[1]}"
            alone = before is None and (at + 1 == len(places) or places[at + 1] is None)
            if one["sparse"] or alone:
                dots.append(f'<circle cx="{place[0]}" cy="{place[1]}" r="2.5" fill="{color}"/>')
        before = place
    line = f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round"{dash}/>'
    return line + "".join(dots)


def _legend(found: list[tuple[int, Mapping[str, Any], Points]], unit: str) -> str:
    spans = []
    for index, one, points in found:
        if points:
            label = f"{one['label']} " if one["label"] else ""
            value = math.nan if points[-1][1] is None else points[-1][1]
            spans.append(f'<tspan fill="{COLORS[index % len(COLORS)]}" dx="8">— </tspan>{escape(label + quantity(value, unit))}')
    return f'<text x="{WIDTH - RIGHT}" y="12" text-anchor="end">{"".join(spans)}</text>'


def _spread(low: float, high: float, *, from_zero: bool) -> tuple[float, float]:
    """Ends of the axis: a little room around the values; a quantity with a unit is seen from zero."""
    if from_zero:
        return min(0.0, low), high * 1.08 if high > 0 else 1.0
    room = (high - low) * 0.06 if high > low else abs(high) * 0.5 or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _ticks(low: float, high: float, base: int) -> list[float]:
    """Three or four round numbers inside the range: multiples of 1, 2 or 5 powers of ten, or of a power of two."""
    rough = (high - low) / 4
    unit = float(base) ** math.floor(math.log(rough, base))
    step = next(unit * factor for factor in ((1, 2, 4) if base == 2 else (1, 2, 5, 10, 20)) if unit * factor >= rough)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _labels(ticks: Sequence[float], unit: str) -> list[str]:
    """Labels with as many digits as the ticks need, the same for all."""
    digits = next((digits for digits in range(1, 6) if all(math.isclose(float(f"{t:.{digits}g}"), t) for t in ticks)), 6)
    return [quantity(tick, unit) if unit == "bytes" else compact(tick, digits) for tick in ticks]
