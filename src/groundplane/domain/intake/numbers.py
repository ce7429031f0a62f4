"""Quantities in a message: sizes, money, rates, latencies, durations, model sizes. Each with its unit, never without."""
# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,6})?(?![\d,])|\d{1,15}(?:\.\d{1,6})?(?!\d))"
NUMBER = rf"(?:(?<![\w.])(?<!\d,){_DIGITS})"
WORD_NUMBERS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19, "twenty": 20, "twenty-four": 24, "thirty": 30, "thirty-two": 32, "forty": 40,
    "fifty": 50, "sixty": 60, "sixty-four": 64, "hundred": 100, "a hundred": 100, "one hundred": 100,
    "a couple of": 2, "a couple": 2, "couple of": 2, "a pair of": 2, "half a dozen": 6, "a dozen": 12, "two dozen": 24,
    "dozen": 12, "a single": 1, "single": 1, "an": 1, "a": 1,
}  # fmt: skip
_LONGEST_FIRST = sorted(WORD_NUMBERS, key=lambda word: -len(word))
_ARTICLES = ("a", "an", "a single", "single")
COUNT_WORD = r"\b(?:" + "|".join(word for word in _LONGEST_FIRST if word not in _ARTICLES) + r")\b"
# One look behind rules out the middle of every word, for digits and words at once: most places of a text are there.
COUNT = rf"(?:(?<![\w.])(?:(?<!\d,){_DIGITS}|{COUNT_WORD[2:]}))"
APPROXIMATE = {"a couple of", "a couple", "couple of"}


@dataclass(frozen=True, slots=True)
class Found:
    """A fact by its place in the plain text, before it is tied to a sentence."""

    name: str
    value: int | float | str
    start: int
    end: int
    unit: str = ""
    note: str = ""


@cache
def rx(pattern: str) -> re.Pattern[str]:
    """A pattern for plain text in small letters. In it `~` is an optional space."""
    # Spaces never come in runs in plain text, so an optional one can't make a search quadratic.
    return re.compile(pattern.replace("~", " ?"))


def number(text: str) -> Decimal:
    """`1,500`, `2.5`, `a couple of`, `twenty` → the number."""
    cleaned = " ".join(text.split())
    if cleaned in WORD_NUMBERS:
        return Decimal(WORD_NUMBERS[cleaned])
    return Decimal(cleaned.replace(",", ""))


def plain_number(value: Decimal) -> int | float:
    """An int when it is whole."""
    return int(value) if value == value.to_integral_value() else float(value)


def quantities(low: str) -> Iterator[Found]:
    """Every quantity, in no particular order."""
    yield from _sizes(low)
    yield from _money(low)
    yield from _rates(low)
    yield from _data_rates(low)
    yield from _latencies(low)
    yield from _durations(low)
    yield from _parameters(low)
    yield from _things(low)
    yield from _settings(low)


# ---------------------------------------------------------------- sizes

_SIZE_UNITS = {
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    "tib": 2**40, "pib": 2**50, "gi": 2**30, "ti": 2**40, "mi": 2**20,
    "megabyte": 10**6, "gigabyte": 10**9, "terabyte": 10**12, "petabyte": 10**15, "gig": 10**9, "tera": 10**12,
}  # fmt: skip
_SIZE = rx(
    rf"({COUNT}|\bhalf a)[ -]?(kib|mib|gib|tib|pib|kb|mb|gb|tb|pb|gi|ti|mi|gigabyte|terabyte|petabyte"
    r"|megabyte|tera|gig)s?\b(?!~(?:/|per |p)~?s(?:ec)?)(?!ps)"
)
_NEAR = 48
_MEMORY = re.compile(r"v?ram\b|gpu memory|\bmemory\b|\bmem\b|\blimits?\b")
_DISK = re.compile(
    r"\b(?:disks?|ssd|nvme|scratch|volumes?|storage|drive|filesystem|file system|file share|share|pvc)\b"
)
_DATA = re.compile(
    r"\b(?:data|dataset|datasets|corpus|images?|logs?|documents?|files?|parquet|csv|jsonl|training set|bucket|texts?|"
    r"videos?|audio|recordings?|embeddings|records|scans|transcripts|tokens|tickets|pdfs?)\b"
)
_WEIGHTS = re.compile(r"\b(?:weights|checkpoints?|model file|safetensors|artifact)\b")
_SAID_BEFORE = re.compile(
    rf"(?:{_DATA.pattern})(?: set)?(?: (?:that|which))?(?: (?:is|are|was|has|of|comes to|totals?|about|around|roughly|some))* ?[:=(\x7e]? ?$"
)
"""`the data is 2 TB`: what stands right before a size says of what, whatever comes behind."""
_PLACE = re.compile(r"\b(?:on|in|at|from|over|behind|off)\b")
_SIZE_NAMES = ((_MEMORY, "memory"), (_DISK, "disk"), (_WEIGHTS, "model_size"), (_DATA, "dataset_size"))


