"""Questions that a passage nearly answers: a number, a name or a word of a question that it does answer is put by another.

The near misses are what a model must refuse and does not by itself. After SQuAD 2.0's kinds of unanswerable questions
(Rajpurkar, Jia and Liang 2018, table 2): negation, antonym, entity swap.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w,])")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w’-]+(?: (?:of |the )?[A-Z][\w’-]+)*")

_OPPOSITES = (
    "largest smallest|biggest smallest|highest lowest|longest shortest|oldest newest|oldest youngest|best worst|most least|"
    "more fewer|first last|earliest latest|before after|north south|northern southern|east west|eastern western|"
    "above below|increase decrease|increased decreased|won lost|win lose|opened closed|open close|founded dissolved|"
    "began ended|start end|started ended|born buried|male female|men women|father mother|son daughter|brother sister|"
    "husband wife|king queen|summer winter|day night|minimum maximum|major minor|public private|left right|upper lower|"
    "rich poor|allowed forbidden|legal illegal|possible impossible|likely unlikely|successful unsuccessful|older younger|"
    "higher lower|larger smaller|longer shorter|hot cold|hottest coldest|internal external|import export|exported imported|"
    "enemy ally|friends enemies|attacked defended|victory defeat|arrived departed|arrive leave|rise fall|rose fell|"
    "accepted rejected|agreed refused|domestic foreign|urban rural"
)
_OTHER = {a: b for pair in _OPPOSITES.split("|") for a, b in (pair.split(), reversed(pair.split()))}
_WORD = re.compile(r"[A-Za-z]+")
_ASKED_OF = re.compile(r"\b(did|does|do|is|are|was|were|can|could|will|would)\b")


def numbers(text: str) -> list[str]:
    """The numbers of a text."""
    return [match[0] for match in _NUMBER.finditer(text)]


def names(text: str) -> list[str]:
    """Words with capitals that begin no sentence."""
    return [match[0] for match in _NAME.finditer(text)]


def other_number(number: str, known: str, rng: random.Random) -> str | None:
    """One of the same length that does not stand in `known`: a year becomes a near one."""
    digits = number.replace(",", "")
    if not digits.isdigit():
        return None
    value, spread = int(digits), 60 if len(digits) == 4 else max(5, int(digits) // 2)
    for _ in range(8):
        changed = value + rng.choice((-1, 1)) * rng.randint(1, spread)
        written = f"{changed:,}" if "," in number else str(changed)
        if changed > 0 and len(written) == len(number) and not re.search(rf"(?<!\d){re.escape(written)}(?!\d)", known):
            return written
    return None


def with_other_number(text: str, known: str, rng: random.Random) -> str | None:
    """One number of the text put by another that does not stand in `known`; None if that cannot be done."""
    found = list(_NUMBER.finditer(text))
    rng.shuffle(found)
    for match in found:
        if changed := other_number(match[0], known, rng):
            return text[: match.start()] + changed + text[match.end() :]
    return None


def with_other_name(text: str, known: str, others: Sequence[str], rng: random.Random) -> str | None:
    """One name of the text, which `known` has too, put by one of `others` of as many words that `known` has not."""
    found = [match for match in _NAME.finditer(text) if match[0] in known]
    rng.shuffle(found)
    for match in found:
        length = len(match[0].split())
        fitting = [name for name in others if len(name.split()) == length and name not in known and name not in text]
        if fitting:
            return text[: match.start()] + rng.choice(fitting) + text[match.end() :]
    return None


def with_name_of(question: str, sentence: str, elsewhere: str, rng: random.Random) -> str | None:
    """One name that the question shares with the answering sentence put by one from elsewhere in the passage; None without any."""
    found = [match for match in _NAME.finditer(question) if match[0] in sentence]
    others = [name for name in names(elsewhere) if name not in sentence and name not in question]
    if not found or not others:
        return None
    match = rng.choice(found)
    return question[: match.start()] + rng.choice(others) + question[match.end() :]


def with_number_of(question: str, sentence: str, elsewhere: str, rng: random.Random) -> str | None:
    """The same with a number of as many digits."""
    found = [match for match in _NUMBER.finditer(question) if match[0] in sentence]
    rng.shuffle(found)
    for match in found:
        others = [number for number in numbers(elsewhere) if len(number) == len(match[0]) and number not in sentence + question]
        if others:
            return question[: match.start()] + rng.choice(others) + question[match.end() :]
    return None


def with_opposite(question: str, known: str, rng: random.Random) -> str | None:
    """One word of the question put by its opposite, of which `known` has no trace; None if that cannot be done."""
    small = known.lower()
    found = [m for m in _WORD.finditer(question) if (other := _OTHER.get(m[0])) and other not in small]
    if not found:
        return None
    match = rng.choice(found)
    return question[: match.start()] + _OTHER[match[0]] + question[match.end() :]


def negated(question: str) -> str | None:
    """`What did he not write?` of `What did he write?`, roughly: the word after the subject is not known, so `not` follows a short one."""
    match = _ASKED_OF.search(question)
    if match is None or " not " in question or "n't" in question:
        return None
    after = re.compile(r" (?:(?:the|a|an) )?[\w’'-]+").match(question, match.end())
    return f"{question[: after.end()]} not{question[after.end() :]}" if after and after.end() < len(question) - 2 else None
