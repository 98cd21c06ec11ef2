"""Blocks -> chunks: spans of the text, small enough for the embedder, each with its heading path and page. Pure.

A chunk is one contiguous span: neighbouring blocks of one section and page are packed up to the budget, an overlong
block is cut at a sentence, else a line, else a word; code at a blank line, else a line. Code that fits stays whole.
What the embedder reads is the heading path and the text (`Chunked.embed_texts`); its hash decides whether a vector can
be used again. Vectors are made in `ingest/pipeline.py`.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ingest.ledger import Known
from ingest.parse import Block, Parsed
from rag import records
from rag.records import Chunk

VERSION = 2
"""Part of the pipeline's fingerprint: raise it when the same blocks make other chunks."""

# A word of 1 MB (base64, a minified script) is one unknown token to a WordPiece model, so characters are bounded too:
# English has about 4.5 characters a token, white space included, and source code up to 8.
_CHARS_PER_TOKEN = 12

# Characters that a tokenizer is given at once: it takes 300 bytes for each where it tells the places too, and a log of
# 30 MB without an empty line is one block (measured: 1.1 GB for 4 MB).
_LONGEST_BLOCK = 100_000
_COUNTED_AT_ONCE = 1_000_000

# Characters of a heading in the path that each chunk below it stores, indexes and embeds: as many as of a title. Some pages
# are one heading, and a path as long as the page in each of its chunks is the square of it.
_LONGEST_LABEL = 300

