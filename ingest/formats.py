"""Which files are read, and as what: suffix -> media type and reader. A table, nothing else.

Light on purpose: the parent process uses it to tell a file's media type without loading a parser. The readers
themselves are chosen in `ingest/parse.py`, which is where to read next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reader = Literal["markdown", "text", "code", "html", "pdf", "docx", "csv", "pptx", "xlsx", "email"]


@dataclass(frozen=True, slots=True)
class Format:
    """`reader` is the code path in `ingest/parse.py`."""

    media_type: str
    reader: Reader


_OFFICE = "application/vnd.openxmlformats-officedocument"

FORMATS: dict[str, Format] = {
    ".md": Format("text/markdown", "markdown"),
    ".markdown": Format("text/markdown", "markdown"),
    ".txt": Format("text/plain", "text"),
    ".text": Format("text/plain", "text"),
    ".log": Format("text/plain", "text"),
    ".rst": Format("text/x-rst", "text"),
    ".org": Format("text/org", "text"),
    ".html": Format("text/html", "html"),
    ".htm": Format("text/html", "html"),
    ".xhtml": Format("application/xhtml+xml", "html"),
    ".pdf": Format("application/pdf", "pdf"),
    ".docx": Format(f"{_OFFICE}.wordprocessingml.document", "docx"),
    ".pptx": Format(f"{_OFFICE}.presentationml.presentation", "pptx"),
    ".xlsx": Format(f"{_OFFICE}.spreadsheetml.sheet", "xlsx"),
    ".csv": Format("text/csv", "csv"),
    ".tsv": Format("text/tab-separated-values", "csv"),
    ".eml": Format("message/rfc822", "email"),
    ".json": Format("application/json", "code"),
    ".jsonl": Format("application/jsonl", "code"),
    ".xml": Format("application/xml", "code"),
    ".yaml": Format("application/yaml", "code"),
    ".yml": Format("application/yaml", "code"),
    ".toml": Format("application/toml", "code"),
}
_SOURCE = (
    "py pyi js mjs ts tsx jsx c h cc cpp hpp cs go rs java kt swift scala rb php pl lua r jl hs ex erl clj "
    "sh bash zsh fish ps1 sql css scss vue ini cfg conf proto graphql tf cmake mk dockerfile"
)
FORMATS.update({f".{suffix}": Format("text/x-source", "code") for suffix in _SOURCE.split()})

# README, LICENSE, NOTES: without a suffix it is text if its bytes are.
PLAIN = Format("text/plain", "text")
UNKNOWN_MEDIA_TYPE = "application/octet-stream"

# What the message of `unsupported_format` names; source code has too many suffixes to list.
NAMED = "md, txt, html, pdf, docx, pptx, xlsx, csv, tsv, eml, json, yaml, xml and source code"


def suffix_of(name: str) -> str:
    """The lower-case suffix with its dot, or an empty string. `.tar.gz` is `.gz`."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def format_of(name: str) -> Format | None:
    """The format of a file name, or None if it is not one of ours."""
    suffix = suffix_of(name)
    return FORMATS.get(suffix) if suffix else PLAIN
