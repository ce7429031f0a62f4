"""Dates in a message, relative to the day it is read: by Wednesday, EOD Friday, in 3 days, 12/01, Q3.

A weekday is the next one that is still ahead. A date that can be read in two ways is read as one and says so.
"""
# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta

from groundplane.domain.intake.numbers import COUNT, FINISH, Found, number, rx

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY_WORDS = {name: at for at, name in enumerate(_DAYS)} | {
    "mon": 0, "tue": 1, "tues": 1, "wed": 2, "weds": 2, "thu": 3, "thur": 3, "thurs": 3, "fri": 4, "sat": 5, "sun": 6,
}  # fmt: skip
_MONTHS = {name.lower(): at for at, name in enumerate(calendar.month_name) if name} | {
    name.lower(): at for at, name in enumerate(calendar.month_abbr) if name
} | {"sept": 9}  # fmt: skip
_WEEKDAY = "|".join(sorted(_DAY_WORDS, key=lambda word: -len(word)))
_MONTH = "|".join(sorted(_MONTHS, key=lambda word: -len(word)))

_ROLES = (
    ("deadline", r"\b(?:by|before|due|no later than|not later than|latest|at the latest|deadline|needed|need it|eod|cob|eob|asap|in time for|ready for|ready|until we present|must be (?:ready|done|live))\b"),
    ("end_date", r"\bto ?:|\b(?:until|untill|unitl|till|til|through|ends?|ending|end date|expires?|expiry|valid to|stop(?:s|ped)? on|keep (?:it|them)?|tear (?:it |them )?down|shut (?:it |them )?down|delete (?:it|them))\b"),
    ("start_date", r"\b(?:from|starting|starts?|begin(?:s|ning)?|as of|kick(?:s|ing)? off|kick-?off|launch(?:es)?|go(?:es)? live)\b"),
)  # fmt: skip
_RESULT = re.compile(
    rf"(?:{FINISH}|\b(?:results?|deliver(?:y|ed|able|ables)?|trained model|paper|submission)\b)"
    r"(?: (?:is|are|it|this|that|must|has to|have to|should|be|needed|need|due|ready|all|training|deadline))*"
    r" ?(?:by|before|until|till|on|for|within|in|no later than|not later than|at the latest|latest|eod|cob|deadline|:)? ?(?:the )?(?:(?:\w+ )?deadline[,:]? ?)?$"
)
_WORK = re.compile(r"train|job|\brun|tun(?:e|ing)|batch|experiment|scor|transcri|label|embed")
"""`can you get this done by Friday` is about machines, `the training is done by Friday` about its result."""
_HAPPENED = re.compile(r"\b(?:since|last|past)(?: the)? $")
_ROLE = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _ROLES))
_BACK = 30

_ISO = rx(r"(?<![\w-])(\d{4})-(\d{1,2})-(\d{1,2})(?![\d-])")
_NUMERIC = rx(r"(?<![\w./-])(\d{1,2})([/.])(\d{1,2})(?:\2(\d{4}|\d{2}))?(?![\w/%]|\.\d)")
_MONTH_DAY = rx(rf"\b({_MONTH})\.? (\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (\d{{4}})\b)?(?!~(?:gpus?|nodes?|vms?|x\b))")
_DAY_MONTH = rx(rf"(?<![\w.])(\d{{1,2}})(?:st|nd|rd|th)?\.?[ -]?(?:of )?({_MONTH})\b\.?(?:(?:,? |-)(\d{{4}})\b)?")
_NAMED = rx(rf"(?:\b(next|this|coming|following) )?\b({_WEEKDAY})\b(?! ?(?:standup|meeting|message))")
_AHEAD = rx(
    rf"\b(?:in|within)~(?:the next |about |around |less than )?({COUNT}|a|an) (business |working )?(days?|weeks?|fortnights?|months?|hours?|hrs?)\b(?:'? time)?"
)
_PERIODS = rx(
    r"\b(?:(today|tonight)|(tomorrow|tmrw|tmr)|(day after tomorrow)|(this week|end of the week|end of week|eow)"
    r"|(next week|end of next week)|(end of the month|end of month|this month|eom|month end|month-end)|(next month|end of next month)"
    r"|(?:(end of|by|in|before) )?q([1-4])(?: ?(\d{4}))?|(end of the quarter|end of quarter|eoq|this quarter)"
    r"|(end of the year|end of year|this year|eoy|year end|year-end))\b"
)


