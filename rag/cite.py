"""From a sentence of an answer to the span of a passage that supports it, verified against the document.

The model is not asked for citations: small ones do not give them, larger ones invent them. Each finished sentence is
compared with every sentence of the passages that the model read, and the best is cited if it carries enough of it and
all of its numbers. A citation is made only if its quote stands in the document at its offsets now.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rag.records import Citation, Passage
from rag.sentences import content_stems, sentence_spans

# Share of a sentence's weight that its quote must carry. Hand-checked on answers over the guide: below one half, the two
# share only their topic.
MIN_SUPPORT = 0.5

# "The answer is:" has one word that means something; it could be matched to anything that has it too.
_LEAST_WORDS = 2

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


@dataclass(frozen=True, slots=True)
class _Span:
    passage: Passage
    start: int
    end: int
    stems: frozenset[str]


class Citer:
    """Cites the sentences of one answer from the passages it was made from.

    `text_of` gives a document's present text, or None if it is gone; the quote is verified against it.
    """

    def __init__(self, passages: Sequence[Passage], text_of: Callable[[str], str | None]) -> None:
        self._text_of = text_of
        self._spans = [span for passage in passages for span in _spans(passage)]
        seen = Counter(stem for span in self._spans for stem in span.stems)
        # A word that stands in every sentence of the passages says nothing about which of them is meant.
        self._weight = {stem: math.log(1 + len(self._spans) / n) for stem, n in seen.items()}
        self._unknown = math.log(1 + max(1, len(self._spans)))

    def cite(self, sentence: str) -> Citation | None:
        """The best supporting span, or None if none supports it well enough."""
        stems = frozenset(content_stems(sentence))
        total = sum(self._weight.get(stem, self._unknown) for stem in stems)
        if len(stems) < _LEAST_WORDS or not total:
            return None
        best, best_support, best_key = None, 0.0, (0.0, 0.0)
        numbers = set(_NUMBER.findall(sentence))
        for span in self._spans:
            common = stems & span.stems
            support = sum(self._weight[stem] for stem in common) / total
            key = (support, -len(span.stems))  # of two that say it, the shorter
            if support >= MIN_SUPPORT and key > best_key and numbers <= set(_NUMBER.findall(span.passage.text[span.start : span.end])):
                best, best_support, best_key = span, support, key
        return self._verified(sentence, best, best_support) if best else None

    def _verified(self, sentence: str, span: _Span, support: float) -> Citation | None:
        passage = span.passage
        quote = passage.text[span.start : span.end]
        start, end = passage.start + span.start, passage.start + span.end
        text = self._text_of(passage.document_id)
        if text is None or text[start:end] != quote:
            return None
        return Citation(sentence, quote, passage.document_id, passage.path, passage.page, start, end, round(min(1.0, support), 3))


def _spans(passage: Passage) -> Iterator[_Span]:
    """Every sentence, and every two that follow each other in a paragraph: an answer often joins what its source says in two.

    Headings are not quoted: they name a thing and say nothing of it.
    """
    text = passage.text
    sentences = [(start, end) for start, end in sentence_spans(text) if text[start] != "#"]
    pairs = [(a[0], b[1]) for a, b in itertools.pairwise(sentences) if _one_paragraph(text, a[1], b[0])]
    for start, end in sentences + pairs:
        stems = frozenset(content_stems(text[start:end]))
        if stems:
            yield _Span(passage, start, end, stems)


def _one_paragraph(text: str, end: int, start: int) -> bool:
    """Whether two sentences are parted by a space or a line's end only, and the second begins no list item or table row."""
    return text.count("\n", end, start) <= 1 and (text[start].isalpha() or text[start] in "\"'“‘(")


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
