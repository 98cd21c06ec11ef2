"""A zip that is one document (docx, xlsx, pptx, odt, epub): opened within bounds, its XML parsed without entities.

What a zip that is a folder holds is in `readers/archive.py`. Read next: one of the readers, `readers/odt.py` say.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from html import unescape
from typing import Any

from ingest.parse import too_much_text
from rag.errors import ParseFailed

LARGEST_UNPACKED = 1 << 30
"""Declared size in bytes, all parts together, above which a file is a bomb: 4 times the largest file we accept."""

LARGEST_PART = 256 << 20
"""Bytes of one XML part that is parsed into a tree, which takes up to 10 times that: more does not fit a parser's memory."""

_MOST_PARTS = 100_000


def broken(error: Exception) -> ParseFailed:
    """What a file ends as that a library cannot read."""
    return ParseFailed("broken_file", f"The file is damaged and cannot be read ({type(error).__name__}).", "Save or download it again.")


def encrypted(message: str) -> ParseFailed:
    """What a file ends as that only its reader's owner can open."""
    return ParseFailed("encrypted", message, "Save it without protection, or leave it out with `ignore` in domain.toml.")


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[zipfile.ZipFile]:
    """The archive. Raises `ParseFailed`, also for what goes wrong while a part is read inside the `with`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            if len(parts) > _MOST_PARTS or sum(part.file_size for part in parts) > LARGEST_UNPACKED:
                raise too_much_text()
            yield archive
    except RuntimeError as error:  # zipfile's way to ask for a password
        if "password" in str(error) or "encrypted" in str(error):
            raise encrypted("The file is protected by a password.") from error
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, KeyError) as error:
        raise broken(error) from error


def read(archive: zipfile.ZipFile, name: str, limit: int = LARGEST_PART) -> bytes | None:
    """A part's bytes, or None if there is no such part. zipfile gives no more than the part declares. Raises `ParseFailed`."""
    name = posixpath.normpath(name).lstrip("/")
    try:
        part = archive.getinfo(name)
    except KeyError:
        return None
    if part.file_size > limit:
        raise too_much_text()
    return archive.read(part)


def xml(data: bytes) -> Any:
    """The root of an XML part. Entities stay unexpanded, nothing is fetched. Raises `ParseFailed`."""
    from lxml import etree

    try:
        # libxml2's own limits stay on: 256 levels, 10 MB a text.
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True)
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise broken(error) from error


def core_title(archive: zipfile.ZipFile) -> str | None:
    """The title in the properties of a file of Microsoft's Office."""
    core = (read(archive, "docProps/core.xml") or b"")[:100_000].decode("utf-8", errors="replace")
    found = re.search(r"<dc:title[^>]*>([^<]+)</dc:title>", core)
    return own_title(unescape(found[1])) if found else None


def own_title(title: str) -> str | None:
    """None for what templates leave behind: it says nothing about the document."""
    title = " ".join(title.split())[:300]
    return None if title.lower() in ("", "title", "powerpoint presentation", "untitled", "untitled document", "word document") else title
