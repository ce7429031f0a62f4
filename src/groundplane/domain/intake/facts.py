"""Every fact by name: what it is called for people, how it is shown, and how an answer to it is read."""
# ruff: noqa: E501 - tables of words and questions read better with one row a line

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation

from groundplane.domain.intake import Fact
from groundplane.domain.intake.numbers import plain_number
from groundplane.units import format_bytes, format_duration, format_usd, parse_bytes, parse_duration_s, parse_usd

Value = int | float | str
ANSWER_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One fact: its words for people, its unit, how an answer is written, and how it is read (ValueError if wrong)."""

    label: str
    unit: str
    example: str
    read: Callable[[str], Value]


def _text(text: str) -> Value:
    cleaned = " ".join(text.split())
    if not cleaned:
        raise ValueError("is empty")
    if len(cleaned) > ANSWER_MAX:
        raise ValueError(f"has {len(cleaned)} characters; {ANSWER_MAX} is the most")
    if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in cleaned):
        raise ValueError("holds a control character")
    return cleaned


def _number(text: str) -> Value:
    try:
        value = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        raise ValueError(f"{text!r} is no number") from None
    if not value.is_finite() or value <= 0 or value > 10**12:
        raise ValueError(f"{text!r} must be above 0 and at most 1,000,000,000,000")
    return plain_number(value)


def _count(text: str) -> Value:
    value = _number(text)
    if not isinstance(value, int):
        raise ValueError(f"{text!r} must be a whole number")
    return value


def _count_or_zero(text: str) -> Value:
    return 0 if text.strip() == "0" else _count(text)


def _size(text: str) -> Value:
    if text.strip().replace(",", "").replace(".", "").isdigit():
        raise ValueError(f"{text!r} has no unit")
    return parse_bytes(text)


def _rate(text: str) -> Value:
    return _size(text.strip().removesuffix("/s"))


def _money(text: str) -> Value:
    value = parse_usd(text)
    if value == 0:
        raise ValueError("must be above $0")
    return value


def _day(text: str) -> Value:
    cleaned = text.strip()
    try:
        datetime.fromisoformat(cleaned)
    except ValueError:
        raise ValueError(f"{text!r} is no date; write it like 2026-12-01") from None
    return cleaned


def _choice(*choices: str) -> Callable[[str], Value]:
    def read(text: str) -> Value:
        cleaned = text.strip().lower()
        if cleaned not in choices:
            raise ValueError(f"{text!r} must be one of {', '.join(choices)}")
        return cleaned

    return read


def _matching(pattern: str, meaning: str) -> Callable[[str], Value]:
    def read(text: str) -> Value:
        value = str(_text(text))
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"{text!r} is not {meaning}")
        return value

    return read


def _end(text: str) -> Value:
    """A day or an RFC 3339 time."""
    return _day(text)


_PROJECT = _matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a name of lowercase letters, digits and -, at most 63")
_PERSON = _matching(r".{1,128}", "a name of at most 128 characters")

FACTS: dict[str, Known] = {
    name: Known(label=label, unit=unit, example=example, read=read)
    for name, label, unit, example, read in (
        ("workload", "train or serve", "", "fine-tuning", _choice("fine-tuning", "training", "batch-inference", "serving")),
        ("name", "name", "", "tiny-lm", _PROJECT),
        ("project", "project", "", "default", _PROJECT),
        ("owner", "owner", "", "ana", _PERSON),
        ("team", "team", "", "vision", _text),
        ("cost_center", "cost centre", "", "research", _PERSON),
        ("end_date", "end date", "date", "2026-12-01", _end),
        ("start_date", "start", "date", "2026-12-01", _day),
        ("deadline", "needed by", "date", "2026-12-01", _day),
        ("finish_by", "result by", "date", "2026-12-01", _day),
        ("date", "date", "date", "2026-12-01", _day),
        ("duration", "duration", "s", "8h", parse_duration_s),
        ("budget", "budget", "microusd", "$500", _money),
        ("time_each", "how long each takes", "s", "40m", parse_duration_s),
        ("impossible", "what can't be meant", "", "31 February", _text),
        ("money", "amount of money", "microusd", "$500", _money),
        ("command", "command", "", "python train.py", _text),
        ("machines", "machines", "", "2", _count),
        ("accelerators", "GPUs in all", "", "8", _count_or_zero),
        ("accelerators_per_machine", "GPUs per machine", "", "8", _count_or_zero),
        ("accelerator", "GPU", "", "a100-80gb", _text),
        ("accelerator_memory", "GPU memory", "bytes", "80GB", _size),
        ("instance_type", "instance type", "", "Standard_ND96asr_v4", _text),
        ("cpus", "CPU cores per machine", "", "8", _number),
        ("memory", "memory per machine", "bytes", "64GiB", _size),
        ("disk", "disk per machine", "bytes", "500GB", _size),
        ("pool", "pool", "", "local", _PROJECT),
        ("cloud", "cloud", "", "azure", _text),
        ("region", "region", "", "eastus2", _text),
        ("model", "model", "", "llama-3.1-8b", _text),
        ("parameters", "model size", "billion parameters", "7", _number),
        ("method", "method", "", "lora", _choice("full", "lora", "qlora", "dpo", "rlhf", "pretraining")),
        ("precision", "precision", "", "bf16", _choice("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4")),
        ("dataset_size", "data", "bytes", "500GB", _size),
        ("dataset_items", "data items", "", "3000000", _count),
        ("data_location", "where the data is", "", "s3://bucket/path", _text),
        ("data_rate", "data is read at", "bytes/s", "60MB/s", _rate),
        ("quota", "quota", "vCPU", "96 of 96 used", _text),
        ("optimizer", "optimizer", "", "adam", _choice("adam", "adam-8bit", "adafactor", "sgd", "sgd-momentum")),
        ("epochs", "epochs", "", "3", _number),
        ("checkpoint_every", "time between checkpoints", "s", "30m", parse_duration_s),
        ("checkpoint_dir", "where checkpoints go", "", "/mnt/ckpt", _text),
        ("model_size", "size of the weights", "bytes", "15GB", _size),
        ("size", "size", "bytes", "2TB", _size),
        ("context", "context", "tokens", "4096", _count),
        ("tokens_per_minute", "tokens per minute", "tokens/min", "80000", _count),
        ("requests_per_minute", "requests per minute", "requests/min", "60", _count),
        ("requests_per_second", "requests per second", "requests/s", "50", _number),
        ("latency", "latency", "ms", "200", _number),
        ("price_prompt", "price per million prompt tokens", "microusd", "$0.10", parse_usd),
        ("price_completion", "price per million completion tokens", "microusd", "$0.40", parse_usd),
        ("visibility", "who may reach it", "", "private", _choice("private", "public")),
        ("auth", "authentication", "", "api key", _text),
        ("compliance", "rules for the data", "", "none", _text),
        ("checkpoint", "checkpoints", "", "yes", _choice("yes", "no")),
        ("object", "which one", "", "run-01jd3k9x7q2m", _text),
        ("people", "who", "", "ana, ben", _text),
        ("role", "role", "", "member", _choice("operator", "lead", "member", "finance", "security", "viewer", "caller")),
        ("metrics", "what to watch", "", "tokens per minute, p95 latency", _text),
        ("threshold", "when to alert", "", "80% of 80K TPM", _text),
        ("notify", "whom to tell", "", "#ml-ops", _text),
        ("since", "since when", "", "09:30", _text),
        ("error", "error message", "", "CUDA out of memory", _text),
        ("period", "period", "", "last month", _text),
        ("group_by", "grouped by", "", "project", _choice("project", "model", "run", "key", "owner", "cost_center")),
        ("keep_data", "keep the data", "", "yes", _choice("yes", "no")),
        ("purpose", "what is meant", "", "8 GPUs to fine-tune a 7B model", _text),
    )
}  # fmt: skip
"""What may be asked and answered. Facts outside this table are shown as they were read, and never asked for."""


def known_fact(name: str) -> Known:
    """The row of a fact; one that has none is shown as text under its own name."""
    return FACTS.get(name, Known(label=name.replace("_", " "), unit="", example="TEXT", read=_text))


def shown(fact: Fact) -> str:
    """A fact's value for people: `2.0 TB`, `$5,000.00`, `8`, `2026-11-25 (Wed)`."""
    return shown_value(fact.value, fact.unit)


def shown_value(value: Value, unit: str) -> str:
    """A value with its unit for people."""
    match unit:
        case "microusd" if isinstance(value, int):
            return format_usd(value)
        case "bytes" if isinstance(value, int):
            return _decimal_size(value)
        case "bytes/s" if isinstance(value, int):
            return f"{_decimal_size(value)}/s"
        case "s" if isinstance(value, int | float):
            return format_duration(value)
        case "date" if isinstance(value, str):
            return f"{value} ({datetime.fromisoformat(value):%a})"
        case _:
            figure = (
                f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
            )
            return f"{figure} {unit}".rstrip()


def _decimal_size(size_bytes: int) -> str:
    """What people write in TB and GB comes back as they wrote it; binary sizes stay binary."""
    for unit, factor in (("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size_bytes >= factor and size_bytes % (factor // 1000) == 0:
            return f"{size_bytes / factor:g} {unit}"
    return format_bytes(size_bytes)
