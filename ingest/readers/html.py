"""HTML -> blocks, by its tags: headings, lists, tables, code, paragraphs. What surrounds a page's content is left out.

unstructured's partitioner was measured first (../shared/data/files): it makes one table row of an essay in a layout table,
joins words at `<br>` there, keeps menus, headers and footers, and takes 2 s to import; this reads the pages in the same
time or less. Used for web pages, the chapters of books (`readers/epub.py`), mails that are HTML
(`readers/mail.py`), and the tables of Word and PowerPoint (`readers/elements.py`).
"""

from __future__ import annotations

import re
from typing import Any

from ingest.parse import Builder, Kind, Options, Parsed

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = frozenset(
    str.split(
        "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form header hgroup hr "
        "html legend li main nav ol p section summary table tbody td tfoot th thead tr ul caption pre"
    )
)
_OPENED = frozenset(("li", "dt", "dd", "pre", *_HEADINGS))  # these decide what the text in them is
_DROPPED = frozenset(
    str.split(
        "head script style noscript template nav svg iframe object embed canvas audio video button select textarea input datalist dialog "
        "map area annotation annotation-xml"
    )
)
_ROLES = frozenset(str.split("navigation banner contentinfo search menu menubar toolbar dialog alertdialog"))
# Marks of what is not read with a page: not on paper, or only by machines; and the signs that link a heading to itself.
_CLASSES = frozenset(
    str.split(
        "noprint no-print d-print-none mw-editsection mw-jump-link skip-link skip-to-content headerlink hash-link anchorjs-link "
        "breadcrumb breadcrumbs navbar site-footer site-header cookie-banner"
    )
)
# A page's <main> is taken for the page if it has this share of the visible characters: some sites put only a form in it.
_MAIN_SHARE = 0.3
# Cells of data are short. The longest of the 10-K filing in ../shared/data has 300 characters; layout cells hold a page.
_LONGEST_CELL = 1000
_MOST_SPANNED = 1000  # HTML's own limit for colspan


def read(text: str, options: Options) -> Parsed:
    """A page's visible text, with `<title>` as its title."""
    builder = Builder(options.step)
    return builder.build(write(builder, text))


def write(builder: Builder, text: str, *, name: tuple[str, int] | None = None) -> str | None:
    """Append a page's blocks to a document. Returns its `<title>`, or None. `name` (text, level) heads a page without headings."""
    import lxml.html
    from lxml import etree

    # An lxml string must not declare an encoding.
    text = re.sub(r"\A\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        return None
    try:
        # Without huge_tree a text of 10 MB (a <pre>) is cut off silently.
        root = lxml.html.document_fromstring(text, parser=lxml.html.HTMLParser(huge_tree=True, remove_comments=True, remove_pis=True))
    except (etree.ParserError, etree.XMLSyntaxError):  # nothing but comments, say
        return None
    title = next((t.text_content() for t in root.iter("title") if t.getparent().tag in ("head", "html")), None)
    content = _content(root)
    if name and next(content.iter(*_HEADINGS), None) is None and content.text_content().strip():
        builder.add("heading", name[0], level=name[1])
    _Page(builder, etree).walk(content)
    return " ".join(title.split()) or None if title else None


def table(text: str) -> tuple[list[list[str]], list[str] | None]:
    """The rows and the column names (None if it has none) of a table given as HTML."""
    import lxml.html

    return _grid(lxml.html.fromstring(text))


def _content(root: Any) -> Any:
    """The page's `<main>`, if it holds a good part of the text; else the whole page."""
    mains = root.xpath("//main | //*[@role='main']")
    if len(mains) == 1 and len(_visible(mains[0])) >= _MAIN_SHARE * len(_visible(root)):
        return mains[0]
    return root


def _visible(element: Any) -> str:
    return re.sub(r"\s+", "", "".join(element.xpath(".//text()[not(ancestor::script or ancestor::style or ancestor::head)]")))


class _Page:
    """Walks a tree once, collecting text until a block begins or ends."""

    def __init__(self, builder: Builder, etree: Any) -> None:
        self._builder = builder
        self._etree = etree
        self._text: list[str] = []
        self._open: list[str] = []  # those of `_OPENED` around the text at hand; an empty name for one that is passed over

    def walk(self, root: Any) -> None:
        walker = self._etree.iterwalk(root, events=("start", "end"))
        for event, element in walker:
            tag = element.tag
            if event == "start":
                if tag == "table" and "pre" not in self._open and _is_data(element):
                    self._flush()
                    self._table(element)
                    walker.skip_subtree()
                elif _is_dropped(element, root):
                    if tag in _BLOCKS:
                        self._flush()
                    if tag in _OPENED:
                        self._open.append("")  # its end is told all the same
                    walker.skip_subtree()
                elif tag == "br":
                    self._text.append("\n" if "pre" in self._open else "\r")
                else:
                    if tag in _BLOCKS or tag in _HEADINGS:
                        self._flush()
                    if tag in _OPENED:
                        self._open.append(tag)
                    self._text.append(element.text or "")
                continue
            if tag in _BLOCKS or tag in _HEADINGS:
                self._flush()
            if tag in _OPENED:
                self._open.pop()
            if element is not root:
                self._text.append(element.tail or "")
        self._flush()

    def _flush(self) -> None:
        raw = "".join(self._text)
        self._text.clear()
        kind: Kind = "paragraph"
        if "pre" in self._open:
            # Whole lines as they are; `add` strips around them, and a first indent belongs to the code's shape.
            self._builder.add("code", raw.replace("\r", "\n").strip("\n"))
            return
        heading = next((tag for tag in reversed(self._open) if tag in _HEADINGS), None)
        lines = [" ".join(line.split()) for line in raw.split("\r")]
        if heading:
            self._builder.add("heading", " ".join(filter(None, lines)).rstrip("¶").rstrip(), level=_HEADINGS[heading])
            return
        if self._open:
            kind = "list_item"
        self._builder.add(kind, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)))

    def _table(self, table: Any) -> None:
        for caption in table.iterchildren("caption"):
            self._builder.add("paragraph", _cell(caption))
        rows, header = _grid(table)
        self._builder.add_table(rows, header=header)


