"""Save to answer: how long after a Markdown file is saved a search finds what it says. A real server, otherwise idle.

The search is asked every 50 ms, and takes processor time from the embedding of the very file it looks for: the figure is
worse than what a person sees who asks once. The stages, from `/metrics`, say where the time goes; `settle_ms` comes on top.
"""

from __future__ import annotations

import itertools
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import corpus
from bench.figures import Part, at_most, plain, summary
from bench.served import Served
from rag.settings import Ingest

_BYTES = 10_000
_POLL_S = 0.05
_GIVE_UP_S = 30.0
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def measure(*, quick: bool) -> Part:
    """Save a new file of 10 KB, poll until a sentence in its middle is among the 3 passages found, let the server rest, and again."""
    count = 8 if quick else 30
    rng = random.Random(11)
    seconds: list[float] = []
    chunks: list[int] = []
    sizes: list[int] = []
    searches: list[float] = []
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name, Served(Path(name)) as served:
        (served.corpora / "notes").mkdir()
        texts = corpus.prose(_BYTES)
        before: dict[str, float] = {}
        for n in range(count + 1):  # the first one starts the parser's process, and counts apart
            marker, question = _marker(rng)
            data = _with_marker(next(texts), marker).encode()
            path = served.corpora / "notes" / f"note-{n:03}.md"
            path.write_bytes(data)
            saved = time.perf_counter()
            while True:
                asked = time.perf_counter()
                found = served.search(question, limit=3)
                searches.append(time.perf_counter() - asked)
                if any(passage["path"] == f"notes/{path.name}" for passage in found):
                    break
                if time.perf_counter() - saved > _GIVE_UP_S:
                    raise RuntimeError(f"{path.name} was not found within {_GIVE_UP_S:.0f} s:\n{served.log()}")
                time.sleep(_POLL_S)
            seconds.append(time.perf_counter() - saved)
            sizes.append(len(data))
            served.wait_indexed(n + 1)
            time.sleep(0.5)  # idle again: late events of this file are over
            item = served.client.get("/rag/documents", params={"q": path.name}).json()["items"][0]
            chunks.append(item["chunks"])
            if not n:
                before = _stages(served)
            print(f"save {n}/{count}: {seconds[-1]:.2f} s, {chunks[-1]} chunks", file=sys.stderr)
        stages = {stage: round((value - before.get(stage, 0.0)) / count, 3) for stage, value in _stages(served).items()}
    first, rest = seconds[0], seconds[1:]
    figures = {
        "seconds": summary(rest),
        "first_s": round(first, 3),
        "bytes": round(sum(sizes) / len(sizes)),
        "chunks": round(sum(chunks) / len(chunks), 1),
        "stages_mean_s": stages,
        "search_while_polling_ms": summary([1000 * value for value in searches], 1),
        "each_s": [round(value, 3) for value in rest],
    }
    rows = [
        plain("10 KB Markdown file saved until found, p50", figures["seconds"]["p50"], "s"),
        at_most("10 KB Markdown file saved until found, p95", figures["seconds"]["p95"], 1.5, "s"),
        plain("the first one after a start", first, "s"),
    ]
    settling, embedding = Ingest().settle_ms / 1000, stages.get("embed", 0.0)
    notes = [
        f"{count} files of {figures['bytes']} bytes, {figures['chunks']} chunks each; of the median, settling takes {settling:.2f} s and "
        f"embedding {embedding:.2f} s; searched every 50 ms meanwhile, {statistics.median(searches) * 1000:.0f} ms each."
    ]
    return Part(rows, figures, notes)


def _stages(served: Served) -> dict[str, float]:
    """Seconds that the server has spent on files, by stage."""
    text = served.client.get("/metrics").text
    return {stage: float(value) for stage, value in re.findall(r'^readingroom_ingest_seconds_total\{stage="(\w+)"\} (\S+)$', text, re.M)}


def _marker(rng: random.Random) -> tuple[str, str]:
    """A sentence that stands in no other text, and the question that it answers."""
    word, place = ("".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(4)) for _ in range(2))
    colour = rng.choice(("red", "green", "yellow", "blue", "white"))
    return f"The {word} of {place.capitalize()} is kept in a {colour} box.", f"Where is the {word} of {place.capitalize()} kept?"


def _with_marker(text: str, marker: str) -> str:
    paragraphs = text.split("\n\n")
    # Not inside a fenced block, where it would be code.
    fences = itertools.accumulate(part.count("```") for part in paragraphs)
    places = [i for i, open_ in enumerate(fences, 1) if open_ % 2 == 0] or [len(paragraphs)]
    paragraphs.insert(places[len(places) // 2], marker)
    return "\n\n".join(paragraphs)
