"""Capitals put back into texts that came in small letters: most questions that people wrote to have no answer come with such a passage,
while people's documents have capitals. By rule, from the words of texts that have theirs (Lita and others, tRuEcasIng, 2003)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from rag.train import answers

_WORD = re.compile(r"[^\W\d_][\w'’]*")
# A word is written as it mostly is within sentences, if it has been seen there.
_LEAST_SEEN = 2


class Capitals:
    """Learns how words are written from texts with capitals; those in small letters teach nothing."""

    def __init__(self, texts: Iterable[str]) -> None:
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            if text == text.lower():
                continue
            for start, end in answers.spans(text):
                # The first word of a sentence has its capital from there.
                for match in list(_WORD.finditer(text, start, end))[1:]:
                    seen[match[0].lower()][match[0]] += 1
        self._forms: dict[str, str] = {}
        for word, forms in seen.items():
            form, count = forms.most_common(1)[0]
            if form != word and 2 * count > forms.total() >= _LEAST_SEEN:
                self._forms[word] = form

    def __call__(self, text: str, *questions: str) -> str:
        """The text with capitals. What a question writes with one within its sentence has it too."""
        within = [match[0] for question in questions for match in list(_WORD.finditer(question))[1:]]
        own = {word.lower(): word for word in within if word != word.lower()}
        firsts = {match.start() for start, end in answers.spans(text) if (match := _WORD.search(text, start, end))}

        def written(match: re.Match[str]) -> str:
            word = match[0]
            form = own.get(word) or self._forms.get(word) or ("I" if word == "i" else word)
            return form[0].upper() + form[1:] if match.start() in firsts else form

        # Their marks came parted too: `28. 70 square miles`.
        return re.sub(r"(?<=\d)(?<!\d{4})\. (?=\d{1,3}\b)", ".", _WORD.sub(written, text))