def _sizes(low: str) -> Iterator[Found]:
    for match in _SIZE.finditer(low):
        many = Decimal("0.5") if match[1].startswith("half") else number(match[1])
        size_bytes = int(many * _SIZE_UNITS[match[2]])
        name = _size_of_what(low, match.start(), match.end())
        note = "" if name != "size" else "the message does not say of what"
        yield Found(name, size_bytes, match.start(), match.end(), "bytes", note)


def _size_of_what(low: str, start: int, end: int) -> str:
    """The nearest noun decides: what follows within a few words, else what stands before."""
    after = re.split(r"[.;\n]|,(?! ?\d)|\band\b", low[end : end + _NEAR])[0]
    before = re.split(r"[.;\n]|,(?! ?\d)|\band\b", low[max(0, start - _NEAR) : start])[-1]
    if re.match(r" ?(?:gpu|vram|a100|h100|card)", after):
        return "accelerator_memory"
    if _SAID_BEFORE.search(before):
        return "dataset_size"
    # `2 TB on a share` lie there: the share is a place, not how large a disk must be.
    place = _PLACE.search(after)
    if place is not None and _DISK.search(after, place.end()) and not _DISK.search(after[: place.start()]):
        return "dataset_size"
    for text, last in ((after, False), (before, True)):
        nearest = [
            ((-found[-1].start() if last else found[0].start()), name)
            for pattern, name in _SIZE_NAMES
            if (found := list(pattern.finditer(text)))
        ]
        if nearest:
            name = min(nearest)[1]
            gpu = name == "memory" and re.search(r"vram|gpu|card|accelerator", text)
            return "accelerator_memory" if gpu else name
    return "size"


# ---------------------------------------------------------------- money

_CURRENCIES = {
    "$": "USD", "us$": "USD", "usd": "USD", "dollars": "USD", "dollar": "USD", "bucks": "USD", "€": "EUR", "eur": "EUR",
    "euro": "EUR", "euros": "EUR", "£": "GBP", "gbp": "GBP", "pounds": "GBP", "chf": "CHF", "¥": "JPY", "jpy": "JPY",
    "inr": "INR", "₹": "INR", "cad": "CAD", "aud": "AUD", "sek": "SEK",
}  # fmt: skip
_AMOUNT = (
    r"\d{1,3}(?:\.\d{3})+(?:,\d{1,2})?(?![\d.])|\d{1,3}(?:,\d{3})+(?:\.\d{1,2})?(?!\d)|\d{1,12}(?:[.,]\d{1,2})?(?!\d)"
)
_SCALE = r"(?:~(k|m|mm|thousand|million|grand)\b)?"
_PERIOD = (
    r"(?:~(?:/|per|a|an|each)~(month|mo|hour|hr|h|day|week|year|quarter)\b|~(monthly|hourly|daily|weekly|yearly)\b)?"
)
_MONEY_BEFORE = rx(rf"(us\$|[$€£¥₹]|\b(?:usd|eur|gbp|chf|cad|aud|inr|jpy|sek)\b)~({_AMOUNT}){_SCALE}{_PERIOD}")
_MONEY_AFTER = rx(
    rf"(?<![\w.,$€£¥₹])({_AMOUNT}){_SCALE}~(€|£|\$|\b(?:usd|us dollars?|dollars?|bucks|eur|euros?|gbp|pounds|chf|cad|aud"
    rf"|inr|jpy|sek)\b){_PERIOD}"
)
_MONEY_BARE = rx(
    rf"\b(?:budget|spend|spending|cost cap|cap|limit)(?:~(?:is|of|:|=|at|around|about|up to|max|under|capped at|limit))*~"
    rf"(?<![\w.,])({_AMOUNT})~(k|m|thousand|million|grand)?\b{_PERIOD}(?!~(?:€|£|\$|eur|usd|dollar|gbp|chf|tpm|rpm|tokens|requests|gpus?|req|%|percent|ms|[kmgtp]i?b?\b|x|v?cpus?|v?cores?|nodes?|vms?|machines?|users?|min|hours?|hrs?|h\b|days?|weeks?|months?|rps|qps|people))"
)
_BUDGET_AFTER = rx(
    rf"(?<![\w.,$€£])({_AMOUNT})~(k|thousand|million|grand) (?:budget|max(?:imum)?|tops|at most|cap)\b(?!~(?:context|tokens?|tpm|rpm|users?|requests?|rows|samples|images|steps))"
)
_GRAND = rx(rf"(?<![\w.,])({_AMOUNT}|{COUNT_WORD})~grand\b")
_SCALES = {"": 1, "k": 1000, "thousand": 1000, "grand": 1000, "m": 10**6, "mm": 10**6, "million": 10**6}
_BUDGET_NEAR = re.compile(
    r"\b(?:budget|cap|capped|limit|max|maximum|at most|up to|no more than|not exceed|under|below|spend)\b"
)


