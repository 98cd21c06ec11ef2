"""The passages for a question: embed it, search by meaning and by words, put exact hits first, fold near-equal passages.

Which of them reach the prompt is decided by `rag/prompt.py`; whether they suffice, by `rag/gate.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rag.embed import Embedder
from rag.query import exact_first, literals
from rag.records import Passage
from rag.sentences import content_stems, sentence_spans
from rag.settings import Retrieve

if TYPE_CHECKING:
    from rag.served_store import ServedStore
    from rag.store import EdgeStore

# Two passages whose words agree this far (Jaccard) say the same: copies of a file, overlapping versions of a page.
_SAME = 0.9

_OF_A_SEEN_PAGE = 0.9

# Characters that a passage may gain on either side: two or three sentences, and half a paragraph of SQuAD. They cost time to the
# first token, and most of the time the passage has the answer already.
_REACH = 400

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")

# Fewer, and a sentence says too little to stand alone.
_LEAST_WORDS = 3


def retrieve(
    question: str,
    *,
    embedder: Embedder,
    store: EdgeStore | ServedStore,
    settings: Retrieve,
    domain: str | None = None,
    within: Collection[str] | None = None,
    documents: Collection[str] | None = None,
    limit: int,
) -> list[Passage]:
    """At most `limit` passages, best first, no two of them near-equal. Their scores are 0 to 1.

    Of `documents` alone, and of the domains `within`, if given.

    Those that have what the question quotes or names to the letter come first: `rag/query.py`. Blocks for milliseconds: call it in
    a thread.
    """
    wanted = literals(question)
    found = store.search(
        embedder.embed_query(question),
        question,
        domain=domain,
        within=within,
        documents=documents,
        literals=[literal.text for literal in wanted],
        limit=limit * 2,
        candidates=settings.candidates,
        weights=(settings.dense_weight, settings.bm25_weight),
    )
    return _fold(exact_first(_spread(found), wanted), limit)


def strong(passages: Sequence[Passage], focus: float) -> list[Passage]:
    """Those passages whose score is at least `focus` of the best one's: what the model should read.

    A small model is led astray by passages beside the point, and each costs time: of 48 SQuAD 2.0 questions the default model answered
    14 right from four passages and 18 from the best one alone. How many it takes to have the one that answers: with a focus of 0.9, on
    squad2-dev-half, 1.4 passages have it for 92% of the questions, on contoso 2.4 for 76% (ranks fused, which scores replaced, took 1.5
    for 90% and 1.9 for 70%); `python -m bench.retrieval --sweep focus`.
    """
    return [passage for passage in passages if passage.score >= focus * passages[0].score]


def whole(passages: Sequence[Passage], text_of: Callable[[str], str | None]) -> list[Passage]:
    """The passages, each that was cut within a paragraph lengthened to its ends, by at most `_REACH` characters either way.

    A chunk ends where its budget does, and what answers may be the next sentence. What a passage gains is of its paragraph, and so of
    its page. Two of a document that then meet become one, at the place of the better. `text[start:end]` is a passage's text before
    and after; one that does not stand in its document's present text, which `text_of` gives, is left as it is.
    """
    kept: list[Passage] = []
    for passage in passages:
        text = text_of(passage.document_id)
        if text is None or text[passage.start : passage.end] != passage.text:
            kept.append(passage)
            continue
        start, end = _paragraph_start(text, passage.start), _paragraph_end(text, passage.end)
        best, place = passage, len(kept)
        for i, other in reversed(list(enumerate(kept))):
            if _meets(text, other, passage, start, end):
                start, end, best, place = min(start, other.start), max(end, other.end), other, i
                del kept[i]
        kept.insert(place, replace(best, start=start, end=end, text=text[start:end]))
    return kept


def _meets(text: str, other: Passage, passage: Passage, start: int, end: int) -> bool:
    same = (other.document_id, other.page) == (passage.document_id, passage.page) and text[other.start : other.end] == other.text
    return same and not text[min(end, other.end) : max(start, other.start)].strip()


def _paragraph_start(text: str, at: int) -> int:
    low = max(0, at - _REACH)
    window = text[low:at]
    if blanks := list(_BLANK_LINE.finditer(window)):
        begin = blanks[-1].end()
    elif low == 0:
        begin = 0
    else:
        begin = next((start for start, _ in sentence_spans(window)[1:]), len(window))  # the first one is cut itself
    return low + begin + len(window[begin:]) - len(window[begin:].lstrip())


def _paragraph_end(text: str, at: int) -> int:
    window = text[at : at + _REACH]
    if blank := _BLANK_LINE.search(window):
        end = blank.start()
    elif at + _REACH >= len(text):
        end = len(window)
    else:
        end = max((end for _, end in sentence_spans(window)[:-1]), default=0)
    return at + len(window[:end].rstrip())


def left_out(passages: Sequence[Passage], used: Sequence[Passage]) -> tuple[str, ...]:
    """Ids of those of the passages that are not in what is used, whole or as a part of a longer one."""
    return tuple(
        passage.chunk_id
        for passage in passages
        if not any(one.document_id == passage.document_id and one.start <= passage.start and passage.end <= one.end for one in used)
    )


def closest_sentence(question: str, passages: Sequence[Passage], embedder: Embedder) -> str | None:
    """The sentence of the passages whose vector is nearest to the question's, verbatim; None where there is none to quote."""
    sentences = [
        passage.text[start:end]
        for passage in passages
        for start, end in sentence_spans(passage.text)
        if passage.text[start] != "#" and len(set(content_stems(passage.text[start:end]))) >= _LEAST_WORDS
    ]
    if not sentences:
        return None
    nearness = embedder.embed_passages(sentences) @ embedder.embed_query(question)
    return sentences[int(nearness.argmax())]


def _spread(passages: Sequence[Passage]) -> list[Passage]:
    """A passage of a page that a better one is from counts a tenth less, and so on: what is near may still lie on another page.

    Of 201 questions over six long PDFs, the page that has the answer is among those of the first five passages of 84.1%, with this
    86.6%; at .95 86.1%, at .8 and .5 the same 86.6% (2026-11-26). Documents as a whole, which squad2 and others have instead of
    pages, were not better spread.
    """
    seen: Counter[tuple[str, int]] = Counter()
    spread = []
    for passage in sorted(passages, key=lambda passage: -passage.score):
        if passage.page is not None:
            place = passage.document_id, passage.page
            passage = replace(passage, score=passage.score * _OF_A_SEEN_PAGE ** seen[place])
            seen[place] += 1
        spread.append(passage)
    return sorted(spread, key=lambda passage: -passage.score)


def _fold(passages: list[Passage], limit: int) -> list[Passage]:
    kept: list[tuple[Passage, frozenset[str]]] = []
    for passage in passages:
        stems = frozenset(content_stems(passage.text))
        if any(len(stems & other) >= _SAME * len(stems | other) for _, other in kept):
            continue
        kept.append((passage, stems))
        if len(kept) == limit:
            break
    return [passage for passage, _ in kept]
