"""What the model is shown: prompts as the product sends them, and the answers that it should have given.

Kinds, and why: what is plainly asked and answered; several passages, of which the others are near by BM25, or of the same article, so
that a shared topic is not taken for an answer; two things asked at once; yes and no; tables; a conversation before the question; and
what must be refused: real unanswerable questions, the right passage taken away, the right sentence cut out of it, a number, name or
word of the question put by another. Sources in small letters are unanswerable more often than not, so most of those get their capitals
back (`capitals.py`), and some of the others are written in small letters too, else that would be learnt.

Read next: `answers.py` for what an answer is, `pool.py` for what it is made of.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from rag import prompt
from rag.records import Passage, Turn
from rag.train import answers, swaps, tables
from rag.train.capitals import Capitals
from rag.train.pool import Asked, Pool, fingerprint, says

REFUSAL = prompt.REFUSAL

# Shares of the kinds. Answered and refused are near to even; the first tries are `plain` and `real`, the rest are what these lack.
SHARES = {
    "plain": 0.49, "what": 0.03, "two": 0.03, "yes": 0.014, "no": 0.012, "table": 0.02,
    "real": 0.19, "gone": 0.085, "cut": 0.035, "name": 0.06, "number": 0.025, "opposite": 0.015, "not": 0.005, "untold": 0.01,
    "no-cell": 0.012,
}  # fmt: skip
_IN_PLACE = {"gone": 0.5, "cut": 0.2, "name": 0.2, "untold": 0.1}
"""Shares of `real`, where there are none, that these take."""
ANSWERED = frozenset({"plain", "what", "two", "yes", "no", "table"})

# How many passages the model reads: the product gives it the best one alone, or up to four (`retrieve.focus`, `retrieve.passages`).
_COUNTS, _OF_COUNTS = (1, 2, 3, 4, 5), (26, 19, 19, 25, 11)

# Prose that people look things up in, against reviews and posts; of the latter there are as many, and they are unlike documents.
_PROSE, _POSTS = ("squad", "squad_e", "ss_wiki", "nq", "unansq_lc"), ("ss_reddit", "ss_amazon")
DOMAIN = "domain"
"""The source of questions that were made of a domain's own documents; where there are any, they are half of those that are asked."""
_SHARE_OF_POSTS = 0.25
_SHARE_OF_SENTENCES = 0.4
"""Of the real unanswerable ones, those whose passage is a lone sentence."""

_SMALL, _SMALL_QUESTION, _HEADED, _WINDOW, _JOINED, _LONE_NUMBERED, _HISTORY, _OTHER_RULES = 0.08, 0.1, 0.08, 0.26, 0.08, 0.5, 0.06, 0.12
_LONE_SENTENCE = 0.55
"""Of the windows, those of the answer's sentence alone; and `_LENGTHENED` of the unanswerable lone sentences get neighbours:
the length of a passage must not tell whether it answers."""
_LENGTHENED = 0.4
_CAPITALS = 0.75
"""Of the unanswerable ones whose passage is in small letters, those that get capitals; of the others the question is written small too."""
_FROM_WITHIN = 0.5
"""Of the swapped names and numbers, those that stand elsewhere in the same passage: nearer misses than what it never mentions."""

