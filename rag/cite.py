"""From a sentence of an answer to the span of a passage that supports it, verified against the document.

The model is not asked for citations: small ones do not give them, larger ones invent them. Each finished sentence is
compared with every sentence of the passages that the model read. One is cited if it carries enough of the sentence's words, or
means nearly the same, and has all of its numbers, dates, units and names (`rag/facts.py`). A citation is made only if its quote
stands in the document at its offsets now. What nothing supports is told as `Unsupported`. What is done with an answer that has
too much of it is decided in `rag/answer.py`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from rag import facts
from rag.facts import Claims, Supply
from rag.marks import Marks, visible
from rag.records import Citation, Passage, Unsupported
from rag.sentences import content_stems, sentence_spans

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Share of a sentence's weight that its quote must carry. Hand-checked on answers over the guide: below one half, the two
# share only their topic.
MIN_SUPPORT = 0.5

# Cosine from which two sentences with the same facts say the same.
MIN_NEARNESS = 0.75

# What a paraphrase shares with its source at least, of its words' weight; and how many sources are compared by meaning, of
# which each costs the embedder some 10 ms.
_LEAST_SHARED = 0.2
_COMPARED = 4

# What a sentence shares with the heading or title of its source counts half: it says of what, and not what.
_AROUND = 0.5

# To a source of the passage that the model pointed at, where two carry about the same.
_POINTED = 0.05

# "The answer is:" has one word that means something; it could be matched to anything that has it too.
_LEAST_WORDS = 2

# Stems of what answers say of themselves: sentences with no other words state nothing.
_EMPTY = frozenset(
    content_stems(
        "answer question passage document documents text context source following based provided given information sentence "
        "according yes no sure okay ok of course certainly correct true false here summary conclusion note "
        "ja nein die antwort lautet oui non la réponse est sí la respuesta es sì risposta è nee het antwoord luidt sim não a resposta é"
    )
)

# Where a capital makes no name of a noun: there numbers, dates and codes must be in the source, and names are words like others.
_NOUNS_HAVE_CAPITALS = frozenset(("de",))

_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# What a sentence begins with that goes on about somebody or something, and the words by which one does.
_ANAPHOR = re.compile(
    r"\W*(?:[\w-]+ly,? |in \w+,? |then,? )?(?:he|she|it|they|this|that|these|those|his|her|its|their|such)\b", re.IGNORECASE
)
_PRONOUNS = frozenset("he she it they him her them his hers its their theirs this these such".split())  # noqa: SIM905
_BEFORE_SUBJECT = 2
"""Words that may stand before it."""

_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-{2,}[-|: ]*$")

Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Texts to unit rows (n, dimension): `Embedder.embed_passages`."""


@dataclass(frozen=True, slots=True)
class _Span:
    passage: Passage
    number: int
    """Of the passage, as the prompt counts them, from 1."""
    start: int
    end: int
    stems: frozenset[str]
    around: frozenset[str]
    """Stems of its title, its headings and, of a table's row, of the header."""
    halves: tuple[_Span, _Span] | None = None
    """Of two sentences, each of them."""

    @property
    def quote(self) -> str:
        return self.passage.text[self.start : self.end]


