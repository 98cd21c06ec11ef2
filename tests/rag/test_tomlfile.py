"""TOML files changed in place: the keys before all sections. A value of a section is tested with the models (`test_models.py`)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag import tomlfile
from rag.errors import InvalidSettings


@pytest.mark.parametrize(
    ("before", "values", "after"),
    [
        ("", {"title": "A"}, 'title = "A"\n'),
        ("# mine\n", {"title": "A"}, '# mine\ntitle = "A"\n'),
        ('title = "x"  # why\npassages = 3\n', {"title": "A"}, 'title = "A"  # why\npassages = 3\n'),
        ('a = """\nold\nold\n"""\nb = 1\n', {"a": "new"}, 'a = "new"\nb = 1\n'),
        ('ignore = [\n  "a", # c\n  "b",\n]\nb = 1\n', {"ignore": ("x", 'y"')}, 'ignore = ["x", "y\\""]\nb = 1\n'),
        ("a = 1\nb = 2\nc = 3\n", {"b": None, "d": "e"}, 'a = 1\nc = 3\nd = "e"\n'),
        ("a = 1", {"b": "two\nlines"}, 'a = 1\nb = """\ntwo\nlines"""\n'),
        ("# top\na = 1\n\n[b]\na = 2\n", {"a": None}, "# top\n\n[b]\na = 2\n"),
        ("# top\na = 1\n\n[b]\na = 2\n", {"c": "d"}, '# top\na = 1\nc = "d"\n\n[b]\na = 2\n'),
        ('a = "x"\r\n', {"b": "y"}, 'a = "x"\r\nb = "y"\r\n'),
        ("a = 1\n", {"b": None}, "a = 1\n"),
    ],
)  # fmt: skip
def test_keys_are_set_and_taken_out_and_every_other_line_stays(tmp_path: Path, before: str, values: dict, after: str) -> None:
    """Values of several lines are replaced whole; a comment behind one line stays; sections are not touched."""
    path = tmp_path / "domain.toml"
    path.write_bytes(before.encode())
    tomlfile.set_values(path, values)
    assert path.read_bytes().decode() == after
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.text("\"\\\n'a#[]=\r\t\u2028\x01é", max_size=12), min_size=1, max_size=4))
def test_any_text_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """One after the other into the same file, whatever stood there: quotes, lines, what looks like a section or a comment."""
    path = tmp_path_factory.mktemp("toml") / "domain.toml"
    for number, text in enumerate(texts):
        tomlfile.set_values(path, {"prompt": text, f"key{number % 2}": (text, "x")})
        read = tomllib.loads(path.read_bytes().decode())
        assert (read["prompt"], read[f"key{number % 2}"]) == (text, [text, "x"])


@pytest.mark.parametrize("before", ["title = [\n", "[title]\na = 1\n", 'title.a = "x"\n"title" = 1\n'])
def test_what_cannot_be_changed_safely_is_left_alone(tmp_path: Path, before: str) -> None:
    """A file with a mistake, and a key that is something else there."""
    path = tmp_path / "domain.toml"
    path.write_text(before)
    with pytest.raises(InvalidSettings):
        tomlfile.set_values(path, {"title": "A"})
    assert path.read_text() == before
