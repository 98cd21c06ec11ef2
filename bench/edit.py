"""Edits of a document of 500 pages: how many of its chunks go through the embedder again, and how soon a search finds the new words.

A real server. Four edits in the middle of a Markdown text, one after another: a word, a new paragraph, a paragraph that goes, one that is
written anew; and one paragraph of a Word document of as many pages.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import corpus
from bench.figures import Part, at_most, plain
from bench.save import marked
from bench.served import Served

_LIMIT = 0.01  # of all chunks: issue 3
_POLL_S = 0.1
_GIVE_UP_S = 300.0


def measure(*, quick: bool) -> Part:
    """500 pages of 3,000 characters (quick: 40)."""
    pages = 40 if quick else 500
    rng = random.Random(17)
    edits: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        (folder / "corpora" / "books").mkdir(parents=True)
        paragraphs = corpus.book(pages).split("\n\n")
        text, word = folder / "corpora" / "books" / "book.md", folder / "corpora" / "books" / "book.docx"

        def write_text() -> None:
            text.write_text("\n\n".join(paragraphs), encoding="utf-8")

        middle = _plain_paragraph(paragraphs, len(paragraphs) // 2)
        write_text()
        word_paragraphs = corpus.book(pages, 1000).split("\n\n")
        word_middle = _plain_paragraph(word_paragraphs, len(word_paragraphs) // 2)
        _write_word(word, word_paragraphs)
        with Served(folder) as served:
            served.wait_indexed(2, 1800)
            chunks = {item["path"]: item["chunks"] for item in served.documents()}
            _progress(f"{chunks} chunks are indexed")

            def edited(what: str, path: Path, change: Callable[[str], None], write: Callable[[], None]) -> None:
                sentence, question = marked(rng)
                before = served.embedded()
                change(sentence)
                write()
                seconds = _until_found(served, path, sentence, question)
                again = served.embedded() - before
                of = chunks[f"books/{path.name}"]
                edits[what] = {"chunks": again, "of": of, "share": round(again / of, 5), "s": round(seconds, 3)}
                _progress(f"{what}: {edits[what]}")

            def words(sentence: str) -> None:
                paragraphs[middle] += f" {sentence}"

            def new(sentence: str) -> None:
                paragraphs.insert(middle + 1, sentence)

            def gone(sentence: str) -> None:
                # What stays tells that the edit is through: a sentence in the paragraph before it.
                paragraphs[middle] = paragraphs[middle].rpartition(" The ")[0] + f" {sentence}"
                del paragraphs[middle + 1]

            def anew(sentence: str) -> None:
                paragraphs[middle] = f"{sentence} {' '.join(reversed(paragraphs[middle].split()))}"

            edited("a sentence more in a paragraph", text, words, write_text)
            edited("a new paragraph", text, new, write_text)
            edited("a paragraph less", text, gone, write_text)
            edited("a paragraph written anew", text, anew, write_text)

            def in_word(sentence: str) -> None:
                word_paragraphs[word_middle] += f" {sentence}"

            edited("a sentence more in a Word document", word, in_word, lambda: _write_word(word, word_paragraphs))
    worst = max(edits.values(), key=lambda edit: edit["share"])
    rows = [
        at_most(f"chunks embedded again, worst of {len(edits)} edits of {pages} pages", 100 * worst["share"], 100 * _LIMIT, "%"),
        plain("one paragraph edited, saved until found, Markdown", edits["a sentence more in a paragraph"]["s"], "s"),
        plain("the same, Word", edits["a sentence more in a Word document"]["s"], "s"),
    ]
    if quick:
        rows[0] = plain(rows[0].what, 100 * worst["share"], "%")  # of a short document one chunk is a large share
    said = "; ".join(f"{what}: {edit['chunks']} of {edit['of']}, {edit['s']:.1f} s" for what, edit in edits.items())
    return Part(rows, {"pages": pages, "edits": edits}, [f"chunks embedded again, and seconds until found: {said}."])


def _until_found(served: Served, path: Path, sentence: str, question: str) -> float:
    """Seconds until a search finds the sentence and nothing of the document is under way."""
    saved = time.perf_counter()

    def found() -> bool:
        return any(sentence in " ".join(passage["text"].split()) for passage in served.search(question, limit=3))

    seconds = served.until(found, _GIVE_UP_S, f"the edit of {path.name} was not found", _POLL_S) - saved
    served.wait_quiet()
    return seconds


def _plain_paragraph(paragraphs: list[str], start: int) -> int:
    """The first one from there on that is a paragraph of prose, outside code, with another such after it."""
    fenced = sum(part.count("```") for part in paragraphs[:start]) % 2 == 1
    prose_before = -1
    for n in range(start, len(paragraphs)):
        part = paragraphs[n]
        prose = not fenced and "```" not in part and part[0].isalpha() and len(part) > 200
        if prose and prose_before == n - 1 and prose_before >= 0:
            return prose_before
        prose_before = n if prose else -1
        fenced ^= part.count("```") % 2 == 1
    raise RuntimeError("there are no two paragraphs of prose")


def _write_word(path: Path, paragraphs: list[str]) -> None:
    """As a Word document: Markdown's headings as headings, all else as paragraphs. Written beside and moved, as Word itself does."""
    import docx

    document = docx.Document()
    for part in paragraphs:
        level = len(part) - len(part.lstrip("#"))
        if 0 < level <= 9 and "\n" not in part:
            document.add_heading(part.lstrip("# "), level)
        else:
            document.add_paragraph(" ".join(part.split()))
    beside = path.with_name(f"~${path.name}")
    document.save(str(beside))
    beside.replace(path)


def _progress(text: str) -> None:
    print(f"edit: {text}", file=sys.stderr, flush=True)