class Citer:
    """Cites the sentences of one answer from the passages it was made from. All calls block, some of them for 50 ms.

    `text_of` gives a document's present text, or None if it is gone; the quote is verified against it. An answer of one word
    is read together with `question`. Without `embed` only words are compared.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        text_of: Callable[[str], str | None],
        question: str = "",
        embed: Embed | None = None,
    ) -> None:
        self._passages = passages
        self._text_of = text_of
        self._question = question
        self._embed = embed
        self._supplies: dict[_Span, Supply] = {}
        self._arounds: dict[tuple[int, str], Supply] = {}
        self._words: dict[int, frozenset[str]] = {}
        self._rows: dict[str, NDArray[np.float32]] = {}

    def check(self, sentence: str, number: int | None = None) -> Citation | Unsupported | None:
        """What supports a sentence; `Unsupported` if nothing does, None if it states nothing ("Yes.", "The answer is:").

        `number`: of the passage that the model pointed at. Of sources that carry the sentence about equally, one of that is
        taken; it is verified as any other.
        """
        if not _stems(sentence, "en") - _EMPTY or sentence.lstrip().startswith("#") or _TABLE_RULE.match(sentence):
            return None
        return self._cited(sentence, number) or Unsupported(sentence)

    def cite(self, sentence: str, number: int | None = None) -> Citation | None:
        """The best supporting span, or None if none supports it well enough."""
        found = self.check(sentence, number)
        return found if isinstance(found, Citation) else None

    def _cited(self, sentence: str, number: int | None) -> Citation | None:
        claims = facts.claims(sentence, self._names)
        if _NOUNS_HAVE_CAPITALS.issuperset(self._spans_of):
            claims = replace(claims, names=())
        ranked = []
        for language, spans in self._spans_of.items():
            for span, support in self._shared(sentence, language, spans):
                # Of two that say it, the one that was pointed at, then the shorter.
                ranked.append((support + _POINTED * (span.number == number), -len(span.stems), -len(ranked), support, span))
        ranked.sort(reverse=True)
        for *_, support, span in ranked:
            if support >= MIN_SUPPORT and self._holds(span, sentence, claims):
                return self._verified(sentence, span, support)
        # Those that carry more words have just been found to lack something.
        near = self._nearest(sentence, claims, [span for *_, support, span in ranked if _LEAST_SHARED <= support < MIN_SUPPORT])
        return self._verified(sentence, *near) if near else None

    def _shared(self, sentence: str, language: str, spans: Sequence[_Span]) -> Iterator[tuple[_Span, float]]:
        """The spans of a language that share words with the sentence, with the share of its weight that they carry."""
        stems, wanted = _stems(sentence, language), _stems(self._in_full(sentence), language)
        least = 0 if len(stems) < _LEAST_WORDS else _LEAST_WORDS
        if len(wanted) < _LEAST_WORDS:
            return
        total = sum(self._weight(stem) for stem in wanted)
        for span in spans:
            own = wanted & span.stems
            if len(own) < least or (not least and not stems <= own | span.around):
                continue
            around = sum(self._weight(stem) for stem in (wanted & span.around) - own)
            yield span, (sum(self._weight(stem) for stem in own) + _AROUND * around) / total

    def _nearest(self, sentence: str, claims: Claims, spans: Sequence[_Span]) -> tuple[_Span, float] | None:
        """The span that means the sentence, and how nearly: the cosine of their vectors."""
        if self._embed is None:
            return None
        fit = (span for span in spans if self._holds(span, sentence, claims))
        compared = list(itertools.islice(fit, _COMPARED))
        if not compared:
            return None
        said = self._in_full(sentence)
        unknown = [text for text in dict.fromkeys((said, *(span.quote for span in compared))) if text not in self._rows]
        self._rows.update(zip(unknown, self._embed(unknown), strict=True))
        scores = [float(self._rows[span.quote] @ self._rows[said]) for span in compared]
        best = max(range(len(scores)), key=scores.__getitem__)
        return (compared[best], scores[best]) if scores[best] >= MIN_NEARNESS else None

    def _verified(self, sentence: str, span: _Span, support: float) -> Citation | None:
        passage, quote = span.passage, span.quote
        start, end = passage.start + span.start, passage.start + span.end
        text = self._text_of(passage.document_id)
        if text is None or text[start:end] != quote:
            return None
        return Citation(sentence, quote, passage.document_id, passage.path, passage.page, start, end, round(min(1.0, support), 3))

    def _holds(self, span: _Span, sentence: str, claims: Claims) -> bool:
        """Whether the span has what must not differ. The sentence itself does.

        Of two sentences both must be needed, or a wrong name would be found in the one that says something else: each has words of
        the sentence that are no names or numbers and that the other lacks; or the first has the name, where the sentence has its
        subject, for the "he" that begins the second.
        """
        if " ".join(sentence.split()) in " ".join(span.quote.split()):
            return True
        if facts.missing(claims, self._supply(span)) or not self._agrees(span, sentence):
            return False
        if span.halves is None:
            return True
        first, second = span.halves
        language = span.passage.language
        plain = _stems(self._in_full(sentence), language) - _stems(" ".join(claims.texts), language)
        if plain & (first.stems - second.stems) and plain & (second.stems - first.stems):
            return True
        if not _ANAPHOR.match(second.quote):
            return False
        names = {name.text for name in claims.names}
        lacking = facts.missing(claims, self._supply(second))
        return all(name in names and len(sentence.partition(name)[0].split()) <= _BEFORE_SUBJECT for name in lacking)

    def _agrees(self, span: _Span, sentence: str) -> bool:
        """Whether a yes or no that the sentence begins with is not that of the source turned around, nor of its own words."""
        said = facts.verdict(sentence)
        if said is None:
            return True
        before = span.passage.text[: span.start]
        last = [before[start:end] for start, end in sentence_spans(before)[-1:]]
        lone = next((facts.verdict(one) for one in last if len(one.split()) == 1), None)  # "Yes!" is a sentence of its own
        return (not said) not in (facts.verdict(span.quote), lone, facts.affirms(self._question, sentence))

    def _in_full(self, sentence: str) -> str:
        """The sentence; one of a single word, as "Vienna.", with the question, which makes it one."""
        return f"{self._question} {sentence}" if len(_stems(sentence, "en")) < _LEAST_WORDS else sentence

    def _supply(self, span: _Span) -> Supply:
        """What the span holds, with what its title, headings and table header say, and the names of the question that are in its passage:
        who is asked about is often called "he" there.
        """
        if span not in self._supplies:
            header = _header(span.passage.text, span.start)
            key = (span.number, header)
            if key not in self._arounds:
                passage = span.passage
                self._arounds[key] = facts.supply("\n".join((passage.title, *passage.heading, header)))
            supply = facts.supply(span.quote) | self._arounds[key]
            if not supply.words.isdisjoint(_PRONOUNS):
                supply |= Supply(words=self._asked_names & self._words_of(span.number))
            self._supplies[span] = supply
        return self._supplies[span]

    def _words_of(self, number: int) -> frozenset[str]:
        if number not in self._words:
            self._words[number] = facts.supply(self._passages[number - 1].text).words
        return self._words[number]

    def _weight(self, stem: str) -> float:
        return self._weights.get(stem, self._unknown)

    # Made at the first use, which is in a thread beside the event loop.

    @cached_property
    def _spans(self) -> list[_Span]:
        return [span for number, passage in enumerate(self._passages, 1) for span in _spans(passage, number)]

    @cached_property
    def _spans_of(self) -> dict[str, list[_Span]]:
        """By the language of their documents: stems of two cannot be compared."""
        found: dict[str, list[_Span]] = {}
        for span in self._spans:
            found.setdefault(span.passage.language, []).append(span)
        return found

    @cached_property
    def _weights(self) -> dict[str, float]:
        # A word that stands in every sentence of the passages says nothing about which of them is meant.
        seen = Counter(stem for span in self._spans for stem in span.stems)
        return {stem: math.log(1 + len(self._spans) / n) for stem, n in seen.items()}

    @cached_property
    def _unknown(self) -> float:
        return math.log(1 + max(1, len(self._spans)))

    @cached_property
    def _names(self) -> frozenset[str]:
        return facts.known_names("\n\n".join((*(passage.text for passage in self._passages), self._question)))

    @cached_property
    def _asked_names(self) -> frozenset[str]:
        return frozenset(word for name in facts.claims(self._question, self._names).names for word in name.words)


def _stems(text: str, language: str) -> frozenset[str]:
    return frozenset(content_stems(_GROUPED.sub("", text), language))


def _spans(passage: Passage, number: int) -> Iterator[_Span]:
    """Every sentence, and every two that follow each other in a paragraph: an answer often joins what its source says in two.

    Headings are not quoted: they name a thing and say nothing of it.
    """
    text = passage.text
    sentences = [(start, end) for start, end in sentence_spans(text) if text[start] != "#"]
    language = passage.language
    above = _stems(" ".join((passage.title, *passage.heading)), language)
    singles = [
        _Span(passage, number, start, end, _stems(text[start:end], language), above | _stems(_header(text, start), language))
        for start, end in sentences
    ]
    yield from (span for span in singles if span.stems)
    for one, other in itertools.pairwise(singles):
        if one.stems and other.stems and _one_paragraph(text, one.end, other.start):
            yield _Span(passage, number, one.start, other.end, one.stems | other.stems, one.around, (one, other))


def _header(text: str, start: int) -> str:
    """Of a row of a Markdown table, the line with the names of its columns, if the passage has it; else nothing."""
    if text[start : start + 1] != "|":
        return ""
    lines = text[:start].splitlines()
    for n in range(len(lines) - 1, 0, -1):
        if not lines[n].lstrip().startswith("|"):
            break
        if _TABLE_RULE.match(lines[n]):
            return lines[n - 1]
    return ""


def _one_paragraph(text: str, end: int, start: int) -> bool:
    """Whether two sentences are parted by a space or a line's end only, and the second begins no list item or table row."""
    return text.count("\n", end, start) <= 1 and (text[start].isalpha() or text[start] in "\"'“‘(")