def _money(low: str) -> Iterator[Found]:
    for match in _MONEY_BEFORE.finditer(low):
        yield _amount(low, match.span(), match[2], match[3], match[1], match[4] or match[5])
    for match in _MONEY_AFTER.finditer(low):
        yield _amount(low, match.span(), match[1], match[2], match[3], match[4] or match[5])
    for match in _MONEY_BARE.finditer(low):
        period = match[3] or match[4]
        note = "no currency is given; read as dollars"
        where = match.start(1), match.end(2) if match[2] else match.end(1)
        yield _amount(low, where, match[1], match[2], "$", period, note=note, budget=True)
    for match in _BUDGET_AFTER.finditer(low):
        note = "no currency is given; read as dollars"
        yield _amount(low, match.span(), match[1], match[2], "$", None, note=note, budget=True)
    for match in _GRAND.finditer(low):
        if match[1] in WORD_NUMBERS:
            value = WORD_NUMBERS[match[1]] * 10**9
            yield Found(
                "budget", value, match.start(), match.end(), "microusd", "no currency is given; read as dollars"
            )


def _amount(
    low: str, where: tuple[int, int], digits: str, scale: str | None, currency: str, period: str | None, *,
    note: str = "", budget: bool = False,
) -> Found:  # fmt: skip
    value = _decimal(digits) * _SCALES[scale or ""]
    code = _CURRENCIES.get(currency.removeprefix("us ").strip(), "USD")
    near = low[max(0, where[0] - 40) : where[0]] + " " + low[where[1] : where[1] + 16]
    name = "budget" if budget or _BUDGET_NEAR.search(near) or not period else "money"
    if re.search(r"\b(?:did (?:\w+ ){0,4}spend|spent|was|were|billed|invoice|bill|charged)\b", near) and not budget:
        name = "money"
    if period:
        note = f"{note}; " * bool(note) + f"per {_period(period)}"
    if code == "USD":
        return Found(name, int(value * 10**6), where[0], where[1], "microusd", note)
    return Found(name, plain_number(value), where[0], where[1], code, note)


def _decimal(digits: str) -> Decimal:
    """`5.000` and `5,000` are five thousand; `5,50` and `5.50` five and a half."""
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+(?:,\d{1,2})?", digits):
        return Decimal(digits.replace(".", "").replace(",", "."))
    if re.fullmatch(r"\d+,\d{1,2}", digits):
        return Decimal(digits.replace(",", "."))
    return Decimal(digits.replace(",", ""))


def _period(word: str) -> str:
    return {"mo": "month", "hr": "hour", "h": "hour", "daily": "day"}.get(word, word.removesuffix("ly"))


