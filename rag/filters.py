"""Which documents a question is put to: by path, type and date of change. `parse` reads what a caller gave.

The documents that fit are looked up in the records of documents, which know every change of a file at once
(`Library.matching`); the store is then asked for passages of those alone. A domain is not a filter: see `rag/domains.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rag.errors import InvalidFilter

NAMES = ("path", "type", "after", "before")

_MOST = 20
"""Types in one filter."""
_LONGEST = 1024
"""Characters of a path: more than a file system takes."""

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]*/(\*|[a-z0-9][a-z0-9.+-]*)")
_SUFFIX = re.compile(r"\.?([a-z0-9_-]{1,20})")


@dataclass(frozen=True, slots=True)
class Filters:
    """All that is set must hold. `path`: as in results, `handbook/travel/`; what begins with it, or with `*` or `?` in it what is like it.

    `types`: media types (`application/pdf`, `image/*`) and suffixes without a dot (`pdf`), of which one must hold. `after` and
    `before`: seconds since the epoch between which the file was changed, the first included.
    """

    path: str | None = None
    types: tuple[str, ...] = ()
    after: float | None = None
    before: float | None = None


def parse(given: Mapping[str, Any] | None) -> Filters | None:
    """The filters in `{"path": ..., "type": ..., "after": ..., "before": ...}`; None where none is set. Raises `InvalidFilter`."""
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if unknown := sorted(given.keys() - set(NAMES)):
        raise InvalidFilter(f"There is no filter {unknown[0]!r}.", f"Use one of: {', '.join(NAMES)}; the domain has a field of its own.")
    if not given:
        return None
    filters = Filters(_path(given.get("path")), _types(given.get("type")), _time("after", given), _time("before", given))
    if filters.after is not None and filters.before is not None and filters.after >= filters.before:
        raise InvalidFilter("The filter `after` is not before `before`, so no document fits.", "Exchange them, or leave one out.")
    return filters


def _path(value: Any) -> str | None:
    if value is None:
        return None
    # `./` alone is the whole folder, which is no filter.
    if not isinstance(value, str) or not value.strip("./ ") or len(value) > _LONGEST:
        raise InvalidFilter(
            f"The filter `path` is {_shown(value)}.", "Give the beginning of a path (`handbook/travel`) or a pattern (`*/2024*.pdf`)."
        )
    if "\\" in value:
        raise InvalidFilter(f"The filter `path` is {_shown(value)}.", "Write it with `/`, as paths are shown in results.")
    return re.sub(r"^(\.?/)+", "", value)


def _types(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    found = []
    for one in value if isinstance(value, (list, tuple)) else [value]:
        text = one.strip().lower() if isinstance(one, str) else ""
        suffix = _SUFFIX.fullmatch(text)
        if not suffix and not _MEDIA_TYPE.fullmatch(text):
            raise InvalidFilter(
                f"The filter `type` is {_shown(one)}.", "Give a suffix (`pdf`) or a media type (`text/markdown`, `image/*`)."
            )
        found.append(suffix[1] if suffix else text)
    if not 0 < len(found) <= _MOST:
        raise InvalidFilter(f"The filter `type` has {len(found)} types.", f"Give one to {_MOST}.", _MOST)
    return tuple(dict.fromkeys(found))


def _time(name: str, given: Mapping[str, Any]) -> float | None:
    """A date is its first moment; one without a time zone is in UTC."""
    value = given.get(name)
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        moment = datetime.fromisoformat(value.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidFilter(f"The filter `{name}` is {_shown(value)}.", "Give a date, `2026-03-31` or `2026-03-31T18:00:00Z`.") from None


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
