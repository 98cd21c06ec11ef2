"""Numbers, their units, dates and times of day, read out of a sentence or a source and compared. Pure.

However they are written: 1,000 = 1 000 = one thousand, 5 % = 5 percent, EUR 3 = 3 euros, 3 May 2024 = 2024-05-03, 6 pm = 18:00.
Words of number are English, months English and German. Nothing is converted: 1 km is not 1,000 m. Used by `rag/facts.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan januar", "february feb februar", "march mar märz", "april apr", "may mai", "june jun juni", "july jul juli",
            "august aug", "september sept sep", "october oct oktober", "november nov", "december dec dezember",
        ), 1,
    )
    for name in names.split()
}  # fmt: skip

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_BELOW_TWENTY = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}  # noqa: SIM905
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_SCALES = {"k": 1_000, "m": 10**6, "mn": 10**6, "mio": 10**6, "bn": 10**9}
_ORDINAL = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth "
    "seventeenth eighteenth nineteenth twentieth"
)
_ORDINALS = {word: value for value, word in enumerate(_ORDINAL.split(), 1)}

# Spellings of a unit, lower case; the first is its name. What is left out is ambiguous ("in", "s") or said without a number.
UNITS = {
    spelling: names.split("|")[0]
    for names in (
        "%|percent|per cent|pct", "€|eur|euro|euros", "$|usd|us$|dollar|dollars", "£|gbp|pound|pounds|lb|lbs", "¥|jpy|yen",
        "chf|franc|francs",
        "km|kilometre|kilometres|kilometer|kilometers|kms", "metre|metres|meter|meters", "mile|miles|mi", "ft|foot|feet", "inch|inches",
        "cm|centimetre|centimetres|centimeter|centimeters", "mm|millimetre|millimetres|millimeter|millimeters", "yard|yards",
        "m2|square metres|square meters|sqm", "km2|square kilometres|square kilometers", "sq mi|square miles", "acre|acres",
        "ha|hectare|hectares", "kg|kilogram|kilograms|kilo|kilos", "g|gram|grams", "mg|milligram|milligrams", "tonne|tonnes|ton|tons",
        "oz|ounce|ounces", "litre|litres|liter|liters|l", "ml|millilitre|millilitres|milliliter|milliliters", "gallon|gallons",
        "°c|degrees celsius|celsius|degrees centigrade", "°f|degrees fahrenheit|fahrenheit", "ms|millisecond|milliseconds",
        "second|seconds|sec|secs", "minute|minutes|min|mins", "hour|hours|h|hr|hrs", "day|days", "week|weeks", "month|months",
        "year|years|yr|yrs", "decade|decades", "century|centuries", "kb|kilobyte|kilobytes", "mb|megabyte|megabytes",
        "gb|gigabyte|gigabytes", "tb|terabyte|terabytes", "kib", "mib", "gib", "kw|kilowatt|kilowatts", "mw|megawatt|megawatts", "kwh",
        "watt|watts|w", "volt|volts|v", "hz|hertz", "mhz", "ghz", "mph", "km/h|kph",
    )
    for spelling in names.split("|")
}  # fmt: skip
_UNIT = re.compile(r"[ -]?(" + "|".join(map(re.escape, sorted(UNITS, key=len, reverse=True))) + r")(?!\w)")
_CURRENCY = re.compile(r"(US\$|[$€£¥]|EUR|USD|GBP|CHF|JPY) ?$", re.IGNORECASE)
_MINUS = re.compile(r"(?:^|[\s(])(?:-|minus )$", re.IGNORECASE)
_NEAR = 8
"""Characters before a number that may belong to it: looking at all of them, for each of a table's numbers, would take its square."""