# Domains write rules of their own.
RULES = (
    "You are a helpful assistant.",
    "Answer from the passages only. If they do not hold the answer, say so.",
    "You answer questions about our documents, briefly and in whole sentences.",
    "You are the help desk of a company. Be friendly and brief, and use only what the passages say.",
    "Answer the question with the passages below. Do not guess.",
    "You are a careful librarian. Use only the given passages, and answer in one or two sentences.",
    "Be precise. Cite the passage that you use.",
    "You help the readers of a technical guide. Answer in one or two plain sentences.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer. `passages` are the numbers of those of the pool that it uses, for the check of what is held out."""

    turns: tuple[Turn, ...]
    answer: str
    kind: str
    passages: tuple[int, ...] = ()


@dataclass(slots=True)
class _Given:
    """A question and the passages that it comes with: the first ones are those that are answered from."""

    question: str
    texts: list[str]
    sentences: list[str]
    """Of the answer, one for each of the first passages; none is a refusal."""
    used: list[int]
    history: tuple[Turn, ...] = ()


def turns_of(question: str, texts: Sequence[str], rules: str = "", history: Sequence[Turn] = ()) -> tuple[Turn, ...]:
    """The messages that the product sends for that question over those passages."""
    passages = [Passage(str(n), "", "", "", "", (), None, 0, len(text), text, 1.0) for n, text in enumerate(texts)]
    return prompt.build(question, passages, render=lambda _: (), budget=1, rules=rules, history=history).turns


def split(pool: Pool, one_in: int = 40) -> tuple[Pool, Pool]:
    """The pool without, and with only, the questions of every `one_in`-th article: to see how training goes on what it has not seen."""

    def apart(asked: Asked) -> bool:
        passage = pool.passages[asked.passage]
        return int(fingerprint(passage.group or passage.text), 16) % one_in == 0

    def part(wanted: bool) -> Pool:
        return Pool(
            pool.passages,
            [each for each in pool.answerable if apart(each) == wanted],
            [each for each in pool.unanswerable if apart(each) == wanted],
            pool.dropped,
        )

    return part(False), part(True)


class Mix:
    """Examples without end, the same for the same seed. Of `shards`, the `shard`-th sees its own part of the questions."""

    def __init__(self, pool: Pool, seed: int, shard: int = 0, shards: int = 1) -> None:
        self._pool = pool
        self._rng = random.Random(f"{seed}/{shard}")
        self._near = lru_cache(maxsize=1 << 16)(lambda question: pool.near(question, 16))
        of_source: dict[str, list[Asked]] = defaultdict(list)
        for each in pool.answerable[shard::shards] + pool.unanswerable[shard::shards]:
            of_source[each.source].append(each)
        self._cycles = {source: self._cycle(items) for source, items in of_source.items()}
        self._prose = [each for source in _PROSE for each in of_source[source]]
        self._sizes = {source: len(items) for source, items in of_source.items()}
        self._of_passage: dict[int, list[Asked]] = defaultdict(list)
        for each in pool.answerable:
            self._of_passage[each.passage].append(each)
        self._kept = [i for i, each in enumerate(pool.passages) if each.text]
        self._capitals = Capitals(each.text for each in pool.passages)
        self._shares = dict(SHARES)
        if not self._there(("sq2_real", "sq2_sent")):
            # Nobody wrote questions without an answer for these passages; what is made by rule takes their place, or too few are refused.
            real = self._shares.pop("real")
            for kind, share in _IN_PLACE.items():
                self._shares[kind] += share * real
        self._makers: dict[str, Callable[[], _Given | None]] = {
            "plain": self._plain, "what": self._what, "two": self._two, "yes": lambda: self._yes(True), "no": lambda: self._yes(False),
            "table": lambda: self._table(True), "no-cell": lambda: self._table(False),
            "real": self._real, "gone": self._gone, "cut": self._cut, "untold": self._untold,
            **{how: partial(self._swapped, how) for how in ("name", "number", "opposite", "not")},
        }  # fmt: skip

    def __iter__(self) -> Iterator[Example]:
        kinds, shares = list(self._shares), list(self._shares.values())
        while True:
            kind = self._rng.choices(kinds, shares)[0]
            for _ in range(50):
                given = self._makers[kind]()
                if given is not None:
                    yield self._example(given, kind)
                    break

    def _cycle(self, items: list[Asked]) -> Iterator[Asked]:
        items = list(items)
        while items:
            self._rng.shuffle(items)
            yield from items

    def _example(self, given: _Given, kind: str) -> Example:
        """Passages shuffled and numbered, small letters now and then, the prompt written."""
        rng = self._rng
        texts, sentences, question = given.texts, given.sentences, given.question
        if rng.random() < _SMALL:
            texts, sentences, question = [text.lower() for text in texts], [text.lower() for text in sentences], question.lower()
        elif rng.random() < _SMALL_QUESTION:
            question = question.lower()
        if rng.random() < 0.1:
            question = question.rstrip("? ")
        order = list(range(len(texts)))
        rng.shuffle(order)
        numbers: list[int | None] = [order.index(i) + 1 for i in range(len(texts))]
        texts = [texts[i] for i in order]
        if len(texts) == 1:
            if rng.random() < _LONE_NUMBERED:
                texts = [f"[1] {texts[0]}"]
            else:
                numbers = [None]  # the product gives no number to a passage that stands alone
        answer = " ".join(answers.marked(number, sentence) for number, sentence in zip(numbers, sentences, strict=False)) or REFUSAL
        rules = rng.choice(RULES) if rng.random() < _OTHER_RULES else ""
        return Example(turns_of(question, texts, rules, given.history), answer, kind, tuple(given.used))

    # What is answered

    def _asked(self) -> Asked:
        if self._sizes.get(DOMAIN) and self._rng.random() < 0.5:
            return next(self._cycles[DOMAIN])
        sources = _POSTS if self._rng.random() < _SHARE_OF_POSTS else _PROSE
        there = self._there(sources) or self._there((*_PROSE, *_POSTS, DOMAIN))
        return next(self._cycles[self._rng.choices(there, [self._sizes[source] for source in there])[0]])

    def _there(self, sources: Sequence[str]) -> list[str]:
        return [source for source in sources if self._sizes.get(source)]

    def _plain(self) -> _Given | None:
        asked = self._asked()
        text = self._pool.passages[asked.passage].text
        sentence = answers.answer(text, asked.question, asked.accepted)
        if sentence is None:
            return None
        others = self._others(asked.question, {asked.passage}, asked.accepted, self._count() - 1)
        gold = self._varied(asked, text)
        return self._given(asked.question, [gold], [sentence], [asked.passage, *others], self._history(asked))

    def _two(self) -> _Given | None:
        first, second = self._asked(), self._asked()
        if first.passage == second.passage:
            return None
        texts = [self._pool.passages[each.passage].text for each in (first, second)]
        sentences = [answers.answer(text, each.question, each.accepted) for text, each in zip(texts, (first, second), strict=True)]
        if None in sentences or says(texts[0], second.accepted) or says(texts[1], first.accepted):
            return None
        question = f"{first.question} {second.question}"
        if re.match(r"(?:Who|What|When|Where|Which|How|Why)\b", second.question) and self._rng.random() < 0.7:
            question = f"{first.question.rstrip('?. ')}, and {second.question[0].lower()}{second.question[1:]}"
        others = self._others(first.question, {first.passage, second.passage}, (*first.accepted, *second.accepted), self._rng.randint(0, 2))
        return self._given(question, texts, [each for each in sentences if each], [first.passage, second.passage, *others])

    def _yes(self, yes: bool) -> _Given | None:
        found = self._turned()
        if found is None:
            return None
        asked, _, question, told = found
        text = self._pool.passages[asked.passage].text
        if not yes:
            # Another number makes it wrong; with another name the passage would not say.
            wrong = swaps.with_other_number(question, text, self._rng)
            if wrong is None:
                return None
            question = wrong
        others = self._others(question, {asked.passage}, (), self._count() - 1)
        return self._given(question, [text], [f"{'Yes' if yes else 'No'}, {told}"], [asked.passage, *others])

    def _what(self) -> _Given | None:
        """What is said of the subject of a sentence, asked for the subject: `What was built in 1889?`"""
        found = self._turned()
        if found is None:
            return None
        asked, span, question, _ = found
        text = self._pool.passages[asked.passage].text
        asks = answers.subject_asked(text[slice(*span)])
        if asks is None:
            return None
        others = self._others(question, {asked.passage}, (), self._count() - 1)
        return self._given(asks[0], [text], [text[slice(*span)]], [asked.passage, *others])

    def _turned(self) -> tuple[Asked, tuple[int, int], str, str] | None:
        """A question about some passage, and one of the passage's sentences turned into another that is answered with yes."""
        # Else nothing of the sentences that the real unanswerable questions are about would ever be answered.
        there = (
            ["sq2_sent"]
            if self._sizes.get("sq2_sent") and self._rng.random() < 0.4
            else self._there((DOMAIN, "squad", "squad_e", "ss_wiki", "nq"))
        )
        if not there:
            return None
        asked = next(self._cycles[self._rng.choice(there)])
        text = self._pool.passages[asked.passage].text
        found = [(span, turned) for span in answers.spans(text) if (turned := answers.turned(text[span[0] : span[1]]))]
        if not found:
            return None
        span, (question, told) = self._rng.choice(found)
        return asked, span, question, told

    def _table(self, answered: bool) -> _Given | None:
        made = tables.cell(self._rng, answered=answered)
        others = [tables.cell(self._rng, answered=True).table for _ in range(self._rng.randint(0, 2))]
        subject = made.table.splitlines()[-1].partition(":")[0]
        # Another table of the same kind of things could answer it by chance.
        others = [other for other in others if not other.splitlines()[-1].startswith(f"{subject}:")]
        used = self._others(made.question, set(), (), self._rng.randint(0, 1))
        given = self._given(made.question, [made.table], [made.answer] if answered else [], [-1, *used])
        return _Given(given.question, given.texts + others, given.sentences, given.used)

    # What is refused

    def _real(self) -> _Given | None:
        source = "sq2_sent" if self._rng.random() < _SHARE_OF_SENTENCES else "sq2_real"
        there = self._there((source, "sq2_sent", "sq2_real"))
        if not there:
            return None
        asked = next(self._cycles[there[0]])
        question, text = asked.question, self._pool.passages[asked.passage].text
        if text == text.lower():
            if self._rng.random() < _CAPITALS:
                text = self._capitals(text, question)
            else:
                question = question.lower()
        if self._rng.random() < (_LENGTHENED if there[0] == "sq2_sent" else _JOINED):
            text = self._joined(text, asked, ())
        others = self._others(asked.question, {asked.passage}, (), self._count() - 1)
        return self._given(question, [self._headed(asked, text)], [], [asked.passage, *others], self._history(asked))

    def _gone(self) -> _Given | None:
        asked = self._asked()
        others = self._others(asked.question, {asked.passage}, asked.accepted, self._count())
        return self._given(asked.question, [], [], others, self._history(asked)) if others else None

    def _cut(self) -> _Given | None:
        asked = self._asked()
        text = self._pool.passages[asked.passage].text
        kept = [text[start:end] for start, end in answers.spans(text) if not says(text[start:end], asked.accepted)]
        rest = " ".join(kept)
        if len(rest.split()) < 15 or says(rest, asked.accepted):
            return None
        others = self._others(asked.question, {asked.passage}, asked.accepted, self._count() - 1)
        return self._given(asked.question, [self._headed(asked, rest)], [], [asked.passage, *others])

    def _untold(self) -> _Given | None:
        """A yes-or-no question whose sentence is cut out, or one with another name."""
        found = self._turned()
        if found is None:
            return None
        asked, (start, end), question, _ = found
        text = self._pool.passages[asked.passage].text
        others = self._others(question, {asked.passage}, (), self._count() - 1)
        if self._rng.random() < 0.5:
            text = f"{text[:start]}{text[end:]}".strip()
            if len(text.split()) < 15:
                return None
        else:
            known = "\n".join([text, *(self._pool.passages[i].text for i in others)])
            changed = swaps.with_other_name(question, known, self._names(asked), self._rng)
            if changed is None:
                return None
            question = changed
        return self._given(question, [text], [], [asked.passage, *others])

    def _swapped(self, how: str) -> _Given | None:
        asked = self._asked()
        text = self._pool.passages[asked.passage].text
        found = answers.holding(text, asked.question, asked.accepted)
        if found is None:
            return None
        others = self._others(asked.question, {asked.passage}, (), self._count() - 1)
        known = "\n".join([text, *(self._pool.passages[i].text for i in others)])
        question: str | None
        within = self._rng.random() < _FROM_WITHIN
        elsewhere = f"{text[: found[0]]} {text[found[1] :]}"
        if how == "name" and within:
            question = swaps.with_name_of(asked.question, text[found[0] : found[1]], elsewhere, self._rng)
        elif how == "name":
            question = swaps.with_other_name(asked.question, known, self._names(asked), self._rng)
        elif how == "number" and within:
            question = swaps.with_number_of(asked.question, text[found[0] : found[1]], elsewhere, self._rng)
        elif how == "number":
            question = swaps.with_other_number(asked.question, known, self._rng)
        elif how == "opposite":
            question = swaps.with_opposite(asked.question, text, self._rng)
        else:
            question = swaps.negated(asked.question) if " not " not in text[found[0] : found[1]] else None
        return self._given(question, [text], [], [asked.passage, *others]) if question else None

    # Passages

    def _count(self) -> int:
        return self._rng.choices(_COUNTS, _OF_COUNTS)[0]

    def _given(self, question: str, first: list[str], sentences: list[str], used: list[int], history: tuple[Turn, ...] = ()) -> _Given:
        """`first` are the texts of the first of `used`, changed as they may be; the others are as in the pool."""
        texts = first + [self._pool.passages[i].text for i in used[len(first) :]]
        return _Given(question, texts, sentences, [i for i in used if i >= 0], history)

    def _others(self, question: str, without: set[int], accepted: Sequence[str], count: int) -> list[int]:
        """Passages beside the point: near by BM25, of the same article, or any. None of them has an accepted answer."""
        chosen: list[int] = []
        near = iter(self._near(question))
        groups = [group for i in sorted(without) if (group := self._pool.passages[i].group)]
        for _ in range(count * 12):
            if len(chosen) == count:
                break
            lot = self._rng.random()
            if lot < 0.65:
                at = next(near, None)
                if at is None or self._rng.random() < 0.25:
                    continue
            elif lot < 0.85 and groups:
                at = self._rng.choice(self._pool.of_group[self._rng.choice(groups)])
            else:
                at = self._rng.choice(self._kept)
            text = self._pool.passages[at].text
            if at not in without and at not in chosen and text and not (accepted and says(text, accepted)):
                chosen.append(at)
        return chosen

    def _varied(self, asked: Asked, text: str) -> str:
        """The right passage whole, or only around its answer, or joined to another, or under a heading: chunks are cut as they fall."""
        lot = self._rng.random()
        if lot < _WINDOW:
            spans = answers.spans(text)
            found = answers.holding(text, asked.question, asked.accepted)
            at = next((n for n, (start, _) in enumerate(spans) if found and start == found[0]), None)
            if at is not None:
                alone = self._rng.random() < _LONE_SENTENCE
                first = at if alone else max(0, at - self._rng.choice((0, 1, 1, 2)))
                last = at if alone else min(len(spans) - 1, at + self._rng.choice((0, 1, 1, 2)))
                return text[spans[first][0] : spans[last][1]]
        elif lot < _WINDOW + _JOINED:
            return self._joined(text, asked, asked.accepted)
        return self._headed(asked, text)

    def _joined(self, text: str, asked: Asked, accepted: Sequence[str]) -> str:
        group = self._pool.of_group.get(self._pool.passages[asked.passage].group) or self._kept
        other = self._pool.passages[self._rng.choice(group)].text
        if len(other.split()) > 120 or other == text or (accepted and says(other, accepted)):
            return text
        return self._rng.choice(("\n\n", " ")).join((text, other) if self._rng.random() < 0.5 else (other, text))

    def _headed(self, asked: Asked, text: str) -> str:
        group = self._pool.passages[asked.passage].group
        if not group.startswith(("ss_wiki:", "sq:")) or self._rng.random() >= _HEADED:
            return text
        return f"{self._rng.choice(('# ', '## ', ''))}{group.partition(':')[2].replace('_', ' ')}\n\n{text}"

    def _history(self, asked: Asked) -> tuple[Turn, ...]:
        """Now and then a question about the same passage that was asked before, with its answer as a reader saw it."""
        if self._rng.random() >= _HISTORY:
            return ()
        before = [each for each in self._of_passage[asked.passage] if each.question != asked.question]
        if not before:
            return ()
        earlier = self._rng.choice(before)
        sentence = answers.answer(self._pool.passages[earlier.passage].text, earlier.question, earlier.accepted)
        return (Turn("user", earlier.question), Turn("assistant", sentence or REFUSAL))

    def _names(self, asked: Asked) -> list[str]:
        group = self._pool.of_group.get(self._pool.passages[asked.passage].group, [])
        near = self._near(asked.question)
        chosen = itertools.chain(self._rng.sample(group, min(4, len(group))), near[:6], self._rng.sample(self._kept, 2))
        return [name for i in chosen for name in swaps.names(self._pool.passages[i].text)]
