"""Credentials in a model's text files. They are named by kind and place, and never repeated.

Sources: the issuers' documented prefixes and lengths: GitHub "Behind GitHub's new authentication token formats" (2021),
AWS IAM "Unique identifiers", Hugging Face "User access tokens", Google Cloud "API keys", Slack "Token types", Stripe
"API keys", GitLab "Token overview", OpenAI and Anthropic consoles, RFC 7468 (PEM).
"""

from __future__ import annotations

import re

from groundplane.errors import Refused

_PATTERNS: dict[str, re.Pattern[str]] = {
    "an AWS access key id": re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{82})\b"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,64}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z]{34}\b"),
    "a Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    "a Slack token": re.compile(r"\bxox[abeprs]-[0-9]{8,14}-[A-Za-z0-9-]{16,}"),
    "a Stripe key": re.compile(r"\b[rs]k_live_[A-Za-z0-9]{20,}\b"),
    "an OpenAI key": re.compile(r"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{16,}T3BlbkFJ[A-Za-z0-9_-]{16,}"),
    "an Anthropic key": re.compile(r"\bsk-ant-[a-z]+[0-9]{2}-[A-Za-z0-9_-]{80,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:\s|\\n)+[A-Za-z0-9+/=:, \\\n\r-]{64,}"),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"<>{}$]{1,64}:[^\s:/@'\"<>{}$]{8,128}@[\w.-]+\.\w"),
}  # fmt: skip
KEY_PATTERNS = tuple(_PATTERNS.values())
"""What credentials look like, wherever they stand."""
_MADE_UP = re.compile(r"EXAMPLE|example|XXXX|xxxx|\*\*\*|password|0{8}|1234567890|user:pass")


def judge_secrets(path: str, text: str) -> Refused | None:
    """The first credential found; examples from manuals are let through."""
    for kind, pattern in _PATTERNS.items():
        for found in pattern.finditer(text):
            if _MADE_UP.search(found[0]) or _monotone(found[0]):
                continue
            line = text.count("\n", 0, found.start()) + 1
            return Refused(
                rule="no-secrets",
                need="files without credentials: a version is read by others, for ever",
                have=f"{path} holds {kind} on line {line}",
                hint="revoke it where it was issued, take it out of the file, then register",
            )
    return None


def _monotone(text: str) -> bool:
    """Placeholders repeat one letter."""
    tail = text[-16:]
    return len(set(tail)) <= 3