_MONTH = r"(?P<month>" + "|".join(sorted(MONTHS, key=len, reverse=True)) + r")\b\.?"
_DAY = r"(?P<day>3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th|\.)?"
_YEAR = r"(?P<year>\d{4})"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<![\w.,]){_YEAR}-(?P<number>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])(?!\w)",
        rf"(?<![\w.,]){_DAY} (?:of )?{_MONTH}(?:,? {_YEAR}(?!\w))?",
        rf"\b{_MONTH} {_DAY}(?![\d:]|[.,]\d)(?:,? {_YEAR}(?!\w))?",
        rf"\b{_MONTH},? (?:of )?{_YEAR}(?!\w)",
        rf"(?<![\w.,/])(?P<first>\d{{1,2}})(?P<sign>[./])(?P<second>\d{{1,2}})(?P=sign){_YEAR}(?!\w)",
    )
)
_TIME = re.compile(
    r"(?<![\w.,:])(?P<hour>2[0-3]|[01]?\d)(?::(?P<minute>[0-5]\d)(?!\d)(?: ?(?P<half>[ap])\.?m\b\.?)?| ?(?P<half2>[ap])\.?m\b\.?)",
    re.IGNORECASE,
)
_VERSION = re.compile(r"\bv(\d+(?:\.\d+)*)(?!\w)")
_SPAN_OF_YEARS = re.compile(r"(?<!\d)(\d\d)(\d\d) ?[-/] ?(\d\d)(?!\d)")
_NUMBER = re.compile(r"(?<!\w)(?<!\d[.,])(?P<digits>\d{1,3}(?:[ ']\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*)(?P<rest>[^\W\d_]*)")
_SCALE = re.compile(r" ?(hundred|thousand|million|billion|trillion|mn|mio|bn)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its unit. `readings`: the values it may have (1.234 is two), as plain decimals; `unit` is "" where none is known."""

    text: str
    readings: frozenset[str]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Date:
    """A day or a month. `readings`: (month, day) it may mean, day 0 for a whole month; `year` is "" where it is not said."""

    text: str
    readings: frozenset[tuple[int, int]]
    year: str = ""


def claimed(text: str) -> tuple[tuple[Quantity, ...], tuple[Date, ...], str]:
    """What a sentence states, and the sentence with blanks for its dates. A number that may be none, as "one" and "second", is left out."""
    dates, times, rest = _dates_and_times(text)
    return (*times, *_digits(rest), *_words(rest, claim=True)), dates, rest


def supplied(text: str) -> tuple[tuple[Quantity, ...], tuple[Date, ...]]:
    """What a source gives, each number in all the ways in which a sentence may take it up."""
    dates, times, rest = _dates_and_times(text)
    found = [*_digits(rest), *_words(rest, claim=False)]
    found += [Quantity(version, frozenset([version])) for version in _VERSION.findall(rest)]
    hours = [Quantity("", frozenset(times_of)) for q in found if not q.unit and (times_of := _as_times(q.readings))]
    for date in dates:
        found.append(Quantity(date.text, frozenset(str(day) for _, day in date.readings if day)))
        found += [Quantity(date.year, frozenset([date.year]))] if date.year else []
    for time in times:
        clock = {int(reading[1:].partition(":")[0]) for reading in time.readings}
        found.append(Quantity(time.text, frozenset(str(hour) for each in clock for hour in (each, each % 12 or 12))))
    for century, first, last in _SPAN_OF_YEARS.findall(text):
        if first < last:
            found.append(Quantity("", frozenset([f"{century}{last}"])))
    return (*times, *found, *hours), dates


def has_quantity(wanted: Quantity, held: Iterable[Quantity]) -> bool:
    """Whether the number is there, and not with another unit only. A number without a unit, as in a table's cell, may have any."""
    same = [quantity for quantity in held if wanted.readings & quantity.readings]
    return any(not wanted.unit or not quantity.unit or wanted.unit == quantity.unit for quantity in same)


def too_often(wanted: Iterable[Quantity], held: Iterable[Quantity]) -> list[str]:
    """Numbers that stand more often in a sentence than in its source: one of them is in the place of another, as in "from 541 to 541"."""
    held = list(held)
    told = Counter(quantity.readings for quantity in wanted)
    there = {readings: sum(not readings.isdisjoint(quantity.readings) for quantity in held) for readings in told}
    return [next(iter(readings)) for readings, count in told.items() if 0 < there[readings] < count]


def has_date(wanted: Date, held: Iterable[Date], numbers: Iterable[Quantity]) -> bool:
    """Whether a date is there that says all that the wanted one does; its year may stand apart, among the numbers."""
    for date in held:
        if wanted.year and date.year and wanted.year != date.year:
            continue
        if wanted.year and not date.year and not any(wanted.year in quantity.readings for quantity in numbers):
            continue
        for month, day in wanted.readings:
            if any(month == other and (not day or day == of) for other, of in date.readings):
                return True
    return False


def months_of(dates: Iterable[Date]) -> set[str]:
    """The names of the months of dates, lower case."""
    numbers = {month for date in dates for month, _ in date.readings}
    return {name for name, number in MONTHS.items() if number in numbers}


def is_number_word(word: str) -> bool:
    """Whether a word in lower case is a number: "seven", "eighty", "first"."""
    return word in _BELOW_TWENTY or word in _TENS or word in _ORDINALS


# Reading.


def _decimal(text: str) -> str | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    # A number of a thousand digits is itself.
    return format(value.normalize(), "f") if len(text) < 40 else text


def _readings(digits: str) -> set[str]:
    """The values that digits with separators may have: 1,000 and 1 000 are one thousand, 1.000 is that or one, 2,5 is two and a half."""
    digits = digits.replace(" ", "").replace("'", "")
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits):
        found = [digits.replace(",", "")]
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?", digits):
        found = [digits.replace(".", "").replace(",", ".")] + ([digits] if re.fullmatch(r"\d+\.\d+", digits) else [])
    elif re.fullmatch(r"\d+,\d+", digits):
        found = [digits.replace(",", ".")]
    elif re.fullmatch(r"\d+(?:\.\d+)?", digits):
        found = [digits]
    else:
        return {digits}  # 1.2.3: a version, an address, a section
    return {value for text in found if (value := _decimal(text))}


