"""Text to token ids and back, on the `tokenizers` library, with the chat template that comes with a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from toolkit.models.storage import replace_file


class Tokenizer:
    """A model's tokenizer.

    >>> tokenizer = load_tokenizer("smollm2-135m")
    >>> tokenizer.decode(tokenizer.encode("Hello there"))
    'Hello there'
    """

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        settings: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        *,
        where: str = "the tokenizer",
    ) -> None:
        """`settings` is the contents of tokenizer_config.json, `generation` of generation_config.json."""
        self.rust = rust
        self.settings = dict(settings)
        self.generation = dict(generation or {})
        self.where = where
        self.bos_id = self._id(self.settings.get("bos_token"))
        """Id of the token that starts a text, or None."""
        eos = self._id(self.settings.get("eos_token"))
        listed = self.generation.get("eos_token_id", ())
        stops = [listed] if isinstance(listed, int) else list(listed or ())
        if eos is None and not stops:
            raise ValueError(f"{where}: no eos_token, so nothing says where a text ends")
        self.eos_id: int = eos if eos is not None else stops[0]
        """Id of the token that ends a text."""
        self.stop_ids: frozenset[int] = frozenset([self.eos_id, *stops])
        """All ids after which generation ends."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json and its settings from a hub-layout folder. ValueError names the file that is missing."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{folder} has no tokenizer.json; save one there with the hub's libraries, or name the tokenizer")
        try:
            rust = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from None
        settings = _read_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        if template.is_file():
            settings["chat_template"] = template.read_text()
        return cls(rust, settings, _read_json(folder / "generation_config.json"), where=str(folder))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text gets."""
        return hashlib.sha256(f"{self.eos_id} {self.rust.to_str()}".encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        return self.rust.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`; with `special` also what the tokenizer puts around a text, such as a start token."""
        return self.rust.encode(text, add_special_tokens=special).ids

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Ids of many texts, in parallel."""
        return [one.ids for one in self.rust.encode_batch_fast(list(texts), add_special_tokens=special)]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; special tokens are left out unless `special`."""
        return self.rust.decode(list(ids), skip_special_tokens=not special)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation, by the model's own template, which runs in a sandbox.

        `messages` are `{"role": ..., "content": ...}`; further `variables` reach the template. Raises ValueError when there
        is no template, or when it refuses the messages.

        >>> print(load_tokenizer("smollm2-135m").render_chat([{"role": "user", "content": "Hi"}])[-21:])
        <|im_start|>assistant
        """
        from toolkit.models.chat_template import render

        given = {**self._template_tokens(), **variables}
        return render(self.chat_template, messages, add_generation_prompt=add_generation_prompt, **given)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Ids of a conversation. The template writes the special tokens itself, so none are added around it."""
        return self.encode(self.render_chat(messages, add_generation_prompt, **variables))

    def encode_answers(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[list[int], list[bool]]]:
        """Ids of each conversation, and which of them the assistant said: its answers, each with its end token.

        The text is tokenised once, as a whole, and a token belongs to an answer when any letter of it does. Where the
        template leaves the last answer open, the end token is added. Raises ValueError that quotes how the
        conversation begins.

        >>> sum(load_tokenizer("smollm2-135m").encode_answers([[{"role": "user", "content": "2 + 2?"},
        ...                                                     {"role": "assistant", "content": "4"}]])[0][1])
        2
        """
        from toolkit.models.chat_template import answers

        template, tokens = self.chat_template, self._template_tokens()
        specials = [token.content for token in self.rust.get_added_tokens_decoder().values() if token.special]
        stops = [token for id_ in sorted(self.stop_ids) if (token := self.rust.id_to_token(id_))]
        found = []
        for messages in conversations:
            try:
                found.append(answers(template, messages, stops=stops, specials=specials, **tokens))
            except ValueError as error:
                begin = str(messages[0].get("content") if messages else "")[:40]
                raise ValueError(f"the conversation that begins with {begin!r}: {error}") from None
        encodings = self.rust.encode_batch([text for text, _, _ in found], add_special_tokens=False)
        pairs = []
        for encoding, (_, spans, closed) in zip(encodings, found, strict=True):
            end = [] if closed else [self.eos_id]
            said = [any(first < b and last > a for a, b in spans) for first, last in encoding.offsets]
            pairs.append((encoding.ids + end, said + [True] * len(end)))
        return pairs

    @property
    def chat_template(self) -> str:
        """The model's template for conversations. Raises ValueError, with what to do, when it has none."""
        template = self.settings.get("chat_template")
        if isinstance(template, list):
            template = {one["name"]: one["template"] for one in template}.get("default")
        if not template:
            raise ValueError(
                f"{self.where} has no chat template; take the tokenizer of an instruct model, put a chat_template.jinja beside "
                f"its tokenizer.json, or give plain prompts and answers (without messages= or chat=True)"
            )
        return template

    def _template_tokens(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: _content(self.settings.get(name)) or "" for name in names}

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and generation_config.json as the hub has them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "tokenizer.json", lambda path: self.rust.save(str(path)))
        stops = sorted(self.stop_ids)
        generation = {"bos_token_id": self.bos_id, "eos_token_id": stops[0] if len(stops) == 1 else stops}
        generation = {**self.generation, **{k: v for k, v in generation.items() if v is not None}}
        for name, data in (("tokenizer_config.json", self.settings), ("generation_config.json", generation)):
            text = json.dumps(data, indent=2, ensure_ascii=False)
            replace_file(folder / name, lambda path, text=text: path.write_text(text))

    def _id(self, token: Any) -> int | None:
        content = _content(token)
        return None if content is None else self.rust.token_to_id(content)


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold one JSON object")
    return data
