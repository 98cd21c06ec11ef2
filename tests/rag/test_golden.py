"""Golden sets: what is written is read again, and what is wrong is said with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag import golden
from rag.errors import InvalidInput, NotFound
from rag.golden import Item, Page, Span
from rag.records import Turn

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
PATH = st.from_regex(r"[a-z#= ]{1,5}/[a-z#=.]{1,9}", fullmatch=True).filter(lambda path: ".." not in path.split("/") and path.strip())
SPAN = st.builds(
    lambda path, quote, start: Span(path, quote, start, start and start + len(quote)), PATH, TEXT, st.none() | st.integers(1, 99)
)


@st.composite
def items(draw: st.DrawFn) -> list[Item]:
    """Any items that may stand in one set."""
    found = []
    for id in draw(st.lists(TEXT, min_size=1, max_size=5, unique=True)):
        answers = draw(st.none() | st.lists(TEXT, max_size=3).map(tuple))
        gold = answers != ()
        found.append(
            Item(
                id,
                draw(TEXT),
                answers,
                tuple(draw(st.lists(PATH, max_size=2))) if gold else (),
                tuple(draw(st.lists(st.builds(Page, PATH, st.integers(1, 999)), max_size=2))) if gold else (),
                tuple(draw(st.lists(SPAN, max_size=2))) if gold else (),
                tuple(draw(st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), TEXT), max_size=2))),
                draw(st.none() | TEXT),
            )
        )
    return found


@given(items())
def test_what_is_written_is_read_again(written: list[Item]) -> None:
    """Line separators of Unicode, signs of paths and all."""
    assert list(golden.parse(golden.dumps(written), "x")) == written


def test_a_line_needs_a_question_only(tmp_path: Path) -> None:
    """Empty lines and a byte order mark, as editors leave them, are no matter; the id stays when other lines come."""
    path = tmp_path / "set.jsonl"
    path.write_text('\ufeff{"question": "Why?"}\n\n{"question": "Why?", "domain": "guide"}\n', encoding="utf-8")
    first, second = golden.read(path)
    assert (first.answers, first.answerable, first.gold_documents) == (None, None, ())
    assert first.id != second.id
    path.write_text('{"question": "How?"}\n{"question": "Why?"}\n', encoding="utf-8")
    assert golden.read(path)[1].id == first.id


def test_answers_say_whether_there_is_one() -> None:
    """None at all, an empty list and a list are three things."""
    lines = ['{"question": "a"}', '{"question": "b", "answers": []}', '{"question": "c", "answers": ["x"]}']
    lines.append('{"question": "d", "documents": ["g/a.md"]}')
    assert [item.answerable for item in golden.parse("\n".join(lines), "x")] == [None, False, True, True]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "a"', "is not JSON"),
        ("[1]", "not a JSON object"),
        ('{"answers": []}', "no question"),
        ('{"question": "  "}', "question = '  '"),
        ('{"question": 3}', "question = 3"),
        ('{"question": "a", "answer": "b"}', "unknown field 'answer'"),
        ('{"question": "a", "answers": "b"}', "answers = 'b', where a list"),
        ('{"question": "a", "answers": [""]}', "answers = ''"),
        ('{"question": "a", "answers": [null]}', "no answers"),
        ('{"question": "a", "documents": ["/etc/passwd"]}', "below corpora/"),
        ('{"question": "a", "documents": ["g/../a"]}', "below corpora/"),
        ('{"question": "a", "documents": ["a.md"]}', "below corpora/"),
        ('{"question": "a", "pages": ["g/a.pdf"]}', "#page=3"),
        ('{"question": "a", "pages": ["g/a.pdf#page=0"]}', "#page=3"),
        ('{"question": "a", "pages": ["g/a.pdf#page=²"]}', "#page=3"),
        ('{"question": "a", "spans": ["x"]}', "an object with document, quote"),
        ('{"question": "a", "spans": [{"document": "g/a.md"}]}', "no spans.quote"),
        (
            '{"question": "a", "spans": [{"document": "g/a.md", "quote": "xy", "start": 1, "end": 9}]}',
            "a span from 1 to 9 for a quote of 2",
        ),
        ('{"question": "a", "spans": [{"document": "g/a.md", "quote": "xy", "start": 1}]}', "a span from 1 to None"),
        ('{"question": "a", "history": [{"role": "system", "content": "x"}]}', "user or assistant"),
        ('{"question": "a", "answers": [], "documents": ["g/a.md"]}', "that g/a.md does"),
        ('{"question": "\\ud800"}', "surrogate"),
        ('{"question": "first", "id": "one"}', "has the id 'one', as line 1 has"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(line: str, said: str) -> None:
    """And where the format is described."""
    with pytest.raises(InvalidInput) as caught:
        golden.parse(f'{{"question": "a", "id": "one"}}\n\n{line}', "mine.jsonl")
    assert caught.value.message.startswith("Line 3 of mine.jsonl ")
    assert said in caught.value.message
    assert "corpora/guide/evaluation.md" in caught.value.remedy


def test_no_file_and_no_question_are_said(tmp_path: Path) -> None:
    """A missing file is one thing, an empty or binary one another."""
    with pytest.raises(NotFound, match=r"none\.jsonl"):
        golden.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidInput, match="no questions"):
        golden.read(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(InvalidInput, match="cannot be read"):
        golden.read(tmp_path / "binary.jsonl")
    with pytest.raises(InvalidInput, match="cannot be read"):
        golden.read(tmp_path)


def some(answerable: int, unanswerable: int) -> list[Item]:
    return [Item(f"a{n}", "?", ("x",)) for n in range(answerable)] + [Item(f"u{n}", "?", ()) for n in range(unanswerable)]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 70), st.integers(0, 5))
def test_a_sample_has_as_many_of_both_as_there_are(answerable: int, unanswerable: int, count: int, seed: int) -> None:
    """As many as asked for, in their order, half and half as far as both kinds reach; again the same for the same seed."""
    all_items = some(answerable, unanswerable)
    drawn = golden.draw(all_items, count, seed)
    assert drawn == golden.draw(all_items, count, seed)
    assert len(drawn) == min(count, len(all_items))
    assert [item.id for item in all_items if item in drawn] == [item.id for item in drawn]
    refused = sum(item.answerable is False for item in drawn)
    if count // 2 <= unanswerable and count - count // 2 <= answerable:
        assert refused == count // 2


def test_another_seed_draws_others() -> None:
    """Else a sample could not be checked on another."""
    assert len({golden.draw(some(50, 50), 10, seed) for seed in range(5)}) == 5


def test_the_digest_is_of_what_is_asked_and_right() -> None:
    """In any order; an answer that changes makes another set."""
    items = some(2, 1)
    assert golden.digest(items) == golden.digest(items[::-1])
    assert golden.digest(items) != golden.digest(items[:2])
    assert golden.digest([Item("a", "?", ("x",))]) != golden.digest([Item("a", "?", ("y",))])


def test_the_format_is_described_field_by_field() -> None:
    """The guide's page names every field, and its examples can be read."""
    page = (Path(__file__).parents[2] / "corpora" / "guide" / "evaluation.md").read_text(encoding="utf-8")
    for field in golden._FIELDS:
        assert f"| `{field}` |" in page, field
    lines = [line.strip() for line in page.splitlines() if line.startswith('    {"question"')]
    assert len(golden.parse("\n".join(lines), "guide")) == 2
    assert json.loads(lines[1])["answers"] == []