def _digits(text: str) -> Iterator[Quantity]:
    lower = _lower(text)
    for match in _NUMBER.finditer(text):
        digits, rest, end = match["digits"], match["rest"], match.end()
        readings = _readings(digits)
        unit = ""
        if rest.lower() in ("st", "nd", "rd", "th", "s"):
            rest = ""
        elif rest.lower() in _SHORT_SCALES:
            # "5m" is five millions or metres; which, only the source knows.
            readings |= _times(readings, _SHORT_SCALES[rest.lower()])
        elif rest:
            end = match.end("digits")
        if scale := _SCALE.match(text, end):
            word = scale[1].lower()
            readings = _times(readings, _SCALES.get(word) or _SHORT_SCALES[word])
            end = scale.end()
        if found := _UNIT.match(lower, end):
            unit = UNITS[found[1]]
        start = match.start()
        if currency := _CURRENCY.search(text, max(0, start - _NEAR), start):
            unit, start = UNITS[currency[1].lower()], currency.start()
        if _MINUS.search(text, max(0, start - _NEAR), start):
            line = text[text.rfind("\n", 0, start - 1) + 1 : start]
            readings = readings if line.strip() == "-" else {f"-{reading}" for reading in readings}
        yield Quantity(match[0], frozenset(readings), unit)


