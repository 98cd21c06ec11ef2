"""Golden sets: questions with what is known of their answers, one JSON object a line. Reading, checking, writing, drawing.

    {"id": "port", "question": "How do I change the port?", "answers": ["server.port", "--port"], "documents": ["guide/operations.md"]}
    {"id": "king", "question": "Who is the king of France?", "answers": []}

Field by field: `Item`. The format for people is in `corpora/guide/evaluation.md`; the sets that others made are read by
`rag/importers.py`; what is measured with them is in `rag/evaluate.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import InvalidInput, NotFound
from rag.records import Turn

_GUIDE = "The format is described in corpora/guide/evaluation.md."
_PAGE = "#page="


@dataclass(frozen=True, slots=True)
class Page:
    """A page, from 1, of a document; in JSON `handbook/rules.pdf#page=3` (the fragment is that of RFC 8118)."""

    document: str
    number: int


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a document's text, given by its words; `start` and `end` say which one where the words stand more than once."""

    document: str
    quote: str
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its gold evidence. Paths are relative to `corpora/`, with `/`, and so begin with the domain.

    `answers`: any of them is right; empty: the documents do not answer it; None: it is not known what the answer is.
    `documents`: each holds evidence; those of `pages` and `spans` count as well. `history` came before the question.
    """

    id: str
    question: str
    answers: tuple[str, ...] | None = None
    documents: tuple[str, ...] = ()
    pages: tuple[Page, ...] = ()
    spans: tuple[Span, ...] = ()
    history: tuple[Turn, ...] = ()
    domain: str | None = None

    @property
    def answerable(self) -> bool | None:
        """Whether the documents answer it; None where nothing is known."""
        if self.answers is not None:
            return bool(self.answers)
        return True if self.gold_documents else None

    @property
    def gold_documents(self) -> tuple[str, ...]:
        """All documents with evidence, each once."""
        named = (*self.documents, *(page.document for page in self.pages), *(span.document for span in self.spans))
        return tuple(dict.fromkeys(named))


def read(path: Path) -> tuple[Item, ...]:
    """The items of a JSONL file. Raises `NotFound`, and `InvalidInput` that names the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"There is no golden set at {path}.", "Name a JSONL file. " + _GUIDE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.", "Name a JSONL file in UTF-8. " + _GUIDE) from error
    return parse(text, str(path))


def parse(text: str, name: str) -> tuple[Item, ...]:
    """The items of a JSONL text that is called `name` in errors. Raises `InvalidInput` that names the line."""
    items: list[Item] = []
    lines: dict[str, int] = {}
    # Not splitlines(): JSON may hold U+2028 and its kin as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = _item(json.loads(line))
        except json.JSONDecodeError as error:
            raise _wrong(name, number, f"is not JSON: {error.msg} at column {error.colno}") from error
        except _Wrong as error:
            raise _wrong(name, number, str(error)) from error
        if item.id in lines:
            raise _wrong(name, number, f"has the id {item.id!r}, as line {lines[item.id]} has")
        lines[item.id] = number
        items.append(item)
    if not items:
        raise InvalidInput(f"{name} has no questions.", "Write one JSON object a line. " + _GUIDE)
    return tuple(items)


def dumps(items: Iterable[Item]) -> str:
    """As JSONL; `parse` gives the same items back."""
    return "".join(json.dumps(fields(item), ensure_ascii=False) + "\n" for item in items)


def fields(item: Item) -> dict[str, Any]:
    """An item as JSON, without what is empty."""
    given: dict[str, Any] = {"id": item.id, "question": item.question}
    if item.answers is not None:
        given["answers"] = list(item.answers)
    if item.documents:
        given["documents"] = list(item.documents)
    if item.pages:
        given["pages"] = [f"{page.document}{_PAGE}{page.number}" for page in item.pages]
    if item.spans:
        named = ("document", "quote", "start", "end")
        given["spans"] = [{name: value for name in named if (value := getattr(span, name)) is not None} for span in item.spans]
    if item.history:
        given["history"] = [{"role": turn.role, "content": turn.content} for turn in item.history]
    if item.domain is not None:
        given["domain"] = item.domain
    return given


