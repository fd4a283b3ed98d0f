"""A form for any value: controls with the fields' own help, the value and its code back; nothing is run by it.

What stands in the controls is a draft (`form_draft.py`), owned here and shown by any number of pages; an edit of a page
arrives as a path and a node. Each draft is read by the classes themselves, so a form accepts what code would accept.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import anywidget
import traitlets
from IPython.display import display

from toolkit.fields import Sites, field_of, is_value_class
from toolkit.values import code_of, dump_root, load, load_root, notebook_classes, parse, source, spec
from widgets import form_patterns
from widgets.form_draft import MISSING, Draft, Kept, Reader, Writer, put
from widgets.form_schema import schema, shape_of
from widgets.twin import Twin, twin_html
from widgets.view import harmless, module, style

__all__ = ["Form"]

SHOWN = 20_000
"""Characters of code that a page shows; the whole is copied."""
PROBLEMS = 20
PAGES = 8
ROWS = 400
"""Rows of the static table."""


class _Sound(traitlets.Any):
    """The value: not to be read while a control is wrong; set from outside, it goes through the controls."""

    def get(self, obj: Form, cls: Any = None) -> Any:
        if obj._problem:
            raise ValueError(f"the form holds no valid value: {obj._problem}; mend the field, or undo")
        return super().get(obj, cls)

    def set(self, obj: Form, value: Any) -> None:
        with obj._guard:
            if obj._taking:
                super().set(obj, value)
            else:
                obj._show(value)


class Form(anywidget.AnyWidget):
    """Edit a value: `Form(FineTune())`, `Form(LoRA)` or a union of classes; `form.value` is what the controls say.

    `form.value` raises ValueError while a control is wrong; set it to show another value; `form.observe(f, "value")`
    calls f at each valid change. `form.code` and `form.json` are its texts, `form.read(text)` takes either.
    Patterns of modules are counted in `model` (a module, or a model's name), else in the model that the value names.

    Example:
        form = Form(FineTune(steps=40))
        form                            # in a cell of its own
        run = launch(form.value)
    """

    _esm = module("form.js")
    _css = style("view.css", "form.css")
    schema = traitlets.Dict(read_only=True).tag(sync=True)
    """Controls, help and defaults: see `form_schema.schema`."""
    draft = traitlets.Dict(read_only=True).tag(sync=True)
    """{"root": the draft, "seen": {page: number of its last edit in there}}."""
    verdict = traitlets.Dict(read_only=True).tag(sync=True)
    """Of the draft: problems by path, code, JSON, counts of patterns."""
    value = _Sound()
    """The value."""

    def __init__(self, of: Any, *, model: Any = None) -> None:
        is_type = not is_value_class(type(of))
        try:
            self._field = field_of(of if is_type else type(of))
        except TypeError:
            self._field = field_of(None)
        if not self._field.classes:
            raise TypeError(f"a form shows a value, a value class or a union of them, not {of!r:.80}")
        self._model = model
        self._problem = ""
        self._kept: Kept = {}
        self._guard = threading.RLock()  # pages are answered in a thread of their own while a cell runs
        self._twin = Twin()
        self._taking = False
        self._shape = shape_of(self._field, None if is_type else of)
        super().__init__()
        self.on_msg(self._receive)
        writer = self._writer
        self.set_trait("schema", schema(self._shape, writer.draft, writer.blank))
        self._take(writer.blank(self._field) if is_type else writer.draft(of, self._field), {})

    @property
    def code(self) -> str:
        """Source text of the value: imports and an expression."""
        return source(self.value)

    @property
    def json(self) -> str:
        """JSON text of the value, as a recipe file has it."""
        return json.dumps(dump_root(self.value), indent=2, allow_nan=False)

    def read(self, text: str) -> None:
        """Take the value from JSON or from source text; nothing is evaluated. Raises ValueError that names the place."""
        text = text.strip()
        try:
            data = json.loads(text) if text.startswith("{") else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"$: not JSON: {error}") from None
        if data is None:
            self.value = parse(text, self._field)
        elif "schema" in data:
            self.value = load_root(data, self._field, notebook=self._notebook_class)
        else:
            self.value = load(data, self._field, notebook=self._notebook_class)

    @property
    def _writer(self) -> Writer:
        return Writer(self._shape, self._kept)

    def _notebook_class(self, name: str, code: str) -> type:
        known = [class_ for classes in self._shape.also.values() for class_ in classes]
        return next(class_ for class_ in known if class_.__name__ == name and code_of(class_) == code)

    def _take(self, root: Draft, seen: Mapping[str, int]) -> None:
        """Read a draft, and send what was found to all pages at once."""
        reader = Reader(self._shape, self._kept)
        value = reader.value(root)
        told = self._verdict(value, reader)
        with self.hold_sync():
            self.set_trait("draft", {"root": root, "seen": dict(list(seen.items())[-PAGES:])})
            self.set_trait("verdict", told)
        self._problem = str(reader.problems[0]) if value is MISSING else ""
        if value is not MISSING:
            self._taking = True
            try:
                self.value = value
            finally:
                self._taking = False
        self._twin.update(*self._static())

    def _verdict(self, value: Any, reader: Reader) -> dict[str, Any]:
        found = []
        layers = form_patterns.layers_of(None)
        for path, patterns, named in reader.patterns:
            layers = form_patterns.layers_of(self._model if self._model is not None else named)
            found.append([list(path), form_patterns.counts(patterns, layers)])
        problems = [[list(problem.path), problem.place, problem.reason] for problem in reader.problems]
        texts = {"code": "", "brief": "", "json": ""}
        if value is not MISSING:
            texts = {"code": source(value), "brief": source(value, brief=True), "json": json.dumps(dump_root(value), indent=2)}
        return {
            "problems": problems[:PROBLEMS],
            "more": max(0, len(problems) - PROBLEMS),
            "counts": found,
            "suggestions": form_patterns.suggestions(layers),
            **{name: harmless_end(text) for name, text in texts.items()},
        }

    def _show(self, value: Any) -> None:
        """Put another value into the controls."""
        made = is_value_class(type(value)) and type(value) in notebook_classes(value).values()
        if type(value) not in self._field.classes.values() and not made:
            raise ValueError(f"expected {' or '.join(self._field.classes)}, got {value!r:.80}")
        self._shape = shape_of(self._field, value)
        writer = self._writer
        self.set_trait("schema", schema(self._shape, writer.draft, writer.blank))
        self._take(writer.draft(value, self._field), self.draft["seen"])

    def _receive(self, _: Any, message: Any, buffers: Any) -> None:
        """A message of a page: an edit, a text to read, or the wish for a whole text."""
        with self._guard:
            self._obey(message)

    def _obey(self, message: Any) -> None:
        match message:
            case {"kind": "hello"}:
                self.send({"kind": "here"})
            case {"kind": "edit", "page": str(page), "n": int(n), "path": list(path), "node": node}:
                seen = {**{name: last for name, last in self.draft["seen"].items() if name != page}, page: n}
                try:
                    root = put(self.draft["root"], path, self._writer.shorten(node))
                except (LookupError, TypeError, ValueError):  # another page took that place away
                    root = self.draft["root"]
                self._take(root, seen)
            case {"kind": "read", "page": str(page), "text": str(text)}:
                try:
                    self.read(text)
                    self.send({"kind": "answer", "page": page, "error": ""})
                except (ValueError, LookupError, TypeError) as error:
                    self.send({"kind": "answer", "page": page, "error": harmless(error, 600)})
            case {"kind": "whole", "page": str(page), "name": "code" | "brief" | "json" as name} if not self._problem:
                text = self.json if name == "json" else source(self.value, brief=name == "brief")
                self.send({"kind": "whole", "page": page, "text": text})

    def _static(self) -> tuple[str, str]:
        """HTML and text of the static twin."""
        name = " or ".join(self._field.classes)
        if self._problem:
            return twin_html(name, f"is not complete: {self._problem}", "", (), ()), f"Form of {name}: {self._problem}"
        value = self.value
        rows = list(rows_of(value))
        changed = sum(bool(mark) for _, _, mark in rows)
        more = f" The first {ROWS} rows are shown." if len(rows) > ROWS else ""
        summary = f"{type(value).__name__}: {changed} of {len(rows)} fields differ from their defaults.{more}"
        shown = [(where, harmless(text, 200), mark) for where, text, mark in rows[:ROWS]]
        code = harmless_end(source(value, brief=True))
        return twin_html(spec(type(value)).title, summary, "", ("Field", "Value", "Default"), shown, code), f"{summary}\n\n{code}"

    def _ipython_display_(self) -> None:
        data, metadata = self._repr_mimebundle_() or ({}, {})
        display(data, metadata=metadata, raw=True)
        self._twin.show(*self._static())

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is not None:
            found[0]["text/plain"] = repr(self)
        return found

    def __repr__(self) -> str:
        return f"Form({' | '.join(self._field.classes)})"


def harmless_end(text: str) -> str:
    """The beginning of a text that a page can show, with a word on what was cut."""
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}\n… {len(text) - SHOWN:,} more characters; Copy takes all of them"
    return harmless(text, 2 * SHOWN)


def rows_of(value: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """(field, value, default where it differs) of every leaf inside a value, as texts."""
    for field in spec(type(value)).fields:
        found = getattr(value, field.name)
        same = not field.required and repr(found) == repr(field.default)
        default = "" if same else "–" if field.required else harmless(_name(field.default), 200)
        yield from _leaves(found, place + field.name, default)


def _leaves(value: Any, place: str, default: str) -> Iterator[tuple[str, str, str]]:
    if is_value_class(type(value)):
        yield place, type(value).__name__, default
        yield from rows_of(value, f"{place}.")
    elif isinstance(value, Sites | tuple) and len(value):
        pairs = value.items() if isinstance(value, Sites) else enumerate(value)
        for key, item in pairs:
            yield from _leaves(item, f"{place}[{json.dumps(key, ensure_ascii=False)}]", default)
    else:
        yield place, harmless(_name(value)), default


def _name(value: Any) -> str:
    return type(value).__name__ if is_value_class(type(value)) else repr(value)
