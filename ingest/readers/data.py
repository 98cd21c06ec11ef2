"""JSON, JSON lines, YAML, TOML and XML: records as rows that carry their names, the rest under its keys as headings.

JSON and XML are composed anew, for neither brackets nor tags read well in a citation: `sku: GRD-8842; price: 12.5`. The
figures stay as they were written. YAML and TOML are written for people, comments included, so their text is the file's own
and the blocks are spans of it. What is malformed is still text: it is read as plain paragraphs. Nothing is
constructed, expanded or fetched: YAML is read as events, where an alias is a name; an XML file that declares entities is refused.
Notebooks are in `readers/notebook.py`. Read next: `ingest/chunk.py`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

from ingest.parse import Block, Builder, Kind, Options, Parsed
from ingest.readers.plain import PARAGRAPH, add_span, line_starts, read_text
from rag.errors import ParseFailed

# A record up to this many characters is one row: about 250 tokens, a chunk. A longer one is taken apart under a heading.
_ROW = 1000
# A value this long has a heading of its own instead of `key: `.
_LONG = 400
_DEEPEST_HEADING = 6


class _Object(tuple):
    """A JSON object as its pairs, in order, doubled keys included."""

    __slots__ = ()


def _loads(text: str) -> Any:
    """Numbers stay strings as they were written: `12.50` is no `12.5`, and a number of a million digits is only text."""
    return json.loads(text, object_pairs_hook=_Object, parse_float=str, parse_int=str)


def read_json(text: str, options: Options) -> Parsed:
    """Keys as headings, arrays of objects as rows. Several values one after the other are read as JSON lines."""
    builder = Builder(options.step)
    try:
        value = _loads(text)
    except RecursionError:
        return read_text(text, options)
    except ValueError:
        first = text.lstrip().partition("\n")[0]
        return read_jsonl(text, options) if _record(first) is not None else read_text(text, options)
    try:
        _write(builder, value, 1)
    except RecursionError:
        return read_text(text, options)
    return replace(builder.build(None), title=_title(value))  # a key is not the document's title


def read_jsonl(text: str, options: Options) -> Parsed:
    """A row a line. A line that is no JSON stays as it is, and the others are not lost."""
    builder = Builder(options.step)
    values = ((_record(line), line) for line in text.split("\n") if line.strip())
    _records(builder, (line if value is None else value for value, line in values), 1)
    return replace(builder.build(None), title=None)


def _record(line: str) -> Any:
    """The line's value if it is an object or an array, else None."""
    try:
        value = _loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, _Object | list) else None


def _title(value: Any) -> str | None:
    found = next((v for k, v in value if k.lower() == "title"), None) if isinstance(value, _Object) else None
    return " ".join(found.split())[:300] or None if isinstance(found, str) else None


def _write(builder: Builder, value: Any, level: int) -> None:
    """An object's short values as lines, each of its long ones below a heading; an array as rows."""
    if isinstance(value, list):
        _records(builder, value, level)
        return
    if not isinstance(value, _Object):
        _prose(builder, _said(value))
        return
    long = []
    glue = "\n\n"
    for key, item in value:
        parts = list(islice(_flat(item, key), 1 + _LONG))
        if (
            sum(len(name) + len(said) + 2 for name, said in parts) > _LONG
            or (isinstance(item, str) and "\n" in item.strip())
            or (isinstance(item, list) and sum(isinstance(one, _Object) for one in item) > 1)
        ):
            long.append((key, item))
        elif parts:
            builder.add("paragraph", _row(parts), glue=glue)
            glue = "\n"
    # After the short ones, none of which shall stand below a neighbour's heading.
    for key, item in long:
        if level <= _DEEPEST_HEADING and key.strip():
            builder.add("heading", key, level=level)
        _write(builder, item, level + 1)


def _records(builder: Builder, values: Iterable[Any], level: int) -> None:
    glue = "\n\n"
    matrix: list[list[str]] = []
    for number, value in enumerate(values, 1):
        if isinstance(value, list) and value and not any(isinstance(cell, list | _Object) for cell in value):
            matrix.append([_said(cell) for cell in value])
            continue
        if matrix:
            builder.add_table(matrix)
            matrix = []
        parts = list(islice(_flat(value, ""), _ROW))
        if sum(len(name) + len(said) + 4 for name, said in parts) <= _ROW:
            kind = "table_row" if isinstance(value, _Object | list) else "list_item"
            builder.add(kind, _row(parts), glue=glue)
            glue = "\n"
        elif isinstance(value, str):
            _prose(builder, value)
        else:
            if level <= _DEEPEST_HEADING:
                builder.add("heading", _name(value) or str(number), level=level)
            _write(builder, value, level + 1)
            glue = "\n\n"
    if matrix:
        builder.add_table(matrix)


