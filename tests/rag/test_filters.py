"""What callers may give as filters, and what they are told when it cannot be meant."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from rag.errors import InvalidFilter
from rag.filters import NAMES, Filters, parse


def test_all_filters_are_read() -> None:
    """Suffixes without their dot and in lower case; days as their first moment in UTC."""
    found = parse(
        {"path": "./handbook/travel/", "type": [".PDF", "text/*", "pdf"], "after": "2026-03-31", "before": "2026-04-01T12:00:00+02:00"}
    )
    after, before = datetime(2026, 3, 31, tzinfo=UTC).timestamp(), datetime(2026, 4, 1, 10, tzinfo=UTC).timestamp()
    assert found == Filters("handbook/travel/", ("pdf", "text/*"), after, before)


@pytest.mark.parametrize("path", ["handbook/a.md", "/handbook/a.md", "./handbook/a.md", ".//./handbook/a.md"])
def test_a_path_may_be_written_from_the_folder_on(path: str) -> None:
    """As a shell completes it."""
    found = parse({"path": path})
    assert found is not None
    assert found.path == "handbook/a.md"


def test_no_filter_is_none() -> None:
    """Also where all are left empty."""
    assert parse(None) is None
    assert parse({}) is None
    assert parse(dict.fromkeys(NAMES)) is None


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"colour": "red"}, "colour"),
        ({"domain": "guide"}, "domain"),
        ({"path": ""}, "path"),
        ({"path": "/"}, "path"),
        ({"path": "./"}, "path"),
        ({"path": ".//./"}, "path"),
        ({"path": " ./ "}, "path"),
        ({"path": 5}, "path"),
        ({"path": "a\\b"}, "path"),
        ({"path": "x" * 2000}, "path"),
        ({"type": "p d f"}, "type"),
        ({"type": []}, "type"),
        ({"type": ["pdf", 5]}, "type"),
        ({"type": "a/b/c"}, "type"),
        ({"type": ["pdf"] * 21}, "type"),
        ({"after": "yesterday"}, "after"),
        ({"before": "2026-02-30"}, "before"),
        ({"before": 20260101}, "before"),
        ({"after": "2026-02-01", "before": "2026-02-01"}, "after"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_named_with_a_remedy(given: dict[str, Any], word: str) -> None:
    """As 400."""
    with pytest.raises(InvalidFilter) as caught:
        parse(given)
    assert f"`{word}`" in caught.value.message or f"'{word}'" in caught.value.message
    assert caught.value.remedy
    assert caught.value.status == 400
