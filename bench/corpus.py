"""Real texts and questions to measure on: from the data folder beside the checkout, else from the guide.

That folder (`../shared/data`, see its README) is not part of the project. What needs it raises `Skipped` where it is
absent. Archives are read in memory and never unpacked by their own paths.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from bench.figures import Skipped

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
GUIDE = ROOT / "corpora" / "guide"

# Real prose and documentation; the largest last, so that smaller runs see a mixture.
ARCHIVES = ("rust-book", "handbooks", "litestar-docs", "peps", "cpp-docs")


def archive(name: str) -> Iterator[str]:
    """The Markdown and reStructuredText files of one archive of `scale/`, as text, in its order. Raises `Skipped`."""
    path = SHARED / "scale" / f"{name}.tar.gz"
    if not path.is_file():
        raise Skipped(f"needs real texts: there is no {name}.tar.gz in ../shared/data/scale")
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith((".md", ".rst")) and (file := tar.extractfile(member)):
                text = file.read().decode("utf-8", errors="replace")
                if text.strip():
                    yield text


def mixture(count: int) -> list[str]:
    """`count` Markdown files as a shared folder holds them: 3% long chapters, 2% handbook pages, the rest short notes. Raises `Skipped`."""
    chapters = list(itertools.islice(archive("rust-book"), count * 3 // 100))
    pages = list(itertools.islice(archive("handbooks"), count * 2 // 100))
    notes = list(itertools.islice(archive("tldr"), count - len(chapters) - len(pages)))
    return chapters + pages + notes


def pieces(texts: Iterable[str], size: int) -> Iterator[str]:
    """Cut texts at empty lines into pieces of about `size` characters, none of them equal to another."""
    seen: set[str] = set()
    for text in texts:
        for piece in _packed(re.split(r"\n\s*\n", text), size):
            if piece not in seen:
                seen.add(piece)
                yield piece


def _packed(paragraphs: Iterable[str], size: int) -> Iterator[str]:
    held: list[str] = []
    for paragraph in filter(None, (part.strip() for part in paragraphs)):
        if held and sum(map(len, held)) + len(paragraph) > size:
            yield "\n\n".join(held)
            held = []
        held.append(paragraph[: 2 * size])
    if held:
        yield "\n\n".join(held)


def prose(size: int, first: int = 0) -> Iterator[str]:
    """Endless different Markdown texts of about `size` characters each: chapters of a book, else the guide's pages.

    The book is gone through again and again; what begins with another turn (`first`), a thousand on, shares no passage with these.
    """
    try:
        texts = list(archive("rust-book"))
    except Skipped:
        texts = [page.read_text(encoding="utf-8") for page in sorted(GUIDE.glob("*.md"))]
    paragraphs = [part.strip() for text in texts for part in re.split(r"\n\s*\n", text) if part.strip()]
    for turn in itertools.count(first):
        # From the second turn on, each paragraph says which, so that no passage was embedded before (and at its end, which
        # `_packed` must not cut off); headings stay headings.
        said = [part if not turn or part.startswith("#") else f"{part[: 2 * size - 20]}\n({turn}. edition)" for part in paragraphs]
        yield from (piece for piece in _packed(said, size) if len(piece) > size * 0.8)


# A page of print, in characters.
_PAGE = 3000


def book(pages: int, first: int = 0) -> str:
    """One Markdown text of that many pages of `prose`, with its headings."""
    return "\n\n".join(itertools.islice(prose(_PAGE, first), pages))


_PARAGRAPHS = 12


@cache
def questions() -> tuple[str, ...]:
    """Questions that people asked, of SQuAD 2.0. Raises `Skipped`."""
    return tuple(question for _, _, asked in articles() for question in asked)


@cache
def articles() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(title, text, answerable questions) of each stretch of a dozen paragraphs of the SQuAD 2.0 half. Raises `Skipped`."""
    path = SHARED / "qa" / "squad2-dev-half" / "squad2-dev-half.json.gz"
    if not path.is_file():
        raise Skipped("needs real questions: there is no squad2-dev-half in ../shared/data/qa")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        data = json.load(file)["data"]
    found = []
    for article in data:
        for i in range(0, len(article["paragraphs"]) - _PARAGRAPHS + 1, _PARAGRAPHS):
            part = article["paragraphs"][i : i + _PARAGRAPHS]
            text = "\n\n".join(paragraph["context"] for paragraph in part)
            asked = tuple(qa["question"].strip() for paragraph in part for qa in paragraph["qas"] if not qa["is_impossible"])
            if asked:
                found.append((article["title"].replace("_", " "), text, asked))
    return tuple(found)


def guide() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """The same shape as `articles`, of the guide that ships with the project: its headings are asked."""
    found = []
    for page in sorted(GUIDE.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        headings = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
        found.append((page.stem, text, tuple(f"What does the guide say about {heading.strip()}?" for heading in headings)))
    return tuple(found)
