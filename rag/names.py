"""Names in a sentence, and whether a source has them. Pure, without a model: a name is what is written with a capital that its place does
not explain.

That is English; where all nouns have a capital, as in German or in a title, only words that are known for names count. A source
has a name in any case of letters, as people and country (French, France), in full or by its initials. Used by `rag/facts.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from rag.quantities import MONTHS, UNITS, is_number_word
from rag.sentences import STOP_WORDS, sentence_spans

_WORD = re.compile(r"[^\W_]+(?:[.'][^\W_]+)*")
# COVID-19, A4, F-16, v2: letters with a number behind. Of lower-case ones only versions: "mid-1990s" is a number.
_CODE = re.compile(r"\b(?:[A-Z][A-Za-z]*[- ]?\d+(?:\.\d+)*[A-Za-z]?\d*|v\d+(?:\.\d+)*)\b")

# Begin sentences with a capital and name nobody. Words of STOP_WORDS and those in -ly need not be here.
_OPENERS = frozenset(
    """
    according additionally although another answer based because besides both currently despite during each earlier either even every
    finally first following furthermore given hence here however if instead last later like many meanwhile moreover most neither next
    note nowadays once one other others overall passage passages question second several since similarly some sometimes sure
    therefore third thus today together two under unlike until upon using via whereas whether while within without yes yet
    """.split()  # noqa: SIM905
)
# Small words in other letters.
_ACRONYMS = frozenset(("WHO", "IT", "US"))
# Before a name; the source may leave them out.
_TITLES = frozenset(
    """
    mr mrs ms miss dr prof professor sir dame lord lady saint st president king queen emperor pope general captain duke count
    """.split()  # noqa: SIM905
)
# Words of languages that write all nouns with a capital; where two of them stand, a capital says nothing.
_CAPITALISING = re.compile(r"\b(?:der|das|und|ist|nicht|ein|eine|wird|von|zum|für|mit|den|im)\b")

_PEOPLES = tuple(
    frozenset(pair.split())
    for pair in (
        "french france", "dutch netherlands", "british britain", "spanish spain", "danish denmark", "swedish sweden", "polish poland",
        "greek greece", "welsh wales", "swiss switzerland", "english england", "irish ireland", "scottish scotland", "turkish turkey",
        "finnish finland", "chinese china", "norwegian norway", "portuguese portugal", "american america", "american us", "american states",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Name:
    """Words with a capital in a row, folded (see `folded`); `initials` of two or more."""

    text: str
    words: tuple[str, ...]
    initials: str = ""


def names(text: str, known: Collection[str] = ()) -> Iterator[Name]:
    """The names of a sentence. It may begin with one only if that is `known` (see `known_names`), an acronym, or of several words."""
    tokens = [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]
    letters = [word for word, _, _ in tokens if word[0].isalpha() and len(word) > 3]
    capital = sum(word[0].isupper() for word in letters)
    # A heading, a shout, or a language that writes nouns so.
    loud = (len(letters) >= 4 and capital == len(letters)) or len(set(_CAPITALISING.findall(text))) >= 2
    run: list[tuple[str, int, int]] = []
    for n, (word, start, end) in enumerate(tokens):
        joined = bool(run) and re.fullmatch(r"[ -]|\. ", text[run[-1][2] : start]) is not None
        if run and not joined:
            yield from _named(text, run)
            run = []
        follows = n + 1 < len(tokens) and text[end : tokens[n + 1][1]] == " " and tokens[n + 1][0][0].isupper()
        if word[0].isupper() and _may_name(word, known, loud=loud, first=not run and _is_initial(text, start), follows=follows):
            run.append((word, start, end))
        elif run:
            yield from _named(text, run)
            run = []
    if run:
        yield from _named(text, run)


def codes(text: str) -> tuple[list[str], str]:
    """Letters with a number (A4, F-16, v2), squeezed, and the text with underscores in their places."""
    found = [match for match in _CODE.finditer(text) if _is_code(match[0])]
    for match in found:
        text = text[: match.start()] + "_" * len(match[0]) + text[match.end() :]
    return [squeezed(match[0]) for match in found], text


def words_of(text: str) -> frozenset[str]:
    """The words of a source as names are looked for in it: folded, and codes squeezed."""
    return frozenset(folded(match[0]) for match in _WORD.finditer(text)) | {squeezed(match[0]) for match in _CODE.finditer(text)}


def has_name(name: Name, words: Collection[str], initials: Collection[str]) -> bool:
    """Whether a source of these words, whose rows of capitals have these initials, has the name: all its words, or its initials."""
    if all(_has_word(word, words, initials) for word in name.words):
        return True
    return len(name.initials) > 1 and name.initials.lower() in words


def known_names(text: str) -> frozenset[str]:
    """Folded words that have a capital inside a sentence, and never stand without one in the text: names, and what is written like them."""
    small, capital = set(), set()
    for begin, end in sentence_spans(text):
        sentence = text[begin:end]
        for match in _WORD.finditer(sentence):
            word = match[0]
            if not word[0].isupper():
                small.add(folded(word))
            elif len(word) > 1 and not _is_initial(sentence, match.start()) and word.lower() not in STOP_WORDS:
                capital.add(folded(word))
    return frozenset(capital - small)


def folded(word: str) -> str:
    """Lower case, without accents, dots and the genitive."""
    bare = unicodedata.normalize("NFKD", word.lower())
    bare = "".join(c for c in bare if not unicodedata.combining(c))
    return bare.removesuffix("'s").replace(".", "").replace("'", "")


def squeezed(code: str) -> str:
    """A code without what may stand between its letters and its number."""
    return re.sub(r"[- ]", "", code).lower()


_LINKS = frozenset(("of", "the", "and", "for", "de", "von", "van", "in"))


def initials_of(text: str) -> Iterator[str]:
    """Of each row of words with a capital, small words between them aside: FBI of "Federal Bureau of Investigation"."""
    row, last = "", 0
    for match in _WORD.finditer(text):
        word, between = match[0], text[last : match.start()]
        last = match.end()
        if row and between not in (" ", "-"):
            yield row
            row = ""
        if word[0].isupper():
            row += word[0]
        elif word not in _LINKS and row:
            yield row
            row = ""
    if row:
        yield row


def _is_initial(text: str, start: int) -> bool:
    """Whether a capital is due to the place: the first word, or the first of what is quoted, listed or told after a colon."""
    before = text[:start].rstrip(" ")
    if not re.search(r"\w", before) or before[-1] in ':"“‘(\n|•>!?;':
        return True
    return re.fullmatch(r"\s*(?:[-#]+|\d+[.)])", before[before.rfind("\n") + 1 :]) is not None


def _may_name(word: str, known: Collection[str], *, loud: bool, first: bool, follows: bool) -> bool:
    """Whether a word with a capital is a name, or part of one."""
    name = folded(word)
    if word in _ACRONYMS:
        return not loud
    if word.lower() in STOP_WORDS or name in STOP_WORDS or name in _TITLES:
        return False
    if len(name) < 2 or name in UNITS or is_number_word(name) or (first and name in _OPENERS):
        return False
    if loud:
        return name in known
    if not first or word.isupper() or name in known:
        return True
    return follows and not name.endswith(("ly", "ing"))


def _named(text: str, run: list[tuple[str, int, int]]) -> Iterator[Name]:
    words = tuple(folded(word) for word, _, _ in run)
    initials = "".join(word[0] for word, _, _ in run) if len(run) > 1 else ""
    yield Name(text[run[0][1] : run[-1][2]], words, initials)


def _is_code(text: str) -> bool:
    """Whether letters and a number are one thing: not a month or a word before a number, as in "Article 5" or "Since 1990"."""
    letters = re.split(r"[- ]?\d", text, maxsplit=1)[0]
    return " " not in text and letters.lower() not in MONTHS and letters.lower() not in UNITS


def _has_word(word: str, words: Collection[str], initials: Collection[str]) -> bool:
    if word in words:
        return True
    if len(word) > 1 and any(word.upper() in row for row in initials if len(row) > 1):
        return True
    if word in MONTHS:
        return any(MONTHS[word] == MONTHS[other] for other in words if other in MONTHS)
    # Norman, Normans and Normandy; Austrian and Austria, but not Australia.
    if len(word) >= 4 and any(len(other) >= 4 and abs(len(word) - len(other)) <= 3 and _begins(word, other) for other in words):
        return True
    return any(word in pair and not pair.isdisjoint(words) for pair in _PEOPLES)


def _begins(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
