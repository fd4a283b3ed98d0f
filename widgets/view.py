"""What every widget shares in Python: its sources for the page, number formats, harmless text, thinned series.

A widget is one class on anywidget with `_esm = module("its.js")` and `_css = style("view.css", "its.css")`; functions of
this file and of `static/view.js` do the rest. Numbers read the same in both: `compact`, `quantity`, `duration`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from toolkit.runs.series import downsample

__all__ = ["compact", "duration", "harmless", "module", "quantity", "style", "thin"]

STATIC = Path(__file__).parent / "static"
IMPORT = re.compile(r'^import (?:\{[^}]*\} from )?"\./([\w./-]+)";\n', re.MULTILINE)
CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movement
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # window titles and links
    r"|\x1b[@-Z\\-_]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # all but tab and newline
    r"|[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"  # what turns the direction of text round
    r"|[\ud800-\udfff]"
)
GAP = "–"
LARGEST = 1e300
PREFIXES = ("", "k", "M", "G", "T", "P")
BYTE_PREFIXES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@cache
def module(name: str) -> str:
    """The ES module `static/<name>` as one text, the modules that it imports in front: the page requests nothing.

    Each file is a module of its own for an editor; joined, they share one scope, so top-level names must differ.
    Raises ValueError for an import of another form than `import { a, b } from "./file.js";`.
    """
    order: list[str] = []

    def visit(file: str) -> None:
        if file in order:
            return
        text = _static(file)
        for imported in IMPORT.findall(text):
            visit(imported)
        order.append(file)

    visit(name)
    texts = [IMPORT.sub("", _static(file)) for file in order]
    stray = next((line for text in texts for line in text.splitlines() if line.startswith("import ")), None)
    if stray:
        raise ValueError(f'static/{name}: cannot join {stray!r}; write import {{ a, b }} from "./file.js"; on one line')
    return "\n".join(texts)


@cache
def style(*names: str) -> str:
    """The style sheets `static/<name>` as one text."""
    return "\n".join(map(_static, names))


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def harmless(text: object, limit: int = 4000) -> str:
    """`text` without colour codes, control characters and direction marks, at most `limit` characters (the last ones)."""
    cut = str(text)[-8 * limit :]
    clean = CONTROLS.sub("", cut.replace("\r\n", "\n"))
    return clean if len(clean) <= limit else "… " + clean[-limit:]


def compact(value: float | None, digits: int = 3) -> str:
    """A number in `digits` significant digits: 1234567 -> "1.23 M", 0.0001 -> "1e−4", None -> a dash."""
    if value is None:
        return GAP
    if math.isnan(value):
        return "not finite"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if abs(value) < 0.01 or abs(value) >= 1e18:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return _scaled(value, digits, 1000, PREFIXES)


def quantity(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A number with its unit: (1234567, "bytes") -> "1.18 MiB", (0.034, "s") -> "34 ms"."""
    if value is None or not math.isfinite(value):
        return compact(value)
    if unit == "bytes":
        return _scaled(value if abs(value) >= 1023.5 else math.floor(value + 0.5), digits, 1024, BYTE_PREFIXES)
    if unit == "s" and value >= 60:
        return duration(value)
    if unit == "s" and 0 < value < 0.9995:
        return f"{compact(value * 1000, digits)} ms"
    return f"{compact(value, digits)} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units: 3725 -> "1 h 2 min"."""
    if seconds is None or not math.isfinite(seconds):
        return GAP
    whole = math.floor(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _scaled(value: float, digits: int, base: int, prefixes: Sequence[str]) -> str:
    power = 0
    while power < len(prefixes) - 1 and abs(float(f"{value:.{max(digits, 4 if base == 1024 else 3)}g}")) >= base:
        value /= base
        power += 1
    whole_digits = len(str(math.floor(abs(value) + 0.5)))
    text = str(int(value)) if value == int(value) else f"{value:#.{max(digits, whole_digits)}g}".rstrip(".")
    return f"{text} {prefixes[power]}".rstrip().replace("-", "−")


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[list[int], list[float | None]]:
    """At most `most` points of a series that keep its lows, highs and both ends; as JSON.

    What no axis can show (NaN, infinities, beyond 1e300) is None. Shapes: steps and values [N] -> lists of one length, at
    most `most` (4 or more).
    """
    steps, values = np.asarray(steps), np.asarray(values, dtype=np.float64)
    chosen = downsample(np.where(np.abs(values) < LARGEST, values, np.nan), most)
    return [int(step) for step in steps[chosen]], [_shown(value) for value in values[chosen].tolist()]


def _shown(value: float) -> float | None:
    if not abs(value) < LARGEST:
        return None
    return float(f"{value:.6g}") if abs(value) > 1 / LARGEST else 0.0
