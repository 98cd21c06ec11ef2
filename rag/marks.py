"""The numbers of passages that an answer's sentences begin with, `[2] Vienna is the capital.`: read, and taken out of what people see.

The grounded adapter (`rag/packages/grounded`) was trained to point before it speaks. What a sentence is cited for is still computed
by `rag/cite.py`; the number says in which passage to look first.
"""

from __future__ import annotations

import re

_MARK = re.compile(r"(?<!\S)\[(\d{1,2})\](?: |$)")
_BEGUN = re.compile(r"(?<!\S)\[(?:\d{1,2}\]?)?$")


class Marks:
    """Takes the marks out of a stream of pieces. `numbers` are those that came, in order, as the prompt counts passages, from 1."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._places: dict[int, int] = {}
        """By the count of visible characters shown before a mark, its number: white space is trimmed on the way to people."""
        self._visible = 0
        self._held = ""
        self._before = ""
        """The last character that was given on: a mark follows white space, or nothing."""

    def feed(self, piece: str) -> str:
        """What may be shown now; the beginning of what may be a mark is held back."""
        return self._take(self._held + piece, final=False)

    def flush(self) -> str:
        """What is left when the answer is over."""
        return self._take(self._held, final=True)

    def number_at(self, visible: int) -> int | None:
        """The number of what begins after so many visible characters of what was shown; None where no mark stands before it."""
        return self._places.get(visible)

    def _take(self, new: str, *, final: bool) -> str:
        known = len(self._before)  # patterns look back at that one, and match after it
        text, self._held = self._before + new, ""
        begun = None if final else _BEGUN.search(text, known)
        if begun is not None:
            text, self._held = text[: begun.start()], text[begun.start() :]
        shown, at = [], known
        for match in _MARK.finditer(text, known):
            self.numbers.append(int(match[1]))
            shown.append(text[at : match.start()])
            self._visible += visible(shown[-1])
            self._places[self._visible] = int(match[1])
            at = match.end()
        shown.append(text[at:])
        self._visible += visible(shown[-1])
        self._before = text[-1:]
        return "".join(shown)


def visible(text: str) -> int:
    """How many characters of a text are not white space: by these a sentence is found again."""
    return sum(map(len, text.split()))


def unmarked(text: str) -> tuple[str, tuple[int, ...]]:
    """A whole answer without its marks, and their numbers."""
    marks = Marks()
    shown = marks.feed(text) + marks.flush()
    return shown, tuple(marks.numbers)
