"""A Word file made ready for unstructured: what its partitioner passes over is put where a reader of the page sees it.

Without this a contract loses its tracked insertions, a form the contents of its fields, a paper its footnotes, text boxes
and formulas. Only the two parts `word/document.xml` and `word/styles.xml` are changed; the file itself never is. Blocks
are made in `readers/elements.py`.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

from ingest.readers import package

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"

_DOCUMENT, _STYLES = "word/document.xml", "word/styles.xml"
# Wrappers whose content python-docx does not look into: insertions, moves, fields, content controls, text direction.
_WRAPPERS = [_W + tag for tag in ("ins", "moveTo", "smartTag", "customXml", "fldSimple", "sdt", "sdtContent", "dir", "bdo")]
_GONE = [_W + tag for tag in ("del", "moveFrom", "sdtPr", "sdtEndPr", "smartTagPr", "customXmlPr")]


def prepare(archive: zipfile.ZipFile) -> io.BytesIO:
    """The archive's bytes with those two parts rewritten; without `word/document.xml` as it is. Raises `ParseFailed`."""
    document = package.read(archive, _DOCUMENT)
    changed = {}
    if document is not None:
        root = package.xml(document)
        _simplify(root)
        for kind in ("footnote", "endnote"):
            _place_notes(root, kind, package.read(archive, f"word/{kind}s.xml"))
        _place_boxes(root)
        changed[_DOCUMENT] = root
        if styles := package.read(archive, _STYLES):
            changed[_STYLES] = _name_headings(package.xml(styles))
    return _rewritten(archive, changed)


def _rewritten(archive: zipfile.ZipFile, changed: dict[str, Any]) -> io.BytesIO:
    from lxml import etree

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as copy:
        for part in archive.infolist():
            if part.filename in changed:
                copy.writestr(part.filename, etree.tostring(changed[part.filename]))
            else:
                # Pictures are not looked at: an empty part is enough for what refers to it.
                copy.writestr(part.filename, b"" if part.filename.startswith("word/media/") else archive.read(part))
    out.seek(0)
    return out


def _simplify(root: Any) -> None:
    for old in list(root.iter(_MC + "Fallback")):  # the same again, for old programs
        _remove(old)
    # A table of contents says each heading a second time.
    for part in list(root.iter(_W + "docPartGallery")):
        if part.get(_W + "val") == "Table of Contents":
            _remove(next(part.iterancestors(_W + "sdt"), part))
    for style in list(root.iter(_W + "pStyle")):
        if re.fullmatch(r"(toc|verzeichnis|tm)\s?\d", style.get(_W + "val", ""), re.IGNORECASE):
            _remove(style.getparent().getparent())
    for gone in list(root.iter(_GONE)):
        _remove(gone)
    for formula in list(root.iter(_M + "oMath")):
        run = formula.makeelement(_W + "r")
        text = run.makeelement(_W + "t")
        text.text = _linear(formula)
        run.append(text)
        formula.getparent().replace(formula, run)
    for wrapper in list(root.iter([*_WRAPPERS, _M + "oMathPara"])):
        _unwrap(wrapper)


def _remove(element: Any) -> None:
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)


def _unwrap(element: Any) -> None:
    for child in list(element):  # by its neighbours and not by its number, which lxml counts each time
        element.addprevious(child)
    _remove(element)


def _linear(element: Any) -> str:
    """A formula in one line, as one would type it: `a/b`, `x^2`, `√(y)`."""

    def part(name: str) -> str:
        found = element.find(_M + name)
        return _linear(found) if found is not None else ""

    def grouped(text: str) -> str:
        return text if len(text) < 2 or text.isalnum() else f"({text})"

    match element.tag.removeprefix(_M):
        case "t":
            return (element.text or "").replace("\u2061", " ")  # the invisible sign between "sin" and its argument
        case "f":
            return f"{grouped(part('num'))}/{grouped(part('den'))}"
        case "sSup":
            return f"{part('e')}^{grouped(part('sup'))}"
        case "sSub":
            return f"{part('e')}_{grouped(part('sub'))}"
        case "sSubSup":
            return f"{part('e')}_{grouped(part('sub'))}^{grouped(part('sup'))}"
        case "rad":
            return f"√({part('e')})"
        case "d":
            return f"({', '.join(_linear(e) for e in element.findall(_M + 'e'))})"
        case _:
            return "".join(_linear(child) for child in element if isinstance(child.tag, str))


def _place_notes(root: Any, kind: str, part: bytes | None) -> None:
    """Each note as paragraphs of its own below the paragraph or table that refers to it, `[1]` in both."""
    references = list(root.iter(f"{_W}{kind}Reference"))
    if not references or part is None:
        return
    notes = {note.get(_W + "id"): note for note in package.xml(part)}
    for number, reference in enumerate(references, 1):
        note = notes.pop(reference.get(_W + "id"), None)
        sign = reference.makeelement(_W + "t")
        sign.text = f"[{number}]"
        reference.getparent().replace(reference, sign)
        if note is None:
            continue
        _simplify(note)
        paragraphs = list(note.iter(_W + "p"))
        for mark in list(note.iter(f"{_W}{kind}Ref")):
            own = mark.makeelement(_W + "t")
            own.text = f"[{number}] "
            mark.getparent().replace(mark, own)
        _insert_below(sign, paragraphs)


def _place_boxes(root: Any) -> None:
    """A text box's paragraphs and tables below the paragraph that it is tied to; the innermost first."""
    for box in reversed(list(root.iter(_W + "txbxContent"))):
        content = list(box)
        _insert_below(box, content)


def _insert_below(anchor: Any, blocks: list[Any]) -> None:
    """Put blocks after the outermost paragraph or table around the anchor, after what was put there for earlier anchors."""
    top = anchor
    while top.getparent() is not None and top.getparent().tag not in (_W + "body", _W + "txbxContent"):
        top = top.getparent()
    if top.getparent() is None:
        return
    while (following := top.getnext()) is not None and following.get(_PLACED) is not None and not _is_box(anchor):
        top = following
    for block in reversed(blocks):
        block.set(_PLACED, "1")
        top.addnext(block)


_PLACED = "placed"


def _is_box(anchor: Any) -> bool:
    return anchor.tag == _W + "txbxContent"  # boxes come last first, so each goes before the ones placed already


def _name_headings(styles: Any) -> Any:
    """A style of one's own that has an outline level (its own, or its parent's) is renamed to Word's heading of that level."""
    by_id = {style.get(_W + "styleId"): style for style in styles.iter(_W + "style") if style.get(_W + "type") == "paragraph"}
    names = {}
    for id, style in by_id.items():
        name = style.find(_W + "name")
        if name is None or re.match(r"heading \d|(sub)?title|toc", name.get(_W + "val", ""), re.IGNORECASE):
            continue
        seen = set()
        while style is not None and id not in seen:
            seen.add(id)
            level = style.find(f"{_W}pPr/{_W}outlineLvl")
            if level is not None:
                if level.get(_W + "val") in tuple("012345678"):
                    names[name] = f"heading {int(level.get(_W + 'val')) + 1}"
                break
            based = style.find(_W + "basedOn")
            id = based.get(_W + "val") if based is not None else ""
            style = by_id.get(id)
    for name, heading in names.items():
        name.set(_W + "val", heading)
    return styles