def digest(items: Iterable[Item]) -> str:
    """Of what is asked and what is right, in any order: two runs with the same one can be compared. sha256, hex."""
    lines = sorted(json.dumps(fields(item), sort_keys=True) for item in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def draw(items: Sequence[Item], count: int, seed: int) -> tuple[Item, ...]:
    """`count` of the items by chance, the same for the same seed, in their order; all where there are no more.

    As many unanswerable ones as others where the set has both: each of the two error rates is then known about equally well, and
    none of them changes by it.
    """
    rng = random.Random(seed)
    refused = [item for item in items if item.answerable is False]
    others = [item for item in items if item.answerable is not False]
    wanted = min(len(refused), max(count // 2, count - len(others)))
    drawn = rng.sample(refused, wanted) + rng.sample(others, min(len(others), count - wanted))
    chosen = {item.id for item in drawn}
    return tuple(item for item in items if item.id in chosen)


class _Wrong(Exception):
    """What is wrong with a line, as the end of the sentence `Line 3 ...`."""


def _wrong(name: str, line: int, what: str) -> InvalidInput:
    return InvalidInput(f"Line {line} of {name} {what}.", "Correct that line. " + _GUIDE)


_FIELDS = tuple(field.name for field in dataclasses.fields(Item))


def _item(value: Any) -> Item:
    if not isinstance(value, dict):
        raise _Wrong("is not a JSON object")
    for key in value:
        if key not in _FIELDS:
            raise _Wrong(f"has an unknown field {key!r}; known are {', '.join(_FIELDS)}")
    question = _text(value.get("question"), "question")
    domain = None if value.get("domain") is None else _text(value["domain"], "domain")
    answers = None if value.get("answers") is None else tuple(_text(one, "answers") for one in _list(value["answers"], "answers"))
    history = tuple(map(_turn, _list(value.get("history", []), "history")))
    item = Item(
        id=_text(value["id"], "id") if "id" in value else _made_id(question, domain, history),
        question=question,
        answers=answers,
        documents=tuple(_path(one, "documents") for one in _list(value.get("documents", []), "documents")),
        pages=tuple(map(_page, _list(value.get("pages", []), "pages"))),
        spans=tuple(map(_span, _list(value.get("spans", []), "spans"))),
        history=history,
        domain=domain,
    )
    if item.answers == () and item.gold_documents:
        raise _Wrong(f"says that nothing answers it (answers: []), and that {item.gold_documents[0]} does")
    return item


def _made_id(question: str, domain: str | None, history: tuple[Turn, ...]) -> str:
    """Of what is asked, so that a line keeps it when others come or go."""
    asked = json.dumps([domain, [[turn.role, turn.content] for turn in history], question])
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"has {field} = {value!r}, where a text is wanted" if value is not None else f"has no {field}")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise _Wrong(f"has {field} = {value!r}, which is not text: half of a surrogate pair stands alone")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong(f"has {field} = {value!r}, where a list is wanted")
    return value


def _path(value: Any, field: str) -> str:
    path = _text(value, field)
    if path.startswith("/") or "\\" in path or "/" not in path or ".." in path.split("/"):
        raise _Wrong(f"has {field} = {path!r}, where a path below corpora/ is wanted, such as guide/start.md")
    return path


def _page(value: Any) -> Page:
    document, mark, number = _text(value, "pages").rpartition(_PAGE)
    if not mark or not number.isascii() or not number.isdigit() or int(number) < 1:
        raise _Wrong(f"has pages = {value!r}, where a page is wanted, such as handbook/rules.pdf{_PAGE}3")
    return Page(_path(document, "pages"), int(number))


def _span(value: Any) -> Span:
    if not isinstance(value, dict) or not set(value) <= {"document", "quote", "start", "end"}:
        raise _Wrong(f"has spans = {value!r}, where an object with document, quote and perhaps start and end is wanted")
    start, end = value.get("start"), value.get("end")
    quote = _text(value.get("quote"), "spans.quote")
    if (start, end) != (None, None):
        numbers = all(isinstance(one, int) and not isinstance(one, bool) for one in (start, end))
        if not numbers or start < 0 or end - start != len(quote):
            raise _Wrong(f"has a span from {start!r} to {end!r} for a quote of {len(quote)} characters")
    return Span(_path(value.get("document"), "spans.document"), quote, start, end)


def _turn(value: Any) -> Turn:
    if not isinstance(value, dict) or set(value) != {"role", "content"} or value["role"] not in ("user", "assistant"):
        raise _Wrong(f"has history = {value!r}, where an object with role (user or assistant) and content is wanted")
    return Turn(value["role"], _text(value["content"], "history.content"))