CountTokens = Callable[[Sequence[str]], list[int]]
TokenSpans = Callable[[str], list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Chunked:
    """A document's chunks and, in the same order, what the embedder reads for each."""

    chunks: list[Chunk]
    embed_texts: list[str]


@dataclass(slots=True)
class _Span:
    start: int
    end: int
    tokens: int
    page: int | None
    heading: tuple[str, ...]


def chunk(
    document_id: str,
    parsed: Parsed,
    count_tokens: CountTokens,
    token_spans: TokenSpans,
    *,
    chunk_tokens: int,
    max_tokens: int,
    origin: str = "",
) -> Chunked:
    """Cut a document. Counts are without special tokens, of which `max_tokens` (the model's limit) has room for two.

    A chunk's text has at most `chunk_tokens` tokens, and its embed text fits the model: the heading path gives way. Its id is made of
    `origin`, which of a document that was never renamed is its own id.
    """
    text = parsed.text
    budget = max(16, min(chunk_tokens, max_tokens - 2))
    blocks = list(_bounded(text, parsed.blocks))
    spans = _pack(text, blocks, _counts(text, blocks, count_tokens), budget, token_spans)
    return _name(document_id, origin or document_id, text, spans, count_tokens, max_tokens - 2)


def _bounded(text: str, blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks, one above `_LONGEST_BLOCK` as several: parted at a line, else a blank, else anywhere."""
    for block in blocks:
        start = block.start
        while block.end - start > _LONGEST_BLOCK:
            most = start + _LONGEST_BLOCK
            places = (text.rfind(mark, most - _LONGEST_BLOCK // 2, most) for mark in ("\n", " "))
            cut = next((place for place in places if place >= 0), most)
            yield replace(block, start=start, end=start + len(text[start:cut].rstrip()))
            start = cut
            while start < block.end and text[start].isspace():
                start += 1
        if start < block.end:
            yield replace(block, start=start)


def _counts(text: str, blocks: Sequence[Block], count_tokens: CountTokens) -> list[int]:
    """The tokens of each block."""
    counts: list[int] = []
    batch: list[str] = []
    size = 0
    for block in blocks:
        if size > _COUNTED_AT_ONCE:
            counts += count_tokens(batch)
            batch, size = [], 0
        batch.append(text[block.start : block.end])
        size += block.end - block.start
    return counts + list(count_tokens(batch)) if batch else counts


def _pack(text: str, blocks: Sequence[Block], counts: Sequence[int], budget: int, token_spans: TokenSpans) -> list[_Span]:
    done: list[_Span] = []
    headings: list[tuple[int, str]] = []
    open_span: _Span | None = None
    only_headings = False  # the open span has no body yet

    def close() -> None:
        nonlocal open_span
        if open_span is not None:
            done.append(open_span)
        open_span = None

    for block, tokens in zip(blocks, counts, strict=True):
        size = block.end - block.start
        if block.kind == "heading":
            level = block.level or 1
            deeper = not headings or level > headings[-1][0]
            if not (open_span is not None and only_headings and deeper and open_span.page == block.page):
                close()
            while headings and headings[-1][0] >= level:
                headings.pop()
            headings.append((level, (block.label or text[block.start : min(block.end, block.start + _LONGEST_LABEL)])[:_LONGEST_LABEL]))
        elif block.level is not None and headings and headings[-1][0] >= block.level:
            close()  # it stands beside what the last headings are above
            while headings and headings[-1][0] >= block.level:
                headings.pop()
        path = tuple(label for _, label in headings)
        if (
            open_span is not None
            and open_span.page == block.page
            and open_span.tokens + tokens <= budget
            and block.end - open_span.start <= budget * _CHARS_PER_TOKEN
        ):
            open_span.end = block.end
            open_span.tokens += tokens
            if block.kind == "heading":
                open_span.heading = path
            only_headings = only_headings and block.kind == "heading"
            continue
        start = block.start
        fits = tokens <= budget and size <= budget * _CHARS_PER_TOKEN
        if (
            open_span is not None
            and only_headings
            and open_span.page == block.page
            and open_span.tokens <= budget // 4
            and not (block.kind == "code" and fits)
        ):
            # The heading's own line stays with the text below it, and that is cut instead.
            start = open_span.start
            size, tokens = block.end - start, tokens + open_span.tokens
            open_span = None
        close()
        if block.kind == "table_row" and block.label and block.label[:_LONGEST_LABEL] not in path:
            path = (*path, block.label[:_LONGEST_LABEL])  # the column names, which this chunk's rows would otherwise lack
        if tokens <= budget and size <= budget * _CHARS_PER_TOKEN:
            open_span = _Span(start, block.end, tokens, block.page, path)
            only_headings = block.kind == "heading"
        else:
            pieces = _cut(text, start, block.end, budget, token_spans, _CODE if block.kind == "code" else _PROSE)
            done.extend(_Span(s, e, n, block.page, path) for s, e, n in pieces[:-1])
            # The last piece may be short: what follows in the section can join it.
            open_span = _Span(*pieces[-1], block.page, path) if pieces else None
            only_headings = False
    close()
    return done


# Where a sentence ends: its mark, closing quotes, white space. Chinese and Japanese marks need no white space.
_SENTENCE = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]")
_LINE = re.compile(r"\n\s*")
_SPACE = re.compile(r"\s+")
_PROSE = (_SENTENCE, _LINE, _SPACE)
_CODE = (re.compile(r"\n[^\S\n]*\n\s*"), _LINE, _SPACE)  # a full stop ends nothing in code


def _cut(
    text: str, start: int, end: int, budget: int, token_spans: TokenSpans, places_to_cut: Sequence[re.Pattern[str]]
) -> list[tuple[int, int, int]]:
    """Cut `text[start:end]` into (start, end, tokens) pieces within the budget, each as long as its boundary allows."""
    body = text[start:end]
    tokens = token_spans(body)
    ends = [b for _, b in tokens]
    boundaries = [[m.end() for m in pattern.finditer(body)] for pattern in places_to_cut]
    pieces = []
    at = first = 0  # the piece's first character and first token
    while at < len(body):
        limit = ends[first + budget - 1] if first + budget - 1 < len(ends) else len(body)
        limit = max(at + 1, min(limit, at + budget * _CHARS_PER_TOKEN))
        reach = limit  # white space after the last token costs nothing
        while reach < len(body) and body[reach].isspace():
            reach += 1
        cut = len(body) if reach >= len(body) else limit
        if cut < len(body):
            # A boundary in the second half of the piece will do; a whole sentence before a whole line before a word.
            for places in boundaries:
                i = bisect_right(places, reach) - 1
                if i >= 0 and places[i] > at + (limit - at) // 2:
                    cut = min(places[i], len(body))
                    break
        next_first = bisect_right(ends, cut)
        s, e = at + len(body[at:cut]) - len(body[at:cut].lstrip()), at + len(body[at:cut].rstrip())
        if s < e:
            pieces.append((start + s, start + e, next_first - first))
        at, first = cut, next_first
    return pieces


def _name(document_id: str, origin: str, text: str, spans: Sequence[_Span], count_tokens: CountTokens, room: int) -> Chunked:
    """Give each span its id, heading path and embed text."""
    labels = sorted({label for span in spans for label in span.heading})
    sizes = dict(zip(labels, count_tokens(labels), strict=True)) if labels else {}
    named = _Names(origin)
    chunks, embed_texts = [], []
    for ordinal, span in enumerate(spans):
        body = text[span.start : span.end]
        embed_text = _embed_text(body, span.heading, sizes, room - span.tokens)
        chunks.append(
            Chunk(
                id=named(body),
                document_id=document_id,
                ordinal=ordinal,
                heading=span.heading,
                page=span.page,
                start=span.start,
                end=span.end,
                text=body,
                embed_hash=_sha256(embed_text),
            )
        )
        embed_texts.append(embed_text)
    return Chunked(chunks, embed_texts)


class _Names:
    """The ids of one document's chunks, by their texts in order."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._seen: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        digest = _sha256(text)
        occurrence = self._seen[digest] = self._seen.get(digest, -1) + 1
        return records.chunk_id(self._origin, digest, occurrence)


def adopt(document_id: str, origin: str, text: str, known: Sequence[Known]) -> list[Chunk]:
    """The chunks of a document with the same text as another one: a file that was copied."""
    named = _Names(origin)
    chunks = []
    for k in known:
        body = text[k.start : k.end]
        chunks.append(Chunk(named(body), document_id, k.ordinal, k.heading, k.page, k.start, k.end, body, k.embed_hash))
    return chunks


def rename(chunks: Sequence[Chunk], origin: str) -> list[Chunk]:
    """The chunks with ids made of another origin."""
    named = _Names(origin)
    return [replace(chunk, id=named(chunk.text)) for chunk in chunks]


def _embed_text(body: str, heading: tuple[str, ...], sizes: dict[str, int], room: int) -> str:
    """`Outer > Inner`, a new line, the text. Headings that the text shows itself are left out; the outermost give way first."""
    kept: list[str] = []
    for label in reversed(heading):
        if label in body[: 2 * len(label) + 200]:
            continue
        room -= sizes[label] + 1  # and one for the `>` before it
        if room < 0:
            break
        kept.append(label)
    return " > ".join(reversed(kept)) + "\n" + body if kept else body


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
