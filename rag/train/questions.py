"""Questions that are made of a domain's own passages by rule: no model writes them, so each has its answer in a passage, verbatim.

Three kinds: the subject of a sentence is asked for (`answers.subject_asked`); a section's heading that is a question is asked, as people
ask a handbook; and two words are asked about that stand together in one sentence of the whole domain (after the inverse cloze task of
Lee, Chang and Toutanova, ACL 2019). How they become examples, and what must be refused: `examples.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rag.sentences import STOP_WORDS, content_stems, sentence_spans, stem
from rag.train import answers
from rag.train.examples import DOMAIN
from rag.train.pool import Asked, Pool, Text

# About 200 tokens, as many as a chunk of the index has (`ingest.chunk_tokens`): English has 1.3 tokens a word.
_WORDS, _CHARACTERS = 150, 1200

# What can be answered with: shorter sentences say nothing alone, longer ones are lists.
_SHORTEST, _LONGEST = 5, 36

# Of one passage: the same few sentences would otherwise fill the training of a domain with long passages.
_TOPICS = 3

_HEADING = re.compile(r"#{1,6} +(.+?)\s*#*$", re.MULTILINE)
_ASKS = re.compile(r"(?:How|What|When|Where|Which|Who|Why|Can|Could|Do|Does|Is|Are|Must|May|Should|Will)\b")
_SENTENCE = re.compile(r"[\"'“‘(`]?[^\W_].*[.!?][\"'”’)`]*", re.DOTALL)
_WORD = re.compile(r"(?<![\w.`/-])[^\W\d_]{4,}(?![\w.`/-]*[\w`/])")

_ABOUT = ("What is said about {} and {}?", "What do the documents say about {} and {}?", "What about {} and {}?")


def passages(text: str) -> list[str]:
    """A document's text in parts, verbatim: paragraphs together up to a chunk's length, a heading with what follows it.

    Much as the index cuts it (`ingest/chunk.py`), which only it knows exactly; a text is to be had of a running server too.
    """
    parts: list[str] = []
    start, size = 0, 0.0
    for match in re.finditer(r"\S.*?(?=\s*\n\s*\n|\s*\Z)", text, re.DOTALL):
        more = _size(match[0])
        if size and (size + more > 1 or match[0].startswith("#")):
            parts.append(text[start : match.start()].strip())
            size = 0
        if not size:
            start = match.start()
        size += more
        if size > 1:
            parts += _cut(text[start : match.end()].strip())
            size = 0
    return [*parts, text[start:].strip()] if size else parts


def _cut(block: str) -> list[str]:
    """One that is too long, at the ends of sentences."""
    parts, begin, size = [], 0, 0.0
    for start, end in sentence_spans(block):
        more = _size(block[start:end])
        if size and size + more > 1:
            parts.append(block[begin:start].strip())
            begin, size = start, 0
        size += more
    return [*parts, block[begin:].strip()]


def _size(text: str) -> float:
    """In passages. Not every script puts blanks between words, and not every file has words."""
    return max(len(text.split()) / _WORDS, len(text) / _CHARACTERS)


def pool_of(texts: Mapping[str, Sequence[str]]) -> Pool:
    """The passages of each document, by its path, and what can be asked of them."""
    found = [Text(text, path, DOMAIN) for path, parts in texts.items() for text in parts]
    spans = [_sentences(passage.text) for passage in found]
    asked = [
        *(each for at, passage in enumerate(found) for each in _subjects(passage.text, spans[at], at)),
        *(each for at, passage in enumerate(found) if (each := _heading(passage.text, spans[at], at))),
        *_topics(found, spans),
    ]
    return Pool(found, sorted(asked, key=lambda each: each.passage), [])


def _sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of those that can stand alone as an answer: no headings, cells, list items or commands."""
    return [
        (start, end)
        for start, end in answers.spans(text)
        if _SENTENCE.fullmatch(text, start, end) and _SHORTEST <= len(text[start:end].split()) <= _LONGEST and "|" not in text[start:end]
    ]


def _subjects(text: str, spans: Sequence[tuple[int, int]], at: int) -> Iterator[Asked]:
    for start, end in spans:
        if found := answers.subject_asked(text[start:end]):
            yield Asked(" ".join(found[0].split()), at, (found[1],), DOMAIN)


def _heading(text: str, spans: Sequence[tuple[int, int]], at: int) -> Asked | None:
    """Any sentence below it is an answer; None where the section has more than sentences, which might answer without them."""
    match = _HEADING.match(text)
    if match is None or not _ASKS.match(match[1]) or not spans:
        return None
    others = len(text[match.end() :].split()) - sum(len(text[start:end].split()) for start, end in spans)
    if others > _SHORTEST:
        return None
    return Asked(f"{match[1].rstrip('?. ')}?", at, tuple(dict.fromkeys(text[start:end] for start, end in spans)), DOMAIN)


def _topics(found: Sequence[Text], spans: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Asked]:
    """The two rarest words of a sentence, if no other sentence of the domain has both."""
    sentences = [(at, found[at].text[start:end]) for at, of in enumerate(spans) for start, end in of]
    holding: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for at, passage in enumerate(found):
        # Headings and cells count too: what they say must not be refused.
        for start, end in answers.spans(passage.text):
            for each in content_stems(passage.text[start:end]):
                holding[each].add((at, start))
    made: dict[int, int] = defaultdict(int)
    for at, sentence in sentences:
        words = {
            stem(word.lower()): word.lower() if match.start() == 0 else word
            for match in _WORD.finditer(sentence)
            if (word := match[0]).lower() not in STOP_WORDS
        }
        rare = sorted(words, key=lambda each: len(holding[each]))[:2]
        if len(rare) < 2 or made[at] == _TOPICS or len(holding[rare[0]] & holding[rare[1]]) != 1:
            continue
        made[at] += 1
        first, second = (words[each] for each in words if each in rare)
        # The same for the same sentence, whatever else is in the domain.
        form = _ABOUT[hashlib.sha256(sentence.encode()).digest()[0] % len(_ABOUT)]
        yield Asked(form.format(first, second), at, (sentence,), DOMAIN)