class Checks:
    """The sentences of one answer as they are finished, in order, and what came of them so far."""

    def __init__(self, citer: Citer, marks: Marks) -> None:
        self.citations: list[Citation] = []
        self.unsupported: list[str] = []
        self._citer = citer
        self._marks = marks
        self._visible = 0

    def check(self, sentences: Sequence[str], *, cut: bool = False) -> list[Citation | Unsupported]:
        """What came of the next sentences. Blocks, as `Citer` does. `cut`: the last one has no end, so it may be lacking its support."""
        told: list[Citation | Unsupported] = []
        for n, sentence in enumerate(sentences, 1):
            found = self._citer.check(sentence, self._marks.number_at(self._visible))
            self._visible += visible(sentence)
            if isinstance(found, Citation):
                self.citations.append(found)
            elif found is None or (cut and n == len(sentences)):
                continue
            else:
                self.unsupported.append(sentence)
            told.append(found)
        return told

    @property
    def unsupported_share(self) -> float:
        """Of the sentences that state something, those without support, 0..1; 0 where none states anything."""
        return len(self.unsupported) / max(1, len(self.unsupported) + len(self.citations))


class SentenceStream:
    """Collects streamed pieces and gives back each sentence once it is complete."""

    def __init__(self) -> None:
        self._open = ""

    def feed(self, piece: str) -> list[str]:
        """Sentences that `piece` completed, verbatim; usually none."""
        self._open += piece
        spans = sentence_spans(self._open)
        if len(spans) < 2:
            return []
        complete = [self._open[start:end] for start, end in spans[:-1]]
        self._open = self._open[spans[-1][0] :]
        return complete

    def flush(self) -> list[str]:
        """The sentences that are left when the answer is over."""
        rest, self._open = self._open, ""
        return [rest[start:end] for start, end in sentence_spans(rest)]
