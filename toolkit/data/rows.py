"""One row of a data set as a `Document` or a `Conversation`, or one line that says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from toolkit.data.sources import Conversation, Document, Hub, JsonLines, Text, conversation

Convert = Callable[[Mapping[str, Any], str], Text]
"""Makes the text of a row; the second argument names the row in errors."""


def converter(data: JsonLines | Hub) -> Convert:
    """What turns a row of this source into a text. It raises ValueError that names the row, the key and the keys there are.

    >>> converter(JsonLines(path="x", prompt="q", answer="a"))({"q": "2 + 2?", "a": "4"}, "x, line 1")
    Document(prompt='2 + 2?', text='4')
    """
    if data.messages is not None:
        name = data.messages
        return lambda row, where: of_messages(_value(row, name, where), f"{where}: {name!r}")
    if data.chat:
        return lambda row, where: as_chat(_document(row, data.prompt, data.answer, where))
    return lambda row, where: _document(row, data.prompt, data.answer, where)


def as_chat(document: Document) -> Conversation:
    """A prompt and its answer as turns of a user and an assistant."""
    return conversation(
        [{"role": "user", "content": document.prompt}, {"role": "assistant", "content": document.text}],
    )


def of_messages(messages: Any, where: str) -> Conversation:
    """A conversation from what a row holds. ValueError names the message that has no role or no content."""
    if isinstance(messages, str):  # a table of text columns keeps lists as JSON
        try:
            messages = json.loads(messages)
        except ValueError:
            raise ValueError(f"{where} is text, not a list of messages") from None
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where} is not a list of messages" if messages else f"{where} holds no message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f'{where}, message {number}: expected {{"role": ..., "content": ...}}')
        if message.get("content") is None and not message.get("tool_calls"):
            raise ValueError(f"{where}, message {number}: no content")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{where}: no message of the assistant, so there is nothing to learn")
    kept = [{key: item for key, item in message.items() if item is not None} for message in messages]  # Arrow fills keys up
    return conversation(kept)


def parse_line(line: str | bytes, where: str) -> dict[str, Any]:
    """The object of one JSON line. Raises ValueError that names the line."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason})") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")
    return row


def _document(row: Mapping[str, Any], prompt: str | None, answer: str, where: str) -> Document:
    values = []
    for name in (prompt, answer):
        value = "" if name is None else _value(row, name, where)
        if not isinstance(value, str):
            raise ValueError(f"{where}: {name!r} is not text")
        values.append(value)
    return Document(*values)


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise ValueError(f"{where}: no key {name!r}, only {', '.join(row) or 'none at all'}")
    return row[name]
