"""The records that travel: documents, chunks, passages, citations, turns, and the events of an answer.

Frozen and without behaviour. Nothing here knows HTTP (see `server/routes`) or SQLite (see `ingest/ledger.py`).
All offsets are positions in characters (Unicode code points) of a document's text, end exclusive, so that
`text[start:end]` is the quoted text. Times are seconds since the epoch, durations milliseconds.
Read next: `rag/answer.py`, which turns a question into these events.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["queued", "parsing", "embedding", "indexed", "failed"]

# Any fixed namespace does; this one makes our ids differ from everybody else's uuid5 of the same names.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:readingroom")


def document_id(domain: str, path: str) -> str:
    """The id of a document: uuid5 of its domain and its `/`-separated path below the domain's folder.

    The same file always has the same id, also in an index rebuilt from nothing, so links to it stay good.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{domain}\0{path}"))


def chunk_id(origin: str, text_hash: str, occurrence: int) -> str:
    """The id of a chunk: uuid5 of its document's origin, the hash of its text and which of several equal texts it is.

    Position is not part of it, so a paragraph inserted above leaves the ids (and the vectors) below alone. Nor is the path: the origin is
    the id that the document had when it was first indexed (`ingest/ledger.py`), and a rename leaves all ids alone.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{origin}\0{text_hash}\0{occurrence}"))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file is not indexed: a stable code, a sentence for people, and what they can do."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Document:
    """One file of the watched folder, as the ledger knows it.

    `path` is relative to `corpora/`, with `/`, and so begins with the domain (`guide/start.md`).
    `status` is `failed` exactly when `error` is set. `container` is the path of the archive or mail that the document lies
    in, and None for a file of its own. `progress` is the share of the present stage that is done, 0..1, while it is known.
    """

    id: str
    domain: str
    path: str
    title: str
    media_type: str
    bytes: int
    status: Status
    chunks: int
    error: Failure | None
    modified_at: float
    indexed_at: float | None
    container: str | None = None
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a document's text, small enough for the embedder: `text == document_text[start:end]`.

    `heading` is the path of headings above it, outermost first. `page` counts from 1, or is None where the
    format has no pages; a chunk never crosses a page. `embed_hash` is the sha256 (hex) of exactly what the
    embedder reads (headings and text), so that equal hashes mean equal vectors.
    """

    id: str
    document_id: str
    ordinal: int
    heading: tuple[str, ...]
    page: int | None
    start: int
    end: int
    text: str
    embed_hash: str


@dataclass(frozen=True, slots=True)
class Scores:
    """How a passage was found: cosine of the vectors, BM25, reranker. None where that search did not find it.

    `answerable`: the reranker's probability that it holds the answer, where the reranker judges that.
    """

    dense: float | None = None
    bm25: float | None = None
    rerank: float | None = None
    answerable: float | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that a search returned. `score` orders one result list and is comparable only within it."""

    chunk_id: str
    document_id: str
    domain: str
    path: str
    title: str
    heading: tuple[str, ...]
    page: int | None
    start: int
    end: int
    text: str
    score: float
    scores: Scores = field(default_factory=Scores)
    language: str = "en"
    """The one of its domain's languages that it is in (`rag/languages.py`)."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A sentence of an answer and the verbatim span that supports it: `quote == document_text[start:end]`.

    `sentence` is verbatim from the answer. `support`, 0.5..1: the share of the sentence's words that the quote has, each weighed by
    how few of the passages' sentences have it and half where only the headings do; of a paraphrase, the cosine of both vectors.
    Whatever it is, the sentence's numbers, dates, units and names are in the quote or in its headings (`rag/facts.py`).
    """

    sentence: str
    quote: str
    document_id: str
    path: str
    page: int | None
    start: int
    end: int
    support: float


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A sentence of the answer, verbatim, that states something which no passage supports."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The answer was told, and is taken back: too little of it is in the documents. `Done` follows with the refusal in its place."""

    reason: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, as chat templates know it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation. `cached_tokens` of the prompt were not read again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds. `ttft_ms` runs from the call to the first token of the answer; None where there was none."""

    retrieve_ms: float = 0.0
    rerank_ms: float = 0.0
    ttft_ms: float | None = None
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class PassagesFound:
    """First event of an answer: what was searched for, what was found, and what did not fit the prompt."""

    passages: tuple[Passage, ...]
    searched_for: str
    left_out: tuple[str, ...] = ()
    """Ids of those chunks among `passages` that the model does not read: too weak, or over the token budget."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The answer waits for others; `position` 1 is the next. Told each time that it changes."""

    position: int


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer's text, as soon as it is decoded; the pieces joined are the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found out about a question before it was answered or refused, each 0..1. None where nobody was asked.

    `dense`: the best cosine. `coverage`: the best share of the question's content words in one passage. `relevance` and
    `answerable`: the reranker's best. `refusing`: the chance of the adapter's first token to begin a refusal. `chance`: the
    probability, by all of these, that the documents hold the answer (`rag/gate.py`).
    """

    dense: float
    coverage: float
    relevance: float | None = None
    answerable: float | None = None
    refusing: float | None = None
    chance: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """Last event of an answer that went well, refusals included."""

    answer: str
    refused: bool
    citations: tuple[Citation, ...]
    usage: Usage
    timings: Timings
    model: str
    adapter: str | None = None
    conversation_id: str | None = None
    finish_reason: Literal["stop", "length", "refused"] = "stop"
    unsupported: tuple[str, ...] = ()
    """Those sentences, as the model wrote them, that nothing supports; of a withheld answer too."""
    withheld: bool = False
    """The refusal stands in place of an answer that the documents do not support."""
    evidence: Evidence | None = None


Event = PassagesFound | Queued | Token | Citation | Unsupported | Withdrawn | Done
