"""Save to answer: how long after a Markdown file is saved a search finds what it says. A real server, otherwise idle.

The search is asked over and over, and takes processor time from the embedding of the very file it looks for: the figure is
worse than what a person sees who asks once. The stages, from `/metrics`, say where the time goes; `settle_ms` comes on top.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import corpus
from bench.figures import Part, at_most, plain, summary
from bench.served import Served
from rag.settings import Ingest

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(slots=True)
class _Size:
    """A size of files, and what was measured of it. Times in seconds."""

    name: str
    bytes: int
    count: int
    quick_count: int
    poll_s: float
    """Between two searches. The largest takes half a minute, which a search every 50 ms would lengthen much."""
    give_up_s: float
    turn: int
    """Of `corpus.prose`: no file of one size has a passage of another, which would not need embedding any more."""
    seconds: list[float] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    searches: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    """Mean seconds a file spent in each."""

    @property
    def figures(self) -> dict[str, Any]:
        """For the JSON line."""
        return {
            "seconds": summary(self.seconds),
            "bytes": round(statistics.mean(self.sizes)),
            "chunks": round(statistics.mean(self.chunks), 1),
            "stages_mean_s": self.stages,
            "search_while_polling_ms": summary([1000 * value for value in self.searches], 1),
            "each_s": [round(value, 3) for value in self.seconds],
        }


def measure(*, quick: bool) -> Part:
    """Save a new file, poll until a sentence in its middle is among the 3 passages found, let the server rest, and again."""
    ten = _Size("10 KB", 10_000, 30, 8, 0.05, 30.0, 0)
    others = [_Size("1 KB", 1000, 30, 4, 0.05, 30.0, 1000), _Size("1 MB", 1_000_000, 5, 1, 0.25, 300.0, 2000)]
    rng = random.Random(11)
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name, Served(Path(name)) as served:
        (served.corpora / "notes").mkdir()
        # The first one starts the parser's process, and counts apart.
        first = _Size("first", ten.bytes, 1, 1, ten.poll_s, ten.give_up_s, 3000)
        for size in (first, ten, *others):
            _save(served, size, size.quick_count if quick else size.count, rng)
    rows = [
        plain("10 KB Markdown file saved until found, p50", ten.figures["seconds"]["p50"], "s"),
        at_most("10 KB Markdown file saved until found, p95", ten.figures["seconds"]["p95"], 1.5, "s"),
        plain("10 KB, p99", ten.figures["seconds"]["p99"], "s"),
        plain("the first one after a start", first.seconds[0], "s"),
    ]
    rows += [plain(f"{size.name}, {p}", size.figures["seconds"][p], "s") for size in others for p in ("p50", "p95", "p99")]
    figures = ten.figures | {"first_s": round(first.seconds[0], 3)} | {size.name: size.figures for size in others}
    notes = [f"settling takes {Ingest().settle_ms / 1000:.2f} s of each."]
    for size in (ten, *others):
        notes.append(
            f"{len(size.seconds)} files of {size.figures['bytes']} bytes, {size.figures['chunks']} chunks each; embedding takes "
            f"{size.stages.get('embed', 0.0):.2f} s of the mean; searched every {1000 * size.poll_s:.0f} ms meanwhile, "
            f"{statistics.median(size.searches) * 1000:.0f} ms each."
        )
    return Part(rows, figures, notes)


def _save(served: Served, size: _Size, count: int, rng: random.Random) -> None:
    """Save `count` files of that size one after another."""
    texts = corpus.prose(size.bytes, size.turn)
    before = served.metrics("readingroom_ingest_seconds_total")
    for n in range(count):
        marker, question = marked(rng)
        data = with_marker(next(texts), marker).encode()
        path = served.corpora / "notes" / f"{size.name.replace(' ', '-')}-{n:03}.md"
        path.write_bytes(data)
        saved = time.perf_counter()
        while True:
            asked = time.perf_counter()
            found = served.search(question, limit=3)
            size.searches.append(time.perf_counter() - asked)
            if any(passage["path"] == f"notes/{path.name}" for passage in found):
                break
            if time.perf_counter() - saved > size.give_up_s:
                raise RuntimeError(f"{path.name} was not found within {size.give_up_s:.0f} s:\n{served.log()}")
            time.sleep(size.poll_s)
        size.seconds.append(time.perf_counter() - saved)
        size.sizes.append(len(data))
        served.wait_quiet()
        time.sleep(0.5)  # idle again: late events of this file are over
        size.chunks.append(served.documents(q=path.name)[0]["chunks"])
        print(f"save {size.name} {n + 1}/{count}: {size.seconds[-1]:.2f} s, {size.chunks[-1]} chunks", file=sys.stderr)
    spent = served.metrics("readingroom_ingest_seconds_total")
    size.stages = {stage: round((value - before.get(stage, 0.0)) / count, 3) for stage, value in spent.items()}


def marked(rng: random.Random) -> tuple[str, str]:
    """A sentence that stands in no other text, and the question that it answers."""
    word, place = ("".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(4)) for _ in range(2))
    colour = rng.choice(("red", "green", "yellow", "blue", "white"))
    return f"The {word} of {place.capitalize()} is kept in a {colour} box.", f"Where is the {word} of {place.capitalize()} kept?"


def with_marker(text: str, marker: str) -> str:
    """The text with the sentence as a paragraph of its own in the middle."""
    paragraphs = text.split("\n\n")
    # Not inside a fenced block, where it would be code.
    fences = itertools.accumulate(part.count("```") for part in paragraphs)
    places = [i for i, open_ in enumerate(fences, 1) if open_ % 2 == 0] or [len(paragraphs)]
    paragraphs.insert(places[len(places) // 2], marker)
    return "\n\n".join(paragraphs)
