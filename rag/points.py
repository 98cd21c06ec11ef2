"""A passage as Qdrant keeps it, in this process (`rag/store.py`) or served (`rag/served_store.py`): vectors and a payload. Pure.

Both stores write the same points, so what one of them wrote the other can read. How BM25 vectors are made is in `rag/languages.py`, what
is encrypted of a payload in `rag/seal.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rag.languages import DEFAULT, document_vector, language_of, stamp
from rag.records import Chunk, Document, Passage, Scores

if TYPE_CHECKING:
    from rag.seal import Seal

Payload = dict[str, Any]

RENAMED = "renamed:"
"""Stands in `words` of a passage whose document was renamed: its BM25 vector has the words of an older path, and is to be made anew."""


def payload_of(document: Document, chunk: Chunk) -> Payload:
    """What is kept of a chunk beside its vectors."""
    return {
        **_name(document),
        "heading": list(chunk.heading),
        "page": chunk.page,
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
    }


def _name(document: Document) -> Payload:
    return {"document_id": document.id, "domain": document.domain, "path": document.path, "title": document.title}


def renamed(document: Document) -> Payload:
    """What changes in the payload of each passage when its document becomes this one; of a sealed one, in what it says."""
    return {**_name(document), "words": RENAMED}


def worded(payload: Mapping[str, Any], languages: Sequence[str]) -> tuple[Any, Payload]:
    """The BM25 vector (`qdrant_edge.SparseVector`) of a payload's text, and the fields that say what made it, which are never sealed."""
    language = language_of(payload["text"], languages)
    words = document_vector(_words(payload["path"], payload["heading"], payload["text"]), language)
    return words, {"language": language, "words": stamp(languages)}


def written(id: str, payload: Mapping[str, Any], languages: Sequence[str], seal: Seal | None) -> tuple[Any, Payload]:
    """The BM25 vector of a payload's text, and the payload as it is stored: it says what made the vector."""
    words, made = worded(payload, languages)
    payload = {**payload, **made}
    return words, payload if seal is None else seal.close(id, payload)


def opened(id: str, payload: Payload, seal: Seal | None) -> Payload:
    """A stored payload as it was before it was sealed. Raises `DataLocked`."""
    return payload if seal is None else seal.open(id, payload)


def passage_of(id: str, payload: Mapping[str, Any], score: float, scores: Scores) -> Passage:
    """A found point as a passage."""
    return Passage(
        chunk_id=id,
        document_id=payload["document_id"],
        domain=payload["domain"],
        path=payload["path"],
        title=payload["title"],
        heading=tuple(payload["heading"]),
        page=payload["page"],
        start=payload["start"],
        end=payload["end"],
        text=payload["text"],
        score=score,
        scores=scores,
        language=payload.get("language", DEFAULT[0]),
    )


def sparse_text(document: Document, chunk: Chunk) -> str:
    """What BM25 reads of a chunk: the file's name and the headings too, which say in words what the passage is about."""
    return _words(document.path, chunk.heading, chunk.text)


def _words(path: str, heading: Sequence[str], text: str) -> str:
    name = os.path.splitext(path)[0].replace("/", " ").replace("_", " ").replace("-", " ")
    return "\n".join((name, *heading, text))
