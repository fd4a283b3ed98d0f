"""Conversations as text and as ids are those of transformers' apply_chat_template, and the answers are found in them."""

import copy
from functools import cache

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from toolkit.data import conversation
from toolkit.data.rows import of_messages
from toolkit.models import Tokenizer, load_tokenizer

LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start|>system<|end|>\n\n' + 'Day: ' + strftime_now('%Y') + '\n' + system + '<|eot|>' }}"
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
"""Llama 3's shape: a date, trimmed contents, a header a turn."""
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}{% continue %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
"""Mistral's shape: no prompt for an answer, the end token after answers alone."""
QWEN = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<|start|>assistant\n<think>\n\n</think>\n\n' + m.content + '<|eot|>\n' }}"
    "{% elif m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ '<|start|>' + m.role + '\n' + m.content + '<|eot|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
"""Qwen 3's shape: earlier answers lose the thought that the last one shows."""
TAGGED = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}<|start|>assistant\n{% generation %}{{ m.content }}<|eot|>"
    "{% endgeneration %}\n{%- else -%}<|start|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"

SHAPES = ("smollm2", "llama", "mistral", "qwen", "tagged", "plain")
ANSWERS = [" It is 4 \u2014 of course, naïve one.", "Five."]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2? "},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "And 2 + 3?\n"},
    {"role": "assistant", "content": ANSWERS[1]},
]


@cache
def with_template(template: str | None) -> Tokenizer:
    """SmolLM2's tokenizer; with another template, if one is given, and the special tokens that it writes."""
    if template is None:
        return load_tokenizer("smollm2-135m")
    smollm2 = with_template(None)
    settings = {**smollm2.settings, "chat_template": template, "eos_token": "<|eot|>" if "<|eot|>" in template else "<|im_end|>"}
    return Tokenizer(_with_specials(), settings)


@cache
def _with_specials() -> tokenizers.Tokenizer:
    rust = copy.deepcopy(with_template(None).rust)
    rust.add_special_tokens(["<|start|>", "<|end|>", "<|eot|>"])
    return rust


@cache
def theirs(template: str | None) -> PreTrainedTokenizerFast:
    """The same tokenizer, as transformers has it."""
    tokenizer = with_template(template)
    tokens = {name: tokenizer.settings[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.rust, chat_template=tokenizer.chat_template, clean_up_tokenization_spaces=False, **tokens
    )


@pytest.mark.parametrize("template", [None, LLAMA, MISTRAL, QWEN, TAGGED, PLAIN], ids=SHAPES)
@pytest.mark.parametrize("prompt", [False, True], ids=["whole", "asked"])
def test_text_and_ids_are_those_of_transformers(template, prompt):
    tokenizer = with_template(template)
    reference = theirs(template)
    messages = MESSAGES[:-1] if prompt else MESSAGES
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.render_chat(messages, prompt) == text
    ids = reference.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert tokenizer.encode_chat(messages, prompt) == ids
    if not prompt:
        found = tokenizer.encode_answers([messages])[0][0]
        assert found[: len(ids)] == ids
        assert found[len(ids) :] == ([tokenizer.eos_id] if template == PLAIN else [])


def test_marked_answers_are_those_of_transformers():
    tokenizer = with_template(TAGGED)
    found = theirs(TAGGED).apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.encode_answers([MESSAGES])[0] == (found["input_ids"], [mask == 1 for mask in found["assistant_masks"]])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, [f"{ANSWERS[0]}<|im_end|>", f"{ANSWERS[1]}<|im_end|>"]),
        (LLAMA, [f"{ANSWERS[0].strip()}<|eot|>", f"{ANSWERS[1]}<|eot|>"]),
        (MISTRAL, [f" {ANSWERS[0]}<|im_end|>", f" {ANSWERS[1]}<|im_end|>"]),
        (QWEN, [f"{ANSWERS[0]}<|eot|>", f"<think>\n\n</think>\n\n{ANSWERS[1]}<|eot|>"]),
        (TAGGED, [f"{ANSWERS[0]}<|eot|>", f"{ANSWERS[1]}<|eot|>"]),
        (PLAIN, [f" {ANSWERS[0]}", f" {ANSWERS[1]}", "<|im_end|>"]),
    ],
    ids=SHAPES,
)
def test_answers_with_their_end_tokens_are_learned_and_nothing_else(template, said):
    tokenizer = with_template(template)
    ((ids, learned),) = tokenizer.encode_answers([MESSAGES])
    runs: list[list[int]] = []
    for before, id_, now in zip([False, *learned], ids, learned):
        if now and not before:
            runs.append([])
        if now:
            runs[-1].append(id_)
    assert [tokenizer.decode(run, special=True) for run in runs] == said
    assert len(ids) == len(learned)


def test_an_end_token_that_only_the_template_knows_is_learned():
    """A base model's end token is another than the one its chat template writes."""
    tokenizer = with_template(QWEN)
    tokenizer = Tokenizer(tokenizer.rust, {**tokenizer.settings, "eos_token": "<|endoftext|>"})
    ((ids, learned),) = tokenizer.encode_answers([MESSAGES])
    assert [id_ for id_, now in zip(ids, learned) if now][-1] == tokenizer.rust.token_to_id("<|eot|>")
    assert tokenizer.rust.token_to_id("<|eot|>") not in tokenizer.stop_ids


REWRITES = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
SHOUTS = "{% for m in messages %}{{ m.content | upper }} {% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (REWRITES, MESSAGES, "begins with 'Be brief.': the chat template writes what stands before message 4 otherwise once"),
        (SHOUTS, MESSAGES, "the chat template writes no end token after message 4 and changes its content"),
        (MISTRAL, [{"role": "tool", "content": ""}, MESSAGES[-1]], "refuses these messages: Only user and assistant roles"),
        ("{{ messages[0].x.y }}", MESSAGES, "refuses these messages: 'dict object' has no attribute 'x'"),
        ("{{ ''.__class__.__mro__ }}", MESSAGES, "refuses these messages: access to attribute '__class__'"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", MESSAGES, "may not set '__class__'"),
        ("{% if %}", MESSAGES, "the chat template cannot be read: Expected an expression"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(template, messages, reason):
    tokenizer = with_template(template)
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")) as raised:
        tokenizer.encode_answers([messages])
    assert "\n" not in str(raised.value)


def test_arrow_fills_missing_keys_up_and_they_are_taken_away():
    messages = [{"role": "assistant", "content": "x", "tool_calls": None}]
    assert of_messages(messages, "") == conversation([{"role": "assistant", "content": "x"}])
