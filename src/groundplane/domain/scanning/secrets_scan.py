"""Credentials in a model's text files. They are named by kind and place, and never repeated.

Sources: the issuers' documented prefixes and lengths: GitHub "Behind GitHub's new authentication token formats" (2021),
AWS IAM "Unique identifiers", Hugging Face "User access tokens", Google Cloud "API keys", Slack "Token types", Stripe
"API keys", GitLab "Token overview", OpenAI and Anthropic consoles, RFC 7468 (PEM), RFC 4880 (armor), RFC 7519 (JWT),
Azure Storage "Configure connection strings", PyPI, npm, Databricks, SendGrid, NVIDIA, HashiCorp "Tokens", Docker's config.json,
Telegram, Twilio, DigitalOcean, Shopify, Doppler, Entra ID "client secrets".
"""

# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import re
from collections.abc import Iterator

from groundplane.errors import Refused

_PATTERNS: dict[str, tuple[re.Pattern[str], str]] = {
    "an AWS access key id": (re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"), "AKIA ASIA"),
    "a GitHub token": (re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{82})\b"), "gh github_pat_"),
    "a GitLab token": (re.compile(r"\bglpat-[A-Za-z0-9_-]{20,64}\b"), "glpat-"),
    "a Hugging Face token": (re.compile(r"\bhf_[A-Za-z0-9]{34}\b"), "hf_"),
    "a Google API key": (re.compile(r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"), "AIza"),
    "a Slack token": (re.compile(r"\bxox[abeprs]-[0-9]{8,14}-[A-Za-z0-9-]{16,}"), "xox"),
    "a Stripe key": (re.compile(r"\b[rs]k_live_[A-Za-z0-9]{20,}\b"), "k_live_"),
    "an OpenAI key": (re.compile(r"(?<![A-Za-z0-9_-])sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{16,}T3BlbkFJ[A-Za-z0-9_-]{16,}"), "T3BlbkFJ"),
    "an older OpenAI key": (re.compile(r"(?<![A-Za-z0-9_-])sk-(?:[A-Za-z0-9]{48}|[0-9a-f]{32})(?![A-Za-z0-9_-])"), "sk-"),
    "an Anthropic key": (re.compile(r"\bsk-ant-[a-z]+[0-9]{2}-[A-Za-z0-9_-]{80,}"), "sk-ant-"),
    "an AWS secret key": (re.compile(r"(?i:aws_?secret_?(?:access_?)?key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"), "aws AWS Aws"),
    "a key of Azure Storage": (re.compile(r"\bAccountKey=[A-Za-z0-9+/]{86}=="), "AccountKey="),
    "a signed address of Azure": (re.compile(r"[?&]sig=[A-Za-z0-9%+/]{40,80}(?:%3[dD]|=)"), "sig="),
    "a Weights & Biases key": (re.compile(r"(?i:wandb)[^\n]{0,24}?(?i:key)[\"']?\s*[=:]\s*[\"']?[0-9a-f]{40}\b"), "wandb WANDB Wandb"),
    "a PyPI token": (re.compile(r"\bpypi-AgEI[A-Za-z0-9_-]{50,}"), "pypi-AgEI"),
    "an npm token": (re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"), "npm_"),
    "an address of a Slack hook": (re.compile(r"\bhooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,}"), "hooks.slack.com"),
    "a signed web token": (re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{30,}"), "eyJ"),
    "a key in base64": (re.compile(r"\bLS0tLS1CRUdJTi[A-Za-z0-9+/]{0,24}(?:UFJJVkFURSBLRVkt|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW)[A-Za-z0-9+/]{40}"), "LS0tLS1CRUdJTi"),
    "an NVIDIA key": (re.compile(r"\bnvapi-[A-Za-z0-9_-]{60,72}\b"), "nvapi-"),
    "a Groq key": (re.compile(r"\bgsk_[A-Za-z0-9]{52}\b"), "gsk_"),
    "a Databricks token": (re.compile(r"\bdapi[0-9a-f]{32}\b"), "dapi"),
    "a SendGrid key": (re.compile(r"\bSG\.[A-Za-z0-9_-]{20,24}\.[A-Za-z0-9_-]{39,50}(?![A-Za-z0-9_-])"), "SG."),
    "a Vault token": (re.compile(r"\bhvs\.[A-Za-z0-9_-]{24,120}"), "hvs."),
    "a password for a machine": (re.compile(r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+(\S{8,})"), "machine"),
    "a registry's login": (re.compile(r"\"auth\"\s*:\s*\"[A-Za-z0-9+/=]{12,}\""), "auths"),
    "a Google client secret": (re.compile(r"\bGOCSPX-[A-Za-z0-9_-]{28}(?![A-Za-z0-9_-])"), "GOCSPX-"),
    "an age key": (re.compile(r"\bAGE-SECRET-KEY-1[A-Z0-9]{58}\b"), "AGE-SECRET-KEY-1"),
    "a Telegram bot's token": (re.compile(r"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"), ":AA"),
    "a Twilio key": (re.compile(r"\bSK[0-9a-f]{32}\b"), "SK"),
    "a Replicate token": (re.compile(r"\br8_[A-Za-z0-9]{37}\b"), "r8_"),
    "a DigitalOcean token": (re.compile(r"\bdo[opr]_v1_[0-9a-f]{64}\b"), "_v1_"),
    "an xAI key": (re.compile(r"\bxai-[A-Za-z0-9]{80}\b"), "xai-"),
    "a Perplexity key": (re.compile(r"\bpplx-[A-Za-z0-9]{48}\b"), "pplx-"),
    "an OpenRouter key": (re.compile(r"\bsk-or-v1-[0-9a-f]{64}\b"), "sk-or-v1-"),
    "a LangSmith key": (re.compile(r"\blsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}\b"), "lsv2_"),
    "a Shopify token": (re.compile(r"\bshp(?:at|ca|pa|ss)_[0-9a-f]{32}\b"), "shp"),
    "a Doppler token": (re.compile(r"\bdp\.(?:pt|st|ct|sa)\.[A-Za-z0-9]{40,44}\b"), "dp."),
    "a client secret of Azure": (re.compile(r"(?<![A-Za-z0-9_~.-])[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}(?![A-Za-z0-9_~.-])"), "Q~"),
    "a key in a setting": (re.compile(r"\b[A-Z0-9_]+_(?:API_KEY|SECRET_KEY|ACCESS_TOKEN|AUTH_TOKEN|SECRET)[\"']?\s*[=:]\s*[\"']?(?=[A-Za-z_-]*[0-9])(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]{24,128}(?![\w.($-])"), "_KEY _TOKEN _SECRET"),
    "a password in a setting": (re.compile(r"(?<![\w-])(?i:[\w-]*password)\\?[\"']?\s*[=:]\s*\\?[\"'](?=[^\"'\s]*[0-9])(?=[^\"'\s]*[a-z])(?=[^\"'\s]*[A-Z])([A-Za-z0-9!#%&*+,./:;?@^_~-]{12,64})\\?[\"']"), "password Password PASSWORD"),
    "a private key": (re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\s|\\+n)+[A-Za-z0-9+/=:, \\\n\r-]{64,}"), "PRIVATE"),
    "a password in an address": (re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"<>{}$]{1,64}:[^\s:/@'\"<>{}$]{8,128}@[\w.-]+\.\w"), "://"),
}  # fmt: skip
"""What it is → how it is written, and words of which one is in it: looking for those first is many times faster."""
KEY_PATTERNS = tuple(pattern for pattern, _ in _PATTERNS.values())
"""What credentials look like, wherever they stand."""
_IN_SETTINGS = {
    "a key among settings": (re.compile(r"(?<![\w-])(?i:api_?key|secret_?key|access_?token|auth_?token|client_secret)[\"']?\s*[=:]\s*[\"']?((?=[A-Za-z_-]*[0-9])(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]{24,128})(?![\w.($-])"), "key Key KEY token TOKEN Token secret"),
    "a password among settings": (re.compile(r"(?<![\w-])(?i:password|passwd)[\"']?\s*[=:]\s*[\"']((?=[^\"'\s]*[0-9])(?=[^\"'\s]*[a-z])[A-Za-z0-9!#%&*+,./:;?@^_~-]{10,64})[\"']"), "password passwd PASSWORD Password"),
}  # fmt: skip
"""What would be too often a name in prose and code, and is a credential in a configuration."""
_MADE_UP = re.compile(r"XXXX|xxxx|\*\*\*|password|0{8}|1234567890|user:pass")
_FROM_MANUALS = re.compile(r"EXAMPLE|example")
_PROSE = (".md", ".txt", ".rst", ".py", ".ipynb", ".html", ".tex")


def judge_secrets(path: str, text: str) -> Refused | None:
    """The first credential found; in prose and code, those that manuals show are let through."""
    prose = path.lower().endswith(_PROSE)
    for kind, at, shown in _secrets(text, _PATTERNS if prose else _PATTERNS | _IN_SETTINGS):
        if shown and prose:
            continue
        return Refused(
            rule="no-secrets",
            need="files without credentials: a version is read by others, for ever",
            have=f"{path} holds {kind} on line {text.count(chr(10), 0, at) + 1}",
            hint="revoke it where it was issued, take it out of the file, then register",
        )
    return None


def sample_secret(text: str) -> str:
    """Which credential the text shows as manuals do; "" when none."""
    return next((kind for kind, _, shown in _secrets(text, _PATTERNS) if shown), "")


def _secrets(text: str, patterns: dict[str, tuple[re.Pattern[str], str]]) -> Iterator[tuple[str, int, bool]]:
    """What each credential is, where it stands, and whether a manual shows it; placeholders are none."""
    for kind, (pattern, words) in patterns.items():
        if not any(word in text for word in words.split()):
            continue
        for found in pattern.finditer(text):
            said = found[found.lastindex or 0]
            if _MADE_UP.search(said) or _monotone(said):
                continue
            yield kind, found.start(), _FROM_MANUALS.search(said) is not None


def _monotone(text: str) -> bool:
    """Placeholders repeat one letter."""
    tail = text[-16:]
    return len(set(tail)) <= 3
