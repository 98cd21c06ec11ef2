"""Which files are read, and as what: suffix -> media type and reader. A table, nothing else.

Light on purpose: the parent process uses it to tell a file's media type without loading a parser. The readers
themselves are chosen in `ingest/parse.py`, which is where to read next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rag.errors import ParseFailed

Reader = Literal[
    "markdown", "text", "rst", "org", "code", "json", "jsonl", "yaml", "toml", "xml", "notebook", "html", "csv",
    "pdf", "image", "docx", "doc", "odt", "rtf", "pptx", "ppt", "xlsx", "xls", "epub", "email", "msg", "mbox", "zip",
]  # fmt: skip


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
    ".rst": Format("text/x-rst", "rst"),
    ".org": Format("text/org", "org"),
    ".html": Format("text/html", "html"),
    ".htm": Format("text/html", "html"),
    ".xhtml": Format("application/xhtml+xml", "html"),
    ".pdf": Format("application/pdf", "pdf"),
    ".docx": Format(f"{_OFFICE}.wordprocessingml.document", "docx"),
    ".docm": Format("application/vnd.ms-word.document.macroEnabled.12", "docx"),
    ".doc": Format("application/msword", "doc"),
    ".odt": Format("application/vnd.oasis.opendocument.text", "odt"),
    ".rtf": Format("application/rtf", "rtf"),
    ".pptx": Format(f"{_OFFICE}.presentationml.presentation", "pptx"),
    ".ppt": Format("application/vnd.ms-powerpoint", "ppt"),
    ".xlsx": Format(f"{_OFFICE}.spreadsheetml.sheet", "xlsx"),
    ".xlsm": Format("application/vnd.ms-excel.sheet.macroEnabled.12", "xlsx"),
    ".xls": Format("application/vnd.ms-excel", "xls"),
    ".csv": Format("text/csv", "csv"),
    ".tsv": Format("text/tab-separated-values", "csv"),
    ".epub": Format("application/epub+zip", "epub"),
    ".eml": Format("message/rfc822", "email"),
    ".msg": Format("application/vnd.ms-outlook", "msg"),
    ".mbox": Format("application/mbox", "mbox"),
    ".ipynb": Format("application/x-ipynb+json", "notebook"),
    ".json": Format("application/json", "json"),
    ".jsonl": Format("application/jsonl", "jsonl"),
    ".ndjson": Format("application/x-ndjson", "jsonl"),
    ".xml": Format("application/xml", "xml"),
    ".yaml": Format("application/yaml", "yaml"),
    ".yml": Format("application/yaml", "yaml"),
    ".toml": Format("application/toml", "toml"),
    ".png": Format("image/png", "image"),
    ".gif": Format("image/gif", "image"),
    ".jpg": Format("image/jpeg", "image"),
    ".jpeg": Format("image/jpeg", "image"),
    ".tif": Format("image/tiff", "image"),
    ".tiff": Format("image/tiff", "image"),
    ".zip": Format("application/zip", "zip"),
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
NAMED = (
    "md, txt, rst, org, html, pdf, docx, doc, odt, rtf, pptx, ppt, xlsx, xls, csv, tsv, epub, eml, msg, mbox, ipynb, json, jsonl, "
    "yaml, toml, xml, png, gif, jpg, tiff, zip and source code"
)

# What people call kinds of documents -> the readers of their files. What has no reader is of the kind `other`.
KINDS: dict[str, tuple[Reader, ...]] = {
    "text": ("markdown", "text", "rst", "org"),
    "pdf": ("pdf",),
    "document": ("docx", "doc", "odt", "rtf", "epub"),
    "slides": ("pptx", "ppt"),
    "table": ("xlsx", "xls", "csv"),
    "web": ("html",),
    "mail": ("email", "msg", "mbox"),
    "image": ("image",),
    "data": ("json", "jsonl", "yaml", "toml", "xml"),
    "code": ("code", "notebook"),
    "archive": ("zip",),
}


def media_types(kind: str) -> frozenset[str]:
    """The media types of the documents of one of `KINDS`; of `other` the one of files that are not read."""
    readers = KINDS.get(kind, ())
    return frozenset(form.media_type for form in FORMATS.values() if form.reader in readers) or frozenset({UNKNOWN_MEDIA_TYPE})


def suffix_of(name: str) -> str:
    """The lower-case suffix with its dot, or an empty string. `.tar.gz` is `.gz`."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def format_of(name: str) -> Format | None:
    """The format of a file name, or None if it is not one of ours."""
    suffix = suffix_of(name)
    return FORMATS.get(suffix) if suffix else PLAIN


def readable(name: str) -> Format:
    """As `format_of`; raises `ParseFailed` for the name of a file that is not read."""
    found = format_of(name)
    if found is None:
        raise ParseFailed(
            "unsupported_format",
            f"Files of the kind {suffix_of(name)!r} are not read.",
            f"Convert it to one of: {NAMED}; or leave it out with `ignore` in domain.toml.",
        )
    return found
