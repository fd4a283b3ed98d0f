"""Talk to a model, to a run, or to several side by side; see how probable every token was, and go on from another.

The conversation is a trait, so that a reloaded page shows it; models answer in a thread, so that the kernel stays free.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import anywidget
import traitlets
from IPython.display import display

from toolkit.serve import Sampling
from widgets.chat_state import fit_to_save, for_page, has_template, no_answer, token_pieces, with_changes
from widgets.speakers import Speaker, speakers
from widgets.twin import Twin, twin_html
from widgets.view import harmless, module, style

__all__ = ["Chat"]

SPEAK_EVERY = 0.08
"""Seconds between two updates of the page while an answer is written."""
MOST_ALTERNATIVES = 8


class Chat(anywidget.AnyWidget):
    """Talk to whoever is given: a name, a model, an `Engine`, a `Run`, `(run, step)`, or a mapping of names to these.

    A run without a step answers each message as it is then: one that goes on is asked for a checkpoint. Models without a
    chat template continue a text instead. `say(text)` does from a cell what the page does and waits for the answers.

    Raises ValueError for nobody to talk to or a bare model without `tokenizer`.

    Example:
        Chat("smollm2-135m")
        Chat({"before": (run, 20), "after": (run, "best")}, sampling=Sampling(max_tokens=60))
    """

    _esm = module("chat.js")
    _css = style("view.css", "chat.css")
    talk = traitlets.Dict(read_only=True).tag(sync=True)
    """The conversation, who takes part, whether someone is writing, the settings."""
    live = traitlets.Dict(read_only=True).tag(sync=True)
    """Text so far of each speaker that is writing."""

    def __init__(
        self, *who: Any, tokenizer: Any = None, sampling: Sampling | None = None, system: str = "", mode: str | None = None
    ) -> None:
        if mode not in (None, "chat", "continue"):
            raise ValueError(f'Chat.mode: expected "chat" or "continue", got {mode!r}')
        self.speakers = speakers(who, tokenizer)
        self.sampling = sampling or Sampling(max_tokens=128, temperature=0.7, top_p=0.95)
        self.system, self.mode = system, mode
        self._turns: list[dict[str, Any]] = []
        self._guard = threading.RLock()
        self._stopping = threading.Event()
        self._writer = threading.Thread()
        self._busy = False
        self._twin = Twin()
        super().__init__()
        self.on_msg(self._receive)
        self._show()

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """What was said: of each turn the text and, by speaker, the answer."""
        names = [one.name for one in self.speakers]
        answers = ({n: a["text"] for n, a in zip(names, turn["answers"], strict=False) if a} for turn in self._turns)
        return [{"text": turn["text"], "answers": found} for turn, found in zip(self._turns, answers, strict=True)]

    def say(self, text: str) -> dict[str, str]:
        """Say `text` and wait for every answer: speaker -> answer. Raises RuntimeError while an answer is being written."""
        self._begin({"text": text, "answers": []})
        self._writer.join()
        return self.conversation[-1]["answers"]

    def stop(self) -> None:
        """End the answers that are being written; what they have stays."""
        self._stopping.set()

    # ---- the page ----------------------------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        data, metadata = self._repr_mimebundle_() or ({}, {})
        display(data, metadata=metadata, raw=True)
        self._twin.show(*self._static())

    def _receive(self, _: Any, message: Any, buffers: Any) -> None:
        """A message of the page; what it asks for and cannot have is answered with the reason."""
        try:
            match message:
                case {"kind": "say", "text": str(text)}:
                    self._begin({"text": text, "answers": []})
                case {"kind": "again"} if self._turns:
                    self.sampling = with_changes(self.sampling, seed=self.sampling.seed + 1)
                    self._begin({"text": self._turns[-1]["text"], "answers": []}, keep=len(self._turns) - 1)
                case {"kind": "branch", "turn": int(turn), "speaker": int(at), "token": int(token), "id": int(chosen)}:
                    self._branch(turn, at, token, chosen)
                case {"kind": "alternatives", "turn": int(turn), "speaker": int(at), "token": int(token)}:
                    self.send({**message, "most": self._alternatives(turn, at, token)})
                case {"kind": "clear"} if not self._busy:
                    self._turns = []
                case {"kind": "stop"}:
                    self.stop()
                case {"kind": "hello"}:
                    return self.send({"kind": "here"})
                case {"kind": "settings"}:
                    self._set({name: value for name, value in message.items() if name != "kind"})
        except (IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            self.send({"kind": "answer", "text": harmless(error, 500)})
        self._show()

    def _set(self, given: dict[str, Any]) -> None:
        if "system" in given:
            self.system = str(given.pop("system"))
        if "mode" in given and not self._turns:
            self.mode = "continue" if given["mode"] == "continue" else "chat"
        given.pop("mode", None)
        for name in ("max_tokens", "seed"):
            if name in given:
                given[name] = int(given[name])
        for name in ("temperature", "top_p"):
            if name in given:
                given[name] = float(given[name])
        self.sampling = with_changes(self.sampling, **given)

    def _show(self) -> None:
        with self._guard:
            shown = {
                "speakers": [
                    {"name": harmless(one.name, 80), "shown": harmless(one.shown, 120), "state": one.state}
                    for one in self.speakers
                ],
                "turns": [for_page(turn) for turn in self._turns],
                "busy": self._busy,
                "mode": self.mode or "chat",
                "settings": {
                    "temperature": self.sampling.temperature, "top_p": self.sampling.top_p,
                    "max_tokens": self.sampling.max_tokens, "seed": self.sampling.seed, "system": self.system,
                },
            }  # fmt: skip
            self.set_trait("talk", fit_to_save(shown))

    def _static(self) -> tuple[str, str]:
        """HTML and text of the static twin: the conversation as a table."""
        names = [harmless(one.name, 80) for one in self.speakers]
        rows = [
            [harmless(turn["text"], 400), *(_with_step(answer) for answer in turn["answers"] if answer)] for turn in self._turns
        ]
        said = f"{len(rows)} turns with {', '.join(names)}"
        return twin_html("Chat", said, "", ["Said", *names], rows), f"Chat: {said}"

    # ---- the answers -------------------------------------------------------------------------------------------------

    def _begin(
        self, turn: dict[str, Any], keep: int | None = None, only: int | None = None, prefix: tuple[int, ...] = ()
    ) -> None:
        """Start the thread that answers `turn`, which follows the first `keep` turns."""
        if self._busy:
            raise RuntimeError("an answer is being written; stop it first")
        with self._guard:
            del self._turns[len(self._turns) if keep is None else keep :]
            self._turns.append(turn)
        self._stopping.clear()
        self._busy = True
        for one in self.speakers:
            one.state = "writing"
        self._writer = threading.Thread(target=self._answer, args=(turn, only, prefix), name="chat", daemon=True)
        self._writer.start()
        self._show()

    def _branch(self, turn: int, at: int, token: int, chosen: int) -> None:
        """Keep an answer up to `token`, put `chosen` there, and go on from it; later turns are dropped."""
        old = self._turns[turn]
        before = tuple(old["answers"][at]["ids"][:token])
        answers = [None if place == at else answer for place, answer in enumerate(old["answers"])]
        self._begin({"text": old["text"], "answers": answers}, keep=turn, only=at, prefix=(*before, chosen))

    def _answer(self, turn: dict[str, Any], only: int | None, prefix: tuple[int, ...]) -> None:
        """Let each speaker answer, one after the other: they share the machine."""
        for at, one in enumerate(self.speakers):
            if only is not None and at != only:
                one.state = "ready"
                continue
            try:
                answer = self._answer_of(at, one, turn, prefix)
            except Exception as error:  # whatever a model does, the page says it and the kernel lives
                one.state, answer = "failed", no_answer(f"{type(error).__name__}: {harmless(error, 500)}")
            else:
                one.state = "ready"
            with self._guard:
                turn["answers"][at : at + 1] = [answer]
            self._show()
        self.set_trait("live", {})
        self._busy = False
        self._show()
        self._twin.update(*self._static())

    def _answer_of(self, at: int, one: Speaker, turn: dict[str, Any], prefix: tuple[int, ...]) -> dict[str, Any]:
        one.state = "loading"
        self._show()
        engine = one.engine(newest=not prefix)  # what goes on from a token goes on with the model that wrote it
        one.state = "writing"
        self._show()
        prompt = [*self._prompt(engine.tokenizer, at, turn), *prefix]
        pieces = [engine.tokenizer.decode(prefix)]
        told = began = time.monotonic()

        def hear(number: int, token: int, text: str) -> bool:
            nonlocal told
            pieces.append(text)
            if time.monotonic() - told > SPEAK_EVERY:
                told = time.monotonic()
                self.set_trait("live", {**self.live, str(at): harmless("".join(pieces), 20_000)})
            return self._stopping.is_set()

        if self._stopping.is_set():
            return no_answer("stopped before it began")
        room = engine.model.config.max_position_embeddings - len(prompt)
        if room < 1:
            raise ValueError(f"the conversation has {len(prompt)} tokens, as many as the model can see; clear it and begin anew")
        sampling = with_changes(self.sampling, max_tokens=min(room, self.sampling.max_tokens))
        found = engine.generate([prompt], sampling, on_token=hear)
        seconds = time.monotonic() - began
        ids = [*prefix, *found.token_ids[0]]
        scores = engine.score([prompt[: len(prompt) - len(prefix)]], [ids])
        return {
            "text": engine.tokenizer.decode(prefix) + found.texts[0], "ids": ids, "prompt": prompt[: len(prompt) - len(prefix)],
            "tokens": token_pieces(engine.tokenizer, ids, scores.log_probs[0]), "reason": found.finish_reasons[0],
            "count": len(found.token_ids[0]), "rate": len(found.token_ids[0]) / max(seconds, 1e-9), "error": None,
            "step": one.step,
        }  # fmt: skip

    def _prompt(self, tokenizer: Any, at: int, turn: dict[str, Any]) -> list[int]:
        """Token ids of what stands before the answer of speaker `at`: the conversation, or the text to continue."""
        if self.mode is None:
            self.mode = "chat" if has_template(tokenizer) else "continue"
        if self.mode == "continue":
            return tokenizer.encode(turn["text"], special=True)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for one in self._turns[: self._turns.index(turn)]:
            messages.append({"role": "user", "content": one["text"]})
            messages.append({"role": "assistant", "content": one["answers"][at]["text"]})
        return tokenizer.encode_chat([*messages, {"role": "user", "content": turn["text"]}])

    def _alternatives(self, turn: int, at: int, token: int) -> list[tuple[str, float, int]]:
        """What was likely where a token stands: (text, probability, id), most likely first."""
        if self._busy:
            raise RuntimeError("an answer is being written; look at its tokens when it is done")
        answer, engine = self._turns[turn]["answers"][at], self.speakers[at].engine()
        prompt = [*answer["prompt"], *answer["ids"][:token]]
        (found,) = engine.score([prompt], [[answer["ids"][token]]], alternatives=MOST_ALTERNATIVES).alternatives[0]
        return [(harmless(engine.tokenizer.decode([id_], special=True), 80), math.exp(log_prob), id_) for id_, log_prob in found]


def _with_step(answer: dict[str, Any]) -> str:
    """An answer as the twin has it; that of a run, with the step at which it was given."""
    step = "" if answer["step"] is None else f"step {answer['step']}: "
    return f"{step}{harmless(answer['text'], 2000)}"
