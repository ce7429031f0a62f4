"""Money, bytes and durations: parsed strictly, printed for people, held as integers.

Money is an integer number of micro-dollars (1 USD = 1,000,000), so sums are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

MICROUSD_PER_USD = 1_000_000
_CENT_MICROUSD = 10_000

_BYTES = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
    "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40, "PI": 2**50,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "PIB": 2**50,
}  # fmt: skip
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_usd(text: str | int | float) -> int:
    """`"$1,234.50"`, `"0.5"`, `12` → micro-dollars. ValueError when negative, too fine, or no number."""
    cleaned = str(text).strip().removeprefix("USD").strip().removeprefix("$").replace(",", "")
    # Digits only: an exponent would let ten characters ask for a number of a thousand million digits.
    if not re.fullmatch(r"-?(\d{1,15}(\.\d{0,15})?|\.\d{1,15})", cleaned, re.ASCII):
        raise ValueError(f"{str(text)[:40]!r} is no amount of dollars; write it like $12.50")
    micros = Decimal(cleaned) * MICROUSD_PER_USD
    if micros < 0:
        raise ValueError(f"{text!r} must be an amount of at least $0")
    if micros != micros.to_integral_value():
        raise ValueError(f"{text!r} is finer than a micro-dollar ($0.000001)")
    return int(micros)


def format_usd(microusd: int, decimals: int | None = None) -> str:
    """Two decimals, or up to six for amounts under a cent: `$1,234.50`, `$0.000042`, `-$3.00`."""
    shown = usd_decimals([microusd]) if decimals is None else decimals
    return f"{'-' if microusd < 0 else ''}${Decimal(abs(microusd)) / MICROUSD_PER_USD:,.{shown}f}"


def exact_usd(microusd: int) -> str:
    """To the last micro-dollar, with at least two decimals: `$3.673`, `$0.10`, `$0.000042`."""
    return format_usd(microusd, usd_decimals([microusd], exact=True))


def usd_decimals(microusds: Iterable[int], *, exact: bool = False, rough: bool = False) -> int:
    """How many decimals one column of amounts is shown with: two, or what the finest of those under a cent takes.

    Nothing is then shown as $0.00 that is not. `exact`: what the finest of all takes, for prices. `rough`: what shows
    two digits of the finest, for estimates.
    """
    fine = [each for each in map(abs, microusds) if each and (exact or each < _CENT_MICROUSD)]
    if rough:
        return min(6, max((8 - len(str(each)) for each in fine), default=2))
    return max([2, *(len(f"{each % MICROUSD_PER_USD:06d}".rstrip("0")) for each in fine)])


def parse_bytes(text: str | int) -> int:
    """`"16GiB"`, `"16Gi"`, `"500MB"`, `1024` → bytes. ValueError on anything else or below 0."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in _BYTES:
        raise ValueError(f"{text!r} is no size; write it like 512MB or 16GiB")
    return int(Decimal(match[1]) * _BYTES[match[2].upper()])


def format_bytes(count: int) -> str:
    """Binary units with one decimal: `4.0 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def format_count(count: float, thing: str) -> str:
    """`1 CPU`, `0.5 CPUs`, `1,024 files`."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {thing}{'' if count == 1 else 's'}"


def parse_duration_s(text: str | int | float) -> int:
    """`"1h30m"`, `"90s"`, `"2d"`, `45` → whole seconds. ValueError on anything else or below 0."""
    cleaned = str(text).strip().lower()
    if re.fullmatch(r"\d+", cleaned):
        return int(cleaned)
    if not re.fullmatch(r"(\d+(?:\.\d+)?[smhdw])+", cleaned):
        raise ValueError(f"{text!r} is no duration; write it like 90s, 30m, 1h30m or 2d")
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", cleaned)
    return int(sum(Decimal(number) * _SECONDS[unit] for number, unit in parts))


def format_duration(seconds: float) -> str:
    """The two largest units: `1h 30m`, `42s`, `3d 4h`."""
    left = round(seconds)
    if left <= 0:
        return "0s"
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def cost_microusd(price_microusd_per_hour: int, seconds: float, count: int = 1) -> int:
    """price × hours × count, rounded up to a whole micro-dollar: a bill never rounds to free."""
    milliseconds = round(seconds * 1000)
    return -(-price_microusd_per_hour * milliseconds * count // 3_600_000)
