"""Credentials in a model's text files. They are named by kind and place, and never repeated.

Sources: the issuers' documented prefixes and lengths: GitHub "Behind GitHub's new authentication token formats" (2021),
AWS IAM "Unique identifiers", Hugging Face "User access tokens", Google Cloud "API keys", Slack "Token types", Stripe
"API keys", GitLab "Token overview", OpenAI and Anthropic consoles, RFC 7468 (PEM), RFC 4880 (armor), RFC 7519 (JWT),
Azure Storage "Configure connection strings", PyPI, npm, Databricks, SendGrid, NVIDIA, HashiCorp "Tokens", Docker's config.json.
"""

# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import re

from groundplane.errors import Refused

_PATTERNS: dict[str, re.Pattern[str]] = {
    "an AWS access key id": re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{82})\b"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,64}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{34}\b"),
    "a Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    "a Slack token": re.compile(r"\bxox[abeprs]-[0-9]{8,14}-[A-Za-z0-9-]{16,}"),
    "a Stripe key": re.compile(r"\b[rs]k_live_[A-Za-z0-9]{20,}\b"),
    "an OpenAI key": re.compile(r"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{16,}T3BlbkFJ[A-Za-z0-9_-]{16,}"),
    "an Anthropic key": re.compile(r"\bsk-ant-[a-z]+[0-9]{2}-[A-Za-z0-9_-]{80,}"),
    "an AWS secret key": re.compile(r"(?i:aws_?secret_?(?:access_?)?key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"),
    "a key of Azure Storage": re.compile(r"\bAccountKey=[A-Za-z0-9+/]{86}=="),
    "a signed address of Azure": re.compile(r"[?&]sig=[A-Za-z0-9%+/]{40,80}(?:%3[dD]|=)"),
    "a Weights & Biases key": re.compile(r"(?i:wandb)[^\n]{0,24}?(?i:key)[\"']?\s*[=:]\s*[\"']?[0-9a-f]{40}\b"),
    "a PyPI token": re.compile(r"\bpypi-AgEI[A-Za-z0-9_-]{50,}"),
    "an npm token": re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"),
    "an address of a Slack hook": re.compile(r"\bhooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,}"),
    "a signed web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{30,}"),
    "a key in base64": re.compile(r"\bLS0tLS1CRUdJTi[A-Za-z0-9+/]{0,24}(?:UFJJVkFURSBLRVkt|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW)[A-Za-z0-9+/]{40}"),
    "an NVIDIA key": re.compile(r"\bnvapi-[A-Za-z0-9_-]{60,72}\b"),
    "a Groq key": re.compile(r"\bgsk_[A-Za-z0-9]{52}\b"),
    "a Databricks token": re.compile(r"\bdapi[0-9a-f]{32}\b"),
    "a SendGrid key": re.compile(r"\bSG\.[A-Za-z0-9_-]{20,24}\.[A-Za-z0-9_-]{39,50}(?![A-Za-z0-9_-])"),
    "a Vault token": re.compile(r"\bhvs\.[A-Za-z0-9_-]{24,120}"),
    "a password for a machine": re.compile(r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+(\S{8,})"),
    "a registry's login": re.compile(r"\"auths\"[^\x00]{0,200}?\"auth\"\s*:\s*\"[A-Za-z0-9+/=]{12,}\""),
    "a Google client secret": re.compile(r"\bGOCSPX-[A-Za-z0-9_-]{28}(?![A-Za-z0-9_-])"),
    "an age key": re.compile(r"\bAGE-SECRET-KEY-1[A-Z0-9]{58}\b"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\s|\\n)+[A-Za-z0-9+/=:, \\\n\r-]{64,}"),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"<>{}$]{1,64}:[^\s:/@'\"<>{}$]{8,128}@[\w.-]+\.\w"),
}  # fmt: skip
KEY_PATTERNS = tuple(_PATTERNS.values())
"""What credentials look like, wherever they stand."""
_MADE_UP = re.compile(r"EXAMPLE|example|XXXX|xxxx|\*\*\*|password|0{8}|1234567890|user:pass")


def judge_secrets(path: str, text: str) -> Refused | None:
    """The first credential found; examples from manuals are let through."""
    for kind, pattern in _PATTERNS.items():
        for found in pattern.finditer(text):
            said = found[found.lastindex or 0]
            if _MADE_UP.search(said) or _monotone(said):
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
