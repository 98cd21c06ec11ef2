"""The numbers that an answer's sentences begin with are read and taken out."""

from __future__ import annotations

import random

import pytest

from rag.marks import Marks, unmarked


@pytest.mark.parametrize(
    ("said", "shown", "numbers"),
    [
        ("[2] Vienna is the capital.", "Vienna is the capital.", (2,)),
        ("[1] One. [13] Two.", "One. Two.", (1, 13)),
        ("No mark at all.", "No mark at all.", ()),
        ("It grew.[4] Then it fell.", "It grew.[4] Then it fell.", ()),
        ("A list [a, b] and [123] stay.", "A list [a, b] and [123] stay.", ()),
        ("[2]", "", (2,)),
        ("[2", "[2", ()),
        ("x[1] [2] y", "x[1] y", (2,)),
        ("", "", ()),
    ],
)
def test_marks_are_taken_out_and_nothing_else(said: str, shown: str, numbers: tuple[int, ...]) -> None:
    """A reference mark of the source follows its word at once, and stays."""
    assert unmarked(said) == (shown, numbers)


def test_what_a_mark_stands_before_is_known() -> None:
    """By the visible characters before it, however the text is cut and its white space trimmed."""
    for size in (1, 2, 3, 100):
        marks, said = Marks(), "\n [2] Vienna is it.  [13] So what. No mark."
        for at in range(0, len(said), size):
            marks.feed(said[at : at + size])
        marks.flush()
        assert [marks.number_at(n) for n in (0, len("Viennaisit."), len("Viennaisit.Sowhat."), 1)] == [2, 13, None, None]


def test_a_stream_is_read_as_the_whole_is() -> None:
    """However the text falls into pieces; and nothing is held back but what may be a mark."""
    rng = random.Random(3)
    said = "[2] Vienna [is] the capital. [13] It has 2 [million] people.[4] [1] So [they say]"
    for _ in range(200):
        marks, shown, at = Marks(), "", 0
        while at < len(said):
            piece = said[at : at + rng.randint(1, 5)]
            at += len(piece)
            shown += marks.feed(piece)
            held = len(unmarked(said[:at])[0]) - len(shown)
            assert held <= len("[13]")
        shown += marks.flush()
        assert (shown, tuple(marks.numbers)) == unmarked(said)