# ---------------------------------------------------------------- rates and latencies

_MINUTE, _SECOND = r"(?:/|per|a|p)~(?:minute|min|mn|m)\b", r"(?:/|per|a|p)~(?:second|sec|s)\b"
_DAY = r"(?:/|per|a)~(?:day|d)\b|daily\b"
_K = r"~(k|m|thousand|million)?"
_REQUESTS = r"(?:requests?|reqs?|calls|queries|messages|prompts|inferences|predictions)"
_RATES = (
    (rx(rf"({COUNT}){_K}~-?tpm\b|({NUMBER}){_K}~tok(?:en)?s?~{_MINUTE}"), "tokens_per_minute", "tokens/min"),
    (rx(rf"\btpm(?:~(?:limit|quota|of|is|:|=|at)){{1,3}}~({NUMBER}){_K}\b()()"), "tokens_per_minute", "tokens/min"),
    (rx(rf"\btpm~(?:limit~|quota~)?from~{NUMBER}~(?:k|m)?~to~({NUMBER}){_K}\b()()"), "tokens_per_minute", "tokens/min"),
    (rx(rf"({COUNT}){_K}~rpm\b|({COUNT}){_K}~{_REQUESTS}~{_MINUTE}"), "requests_per_minute", "requests/min"),
    (rx(rf"({COUNT}){_K}~(?:rps|qps)\b|({COUNT}){_K}~{_REQUESTS}~{_SECOND}"), "requests_per_second", "requests/s"),
    (rx(rf"({COUNT}){_K}~(?:{_REQUESTS})~(?:{_DAY})()()"), "requests_per_day", "requests/day"),
    (rx(rf"({NUMBER}){_K}~(?:tps\b|tok(?:en)?s?~{_SECOND})()()"), "tokens_per_second", "tokens/s"),
    (rx(rf"({COUNT}){_K}~(?:concurrent|simultaneous|parallel) (?:users?|requests?|sessions?|connections?)()()"), "concurrency", "at once"),
    (rx(rf"({COUNT}){_K}~(?:daily |active |internal |external |end )*users\b()()"), "users", "users"),
    (rx(rf"({NUMBER})%~(?:uptime|availability|sla|slo)()()()"), "availability", "%"),
    (rx(rf"\b(?:uptime|availability|sla|slo)~(?:of|is|:|at least)*~({NUMBER})%()()()"), "availability", "%"),
)  # fmt: skip


def _rates(low: str) -> Iterator[Found]:
    for pattern, name, unit in _RATES:
        for match in pattern.finditer(low):
            digits, scale = (match[1], match[2]) if match[1] else (match[3], match[4])
            value = number(digits) * _SCALES[scale or ""]
            yield Found(name, plain_number(value), match.start(), match.end(), unit)


_DATA_RATE = rx(
    rf"({NUMBER})~(?:(k|m|g)i?b(?:ytes?)?~(?:/~s(?:ec(?:ond)?)?|per sec(?:ond)?)\b|(m|g)bps\b|(m|g)bit~/~s\b)"
)
_READS = re.compile(
    r"\b(?:data|dataset|share|nfs|nas|storage|disks?|blob|bucket|lustre|filesystem|read|reads|throughput)\b"
)


def _data_rates(low: str) -> Iterator[Found]:
    """How fast data can be read, in bytes a second. `mbps` is bits, and a network's unless storage stands near."""
    for match in _DATA_RATE.finditer(low):
        bits = match[3] or match[4]
        if bits and not _READS.search(low, max(0, match.start() - 40), match.end() + 24):
            continue
        scale = {"k": 10**3, "m": 10**6, "g": 10**9}[match[2] or bits]
        rate = int(number(match[1]) * scale / (8 if bits else 1))
        note = "read as bits a second" if bits else ""
        yield Found("data_rate", rate, match.start(), match.end(), "bytes/s", note)