def _name(value: Any) -> str | None:
    """What a record is called, for the heading that it needs when it is long."""
    pairs = {k.lower(): v for k, v in value if isinstance(v, str) and v.strip()} if isinstance(value, _Object) else {}
    found = next((pairs[key] for key in ("title", "name", "label", "key", "id", "type") if key in pairs), None)
    return " ".join(found.split())[:120] if found else None


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, what is said) for each value inside; scalars of an array together, empty ones left out."""
    if isinstance(value, _Object):
        for key, item in value:
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        if any(isinstance(item, list | _Object) for item in value):
            for number, item in enumerate(value, 1):
                yield from _flat(item, f"{name}.{number}" if name else str(number))
        elif said := ", ".join(filter(None, map(_said, value))):
            yield name, said
    elif said := _said(value):
        yield name, said


def _said(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _without_blobs(str(value))


# Base64 and the like: no person reads or asks for it. Addresses and hashes are shorter.
_BLOB = re.compile(r"(?:data:[\w/+.-]+;base64,)?[A-Za-z0-9+/_=-]{512,}")


def _without_blobs(text: str) -> str:
    return _BLOB.sub(lambda match: f"[{len(match[0])} characters of data]", text)


def _row(parts: Iterable[tuple[str, str]]) -> str:
    spoken = ((name, " ".join(said.split())) for name, said in parts)
    return "; ".join(f"{name}: {said}" if name else said for name, said in spoken)


def _prose(builder: Builder, text: str) -> None:
    for match in PARAGRAPH.finditer(text):
        builder.add("paragraph", re.sub(r"[ \t]{20,}", "  ", match[0]))  # what is left of a page's layout


# Keys in flow collections or deeper than this are not headings: `services > web > environment` is as deep as a path helps.
_YAML_DEPTH = 3


def read_yaml(text: str, options: Options) -> Parsed:
    """Keys that hold a mapping or a list as headings, the items of a list whole; comments stay with what they are above."""
    import yaml

    starts = line_starts(text, "[\n\x85\u2028\u2029]")  # the lines that YAML counts
    marks: dict[int, _Mark] = {}
    stack: list[_Open] = []
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            options.step(event.start_mark.line, len(starts))
            outer = stack[-1] if stack else None
            match event:
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    line = event.start_mark.line
                    if outer and outer.mapping:
                        line = outer.key_line
                    elif outer and not event.flow_style and len(stack) <= _YAML_DEPTH + 1:
                        marks.setdefault(line, _Mark("list_item", len(stack)))
                    stack.append(_Open(isinstance(event, yaml.MappingStartEvent), line, len(marks)))
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    done = stack.pop()
                    if stack:
                        size = starts[min(event.end_mark.line, len(starts) - 1)] - starts[done.begin]
                        named = stack[-1].mapping
                        if size <= (_LONG if named else _ROW):
                            while len(marks) > done.marks:
                                marks.popitem()  # what is short stays together
                        elif named and done.begin in marks and len(stack) <= _YAML_DEPTH:
                            marks[done.begin] = _Mark("heading", len(stack), stack[-1].key)
                        stack[-1].at_key = True
                case yaml.ScalarEvent() | yaml.AliasEvent() if outer:
                    if outer.mapping and outer.at_key:
                        outer.key_line, outer.at_key = event.start_mark.line, False
                        outer.key = " ".join(event.value.split())[:200] if isinstance(event, yaml.ScalarEvent) else f"*{event.anchor}"
                        if len(stack) <= _YAML_DEPTH:
                            marks.setdefault(outer.key_line, _Mark("paragraph", len(stack)))
                    else:
                        outer.at_key = True
    except (yaml.YAMLError, RecursionError, ValueError):
        return read_text(text, options)
    return Parsed(text, tuple(_marked(text, starts, marks)), None) if marks else read_text(text, options)


@dataclass(frozen=True, slots=True)
class _Mark:
    """What begins on a line, and below how many others."""

    kind: Kind
    level: int
    label: str = ""


@dataclass(slots=True)
class _Open:
    """A mapping or a list that is being read: the line it began on, how many marks there were, and its last key."""

    mapping: bool
    begin: int
    marks: int
    at_key: bool = True
    key: str = ""
    key_line: int = 0


def _marked(text: str, starts: list[int], marks: dict[int, _Mark]) -> list[Block]:
    """Blocks from the lines where something begins. A heading is its line, with the comments above it; an item all its lines."""
    blocks: list[Block] = []
    lines = sorted(marks)
    headings: list[int] = []
    begin = {}
    for line in lines:
        first = line
        indent = _indent(text[starts[line] : starts[line + 1]])
        while first > 0 and first - 1 not in marks and _is_comment(text[starts[first - 1] : starts[first]], indent):
            first -= 1
        begin[line] = first
    if lines and begin[lines[0]] > 0:
        add_span(blocks, text, "paragraph", 0, starts[begin[lines[0]]])
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        mark = marks[line]
        start, end = starts[begin[line]], len(text) if following is None else starts[begin[following]]
        while headings and headings[-1] >= mark.level:
            headings.pop()
        if mark.kind == "heading":
            headings.append(mark.level)
            add_span(blocks, text, "heading", start, starts[line + 1], mark.level, mark.label)
            add_span(blocks, text, "paragraph", starts[line + 1], end)
        else:
            add_span(blocks, text, mark.kind, start, end, mark.level)
    return blocks


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _is_comment(line: str, indent: int) -> bool:
    """Indented no deeper than what it is about: deeper it may be the end of a script."""
    return line.lstrip(" ").startswith("#") and _indent(line) <= indent


_TOML_TABLE = re.compile(r"[ \t]*(\[\[?)[ \t]*([^\[\]\n]+?)[ \t]*\]\]?[ \t]*(?:#.*)?\Z")
_TOML_STRING = re.compile(r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL)


def read_toml(text: str, options: Options) -> Parsed:
    """Tables as headings; of an array of tables the first is a heading and each other a record of its own."""
    starts = line_starts(text)
    # Blanked, the inside of a string of several lines begins no table.
    hidden = _TOML_STRING.sub(lambda match: re.sub(r"[^\n]", " ", match[0]) if "\n" in match[0] else match[0], text)
    marks: dict[int, _Mark] = {}
    array = ""
    for number, line in enumerate(hidden.split("\n")):
        if found := _TOML_TABLE.match(line):
            name = found[2].strip()
            if found[1] == "[[":
                marks[number] = _Mark("list_item", 2) if name == array else _Mark("heading", 1, name)
                array = name
            elif array and name.startswith(f"{array}."):  # a table of the item above
                marks[number] = _Mark("heading", 2, name)
            else:
                marks[number], array = _Mark("heading", 1, name), ""
    return Parsed(text, tuple(_marked(text, starts, marks)), None) if marks else read_text(text, options)


_PROLOG = re.compile(r"\A\ufeff?(?:\s++|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)
_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")
_PROSE_TAGS = {
    "p",
    "para",
    "paragraph",
    "simpara",
    "text",
    "body",
    "content",
    "description",
    "summary",
    "encoded",
    "title",
    "li",
    "item",
    "line",
}
_TITLE_TAGS = ("title", "name", "label", "head", "heading", "id")


def read_xml(text: str, options: Options) -> Parsed:
    """Elements that hold long things as headings, records as rows. Raises `ParseFailed` for a file that declares entities."""
    from lxml import etree

    if _PROLOG.match(text) and "<!ENTITY" in text:
        # libxml2 has limits of its own, but expands entities in attributes whatever it is told.
        raise ParseFailed(
            "broken_file",
            "It declares entities of its own, as XML bombs do.",
            "Save it with the entities written out (xmllint --noent), if you trust where it comes from.",
        )
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(_DECLARATION.sub("", text).encode(), parser)
    except (etree.XMLSyntaxError, ValueError):
        return read_text(text, options)
    builder = Builder(options.step)
    _elements(builder, [root], 1)
    titles = (" ".join(_words(e).split())[:300] for path in ("./{*}title", "./*/{*}title") for e in root.iterfind(path))
    return replace(builder.build(None), title=next(filter(None, titles), None))


def _local(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _attributes(element: Any) -> list[tuple[str, str]]:
    """Those that say something to a reader: not those of namespaces."""
    return [(key, value) for key, value in element.attrib.items() if not key.startswith("{") and value.strip()]


def _is_text(element: Any) -> bool:
    """Whether it holds words, and perhaps marked-up words among them."""
    return bool((element.text or "").strip()) or any((child.tail or "").strip() for child in element) or not len(element)


def _words(element: Any) -> str:
    """The text inside; an undeclared entity as its character, HTML written as text without its tags."""
    parts = []
    for node in element.iter():
        if not isinstance(node.tag, str):
            parts.append(html.unescape(node.text or ""))
        else:
            parts.append(node.text or "")
        if node is not element:
            parts.append(node.tail or "")
    return _without_blobs(_without_tags("".join(parts).strip()))


def _without_tags(text: str) -> str:
    if not re.search(r"</\w+>|<br ?/?>", text):
        return text
    text = re.sub(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)", "", text)
    text = re.sub(r"(?i)<(?:/p|/div|/h\d|/li|/tr|/table|/ul|br)\b[^<>]*>", "\n\n", text)
    return html.unescape(re.sub(r"<[^<>]*>", "", text)).strip()


def _pairs(element: Any, name: str) -> Iterator[tuple[str, str]]:
    """(name, words) for each thing a record says, with the path of nested elements."""
    for key, value in _attributes(element):
        yield (f"{name}.{key}" if name else key), value
    if _is_text(element):
        if said := _words(element):
            yield name or _local(element), said
        return
    for child in element:
        if isinstance(child.tag, str):
            yield from _pairs(child, f"{name}.{_local(child)}" if name else _local(child))


def _elements(builder: Builder, elements: Iterable[Any], level: int) -> None:
    glue = "\n\n"
    elements = [element for element in elements if isinstance(element.tag, str)]
    for number, element in enumerate(elements):
        if number and _joins(elements[number - 1], element):
            continue  # said with the first of them
        parts = list(islice(_pairs(element, ""), _ROW))
        size = sum(len(name) + len(said) + 4 for name, said in parts)
        text = _is_text(element)
        tag = _local(element)
        if not parts:
            continue
        if text:
            attributes, said = _attributes(element), _words(element)
            if said and (tag.lower() in _PROSE_TAGS or size > _LONG):
                if attributes:
                    builder.add("paragraph", _row(attributes), level=level)
                if tag.lower() not in _PROSE_TAGS:
                    builder.add("heading", tag, level=min(level, _DEEPEST_HEADING))
                for match in PARAGRAPH.finditer(said):
                    builder.add("paragraph", match[0], level=level if tag.lower() in _PROSE_TAGS else None)
                glue = "\n\n"
                continue
            if not attributes:
                rest = (elements[i] for i in range(number, len(elements)))  # a slice for each element is the square of them
                alike = takewhile(lambda one, first=element: one is first or _joins(first, one), rest)
                said = ", ".join(filter(None, (" ".join(_words(one).split()) for one in alike)))
                builder.add("list_item", f"{tag}: {said}", level=level, glue=glue)
            else:
                builder.add("table_row", f"{tag}: {_row([*attributes, *([('', said)] if said else [])])}", level=level, glue=glue)
            glue = "\n"
        elif size <= _ROW and element.getparent() is not None and not _holds_prose(element):
            if len(parts) == 1 and parts[0][0].rpartition(".")[2].lower() in _PROSE_TAGS:
                builder.add("paragraph", parts[0][1], level=level)
            else:
                builder.add("table_row", f"{tag}: {_row(parts)}", level=level, glue=glue)
            glue = "\n"
        else:
            name, titled = _heading(element)
            # The outermost element's own name (`rss`, `root`) would be above everything and say nothing.
            named = element.getparent() is not None or titled is not None
            if named:
                builder.add("heading", name, level=min(level, _DEEPEST_HEADING))
            attributes = [pair for pair in _attributes(element) if pair[1] != name]
            if attributes:
                builder.add("paragraph", _row(attributes))
            _elements(builder, (child for child in element if child is not titled), level + named)
            glue = "\n\n"


def _joins(before: Any, element: Any) -> bool:
    """Whether they are short values of one list: `category`, `keyword`."""
    return (
        before.tag == element.tag
        and all(not one.attrib and not len(one) and 0 < len((one.text or "").strip()) <= 80 for one in (before, element))
        and _local(element).lower() not in _PROSE_TAGS
    )


def _holds_prose(element: Any) -> bool:
    """Paragraphs, and not a field that happens to be called `p`."""
    paragraphs = [child for child in element if isinstance(child.tag, str) and _local(child) in ("p", "para", "simpara", "paragraph")]
    return len(paragraphs) > 1 or any(len(_words(paragraph)) > 80 for paragraph in paragraphs)


def _heading(element: Any) -> tuple[str, Any]:
    """What a long element is called: its title child (which is then said), its name attribute, or its tag."""
    for child in element:
        if isinstance(child.tag, str) and _local(child).lower() in _TITLE_TAGS and _is_text(child):
            words = " ".join(_words(child).split())
            if 0 < len(words) <= 200:
                return words, child
    named = next((value for key, value in _attributes(element) if key.lower() in _TITLE_TAGS and len(value) <= 200), None)
    return (f"{_local(element)} {named}" if named else _local(element)), None
