"""Secrets do not travel: what looks like a key, or is a secret value of this machine, is found before it is exported."""

import os
import re
from pathlib import Path

SHAPES = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an API key": re.compile(r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_]{20,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{50,})"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    "a signed web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
    "a password in an address": re.compile(r"://[^\s/:@\"']+:[^\s/:@\"']+@"),
}
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
SHORTEST = 8  # characters: a shorter value would be found everywhere


def known_secrets() -> dict[str, str]:
    """Where a secret of this user stands -> its value: variables with a telling name, and the hub's token file."""
    found = {f"the value of ${name}": value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "token"
    if hub.is_file():
        found["the hub token of this machine"] = hub.read_text(encoding="utf-8").strip()
    return {place: value for place, value in found.items() if len(value) >= SHORTEST}


def find_secrets(text: str, known: dict[str, str]) -> list[str]:
    """What in `text` looks like a secret, in words that do not repeat it.

    >>> find_secrets("key = 'AKIAABCDEFGHIJKLMNOP'", known={})
    ['an AWS access key (AKIA...)']
    """
    found = [f"{what} ({match[0][:4]}...)" for what, shape in SHAPES.items() if (match := shape.search(text))]
    return found + [place for place, value in known.items() if value in text]