_SHORT = frozenset({"sat", "sun", "mon", "wed", "fri"})
_TO = re.compile(r" ?(?:to|until|till|through|-) ?")
_BEFORE_SHORT = re.compile(r"\b(?:by|on|before|until|till|due|eod|cob|from|and|or) $")


def dates(low: str, now: datetime) -> Iterator[Found]:
    """Every date, as `deadline`, `end_date`, `start_date` or plain `date`. Values are ISO days; `now` is UTC."""
    today = now.date()
    taken: list[tuple[int, int]] = []
    for start, end, day, note in _each(low, today):
        if any(start < other_end and other_start < end for other_start, other_end in taken[-4:]):
            continue
        taken.append((start, end))
        name, begins = _role(low, start, end)
        if len(taken) > 1 and _TO.fullmatch(low, taken[-2][1], start):
            name, begins = "end_date", start  # "from Dec 1 to Dec 21"
        if note.startswith(_OF_WEEK) and name == "start_date":
            day, note = day - timedelta(days=4), note.replace("Friday", "Monday")
        if day < today:
            note = f"{note}; " * bool(note) + "in the past"
        yield Found(name, day.isoformat(), begins, end, "date", note)


def _each(low: str, today: date) -> list[tuple[int, int, date, str]]:
    found = [
        *_written_out(low, today), *_numeric(low, today), *_weekdays(low, today), *_ahead(low, today),
        *_periods(low, today), *_feasts(low, today), *_weeks(low, today), *_month_parts(low, today),
    ]  # fmt: skip
    return sorted(found, key=lambda each: (each[0], -each[1]))


def _role(low: str, start: int, end: int) -> tuple[str, int]:
    """What the date is for: the nearest word before it says, or one right behind it; and where the wording begins."""
    piece = low[max(0, start - _BACK) : start]
    before = re.split(r"[.;\n]", piece)[-1]
    wide = re.split(r"[.;\n]", low[max(0, start - 2 * _BACK) : start])[-1]
    result = _RESULT.search(wide)
    if result is not None and (not result[0].startswith("done") or _WORK.search(low, max(0, start - 2 * _BACK), start)):
        return "finish_by", start - len(wide) + result.start()
    if _HAPPENED.search(before):
        return "date", start
    words = list(_ROLE.finditer(before))
    if words:
        nearest = words[-1]
        return str(nearest.lastgroup), start - len(before) + nearest.start()
    if re.match(r" ?(?:deadline|at the latest|latest|eod|end of day|cob|morning deadline)", low[end : end + 24]):
        return "deadline", start
    if low[start:end].startswith(
        ("in ", "within ", "next week", "this week", "today", "tomorrow", "tonight", "end of", "eo")
    ):
        return "deadline", start
    if re.search(r"\b(?:on|for|this|next|need|want|have)~$".replace("~", " ?"), before):
        return "deadline" if re.search(r"need|want|must|have|deliver|ready|demo|launch", before) else "date", start
    return "date", start


_FEASTS = rx(r"\b(?:(christmas(?: day)?|xmas)|(new year'?s eve)|(new year(?:'?s(?: day)?)?))\b")


