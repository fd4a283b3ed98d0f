"""A notebook as one HTML file that opens without a network, a kernel or a script: for mail, archives and batch jobs.

Live views are left out; the static twins that widgets publish beside them (picture, table, text) stay. What came from
cells or outputs passes an allow-list of elements and attributes, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import bleach
import mistune
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bleach.html5lib_shim import Filter  # pyright: ignore[reportAttributeAccessIssue]
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from toolkit.launch.page_style import STYLE
from toolkit.runs.files import replace_bytes

__all__ = ["write_page"]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
LARGEST = 8 << 20
"""Characters of one output or picture; a larger one is left out, with a note in its place."""
IMAGES = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "gif": "gif", "webp": "webp", "svg": "svg+xml"}
LIVE_VIEW = "application/vnd.jupyter.widget-view+json"
CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
UNSEEN = re.compile(r"<(script|style|template|noscript|iframe|object|title)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+")
LINK = re.compile(r"https?://|mailto:|#", re.IGNORECASE)
TAGS = set(
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img "
    "ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul var".split()
)
PLAIN_ATTRIBUTES = set("align alt class colspan dir height lang open rowspan scope start style title width".split())
PROPERTIES = (
    "border border-bottom border-collapse border-left border-right border-spacing border-top display font-family "
    "font-size font-style font-weight line-height margin margin-bottom margin-left margin-right margin-top max-width "
    "min-width padding padding-bottom padding-left padding-right padding-top text-align text-decoration vertical-align "
    "white-space width"
).split()


def write_page(notebook_path: str | Path, html_path: str | Path, title: str | None = None) -> Path:
    """Write the notebook as one offline HTML file and return its path.

    `title`: of the page; default: the first heading, else the file's name. An output above 8 MiB is left out with a
    note. Raises FileNotFoundError, and ValueError where the file is not a notebook.

    Example:
        write_page("runs/tour/00-start-here.ipynb", "runs/tour/00-start-here.html")
    """
    source, target = Path(notebook_path), Path(html_path)
    try:
        notebook = nbformat.reads(source.read_text(encoding="utf-8"), as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.validator.ValidationError) as error:
        raise ValueError(f"{source}: not a notebook: {error}") from error
    name = title or _heading(notebook) or source.stem
    body = "\n".join(_cell(cell, source.parent) for cell in notebook.cells)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<meta name="referrer" content="no-referrer">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(target, page.encode("utf-8", "replace"), sync=False)
    return target


def _heading(notebook: nbformat.NotebookNode) -> str | None:
    for cell in notebook.cells:
        found = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if found:
            return found[1].strip().strip("#*_` ")
    return None


def _cell(cell: nbformat.NotebookNode, folder: Path) -> str:
    if cell.cell_type == "markdown":
        return f'<div class="text">{_markdown(cell.source, folder, cell.get("attachments", {}))}</div>'
    if cell.cell_type == "raw":
        return f'<pre tabindex="0">{escape(harmless(cell.source))}</pre>'
    outputs = "".join(_output(output) for output in cell.outputs)
    source = f'<pre tabindex="0"><code>{_code(cell.source, "python")}</code></pre>' if cell.source.strip() else ""
    return f'<div class="cell">{source}{outputs}</div>' if source or outputs else ""


def _code(source: str, language: str) -> str:
    """Source in spans that carry the kind of each token."""
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return escape(harmless(source))
    return highlight(harmless(source), lexer, HtmlFormatter(nowrap=True, classprefix="t-"))


class _Renderer(mistune.HTMLRenderer):
    """Markdown whose pictures are put into the page and whose code has its tokens marked."""

    def __init__(self, folder: Path, attachments: dict[str, dict[str, str]]) -> None:
        super().__init__(escape=False)
        self._folder, self._attachments = folder, attachments

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return picture(self._data(url), re.sub(r"<[^>]*>", "", text), "a picture that is not in the notebook's folder")

    def block_code(self, code: str, info: str | None = None) -> str:
        return f"<pre><code>{_code(code, (info or 'text').split()[0])}</code></pre>\n"

    def inline_math(self, text: str) -> str:
        return f'<code class="math">{escape(harmless(text))}</code>'

    def block_math(self, text: str) -> str:
        return f"<pre><code>{escape(harmless(text))}</code></pre>\n"

    def _data(self, url: str) -> str:
        """The picture as a data address; empty where it is not in the notebook or its folder."""
        if PICTURE.fullmatch(url):
            return url
        if url.startswith("attachment:"):
            found = self._attachments.get(url.removeprefix("attachment:"), {})
            return next((f"data:{kind};base64,{data}" for kind, data in found.items() if kind.startswith("image/")), "")
        path, root = (self._folder / url).resolve(), self._folder.resolve()
        kind = IMAGES.get(path.suffix[1:].lower())
        if kind is None or ":" in url or not path.is_relative_to(root) or not path.is_file() or path.stat().st_size > LARGEST:
            return ""
        return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _markdown(source: str, folder: Path, attachments: dict[str, Any]) -> str:
    render = mistune.create_markdown(renderer=_Renderer(folder, attachments), plugins=["table", "strikethrough", "math"])
    return sanitised(str(render(source)))


def _output(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return _frame(f"<pre>{escape(harmless(output.text))}</pre>", len(output.text))
    if output.output_type == "error":
        text = "\n".join(output.traceback) or f"{output.ename}: {output.evalue}"
        return _frame(f"<pre>{escape(harmless(text))}</pre>", len(text), "output error")
    data = {kind: "".join(value) if isinstance(value, list) else value for kind, value in output.data.items()}
    for show in (_as_html, _as_picture, _as_text):
        shown, size = show(data, output.get("metadata", {}))
        if shown or size > LARGEST:
            return _frame(shown, size)
    return ""


def _frame(html: str, size: int, kind: str = "output") -> str:
    if size > LARGEST:
        return f'<p class="note">An output of {size / 1e6:.0f} MB is left out; the notebook has it.</p>'
    focus = ' tabindex="0"' if "<table" in html else ""
    return f'<div class="{kind}"{focus}>{html}</div>'


def _as_html(data: dict[str, Any], metadata: dict[str, Any]) -> tuple[str, int]:
    html, markdown = data.get("text/html"), data.get("text/markdown")
    if html is None and markdown is None:
        return "", 0
    size = len(html or markdown or "")
    if size > LARGEST:
        return "", size
    shown = sanitised(html) if html is not None else _markdown(markdown or "", Path("/nowhere"), {})
    return (shown, size) if re.sub(r"<(?!img)[^>]*>|\s", "", shown) else ("", 0)


def _as_picture(data: dict[str, Any], metadata: dict[str, Any]) -> tuple[str, int]:
    for kind in ("image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp"):
        if kind in data:
            content = data[kind] if kind != "image/svg+xml" else base64.b64encode(data[kind].encode()).decode()
            given = metadata.get(kind, {}).get("alt") or metadata.get("alt") or data.get("text/plain", "")
            alt = "Figure" if given.startswith("<") else given
            if len(content) > LARGEST:
                return "", len(content)
            return picture(f"data:{kind};base64,{content.strip()}", alt, "a picture that could not be read"), len(content)
    return "", 0


def _as_text(data: dict[str, Any], metadata: dict[str, Any]) -> tuple[str, int]:
    text = data.get("text/latex") or data.get("text/plain") or ""
    return ("", 0) if LIVE_VIEW in data or not text else (f"<pre>{escape(harmless(text))}</pre>", len(text))


def picture(address: str, alt: str, missing: str) -> str:
    """An image of a `data:` address, or a note that says what is missing."""
    if PICTURE.fullmatch(address):
        return f'<img src="{"".join(address.split())}" alt="{escape(harmless(alt))}">'
    return f'<span class="note">[{escape(harmless(alt)) or "picture"}: {missing}]</span>'


def harmless(text: str) -> str:
    """Text without colour codes and control characters; of a line that was overwritten the last state stays."""
    lines = text.replace("\r\n", "\n").split("\n")
    return CONTROLS.sub("", "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines))


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag == "img" and name == "src":
        return PICTURE.fullmatch(value) is not None
    if tag == "a" and name == "href":
        return LINK.match(value) is not None
    return name in PLAIN_ATTRIBUTES


class _Described(Filter):
    """Every picture has an alternative text; one that was not data is replaced by that text."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for token in super().__iter__():
            if token["type"] in ("StartTag", "EmptyTag") and token["name"] == "img":
                alt = token["data"].setdefault((None, "alt"), "")
                if (None, "src") not in token["data"]:
                    token = {"type": "Characters", "data": f"[{alt or 'picture'}: not in the notebook]"}
            yield token


def sanitised(html: str) -> str:
    """HTML of which only harmless elements and attributes are left; pictures only as data, links only to the web."""
    cleaner = bleach.Cleaner(
        tags=TAGS,
        attributes=_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        css_sanitizer=CSSSanitizer(allowed_css_properties=PROPERTIES),
        filters=[_Described],  # pyright: ignore[reportArgumentType]
    )
    return cleaner.clean(UNSEEN.sub("", CONTROLS.sub("", html)))