def _is_dropped(element: Any, root: Any) -> bool:
    tag = element.tag
    if element is root or not isinstance(tag, str):
        return element is not root
    if tag in _DROPPED or "hidden" in element.attrib or element.get("role") in _ROLES:
        return True
    if tag == "li" and len(element) == 1 and element[0].tag == "a" and element[0].get("hreflang") and element[0].get("lang"):
        return True  # the same page in another language
    if not _CLASSES.isdisjoint((element.get("class") or "").split()):
        return True
    if re.search(r"display:\s*none", element.get("style") or ""):
        return True
    if tag in ("header", "footer"):
        # An article's own header has its heading; a site's has its name and menus.
        inside = any(a.tag in ("article", "main", "blockquote", "section") for a in element.iterancestors())
        return not inside and element.find(".//h1") is None
    return False


def _is_data(table: Any) -> bool:
    """Whether a table holds data, not the layout of a page."""
    if table.get("role") in ("presentation", "none") or table.find(".//table") is not None:
        return False
    if table.find(".//pre") is not None or any(table.find(f".//{tag}") is not None for tag in ("h1", "h2", "h3")):
        return False
    rows = list(table.iter("tr"))
    longest = max((len(cell.text_content()) for row in rows for cell in row), default=0)
    if table.find(".//th") is not None or table.find("thead") is not None:
        return longest <= 10 * _LONGEST_CELL
    return longest <= _LONGEST_CELL and max((len(row) for row in rows), default=0) > 1


def _grid(table: Any) -> tuple[list[list[str]], list[str] | None]:
    """The rows with each spanned cell repeated, and the column names: the rows of `<thead>`, or a first row of `<th>` only."""
    rows: list[list[str]] = []
    heads: list[list[str]] = []
    below: dict[int, tuple[int, str]] = {}  # column -> rows still covered, text
    in_head = True
    for tr in table.iter("tr"):
        row: list[str] = []

        def covered(row: list[str] = row) -> bool:
            left, text = below.pop(len(row), (0, ""))
            if not left:
                return False
            if left > 1:
                below[len(row)] = (left - 1, text)
            row.append(text)
            return True

        cells = [cell for cell in tr if cell.tag in ("td", "th")]
        for cell in cells:
            while covered():
                pass
            text, down = _cell(cell), _span(cell, "rowspan")
            for _ in range(_span(cell, "colspan")):
                if down > 1:
                    below[len(row)] = (down - 1, text)
                row.append(text)
        while covered():
            pass
        # A row of one <th> over the whole width is a caption; a <th> beside <td> names its row.
        in_head = in_head and bool(cells) and (tr.getparent().tag == "thead" or all(cell.tag == "th" for cell in cells))
        if in_head and (len(cells) > 1 or tr.getparent().tag == "thead"):
            heads.append(row)
        else:
            rows.append(_once(cells, row))
    if not heads:
        return rows, None
    width = max(map(len, heads))
    header = [" ".join(dict.fromkeys(row[i] for row in heads if i < len(row) and row[i])) for i in range(width)]
    return (rows, header) if rows else ([header], None)


def _once(cells: list[Any], row: list[str]) -> list[str]:
    """A row whose only cell spans all columns says its text once."""
    return [row[0]] if len(cells) == 1 and len(set(row)) == 1 else row


def _span(cell: Any, name: str) -> int:
    value = cell.get(name) or "1"
    return max(1, min(int(value), _MOST_SPANNED)) if value.isdecimal() and len(value) < 6 else 1


def _cell(cell: Any) -> str:
    """Its words; what stands on lines of its own keeps a space between."""
    return " ".join(" ".join(_pieces(cell)).split())


def _pieces(cell: Any) -> list[str]:
    pieces = [""]
    for event, element in _walk(cell):
        if event == "start":
            if element.tag in _BLOCKS or element.tag == "br":
                pieces.append("")
            pieces[-1] += element.text or ""
        else:
            if element.tag in _BLOCKS:
                pieces.append("")
            if element is not cell:
                pieces[-1] += element.tail or ""
    return pieces


def _walk(cell: Any) -> Any:
    from lxml import etree

    walker = etree.iterwalk(cell, events=("start", "end"))
    for event, element in walker:
        if event == "start" and element is not cell and _is_dropped(element, cell):
            walker.skip_subtree()
            continue
        yield event, element