def _feasts(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    for match in _FEASTS.finditer(low):
        month, day_of = (12, 25) if match[1] else (12, 31) if match[2] else (1, 1)
        if (day := _in_year(None, month, day_of, today)) is not None:
            yield match.start(), match.end(), day, ""


_OF_WEEK = "read as Friday of week"
_WEEK = rx(r"(?<![\w-])(?:(\d{4})-?w|(?:calendar week|kw|cw)~)(\d{1,2})(?![\d-])")


def _weeks(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    """Weeks of ISO 8601: the Friday, which a start makes the Monday."""
    for match in _WEEK.finditer(low):
        year, week = int(match[1] or today.year), int(match[2])
        if not match[1] and week < today.isocalendar().week:
            year += 1
        try:
            yield match.start(), match.end(), date.fromisocalendar(year, week, 5), f"{_OF_WEEK} {week}"
        except ValueError:
            continue


_MONTH_PART = rx(rf"\b(end|middle|mid|beginning|start)(?: of |-| )(?:the month of )?({_MONTH})\b(?:,? (\d{{4}})\b)?")


def _month_parts(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    """`end of January`, `mid-March`."""
    for match in _MONTH_PART.finditer(low):
        month, year = _MONTHS[match[2]], int(match[3]) if match[3] else None
        last = calendar.monthrange(year or 2027, month)[1] if (year or 2000) in range(1970, 2200) else 28
        day = _in_year(year, month, {"end": last, "mid": 15, "middle": 15}.get(match[1], 1), today)
        if day is not None:
            said = {"end": "the last day", "mid": "the 15th", "middle": "the 15th"}.get(match[1], "the first day")
            yield match.start(), match.end(), day, f"read as {said} of that month"


_NO_SUCH = "there is no such day"


def impossible_days(low: str) -> Iterator[Found]:
    """Days that no calendar has: 31 February, 2026-13-01."""
    for match in _ISO.finditer(low):
        if _day(int(match[1]), int(match[2]), int(match[3])) is None and int(match[1]) in range(1970, 2200):
            yield Found("impossible", match[0], match.start(), match.end(), "", _NO_SUCH)
    for pattern, month, day_of in ((_MONTH_DAY, 1, 2), (_DAY_MONTH, 2, 1)):
        for match in pattern.finditer(low):
            # Without a year a leap year counts, which has every day that a year can have.
            year, day = int(match[3] or 2024), int(match[day_of])
            if (match[3] or day in (30, 31)) and _day(year, _MONTHS[match[month]], day) is None:
                yield Found("impossible", match[0], match.start(), match.end(), "", _NO_SUCH)


def _written_out(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    for match in _ISO.finditer(low):
        if (day := _day(int(match[1]), int(match[2]), int(match[3]))) is not None:
            yield match.start(), match.end(), day, ""
    for pattern, month, day_of in ((_MONTH_DAY, 1, 2), (_DAY_MONTH, 2, 1)):
        for match in pattern.finditer(low):
            day = _in_year(int(match[3]) if match[3] else None, _MONTHS[match[month]], int(match[day_of]), today)
            if day is not None:
                yield match.start(), match.end(), day, "" if match[3] else _year_note(day, today)


def _numeric(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    for match in _NUMERIC.finditer(low):
        first, second = int(match[1]), int(match[3])
        year = int(match[4]) + (2000 if len(match[4]) == 2 else 0) if match[4] else None
        european = match[2] == "."
        # `3.1` is a version and `1/2` is a half more often than a date; without a year only a date's role word helps.
        if year is None and (european or not _ROLE.search(low, max(0, match.start() - _BACK), match.start())):
            continue
        month, day_of = (second, first) if european or first > 12 else (first, second)
        day = _in_year(year, month, day_of, today)
        if day is None:
            continue
        note = "" if year else _year_note(day, today)
        if not european and first <= 12 and second <= 12 and first != second:
            other = _in_year(year, second, first, today)
            note = f"read as month/day; as day/month it would be {other.isoformat() if other else 'no date'}"
        yield match.start(), match.end(), day, note


def _weekdays(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    for match in _NAMED.finditer(low):
        before = low[max(0, match.start() - 9) : match.start()]
        if match[2] in _SHORT and match[1] is None and not _BEFORE_SHORT.search(before):
            continue  # "we sat down", "the sun": a short name needs a word before it.
        ahead = (_DAY_WORDS[match[2]] - today.weekday()) % 7 or 7
        day, note = today + timedelta(days=ahead), ""
        if _HAPPENED.search(low, max(0, match.start() - 10), match.start()):
            day -= timedelta(days=7)  # "since Monday" is the one that has been.
        if match[1] in {"next", "following"} and ahead < 7 and day.isocalendar().week == today.isocalendar().week:
            day += timedelta(days=7)
            note = "read as next week's, not this week's"
        yield match.start(), match.end(), day, note


def _ahead(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    for match in _AHEAD.finditer(low):
        many = int(number(match[1]))
        unit = match[3].rstrip("s")
        hours = unit in {"hour", "hr"}
        if many > 3650 or (hours and _RESULT.search(low, max(0, match.start() - _BACK), match.start())):
            continue  # A job that is over within 4 hours has a duration, and no day.
        if hours:
            day = today + timedelta(days=-(-many // 24) if many >= 24 else 0)
        elif unit == "day":
            day = _working(today, many) if match[2] else today + timedelta(days=many)
        elif unit in {"week", "fortnight"}:
            day = today + timedelta(weeks=many * (2 if unit == "fortnight" else 1))
        else:
            day = _months_on(today, many)
        yield match.start(), match.end(), day, ""


def _periods(low: str, today: date) -> Iterator[tuple[int, int, date, str]]:
    friday = today + timedelta(days=(4 - today.weekday()) % 7)
    month_end = today.replace(day=calendar.monthrange(today.year, today.month)[1])
    next_month_end = _months_on(today.replace(day=1), 2) - timedelta(days=1)
    quarter = (today.month - 1) // 3 + 1
    for match in _PERIODS.finditer(low):
        where = match.start(), match.end()
        if match[1]:
            yield *where, today, ""
        elif match[2]:
            yield *where, today + timedelta(days=1), ""
        elif match[3]:
            yield *where, today + timedelta(days=2), ""
        elif match[4]:
            yield *where, friday, "read as Friday"
        elif match[5]:
            yield *where, friday + timedelta(days=7), "read as Friday of next week"
        elif match[6]:
            yield *where, month_end, "read as the last day of this month"
        elif match[7]:
            yield *where, next_month_end, "read as the last day of next month"
        elif match[9]:
            yield *where, _quarter_end(today, int(match[9]), match[10]), "read as the last day of that quarter"
        elif match[11]:
            yield *where, _quarter_end(today, quarter, str(today.year)), "read as the last day of this quarter"
        else:
            yield *where, date(today.year, 12, 31), "read as the last day of this year"


def _quarter_end(today: date, quarter: int, year: str | None) -> date:
    number_of = int(year) if year else today.year + (quarter < (today.month - 1) // 3 + 1)
    number_of = min(max(number_of, 1), 9999)
    return date(number_of, quarter * 3, calendar.monthrange(number_of, quarter * 3)[1])


def _day(year: int, month: int, day: int) -> date | None:
    if 1970 <= year <= 2200 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
        return date(year, month, day)
    return None


def _in_year(year: int | None, month: int, day: int, today: date) -> date | None:
    """Without a year: the one of that name within six months back or ahead, so that a date just gone is seen as gone."""
    if year is not None:
        return _day(year, month, day)
    candidates = [found for each in (-1, 0, 1) if (found := _day(today.year + each, month, day)) is not None]
    recent = [found for found in candidates if found >= today - timedelta(days=31)]
    return min(recent, default=None)


def _year_note(day: date, today: date) -> str:
    return f"no year is given; read as {day.year}" if day.year != today.year else ""


def _working(today: date, many: int) -> date:
    day = today
    while many > 0:
        day += timedelta(days=1)
        many -= day.weekday() < 5
    return day


def _months_on(day: date, many: int) -> date:
    months = day.year * 12 + day.month - 1 + many
    year, month = divmod(months, 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))
