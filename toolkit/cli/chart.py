"""Charts in text: one curve in braille dots, two by four to a character; several as one letter each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of each dot of a braille character, by row and column."""
LABEL = 9
"""Characters left of the curve."""
Curve = tuple[Sequence[float], Sequence[float]]
"""Steps, ascending, and the value at each."""


def braille(curve: Curve, *, width: int, height: int) -> list[str]:
    """`height` lines of `width` characters: labels, the curve, and the steps below it.

    >>> braille(([1, 2, 3], [3.0, 2.0, 1.0]), width=14, height=3)
    ['        3 ⠑⢄  ', '        1   ⠑⢄', '          1  3']
    """
    columns, rows = max(2, width - LABEL - 1), max(1, height - 1)
    cells = [[0] * columns for _ in range(rows)]
    scale = _scale([curve])
    for x, y in _dots(curve, scale, 2 * columns, 4 * rows) if scale else ():
        cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    return _framed(["".join(chr(0x2800 + dots) if dots else " " for dots in row) for row in cells], scale, columns)


def letters(curves: dict[str, Curve], *, width: int, height: int) -> list[str]:
    """As `braille`, for several curves on the same scale: each is drawn with its letter, `*` where they meet."""
    columns, rows = max(2, width - LABEL - 1), max(1, height - 1)
    cells = [[" "] * columns for _ in range(rows)]
    scale = _scale(list(curves.values()))
    for letter, curve in curves.items():
        for x, y in set(_dots(curve, scale, columns, rows)) if scale else ():
            cells[y][x] = letter if cells[y][x] == " " else "*"
    return _framed(["".join(row) for row in cells], scale, columns)


Scale = tuple[float, float, float, float]


def _scale(curves: list[Curve]) -> Scale | None:
    """First and last step, lowest and highest finite value; None where there is none."""
    points = [point for curve in curves for point in _finite(curve)]
    if not points:
        return None
    steps, values = zip(*points)
    return min(steps), max(steps), min(values), max(values)


def _finite(curve: Curve) -> list[tuple[float, float]]:
    return [(step, value) for step, value in zip(*curve, strict=True) if math.isfinite(value)]


def _dots(curve: Curve, scale: Scale, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Dots of a line through the points, `(0, 0)` at the top left."""
    first, last, low, high = scale
    before: tuple[int, int] | None = None
    for step, value in _finite(curve):
        x = round((step - first) / (last - first) * (width - 1)) if last > first else 0
        y = round((high - value) / (high - low) * (height - 1)) if high > low else height // 2
        yield x, y
        if before is not None:
            yield from _line(*before, x, y)
        before = x, y


def _line(x0: int, y0: int, x1: int, y1: int) -> Iterator[tuple[int, int]]:
    count = max(abs(x1 - x0), abs(y1 - y0))
    for number in range(1, count):
        yield x0 + round((x1 - x0) * number / count), y0 + round((y1 - y0) * number / count)


def _framed(lines: list[str], scale: Scale | None, columns: int) -> list[str]:
    if scale is None:
        return [f"{'':{LABEL}} {line}" for line in lines] + [f"{'':{LABEL}} {'nothing yet':{columns}}"[: columns + LABEL + 1]]
    first, last, low, high = scale
    labels = [""] * len(lines)
    labels[-1], labels[0] = _label(low), _label(high)
    left, right = f"{first:g}", f"{last:g}"
    below = f"{left}{right:>{max(1, columns - len(left))}}" if last > first else left.ljust(columns)
    return [f"{label:>{LABEL}} {line}" for label, line in zip(labels, lines)] + [f"{'':{LABEL}} {below[:columns]}"]


def _label(value: float) -> str:
    text = f"{value:.4g}"
    return text if len(text) <= LABEL else f"{value:.1e}"
