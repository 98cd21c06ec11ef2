"""The questions and passages that examples are made of, cleaned, without those that anything is measured on, and what lies near.

The file is JSON, gzipped: `{passages: [{text, group, source}], answerable: [{question, answer, accepted, passage, source}],
unanswerable: [{question, passage, source}]}`, where `passage` indexes `passages` and `group` names the article.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import InvalidInput
from rag.sentences import content_stems, sentence_spans

# Okapi BM25's usual constants (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).
_K1, _B = 1.2, 0.75

# A sentence of fewer words may stand in two texts by chance.
_LEAST_WORDS = 10

# Natural Questions come with their tokens parted: `in 1904 , when`, `Comcast 's`, `` `` relators '' ``.
_PARTED = (
    (re.compile(r" ([,.;:!?%)\]]|'s\b|n't\b|'re\b|'ve\b)"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r"`` ?| ?''"), '"'),
)


@dataclass(frozen=True, slots=True)
class Text:
    """A passage. `group` names its article, "" where it is not known."""

    text: str
    group: str
    source: str

    @property
    def small(self) -> bool:
        """Whether it came in small letters."""
        return self.text == self.text.lower()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about the passage of that index. `accepted` answers stand in it verbatim, best first; none: it has no answer."""

    question: str
    passage: int
    accepted: tuple[str, ...]
    source: str


def normalised(text: str) -> str:
    """What two copies of a text have in common: its words, case-folded, without marks and white space."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def fingerprint(text: str) -> str:
    """16 hex digits of the sha256 of the normalised text."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()[:16]


def fingerprints(text: str) -> Iterator[str]:
    """Of the text, and of each of its sentences that is long enough to be told by."""
    yield fingerprint(text)
    for start, end in sentence_spans(text):
        if len(text[start:end].split()) >= _LEAST_WORDS:
            yield fingerprint(text[start:end])


def held_out(path: Path) -> frozenset[str]:
    """Fingerprints of everything that is measured on, and may not be trained on.

    Of a folder: of every text of at least 4 words in its JSON, JSONL and CSV files (gzipped or not), and of their sentences.
    Of a file: one fingerprint a line, as `python -m rag.train fingerprints` writes them. Raises `InvalidInput` if there are none.
    """
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        found = frozenset(each for file in files for text in _texts(file) if len(text.split()) >= 4 for each in fingerprints(text))
    else:
        found = frozenset(path.read_text(encoding="ascii").split()) if path.is_file() else frozenset()
    if not found:
        raise InvalidInput(f"There is nothing to hold out in {path}.", "Name the folder of the sets that you measure on.")
    return found


def _texts(file: Path) -> Iterator[str]:
    name = file.name.removesuffix(".gz")
    if not name.endswith((".json", ".jsonl", ".csv")):
        return
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8", newline="") as lines:
        if name.endswith(".csv"):
            csv.field_size_limit(1 << 24)
            for row in csv.reader(lines):
                yield from row
        elif name.endswith(".jsonl"):
            for line in lines:
                yield from _strings(json.loads(line) if line.strip() else None)
        else:
            yield from _strings(json.load(lines))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


class Pool:
    """What was read. `dropped` counts what was left out because it is measured on."""

    def __init__(self, passages: Sequence[Text], answerable: Sequence[Asked], unanswerable: Sequence[Asked], dropped: int = 0) -> None:
        self.passages = tuple(passages)
        self.answerable = tuple(answerable)
        self.unanswerable = tuple(unanswerable)
        self.dropped = dropped

    @classmethod
    def read(cls, path: Path, held: frozenset[str] = frozenset()) -> Pool:
        """The file at `path`, without the passages and questions of `held`."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            raw = json.load(file)
        passages = [Text(_clean(each["text"], each["source"]), each["group"] or "", each["source"]) for each in raw["passages"]]
        barred = {i for i, each in enumerate(passages) if held and not held.isdisjoint(fingerprints(each.text))}
        dropped = len(barred)
        kept: dict[str, list[Asked]] = {}
        for kind in ("answerable", "unanswerable"):
            kept[kind] = []
            for each in raw[kind]:
                source, at = each["source"], each["passage"]
                question = _clean(each["question"], source)
                if at in barred or fingerprint(question) in held:
                    dropped += 1
                    continue
                given = (each["answer"], *each["accepted"]) if kind == "answerable" else ()
                answers = tuple(dict.fromkeys(text for one in given if (text := _clean(one, source)) and text in passages[at].text))
                # "yes" and "no" as spans of a text are chance.
                if kind == "unanswerable" or (answers and answers[0].lower() not in ("yes", "no")):
                    kept[kind].append(Asked(question, at, answers, source))
        # A barred passage keeps its number, so that the others keep theirs, and has no text.
        passages = [Text("", each.group, each.source) if i in barred else each for i, each in enumerate(passages)]
        return cls(passages, kept["answerable"], kept["unanswerable"], dropped)

    def first(self, count: int) -> Pool:
        """With only so many of the passages, and what is asked of those."""
        asked = ([each for each in some if each.passage < count] for some in (self.answerable, self.unanswerable))
        return Pool(self.passages[:count], *asked, self.dropped)

    def near(self, question: str, count: int) -> list[int]:
        """The passages that BM25 ranks first for a question, best first; fewer where no others share a word with it."""
        scores = np.zeros(len(self.passages), np.float32)
        for stem in set(content_stems(question)):
            if stem in self._index:
                at, weight = self._index[stem]
                scores[at] += weight
        best = np.argpartition(-scores, min(count, len(scores) - 1))[:count]
        return [int(i) for i in best[np.argsort(-scores[best], kind="stable")] if scores[i] > 0]

    @cached_property
    def of_group(self) -> dict[str, list[int]]:
        """The passages of each article."""
        groups = defaultdict(list)
        for i, each in enumerate(self.passages):
            if each.group and each.text:
                groups[each.group].append(i)
        return dict(groups)

    @cached_property
    def _index(self) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        counts = [Counter(content_stems(each.text)) for each in self.passages]
        lengths = np.array([max(1, sum(each.values())) for each in counts], np.float32)
        norm = _K1 * (1 - _B + _B * lengths / lengths.mean())
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, each in enumerate(counts):
            for stem, n in each.items():
                postings[stem].append((i, n))
        index = {}
        for stem, found in postings.items():
            at = np.array([i for i, _ in found])
            n = np.array([n for _, n in found], np.float32)
            idf = math.log(1 + (len(counts) - len(found) + 0.5) / (len(found) + 0.5))
            index[stem] = at, (idf * n * (_K1 + 1) / (n + norm[at])).astype(np.float32)
        return index


def _clean(text: str, source: str) -> str:
    text = " ".join(text.split())
    if source == "nq":
        for pattern, by in _PARTED:
            text = pattern.sub(by, text)
    return text


def says(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in the text, in any case, as words of their own."""
    small = f" {normalised(text)} "
    return any(f" {words} " in small for answer in answers if (words := normalised(answer)))
