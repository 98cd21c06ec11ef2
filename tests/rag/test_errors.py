"""The tree of errors."""

from __future__ import annotations

from collections.abc import Iterator

from rag import errors
from rag.errors import ReadingRoomError


def _tree(of: type[ReadingRoomError]) -> Iterator[type[ReadingRoomError]]:
    yield of
    for child in of.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


def test_every_error_has_its_own_code_a_status_a_title_and_a_place_in_the_drawing() -> None:
    """Programs tell errors apart by code, people find them in the module's docstring."""
    classes = list(_tree(ReadingRoomError))
    codes = [cls.code for cls in classes]
    assert sorted(codes) == sorted(set(codes))
    assert len(classes) > 15
    for cls in classes[1:]:
        assert "code" in vars(cls)
        assert "title" in vars(cls)
        assert 400 <= cls.status < 600
        assert cls.__name__ in (errors.__doc__ or "")
