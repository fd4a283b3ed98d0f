"""Conversations as text, by a model's own chat template, and where in that text the assistant speaks.

A template is code from outside. It runs in jinja2's sandbox and is given plain data only. Templates say in one of two ways
what the assistant wrote: by `{% generation %}` around it, which is believed, or not at all. Then an answer begins where the
conversation before it, with the prompt for an answer, ends, and it ends with the first end token from there on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = Sequence[Mapping[str, Any]]
Render = Callable[..., str]
_MARKS = "generation_marks"  # variable of a template: what to write before and after each `{% generation %}` block


class _Generation(Extension):
    """The block `{% generation %}...{% endgeneration %}`: what stands in it was written by the assistant."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    @jinja2.pass_context
    def _marked(self, context: Any, caller: Callable[[], str]) -> str:
        before, after = context.get(_MARKS) or ("", "")
        return f"{before}{caller()}{after}"


class _Namespace(jinja2.utils.Namespace):
    """Variables that a template may change, none of them with a name that Python uses itself."""

    def __init__(self, /, *items: Any, **more: Any) -> None:
        for name in dict(*items, **more):
            _refuse_name(name)
        super().__init__(*items, **more)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_name(name)
        super().__setitem__(name, value)


def _refuse_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r}")


@lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """A chat template with what templates of the hub rely on. Raises ValueError when it is not one."""

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda format_: datetime.now().strftime(format_)
    environment.globals["dict"] = lambda *items, **more: dict(*items, **more)
    environment.globals["namespace"] = _Namespace
    environment.filters["tojson"] = to_json
    try:
        return environment.from_string(template)
    except jinja2.exceptions.TemplateError as error:
        raise ValueError(f"the chat template cannot be read: {_first_line(error)}") from None


def render(template: str, messages: Messages, *, add_generation_prompt: bool, **variables: Any) -> str:
    """The text of a conversation. Raises ValueError with the template's own reason when it refuses the messages.

    >>> render("{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}", [{"role": "user", "content": "Hi"}],
    ...        add_generation_prompt=False)
    'user: Hi\\n'
    """
    plain = json.loads(json.dumps(list(messages)))
    try:
        return compiled(template).render(messages=plain, add_generation_prompt=add_generation_prompt, **variables)
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"the chat template refuses these messages: {_first_line(error)}") from None


def answers(
    template: str, messages: Messages, *, stops: Sequence[str], specials: Sequence[str], **variables: Any
) -> tuple[str, list[tuple[int, int]], bool]:
    """The text of a conversation, where (from, to) in it the assistant speaks, and whether the last answer has an end token.

    `stops` are the texts of the tokens that end an answer, `specials` of all special tokens: one of these closes an answer
    where none of `stops` does. The end token belongs to the answer. Raises ValueError when an answer cannot be found.
    """
    if "endgeneration" in template:
        return _marked_answers(template, messages, stops, **variables)

    def text_of(last: int, prompt: bool) -> str:
        return render(template, messages[:last], add_generation_prompt=prompt, **variables)

    text = text_of(len(messages), False)
    spans: list[tuple[int, int]] = []
    limit, closed = len(text), True
    for number in [i for i, message in enumerate(messages) if message["role"] == "assistant"][::-1]:
        begin = _begin(text, number, text_of)
        end = _first_end(text, begin, limit, stops) or _first_end(text, begin, limit, specials)
        closed = closed if spans else end is not None
        spans.append((begin, end or _end_of_content(text, begin, limit, messages[number], number)))
        limit = begin
    return text, spans[::-1], closed


def _begin(text: str, number: int, text_of: Callable[[int, bool], str]) -> int:
    """Where the answer that is message `number` begins."""
    asked = text_of(number, True)
    if text.startswith(asked):
        return len(asked)
    # The prompt for an answer may hold more than is kept of it later, such as the start of a thought.
    begin = next((at for at, (a, b) in enumerate(zip(text, asked)) if a != b), min(len(text), len(asked)))
    if begin < len(text_of(number, False)):
        raise ValueError(
            f"the chat template writes what stands before message {number} otherwise once it is answered, so the answer "
            f"cannot be found; put {{% generation %}} and {{% endgeneration %}} around answers in the template"
        )
    return begin


def _first_end(text: str, begin: int, limit: int, tokens: Sequence[str]) -> int | None:
    ends = [at + len(token) for token in tokens if (at := text.find(token, begin, limit)) >= 0]
    return min(ends) if ends else None


def _end_of_content(text: str, begin: int, limit: int, message: Mapping[str, Any], number: int) -> int:
    content = message.get("content")
    content = content.strip() if isinstance(content, str) else ""
    at = text.find(content, begin, limit)
    if not content or at < 0:
        raise ValueError(
            f"the chat template writes no end token after message {number} and changes its content, so the answer cannot be "
            f"found; put {{% generation %}} and {{% endgeneration %}} around answers in the template"
        )
    return at + len(content)


def _marked_answers(
    template: str, messages: Messages, stops: Sequence[str], **variables: Any
) -> tuple[str, list[tuple[int, int]], bool]:
    said = json.dumps(list(messages), ensure_ascii=False) + template
    before, after = (_unused(said, letter) for letter in "\x02\x03")
    pieces = render(template, messages, add_generation_prompt=False, **{_MARKS: (before, after)}, **variables).split(before)
    text, spans, closed = pieces[0], [], True
    for piece in pieces[1:]:
        answer, _, rest = piece.partition(after)
        begin = len(text)
        text += answer + rest
        end = begin + len(answer)
        if not any(answer.endswith(stop) for stop in stops):
            follows = [stop for stop in stops if rest.startswith(stop)]
            end += max(map(len, follows), default=0)
            closed = bool(follows)
        else:
            closed = True
        spans.append((begin, end))
    return text, spans, closed


def _unused(text: str, letter: str) -> str:
    """A string of one control letter that `text` does not hold, also as JSON writes it."""
    mark = letter * 3
    while mark in text or json.dumps(mark)[1:-1] in text:
        mark += letter
    return mark


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
