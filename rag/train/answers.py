"""What an answer is to look like: the passage's own sentence that holds it, shortened where it is long; or a refusal.

A sentence of the source can be checked against it word by word, and to choose one is what a small model can do. Each sentence
begins with the number of the passage that it is from, `[2] Vienna is the capital.`: to point first and then to copy is also the
easier order, and whether it will answer at all shows in its very first token. `rag/marks.py` takes the numbers off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.sentences import content_stems, sentence_spans

# Longer sentences are shortened, if they can be; a quarter of Wikipedia's are. Those that stay longer than the second are not used.
_LONG, _TOO_LONG = 28, 70

# In texts in small letters a sentence ends at a mark before white space, unless that stands within a number or after an abbreviation.
_SMALL_END = re.compile(r"(?<=[a-z)\]\"'][.!?])\s+|(?<=\d\.)\s+(?=[a-z])")
_SMALL_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|cf|no|inc|ltd|co|approx|u\.s|[a-z])\.$")

_ASIDE = re.compile(r"\s*\((?:[^()]|\([^()]*\))*\)")
_CLAUSE = re.compile(
    r";\s+|\s+[–—]\s+|,\s+(?=(?:which|who|while|whereas|although|though|but|and|where|with|so|because|since|making|leading)\b)"
)

# A part after one of these begins no sentence of its own.
_DEPENDENT = frozenset(
    "which who while whereas although though but and where with so because since making leading or nor".split()  # noqa: SIM905 - easier to read
)


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence; texts in small letters are cut as well."""
    if text != text.lower():
        return sentence_spans(text)
    found, start = [], 0
    for match in _SMALL_END.finditer(text):
        if not _SMALL_ABBREVIATION.search(text, max(start, match.start() - 8), match.start()):
            found.append((start, match.start()))
            start = match.end()
    return [*found, (start, len(text))] if start < len(text) else found


def holding(text: str, question: str, accepted: Sequence[str]) -> tuple[int, int, str] | None:
    """(start, end, answer) of the sentence that answers: it has an accepted answer, and most of the question's words.

    None if no sentence has one.
    """
    asked = set(content_stems(question))
    best: tuple[tuple[int, int, int], tuple[int, int, str]] | None = None
    for start, end in spans(text):
        sentence = text[start:end]
        for rank, answer in enumerate(accepted):
            if _has(sentence, answer):
                key = (len(asked & set(content_stems(sentence))), -rank, -start)
                if best is None or key > best[0]:
                    best = key, (start, end, answer)
                break
    return best[1] if best else None


def answer(text: str, question: str, accepted: Sequence[str]) -> str | None:
    """The sentence of the passage that answers the question, shortened if it is long. None if it makes no answer."""
    found = holding(text, question, accepted)
    if found is None:
        return None
    start, end, given = found
    sentence = shortened(" ".join(text[start:end].split()), given, question)
    return sentence if 2 <= len(sentence.split()) <= _TOO_LONG else None


def shortened(sentence: str, given: str, question: str) -> str:
    """A long sentence without its asides, and without the clauses after (or, parted by `;`, before) the answer.

    Keeps `given`, and as many of the question's words as the whole had.
    """
    if len(sentence.split()) <= _LONG:
        return sentence
    asked = set(content_stems(question))
    wanted = asked & set(content_stems(sentence))

    def keeps(part: str) -> bool:
        return _has(part, given) and wanted <= set(content_stems(part))

    without = _ASIDE.sub("", sentence)
    if keeps(without):
        sentence = without
    for match in reversed(list(_CLAUSE.finditer(sentence))):
        head = sentence[: match.start()]
        if len(head.split()) < 5 or not keeps(head):
            break
        sentence = head.rstrip(" ,;") + "."
        if len(sentence.split()) <= _LONG // 2:
            break
    while len(sentence.split()) > _LONG and "; " in sentence:
        _, _, tail = sentence.partition("; ")
        if tail.split()[0].lower() in _DEPENDENT or not keeps(tail):
            break
        sentence = tail if sentence == sentence.lower() else tail[:1].upper() + tail[1:]
    return sentence


def _has(sentence: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", sentence) is not None


def marked(number: int | None, sentence: str) -> str:
    """With the number of its passage before it; None where the passage has none."""
    return sentence if number is None else f"[{number}] {sentence}"


# Yes and no: of sentences that begin `Subject is ...`, which are turned around.
_SAYS_SO = re.compile(
    r"(?P<subject>(?:The |A |An )?[A-Z][\w’-]*(?: [\w’-]+){0,5}?) (?P<verb>is|was|are|were|can|could|will|would|must|should) "
    r"(?P<rest>[^;:()\[\]\"]{12,160})\."
)
_NO_SUBJECT = re.compile(
    r"(?:He|She|It|They|This|That|These|Those|There|Here|In|On|At|During|After|Before|When|While|Although|As|By|For|From|With|If|Since|What|Who|"
    r"How|Why|Where|Its|His|Her|Their|I|We|You|My|Our|Your|One|Some|Many|Most|All|Both|Each|But|And|Or|So|Not|No|Another|Other|Such|Under|Until)\b"
)


def turned(sentence: str) -> tuple[str, str] | None:
    """(the question that it answers with yes, the sentence as it follows `Yes, `), or None if it cannot be turned around."""
    match = _SAYS_SO.fullmatch(sentence)
    if match is None or _NO_SUBJECT.match(sentence) or len(sentence.split()) > _LONG or " not " in sentence or ", which" in sentence:
        return None
    subject = match["subject"]
    if re.match(r"(?:The|A|An) ", subject):
        subject = subject[0].lower() + subject[1:]
    verb = match["verb"]
    return f"{verb.capitalize()} {subject} {match['rest']}?", f"{subject} {verb} {match['rest']}."


def subject_asked(sentence: str) -> tuple[str, str] | None:
    """(`What was built in 1889?`, the subject that this asks for) of a sentence that can be turned around, else None."""
    found = turned(sentence)
    if found is None:
        return None
    question, told = found
    verb = question.partition(" ")[0]
    subject, _, rest = told.partition(f" {verb.lower()} ")
    words = subject.split()
    if len(rest.split()) < 4 or any(word[:1].isdigit() for word in words):
        return None
    person = len(words) == 2 and all(word[:1].isupper() for word in words) and verb in ("Is", "Was")
    subject = sentence[: len(subject)]  # as the sentence writes it
    return f"{'Who or what' if person else 'What'} {verb.lower()} {rest.rstrip('.')}?", subject
