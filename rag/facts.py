"""What a sentence must share with its source to the letter: numbers and their units, dates, names, a "not". Pure.

Two texts about one thing agree in their words; the slip of a small model is the one word that must not differ. So `claims` reads
from a sentence what has to be found, `supply` from a source what can be found there, however it is written, and `missing`
compares. How numbers are read is in `rag/quantities.py`, names in `rag/names.py`; which source a sentence has at all, in `rag/cite.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

from rag import names as in_names
from rag import quantities as in_numbers
from rag.names import Name
from rag.quantities import Date, Quantity
from rag.sentences import content_stems

_NOT = re.compile(r"\b(?:not|never|neither|nor|without|cannot|none|nobody|nothing|no)\b|n't\b", re.IGNORECASE)
# What is denied is the next word that means something: "not allowed", "no charge". Not in "not only", "no longer".
_DENIED = re.compile(r"(?:\b(?:not|never|cannot|without|no)\b|n't\b)((?: [\w'-]+){1,3})", re.IGNORECASE)
_NOT_DENIED = frozenset(("only", "just", "longer", "until", "necessarily", "later", "less", "fewer", "least", "yet", "always"))

# Other words by which a source may deny what a sentence denies with "not".
_DENIES = re.compile(
    r"\b(?:un(?!der|ti|it|iv|io|iq|if)|dis(?!t|c)|non-?|imp(?:oss|erm)|in(?:valid|compl|corr|suff|elig|act|adeq|capab|depend)|except|only"
    r"|unless|until|lack|refus|reject|den[iy]|fail|forb|prohibit|ban|prevent|avoid|exclud|ceas|stop|end(?:ed|s)?\b|abolish|instead|rather|but"
    r"|although|despite|few|little|rare|hardly|barely|seldom|illegal|against|oppos|absen|free)\w*",
    re.IGNORECASE,
)

# "No. 5" is a number, and "No dogs" no answer.
_VERDICT = re.compile(r"\W*(?:(yes|ja|oui|sí|sì|sim)|(?:no|nein|non|nee|não))\b[.,:;!–—-](?!\s*\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a sentence's source must hold."""

    quantities: tuple[Quantity, ...] = ()
    dates: tuple[Date, ...] = ()
    names: tuple[Name, ...] = ()
    codes: tuple[str, ...] = ()
    denies: bool = False
    stems: frozenset[str] = frozenset()
    """Of its words, where nothing in it denies anything: none of them may be just what the source denies."""

    @property
    def texts(self) -> list[str]:
        """The words that must be found, as the sentence writes them."""
        return [each.text for each in (*self.quantities, *self.dates, *self.names)] + list(self.codes)


@dataclass(frozen=True, slots=True)
class Supply:
    """What a source holds; two are joined with `|`."""

    quantities: tuple[Quantity, ...] = ()
    dates: tuple[Date, ...] = ()
    words: frozenset[str] = frozenset()
    initials: tuple[str, ...] = ()
    denies: bool = False
    denied: frozenset[str] = frozenset()
    """Stems of the words that it only has with a "not"."""

    def __or__(self, other: Supply) -> Supply:
        return Supply(
            self.quantities + other.quantities,
            self.dates + other.dates,
            self.words | other.words,
            self.initials + other.initials,
            self.denies or other.denies,
            self.denied | other.denied,
        )


def claims(sentence: str, known: Collection[str] = ()) -> Claims:
    """What has to be found. `known`: folded words that are names for certain (see `known_names`), with which a sentence may begin."""
    text = plain(sentence)
    codes, rest = in_names.codes(text)
    quantities, dates, rest = in_numbers.claimed(rest)
    denies = bool(_NOT.search(text))
    stems = frozenset() if denies or _DENIES.search(text) else frozenset(content_stems(text))
    return Claims(quantities, dates, tuple(in_names.names(rest, known)), tuple(codes), denies, stems)


def supply(text: str) -> Supply:
    """What can be found in a text."""
    text = plain(text)
    quantities, dates = in_numbers.supplied(text)
    words = in_names.words_of(text) | {in_names.folded(month) for month in in_numbers.months_of(dates)}
    denies = bool(_NOT.search(text) or _DENIES.search(text))
    return Supply(quantities, dates, words, tuple(in_names.initials_of(text)), denies, _denied(text))


def missing(claimed: Claims, held: Supply) -> tuple[str, ...]:
    """What of the claims the source does not hold, as the sentence writes it; empty if all is there."""
    lacking = [quantity.text for quantity in claimed.quantities if not in_numbers.has_quantity(quantity, held.quantities)]
    lacking += in_numbers.too_often(claimed.quantities, held.quantities) if not lacking else []
    lacking += [date.text for date in claimed.dates if not in_numbers.has_date(date, held.dates, held.quantities)]
    lacking += [name.text for name in claimed.names if not in_names.has_name(name, held.words, held.initials)]
    lacking += [code for code in claimed.codes if code not in held.words]
    if (claimed.denies and not held.denies) or not claimed.stems.isdisjoint(held.denied):
        lacking.append("not")
    return tuple(lacking)


def _denied(text: str) -> frozenset[str]:
    found = set()
    for match in _DENIED.finditer(text):
        following = match[1].split()
        stems = content_stems(match[1])
        if stems and following[0].lower() not in _NOT_DENIED:
            found.add(stems[0])
    if not found:
        return frozenset()
    bare = set(content_stems(_DENIED.sub(" ", text)))
    return frozenset(found - bare)


def verdict(text: str) -> bool | None:
    """Whether it begins with a yes or with a no; None where with neither."""
    found = _VERDICT.match(text)
    return found[1] is not None if found else None


def affirms(question: str, sentence: str) -> bool | None:
    """Whether a sentence, after its yes or no, says just what was asked (True) or denies that (False); None where it says something else.

    "Is it open on Sundays?" is affirmed by "It is open on Sundays.", and of "It opens on Sundays at 9." nothing is known.
    """
    rest = _VERDICT.sub("", sentence, count=1)
    if _NOT.search(question) or set(content_stems(question)) != set(content_stems(_NOT.sub(" ", rest))):
        return None
    return not (_NOT.search(rest) or _DENIES.search(rest))


def known_names(text: str) -> frozenset[str]:
    """Folded words that are written with a capital inside sentences of the text, and never without one."""
    return in_names.known_names(plain(text))


def plain(text: str) -> str:
    """One kind of space, minus and digit: NFKC, and Markdown's marks of emphasis and code taken out."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("–", "-").replace("—", " - ").replace("’", "'")
    return re.sub(r"[*`]+|(?<!\w)_+|_+(?!\w)", "", re.sub(r"[^\S\n]+", " ", text))
