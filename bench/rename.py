"""Rename and move: how long after it a search finds a file under its new path, and nothing is there under the old one. A real server.

From the rename itself. Nothing may go through the embedder: the vectors are in the index. That is counted by the server itself, in
`/metrics`. The words of a document's path are searched too, and those of its new one follow a little later: that is timed as well.

The server has no second look: its tenth of a second is a search's own time, and no part of how late the index is.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import corpus
from bench.figures import Part, at_most, plain, summary
from bench.save import marked, with_marker
from bench.served import Listening, Served

_TARGET_MS = 300.0
_POLL_S = 0.02
_GIVE_UP_S = 120.0
_FOLDER = 100  # files


@dataclass(slots=True)
class _Case:
    """One file or folder that is renamed from each of `paths` to the next, below `corpora`, and how long that took."""

    name: str
    paths: list[str]
    question: str
    file: str = ""
    """Within the path, for a folder: the file that answers the question."""
    documents: int = 1
    target: bool = False
    alone: bool = False
    """Nothing of the last rename may be going on any more."""
    ms: list[float] = field(default_factory=list)
    words_ms: list[float] = field(default_factory=list)
    """Until it is found by a word of its new path alone, where that has one of its own."""


def measure(*, quick: bool) -> Part:
    """A file of 10 KB, a document of 500 pages and a folder of 100 files (quick: 20 pages, 10 files)."""
    pages, files = (20, 10) if quick else (500, _FOLDER)
    many, few = (3, 2) if quick else (20, 6)
    rng = random.Random(13)
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        cases = list(_cases(folder / "corpora", pages, files, many, few, rng))
        with Served(folder, RERANK__MODEL="") as served:
            started = time.perf_counter()
            served.wait_indexed(sum(1 for _ in served.corpora.rglob("*.md")), 1200)
            _progress(f"{pages} pages and the others are indexed after {time.perf_counter() - started:.0f} s")
            before = served.embedded()
            with Listening(served) as listening:
                for case in cases:
                    for old, new in zip(case.paths, case.paths[1:], strict=False):
                        _rename(served, listening, case, old, new)
                    _progress(f"{case.name}: {summary(case.ms, 0)}")
            embedded = served.embedded() - before
            if not before:
                raise RuntimeError("the server says that it embedded nothing at all; its count is not to be trusted")
    rows = []
    for case in cases:
        figures = summary(case.ms, 0)
        rows.append(
            at_most(f"{case.name}, p50", figures["p50"], _TARGET_MS, "ms", digits=0)
            if case.target
            else plain(f"{case.name}, p50", figures["p50"], "ms", digits=0)
        )
        rows.append(plain(f"{case.name}, p95", figures["p95"], "ms", digits=0))
        if case.words_ms:
            rows.append(plain(f"{case.name}, found by a word of the new path, p50", summary(case.words_ms, 0)["p50"], "ms", digits=0))
    rows.append(at_most("chunks embedded meanwhile", embedded, 0, digits=0))
    notes = [f"from the rename until told in /rag/events and then found, asked every {1000 * _POLL_S:.0f} ms; nothing else was going on."]
    figures = {"ms": {case.name: summary(case.ms, 1) for case in cases}, "chunks_embedded": embedded, "pages": pages}
    figures["words_ms"] = {case.name: summary(case.words_ms, 1) for case in cases if case.words_ms}
    return Part(rows, figures, notes)


def _cases(corpora: Path, pages: int, files: int, many: int, few: int, rng: random.Random) -> Iterator[_Case]:
    small, tiny = corpus.prose(10_000), corpus.prose(1000, 1000)
    (corpora / "other").mkdir(parents=True)
    for folder in ("notes/here", "notes/there", "books/here", "books/there"):
        (corpora / folder).mkdir(parents=True)

    def case(name: str, paths: list[str], text: str, *, target: bool) -> _Case:
        sentence, question = marked(rng)
        (corpora / paths[0]).write_text(with_marker(text, sentence), encoding="utf-8")
        return _Case(name, paths, question, target=target)

    yield case("10 KB file renamed", [f"notes/renamed-{_word(n)}.md" for n in range(many + 1)], next(small), target=True)
    yield case("10 KB file moved", [f"notes/{('here', 'there')[n % 2]}/moved.md" for n in range(many + 1)], next(small), target=True)
    across = [f"{('notes', 'other')[n % 2]}/across.md" for n in range(few + 1)]
    yield case("10 KB file moved to another domain", across, next(small), target=True)
    book = case(f"{pages} pages renamed", [f"books/here/book-{_word(n)}.md" for n in range(few + 1)], corpus.book(pages, 2000), target=True)
    book.alone = True
    yield book
    moved = [f"books/{('here', 'there')[n % 2]}/book-{_word(few)}.md" for n in range(few + 1)]
    yield _Case(f"{pages} pages moved", moved, book.question, target=True, alone=True)
    sentence, question = marked(rng)
    (corpora / "notes" / "folder-0").mkdir()
    for n in range(files):
        text = with_marker(next(tiny), sentence) if n == files // 2 else next(tiny)
        (corpora / "notes" / "folder-0" / f"part-{n:03}.md").write_text(text, encoding="utf-8")
    paths = [f"notes/folder-{n}" for n in range(few + 1)]
    yield _Case(f"folder of {files} files renamed", paths, question, f"/part-{files // 2:03}.md", files, alone=True)


def _rename(served: Served, listening: Listening, case: _Case, old: str, new: str) -> None:
    """Rename, and time until all of it is there under the new path and none of it under the old, and until a word of that finds it."""
    time.sleep(0.5)  # late events of the last one are over
    # Of a small one the words of its path are made anew in that time. A large one leaves the store something to forget as well.
    if case.alone:
        served.until(lambda: not served.metrics("readingroom_unforgotten_chunks")[""], 120, "the old paths were not forgotten", 0.1)
    file = new + case.file

    def told(states: Mapping[str, str]) -> bool:
        there = {path: state for path, state in states.items() if state != "removed"}
        if any(path == old or path.startswith(f"{old}/") for path in there):
            return False
        return sum(state == "indexed" and (path == new or path.startswith(f"{new}/")) for path, state in there.items()) == case.documents

    def found() -> bool:
        passages = {passage["path"] for passage in served.search(case.question, limit=3)}
        return file in passages and old + case.file not in passages

    def named(word: str) -> bool:
        return any(passage["path"] == file and passage["scores"]["bm25"] is not None for passage in served.search(word, limit=3))

    (served.corpora / old).rename(served.corpora / new)
    renamed = time.perf_counter()
    listening.until(told, _GIVE_UP_S, f"{old} -> {new} was not told")
    case.ms.append(1000 * (served.until(found, _GIVE_UP_S, f"{old} -> {new} was not found", _POLL_S) - renamed))
    if (word := _WORD.search(new)) and word[0] not in old:
        by_name = served.until(lambda: named(word[0]), _GIVE_UP_S, f"{new} was not found by its name", _POLL_S)
        case.words_ms.append(1000 * (by_name - renamed))


def _word(n: int) -> str:
    """A word that stands in no text."""
    return f"quill{n}zephyr"


_WORD = re.compile(r"quill\d+zephyr")


def _progress(text: str) -> None:
    print(f"rename: {text}", file=sys.stderr, flush=True)
