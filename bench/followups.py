"""What a follow-up finds: as it is asked, beside the question before it, completed by rule, and written out by hand.

    python -m bench.followups

Searches the guide, in an index of its own, for the questions of `tests/golden/followups.jsonl`; the other halves of the table were written
by hand (`followups-alone.jsonl`) and say what could be had. Prints a table in Markdown and, as the last line, one JSON object. Odd
numbers are the half that the rules of `rag/standalone.py` were written on, even ones were looked at afterwards.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.index import Index
from rag import gate, golden, scores
from rag.embed import Embedder
from rag.evaluate import locate
from rag.golden import Item
from rag.records import Passage, document_id
from rag.retrieve import retrieve
from rag.settings import Embed, Settings
from rag.standalone import standalone

ROOT = Path(__file__).parent.parent
SET, BY_HAND = (ROOT / "tests" / "golden" / f"{name}.jsonl" for name in ("followups", "followups-alone"))

CUTS = (1, 4)
"""The best passage, and as many as an answer is made from."""

HALVES = {"odd, where the rules were made": 1, "even": 0}


def ways() -> dict[str, Callable[[Item], str]]:
    """What is searched for, by the name of the way."""
    by_hand = {item.id: item.question for item in golden.read(BY_HAND)}
    return {
        "as asked": lambda item: item.question,
        "question before + question": lambda item: f"{[turn for turn in item.history if turn.role == 'user'][-1].content} {item.question}",
        "by rule": lambda item: standalone(item.question, item.history),
        "by hand": lambda item: by_hand[item.id],
    }


def ranks(passages: list[Passage], item: Item, text_of: Callable[[str], str | None]) -> int | None:
    """The place, from 0, of the first passage with a gold quote in it; None where none has."""
    for place, passage in enumerate(passages):
        for span in item.spans:
            found = locate(span, text_of(document_id(*span.document.split("/", 1))) or "")
            if found and passage.path == span.document and scores.overlaps((passage.start, passage.end), found):
                return place
    return None


def measure() -> dict[str, object]:
    """Places and chances by way and item."""
    items = golden.read(SET)
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(ROOT / "corpora" / "guide", Path(name) / "corpora" / "guide")
        embedder = Embedder(Embed())
        with Index(Path(name), embedder) as index:
            index.pipeline.sync()
            settings = Settings().retrieve
            for way, asked in ways().items():
                rows = {}
                for item in items:
                    text = asked(item)
                    passages = retrieve(
                        text, embedder=embedder, store=index.store, settings=settings, domain="guide", limit=settings.passages
                    )
                    rows[item.id] = {
                        "asked": text,
                        "place": ranks(passages, item, index.ledger.text),
                        "chance": round(gate.weigh(text, passages).chance, 4),
                        "changed": text != item.question,
                    }
                found[way] = rows
    return found


def main() -> int:
    """Measure and print."""
    found = measure()
    items = golden.read(SET)
    kinds = {
        "follow-ups": lambda item: item.answerable and not item.id.startswith("alone"),
        "stand alone": lambda item: item.id.startswith("alone"),
    }
    print(
        "| searched for | half |"
        + "".join(f" {kind}, gold in the first {cut} |" for kind in kinds for cut in CUTS)
        + " completed of those alone |"
    )
    print("|---|---|" + "---|" * (len(kinds) * len(CUTS) + 1))
    for way, rows in found.items():
        for half, odd in HALVES.items():
            cells = []
            for of in kinds.values():
                mine = [item.id for item in items if of(item) and int(item.id[-2:]) % 2 == odd]
                for cut in CUTS:
                    hits = sum(rows[id]["place"] is not None and rows[id]["place"] < cut for id in mine)
                    cells.append(f"{hits / len(mine):.2f} ({hits}/{len(mine)})")
            changed = sum(rows[item.id]["changed"] for item in items if item.id.startswith("alone") and int(item.id[-2:]) % 2 == odd)
            print(f"| {way} | {half} | " + " | ".join(cells) + f" | {changed} |")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
