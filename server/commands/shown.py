"""How models are shown on a terminal and to programs: fields, tables, sizes, a line of progress."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rag.settings import Settings
from server.bar import printable

if TYPE_CHECKING:
    from rag.catalogue import Entry
    from rag.download import Step
    from rag.models import ModelFile

Json = dict[str, Any]

_FRAME_S = 0.1


def fields_of(model: ModelFile, settings: Settings) -> Json:
    """A model for programs."""
    from rag.catalogue import key

    card = model.card
    return {
        "name": model.name,
        "default": key(model.name) == key(settings.engine.model),
        "path": str(model.path),
        "in_place": model.in_place,
        "bytes": model.bytes,
        "sha256": model.sha256,
        "sha256_from": card.sha256_from if card else "",
        "source": card.source if card else "",
        "licence": model.licence,
        "commercial": card.commercial if card else "unknown",
        "conditions": card.conditions if card else "",
        "architecture": card.architecture if card else "",
        "parameters": card.parameters if card else "",
        "quantization": card.quantization if card else "",
        "context_tokens": card.context_tokens if card else 0,
        "added": card.added if card else "",
    }


def entry_fields(entry: Entry) -> Json:
    """A model of the catalogue for programs."""
    return {
        "name": entry.name,
        "family": entry.family,
        "parameters": entry.parameters,
        "quantization": entry.quantization,
        "about_mb": entry.about_mb,
        "context_tokens": entry.context_tokens,
        "licence": entry.licence.name,
        "commercial": entry.licence.commercial,
        "conditions": entry.licence.conditions,
        "ollama": entry.ollama,
        "huggingface": entry.huggingface,
        "sha256": entry.sha256,
        "note": entry.note,
    }


def print_added(model: ModelFile) -> None:
    """What came, what it allows, and what is still to be known of it."""
    from rag import models

    card = model.card
    assert card is not None
    form = card.quantization or "unknown format"
    print(f"{printable(model.name)} is here: {size(model.bytes)}, {form}, {count(card.context_tokens)} tokens of context.")
    print(printable(allows(card.licence, card.commercial, card.conditions)))
    if card.sha256_from == "recorded":
        print(f"Nobody said beforehand which sha256 it must have. It has {card.sha256}, and is compared with that from now on.")
    if not models.details(model.path).chat_template:
        print("The file has no chat template, without which it cannot be used: choose the instruct version of the model.")
    if model.folder is not None and (adapters := sorted(model.folder.glob("adapter-*.gguf"))):
        print(f"An adapter came with it, which is not applied by itself: readingroom adapters add {adapters[0]}")
    print(printable(f"Answer with it: readingroom models use {model.name}"))


def allows(licence: str, commercial: str, conditions: str) -> str:
    """A licence in two sentences."""
    words = {"yes": "allowed", "no": "not allowed", "conditions": "on conditions", "unknown": "unknown"}
    return f"Licence: {licence}. Commercial use: {words[commercial]}. {conditions}".rstrip()


def print_fields(fields: Json) -> None:
    """A name and a value a line; what is empty is left out."""
    for name, value in fields.items():
        if value not in ("", None):
            shown = ("yes" if value else "no") if isinstance(value, bool) else size(value) if name == "bytes" else value
            print(printable(f"{name.replace('_', ' '):<16} {shown}"))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(printable("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))


def size(n: int) -> str:
    """Bytes for people: `98 MB`."""
    return f"{n / 1e9:.1f} GB" if n >= 10**9 else f"{n / 1e6:.0f} MB" if n >= 10**6 else f"{n / 1e3:.0f} kB"


def count(n: int) -> str:
    """A number for people: `8,192`."""
    return f"{n:,}" if n else "?"


class Line:
    """One line on a terminal that says how far something is; nothing where no terminal is."""

    def __init__(self, out: Any) -> None:
        self._out = out if out is not None and out.isatty() else None
        self._next = 0.0
        self._drawn = False

    def step(self, step: Step) -> None:
        """Of a pull."""
        self._show(step.status, step.done, step.total)

    def counter(self, what: str) -> Callable[[int, int], None]:
        """For what counts bytes."""
        return lambda done, total: self._show(what, done, total)

    def _show(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._out is None or (now < self._next and done):
            return
        self._next = now + _FRAME_S
        share = f"  {size(done)} of {size(total)}, {done / total:.0%}" if total else f"  {size(done)}" if done else ""
        self._out.write("\r\033[K" + printable(what + share)[: shutil.get_terminal_size().columns - 1])
        self._out.flush()
        self._drawn = True

    def end(self) -> None:
        """Leave a clean line."""
        if self._out is not None and self._drawn:
            self._out.write("\r\033[K")
            self._out.flush()
            self._drawn = False
