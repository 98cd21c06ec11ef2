"""The catalogue: models that are known by name, where they can be had, and what their licences allow.

`catalogue.toml` holds it. Nothing here is on this machine or fetches anything: see `rag/models.py` and `rag/pull.py`.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Commercial = Literal["yes", "no", "conditions", "unknown"]

# The phrase that names a licence stands in its head; further down, licences mention each other.
_HEAD_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence: its name, whether commercial use is allowed, and one sentence about that. A summary, not the licence."""

    id: str
    name: str
    commercial: Commercial
    conditions: str = ""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be pulled. `ollama` and `huggingface` are references, empty where there is none.

    `quantization` and `about_mb` (rounded, in MB) are those of the first of them; `sha256` is that of `huggingface`'s file,
    empty where it is not known beforehand.
    """

    name: str
    family: str
    parameters: str
    context_tokens: int
    licence: Licence
    ollama: str = ""
    huggingface: str = ""
    quantization: str = ""
    about_mb: int = 0
    sha256: str = ""
    note: str = ""


UNKNOWN = Licence("", "unknown", "unknown", "The file does not say; see where it came from.")


def key(name: str) -> str:
    """A model's name as names are compared, and as its folder is called: small letters, digits, dots and hyphens.

    `Qwen2.5:0.5B` and `qwen2.5-0.5b` are the same name; `:latest` adds nothing. Empty if nothing of it is left.
    """
    return re.sub(r"[^a-z0-9._]+", "-", name.lower().removesuffix(":latest")).strip("-._")


@functools.cache
def _load() -> tuple[dict[str, Licence], tuple[Entry, ...]]:
    tree = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    known = {id: Licence(id=id, **{**fields, "marks": tuple(fields["marks"])}) for id, fields in tree["licence"].items()}
    return known, tuple(Entry(**{**fields, "licence": known[fields["licence"]]}) for fields in tree["model"])


def entries() -> tuple[Entry, ...]:
    """All of them."""
    return _load()[1]


def find(name: str) -> Entry | None:
    """The entry of that name, or of that name in the Ollama registry."""
    wanted = key(name)
    return next((entry for entry in entries() if wanted in (key(entry.name), key(entry.ollama) if entry.ollama else "")), None)


def licence(id: str) -> Licence:
    """The licence of an id such as a GGUF file has (`apache-2.0`). One that is not in the catalogue: its id, and `unknown`."""
    known = _load()[0].get(id.strip().lower())
    if known is not None:
        return known
    # "other" says no more than nothing.
    return Licence(id, id, "unknown", "See its text.") if id and id.lower() not in ("other", "unknown") else UNKNOWN


def recognise(text: str) -> Licence:
    """The licence that a licence's text is, by the phrases of the catalogue; `UNKNOWN` if by none."""
    head = " ".join(text[:_HEAD_CHARS].lower().split())
    return next((known for known in _load()[0].values() if any(mark in head for mark in known.marks)), UNKNOWN)
