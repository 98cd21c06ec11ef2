"""Which sentences of a passage are read: pure rules, so plain lists of numbers for tokens."""

from __future__ import annotations

from itertools import pairwise

from rag import window


def test_pieces_are_sentences_and_leave_no_token_out() -> None:
    """Each begins at its sentence's first token; sentences that are too long are parted evenly."""
    starts = list(range(0, 1000, 10))  # a token every ten characters
    found = window.pieces(starts, [(0, 45), (50, 95), (100, 995)])
    assert found[:2] == [(0, 5), (5, 10)]
    assert found[0][0] == 0 and found[-1][1] == 100
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert {b - a for a, b in found[2:]} == {30}
    assert window.pieces([], []) == []


def test_a_passage_that_fits_is_read_whole() -> None:
    """Whatever is asked."""
    assert window.choose([{1}, {2}, {3}], [10, 10, 10], {2: 1.0}, 30) == [0, 1, 2]


def test_the_sentences_with_most_of_the_question_are_read_in_their_order() -> None:
    """Those that add words before those that repeat them; what is rare among the passages counts for more."""
    tokens = [{9}, {1, 2}, {9}, {1, 2}, {3}]
    asked = {1: 1.0, 2: 1.0, 3: 1.5}
    assert window.choose(tokens, [10] * 5, asked, 10) == [1]
    assert window.choose(tokens, [10] * 5, asked, 20) == [1, 4]
    assert window.choose(tokens, [10] * 5, asked, 30) == [1, 3, 4]


def test_without_a_word_in_common_a_passage_is_read_from_its_beginning() -> None:
    """And on from there, not in scraps."""
    assert window.choose([{9}] * 4, [10] * 4, {1: 1.0}, 20) == [0, 1]


def test_one_piece_is_read_even_if_it_is_longer_than_the_room() -> None:
    """Who reads cuts it."""
    assert window.choose([{9}, {1}], [50, 60], {1: 1.0}, 40) == [1]
