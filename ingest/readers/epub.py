"""E-books -> blocks: the chapters in reading order, each read as the HTML page that it is. A book has no pages.

Read next: `readers/html.py`, and `readers/package.py` for how the zip is opened.
"""

from __future__ import annotations

import posixpath
import zipfile
from typing import Any
from urllib.parse import unquote

from ingest.parse import Builder, Options, Parsed, decode
from ingest.readers import html, package
from rag.errors import ParseFailed

_XMLENC = "{http://www.w3.org/2001/04/xmlenc#}"
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_LARGEST_CHAPTER = 64 << 20  # bytes; a whole novel in one file has 3 million
_MOST_CHAPTERS = 10_000
# Only these are not protection: fonts are scrambled for licence reasons in books that anyone can read.
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read(data: bytes, options: Options) -> Parsed:
    """A book. Raises `ParseFailed`: `encrypted` for one under digital rights management."""
    with package.opened(data) as archive:
        _refuse_protected(archive)
        path = _package_path(archive)
        part = package.read(archive, path)
        if part is None:
            raise ParseFailed("broken_file", "The book lacks its list of contents.", "Download it again.")
        book = package.xml(part)
        folder = posixpath.dirname(path)
        items = {item.get("id"): item for item in _all(book, "item")}
        names = _contents(archive, folder, items)
        builder = Builder()
        spine = [items[ref.get("idref")] for ref in _all(book, "itemref") if ref.get("idref") in items][:_MOST_CHAPTERS]
        for done, item in enumerate(spine):
            options.step(done, len(spine))
            name = _resolve(folder, item.get("href", ""))
            if item.get("media-type") not in _PAGES or "nav" in (item.get("properties") or "").split():
                continue
            text = decode(package.read(archive, name, _LARGEST_CHAPTER) or b"", html=True)
            if text:
                html.write(builder, text, name=names.get(name))
    return builder.build(_about(book))


def _all(root: Any, tag: str) -> list[Any]:
    """The elements of that name, whatever their namespace: books mix up those of several versions."""
    return [element for element in root.iter() if isinstance(element.tag, str) and element.tag.rpartition("}")[2] == tag]


def _resolve(folder: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))


def _refuse_protected(archive: zipfile.ZipFile) -> None:
    part = package.read(archive, "META-INF/encryption.xml")
    if part is None:
        return
    methods = {method.get("Algorithm") for method in package.xml(part).iter(_XMLENC + "EncryptionMethod")}
    # A key's own method is nested in the method's key info: what is not a font's is protection.
    if methods - set(_FONTS):
        raise package.encrypted("The book is protected (digital rights management): only its seller's programs open it.")


def _package_path(archive: zipfile.ZipFile) -> str:
    part = package.read(archive, "META-INF/container.xml")
    if part is not None:
        for found in _all(package.xml(part), "rootfile"):
            if found.get("full-path"):
                return found.get("full-path")
    return next((name for name in archive.namelist() if name.endswith(".opf")), "")


def _contents(archive: zipfile.ZipFile, folder: str, items: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """What the book's table of contents calls a file, and at which level (from 1): for chapters without a heading."""
    names: dict[str, tuple[str, int]] = {}
    for item in items.values():
        path = _resolve(folder, item.get("href", ""))
        if "nav" in (item.get("properties") or "").split():
            link, target, label, nest = "a", "href", None, "ol"
        elif item.get("media-type") == "application/x-dtbncx+xml":
            link, target, label, nest = "navPoint", "src", "text", "navPoint"
        else:
            continue
        part = package.read(archive, path)
        try:
            root = package.xml(part) if part else None
        except ParseFailed:
            root = None  # it is only a help
        if root is None:
            continue
        for entry in _all(root, link):
            depth = sum(isinstance(a.tag, str) and a.tag.rpartition("}")[2] == nest for a in entry.iterancestors())
            if label is None:
                href, text = entry.get(target), "".join(entry.itertext())
            else:
                href = next((content.get(target) for content in entry if content.tag.endswith("}content")), None)
                text = next(("".join(t.itertext()) for t in _all(entry, label)), "")
                depth += 1
            if href:
                names.setdefault(_resolve(posixpath.dirname(path), href), (" ".join(text.split()), max(1, min(depth, 6))))
    return names


def _about(book: Any) -> str | None:
    """`Title, by Author`: who wrote a book is asked for, and its chapters seldom say it."""
    title, authors = (["".join(e.itertext()).strip() for e in _all(book, tag)] for tag in ("title", "creator"))
    if not title or not package.own_title(title[0]):
        return None
    return f"{title[0]}, by {', '.join(filter(None, authors))}" if any(authors) else title[0]