_LATENCY = rx(
    r"\b(p50|p90|p95|p99|p999|p99\.9|median|average|95th percentile|99th percentile)"
    r"[ a-z]{0,24}(?:~(?:<|=|:|of|under|below|less than|at most|within|around|about|is|at))*~"
    rf"({NUMBER})~(ms|milliseconds?|s|secs?|seconds?)\b"
)
_LATENCY_BARE = rx(
    r"\b(?:latency|ttft|response time|respond|answer|answers)[ a-z]{0,16}(?:~(?:<|:|=|of|under|below|less than|at most|within|in))*~"
    rf"({NUMBER})~(ms|milliseconds?|s|secs?|seconds?)\b|(?:<|under|below|less than|sub-?)~({NUMBER})~(ms|milliseconds?)\b"
)
_PERCENTILES = {"median": "p50", "95th percentile": "p95", "99th percentile": "p99", "p999": "p99.9"}


_LATENCY_CHANGE = rx(
    rf"\bfrom (?:about |around |~)?({NUMBER})~(ms|milliseconds?|s|secs?|seconds?) to (?:about |around |over )?({NUMBER})~(ms|milliseconds?|s|secs?|seconds?)\b"
)


def _latencies(low: str) -> Iterator[Found]:
    for match in _LATENCY_CHANGE.finditer(low):
        before, after = _milliseconds(match[1], match[2]), _milliseconds(match[3], match[4])
        yield Found("latency_change", f"{before} ms to {after} ms", match.start(), match.end())
    taken: set[int] = set()
    for match in _LATENCY.finditer(low):
        taken.add(match.end())
        percentile = _PERCENTILES.get(match[1], match[1])
        yield Found("latency", _milliseconds(match[2], match[3]), match.start(), match.end(), "ms", percentile)
    for match in _LATENCY_BARE.finditer(low):
        if match.end() not in taken:
            digits, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
            yield Found(
                "latency", _milliseconds(digits, unit), match.start(), match.end(), "ms", "no percentile is given"
            )


def _milliseconds(digits: str, unit: str) -> int | float:
    return plain_number(number(digits) * (1 if unit.startswith("m") else 1000))


# ---------------------------------------------------------------- durations

_UNIT_S = {"minute": 60, "min": 60, "hour": 3600, "hr": 3600, "h": 3600, "day": 86400, "d": 86400, "week": 604800, "wk": 604800, "fortnight": 1209600, "month": 2592000}  # fmt: skip
FINISH = r"\b(?:finish(?:es|ed)?|complete[sd]?|done|over|trained|run through)"
"""Words that end work: what follows is about the result, not about when machines must be there."""
_DURATION = rx(
    rf"(?:\x7e|\b(?:for~:?|by|takes?|lasts?|runs?|running|run of|about|around|roughly|approx\.?|duration~:?|over|another|next|up to))"
    rf"~(?:the |another |at least |about |around |roughly |next )*({COUNT}|\ba|\ban)[ -]?(minutes?|mins?|hours?|hrs?|h|days?|d|weeks?|wks?|fortnights?|months?)\b"
    rf"|({COUNT})[ -]?(minute|min|hour|hr|h|day|week|month)[ -](?:long |training |fine-?tuning |batch )?(?:jobs?|runs?|training|experiment|pilot|poc|sprint|project|window)\b"
    rf"|(?:{FINISH}) (?:it |this |that )?(?:in|within|under|in under|in at most) ({COUNT}|an?)[ -]?(hours?|hrs?|h|minutes?|mins?)\b"
    rf"|(?<=, )({COUNT})[ -]?(hours?|hrs?|h|days?|weeks?|wks?|months?)(?= ?(?:[,.;)\n]|$))"
    rf"|({COUNT})~(days?|weeks?|months?)(?= (?:from|starting|as of|beginning) (?!now|today))"
)


_EACH = re.compile(
    r"\b(?:each|every one|one of them|a single one|per (?:item|file|sample|image|prompt|call|request))\b[^.;\n]*$"
)


def _durations(low: str) -> Iterator[Found]:
    for match in _DURATION.finditer(low):
        digits, unit = next((match[at], match[at + 1]) for at in (1, 3, 5, 7, 9) if match[at])
        if match[5] and digits in ("a", "an"):
            digits = "one"
        seconds = int(number(digits) * _UNIT_S[unit if unit in _UNIT_S else unit.removesuffix("s")])
        if 0 < seconds < 10**10:
            name = "time_each" if _EACH.search(low, max(0, match.start() - 24), match.start()) else "duration"
            yield Found(name, seconds, match.start(), match.end(), "s")


