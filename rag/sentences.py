"""Where sentences begin and end, and which words of them carry meaning. Pure; shared by the gate and the citations.

Rules, not a model: a wrong boundary costs a slightly longer quote, a model would cost 100 ms an answer.
"""

from __future__ import annotations

import functools
import re

from rag import languages

# A sentence ends at . ! ? (with closing quotes or brackets) before white space and something that can begin one, or at
# a line that is followed by an empty one or by a list item, a heading or a table row.
_END = re.compile(
    r"""(?<=[.!?…])(?P<closing>["'”’)\]]*)\s+(?=["'“‘(\[]?[A-Z0-9À-ÞА-Я])   # . Next
      | (?<=[。！？])\s*                                          # CJK full stops need no space
      | \s*\n\s*\n\s*                                             # an empty line
      | \s*\n(?=\s*(?:[-*+•|>#]|\d+[.)]\s))                       # a list item, a table row, a heading
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|cf|al|No|Nr|Fig|Eq|Sec|Ch|Vol|pp|p|Inc|Ltd|Co|Corp|approx|[A-Z])\.|^\s*\d{1,3}\.)$"
)

_WORD = re.compile(r"[^\W_]+(?:[.'’-][^\W_]+)*")

# English function words, and the words that questions are made of. Short on purpose: a word too many costs evidence.
STOP_WORDS = frozenset(
    """
    a about above after all also am an and any are as at be because been before being between both but by can could
    did do does doing done for from had has have having he her here hers him his how i if in into is it its just may
    me might more most must my no nor not of off on one only or other our out over own per shall she should so some
    such than that the their them then there these they this those through to too under until up upon us very was we
    were what when where which while who whom whose why will with would you your please tell explain describe give
    according many much
    """.split()  # noqa: SIM905 - a list of 130 quoted words is no easier to read
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, without the white space around; together they cover every visible character."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if "\n" not in match[0] and _ABBREVIATION.search(text, max(start, match.start() - 12), match.start()):
            continue
        spans.append((start, match.start() + len(match["closing"] or "")))
        start = match.end()
    spans.append((start, len(text)))
    stripped = []
    for begin, end in spans:
        body = text[begin:end]
        left = len(body) - len(body.lstrip())
        right = len(body.rstrip())
        if right > left:
            stripped.append((begin + left, begin + right))
    return stripped


def words(text: str) -> list[str]:
    """All words, lower-cased, in order; `o'clock`, `3.5` and `well-known` are one each, Chinese and its like as BM25 has them."""
    return [match[0].lower().replace("’", "'") for match in _WORD.finditer(languages.segmented(text))]


@functools.lru_cache(maxsize=1 << 16)  # the passages of a question are thousands of words, over and over the same
def stem(word: str) -> str:
    """The word without the commonest English endings, so that `domains` meets `domain`. Not a dictionary form."""
    word = word.removesuffix("'s")
    for ending, least in (("ies", 5), ("ing", 6), ("ed", 5), ("es", 5), ("s", 4), ("e", 4), ("y", 4)):
        if word.endswith(ending) and len(word) >= least and not word.endswith("ss"):
            return word[: -len(ending)] or word
    return word


def content_stems(text: str, language: str = "en") -> list[str]:
    """Stems of the words that are not stop words, in order, repeats kept. Those of two languages cannot be compared."""
    if language == "en":
        return [stem(word) for word in words(text) if word not in STOP_WORDS]
    return [term for word in words(text) if (term := languages.term(word, language))]