def _lower(text: str) -> str:
    """In lower case, with every character in its place."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _times(readings: set[str], scale: int) -> set[str]:
    return {value for reading in readings if reading.count(".") <= 1 and (value := _decimal(str(Decimal(reading) * scale)))}


def _words(text: str, *, claim: bool) -> Iterator[Quantity]:
    """Numbers in words: "twenty-one", "two hundred and fifty", "third". What a sentence claims by them are only those that surely count:
    not "one", nor "first" and "second", nor a lone "hundred".
    """
    lower = _lower(text)
    words = [(match[0].lower(), match.start(), match.end()) for match in re.finditer(r"[^\W\d_]+", text)]
    at = 0
    while at < len(words):
        start, total, current, plain = at, 0, None, False
        while at < len(words) and (at == start or re.fullmatch(r"[ -]", text[words[at - 1][2] : words[at][1]])):
            word = words[at][0]
            if word in _BELOW_TWENTY and (current is None or (current % 100 >= 20 and current % 10 == 0 and _BELOW_TWENTY[word] < 10)):
                current, plain = (current or 0) + _BELOW_TWENTY[word], True
            elif word in _BELOW_TWENTY and current is not None and current >= 100 and current % 100 == 0:
                current += _BELOW_TWENTY[word]
            elif word in _TENS and (current is None or (current >= 100 and current % 100 == 0)):
                current, plain = (current or 0) + _TENS[word], True
            elif word in _SCALES and (current is not None or (not claim and at == start)):
                current = (1 if current is None else current) * _SCALES[word]
                if _SCALES[word] > 100:
                    total, current = total + current, None
            elif not (word == "and" and at > start and words[at - 1][0] in _SCALES):
                break
            at += 1
        if at > start and words[at - 1][0] == "and":
            at -= 1
        if at == start:
            word = words[at][0]
            if word in _ORDINALS and (not claim or _ORDINALS[word] > 2):
                yield Quantity(word, frozenset([str(_ORDINALS[word])]))
            elif not claim and word == "dozen":
                yield Quantity(word, frozenset(["12"]))
            at += 1
            continue
        value = total + (current or 0)
        if claim and (value < 2 or not plain):
            continue
        unit = _UNIT.match(lower, words[at - 1][2])
        yield Quantity(text[words[start][1] : words[at - 1][2]], frozenset([str(value)]), UNITS[unit[1]] if unit else "")


def _dates_and_times(text: str) -> tuple[tuple[Date, ...], list[Quantity], str]:
    """Dates, times of day, and the text with blanks in their places."""
    dates, times = [], []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            if date := _date(match):
                dates.append(date)
                text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
    for match in _TIME.finditer(text):
        half = (match["half"] or match["half2"] or "").lower()
        readings = _clock(int(match["hour"]), match["minute"] or "00", half)
        times.append(Quantity(match[0], frozenset(readings)))
        text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
    return tuple(dates), times, text


def _date(match: re.Match[str]) -> Date | None:
    found = match.groupdict()
    year = found.get("year") or ""
    if found.get("first"):
        first, second = int(found["first"]), int(found["second"])
        # 3/5/2024 is the third of May or the fifth of March, by the country; 3.5.2024 is the former.
        both = [(second, first)] if found["sign"] == "." else [(second, first), (first, second)]
        readings = frozenset((month, day) for month, day in both if 1 <= month <= 12 and 1 <= day <= 31)
    else:
        # A month is written with a capital, or "may 20" would be one.
        if found.get("month") and not found["month"][0].isupper():
            return None
        month = int(found["number"]) if found.get("number") else MONTHS[found["month"].lower()]
        readings = frozenset([(month, int(found.get("day") or 0))])
    return Date(match[0], readings, year) if readings else None


def _clock(hour: int, minute: str, half: str) -> set[str]:
    """The times that a time on a clock may be, as `tHOUR:MINUTE` of 24 hours."""
    if half and hour <= 12:
        return {f"t{hour % 12 + (12 if half == 'p' else 0)}:{minute}"}
    return {f"t{hour}:{minute}"} | ({f"t{(hour + 12) % 24}:{minute}"} if 1 <= hour <= 12 else set())


def _as_times(readings: Collection[str]) -> set[str]:
    """A lone 9 of a source may be meant by a sentence's "9:00" or "9 am"."""
    return {time for value in readings if value.isdigit() and int(value) <= 24 for time in _clock(int(value) % 24, "00", "")}