# ---------------------------------------------------------------- models' sizes, things, settings

_PARAMETERS = rx(
    rf"({NUMBER})[ -]?(b|bn|billion|m|million|t|trillion)[ -]?param(?:eter)?s?\b"
    rf"|({NUMBER})(b)\b(?![ -]?(?:tokens?|rows|images|requests|users|dollars|usd|records|events))"
    rf"|\b({COUNT_WORD})[ -]billion[ -]param(?:eter)?s?\b"
    r"|(?<=[a-z]-)(\d{1,3}(?:\.\d)?)b\b"
)
_SCALE_OF = {"b": 1.0, "bn": 1.0, "billion": 1.0, "m": 0.001, "million": 0.001, "t": 1000.0, "trillion": 1000.0}


def _parameters(low: str) -> Iterator[Found]:
    for match in _PARAMETERS.finditer(low):
        if low[max(0, match.start() - 1) : match.start()] in {"$", "€", "£"}:
            continue
        digits = match[1] or match[3] or match[5] or match[6]
        billions = float(number(digits)) * _SCALE_OF[match[2] or "b"]
        yield Found("parameters", round(billions, 6), match.start(), match.end(), "billion")


_THINGS = rx(
    rf"({COUNT})~(k|m|b|t|bn|mio|million|billion|trillion|thousand)?~(?:labell?ed |annotated |training |medical |support |chat |x-ray |new |raw |text |product |customer |user |high-res |satellite |code )*"
    r"(images?|documents?|docs|rows|records|samples|examples|videos?|tokens|pairs|conversations|tickets|pdfs?|pages|photos|scans|transcripts|sentences|reviews|articles|emails|hours of (?:audio|video|speech))\b"
    r"(?!~(?:/|per|a )~?(?:s|m|sec|min|day|hour)|~per )"
)
_THING_SCALE = {"": 1, "k": 10**3, "thousand": 10**3, "m": 10**6, "mio": 10**6, "million": 10**6, "b": 10**9, "bn": 10**9, "billion": 10**9, "t": 10**12, "trillion": 10**12}  # fmt: skip


_PER_CALL = re.compile(r"\b(?:prompts?|answers?|inputs?|outputs?|completions?|context|sequences?)\b[^.;\n]*$")


def _things(low: str) -> Iterator[Found]:
    for match in _THINGS.finditer(low):
        if match[3] == "tokens" and _PER_CALL.search(low, max(0, match.start() - 16), match.start()):
            continue  # "prompts of 1.5k tokens" are no data set.
        value = number(match[1]) * _THING_SCALE[match[2] or ""]
        yield Found("dataset_items", plain_number(value), match.start(), match.end(), " ".join(match[3].split()))


_SETTINGS = (
    (rx(rf"({COUNT})~epochs?\b|\bepochs?~[:=]~({NUMBER})"), "epochs", ""),
    (rx(rf"\b(?:global |micro )?batch[ -]?size(?:~(?:of|is|:|=))*~({NUMBER})()"), "batch_size", ""),
    (rx(rf"\b(?:sequence|seq|context)(?:[ -]?(?:length|len|window|size))?(?:~(?:of|is|:|=))*~({NUMBER}k?)\b()"), "context", "tokens"),
    (rx(rf"({NUMBER}k?)~(?:tokens? )?(?:context|sequence length|seq len)\b()"), "context", "tokens"),
    (rx(rf"({COUNT})~v?-?(?:cpus?|cores|vcpus?|vcores?)\b()"), "cpus", ""),
    (rx(rf"({COUNT})~replicas?\b()"), "replicas", ""),
)  # fmt: skip


def _settings(low: str) -> Iterator[Found]:
    for pattern, name, unit in _SETTINGS:
        for match in pattern.finditer(low):
            digits = match[1] or match[2]
            thousands = digits.endswith("k")
            value = number(digits.removesuffix("k")) * (1024 if thousands else 1)
            note = f"{digits} read as {value}" if thousands else ""
            yield Found(name, plain_number(value), match.start(), match.end(), unit, note)
