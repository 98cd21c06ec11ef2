"""Source code: the file's own text, its classes and functions as headings, each body one block.

Python is read by `ast`. Other languages have no parser here: strings and comments are blanked out, and what opens a
brace at file level or in a type is judged by the words before it, so that no call, loop or closure becomes a heading.
Pygments was weighed for the blanking: 0.4 to 2.4 s for 200 KB (PHP), against 0.03 s of the patterns below, and its
tokens name a function in some languages only. Where no pattern fits (SQL, shell, CSS, minified code) the text is cut
at blank lines. Read next: `ingest/chunk.py`.
"""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from ingest.formats import suffix_of
from ingest.parse import Block, Options, Parsed
from ingest.readers.plain import PARAGRAPH, add_span, line_starts

# A longer file or line is generated, minified or data. At this size Python takes 2 s of CPU, the others 1.2 s at most.
_MAX_CHARS = 1_000_000
_MAX_LINE = 20_000


def read(text: str, options: Options) -> Parsed:
    """One heading a class or function, from the comment above it to the line that opens its body, and its body as code."""
    symbols: list[_Symbol] = []
    if len(text) <= _MAX_CHARS and max(map(len, text.split("\n"))) <= _MAX_LINE:
        suffix = suffix_of(options.name).removeprefix(".")
        if suffix in ("py", "pyi"):
            symbols = _python(text)
        elif suffix in _BRACES:
            symbols = _by_braces(text, _BRACES[suffix])
        elif suffix in _INDENTED:
            symbols = _by_indent(text, _INDENTED[suffix])
    return Parsed(text, tuple(_blocks(text, symbols)), None)


@dataclass(slots=True)
class _Symbol:
    """`text[start:body]` is its comment and its signature, `text[body:end]` what it holds."""

    label: str
    start: int
    body: int
    end: int


def _blocks(text: str, symbols: Iterable[_Symbol]) -> list[Block]:
    blocks: list[Block] = []
    inside: list[_Symbol] = []
    at = 0
    childless = False  # nothing but the heading has come of the innermost symbol

    def code(to: int) -> None:
        nonlocal at
        if blocks and not re.search(r"\w", text[at:to]):
            # The brace that closes a class belongs to what stands before it.
            if text[at:to].strip():
                last = blocks[-1]
                end = at + len(text[at:to].rstrip())
                blocks[-1] = Block(last.kind, last.start, end, last.level, None, last.label)
        elif childless:
            add_span(blocks, text, "code", at, to)
        else:
            for match in PARAGRAPH.finditer(text, at, to):
                # The level says that this is beside the symbols before it, not in the last of them.
                add_span(blocks, text, "code", match.start(), match.end(), len(inside) + 1)
        at = max(at, to)

    def close() -> None:
        nonlocal childless
        code(inside[-1].end)
        inside.pop()
        childless = False

    for symbol in sorted(symbols, key=lambda s: (s.start, -s.end)):
        while inside and inside[-1].end <= symbol.start:
            close()
        if symbol.start < at or symbol.body <= symbol.start or (inside and symbol.end > inside[-1].end):
            continue  # on the line of another, or an end that was misjudged
        childless = False
        code(symbol.start)
        add_span(blocks, text, "heading", symbol.start, symbol.body, len(inside) + 1, symbol.label)
        inside.append(symbol)
        at, childless = symbol.body, True
    while inside:
        close()
    code(len(text))
    return blocks


def _python(text: str) -> list[_Symbol]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _by_indent(text, _PYTHON_WORDS)
    starts = line_starts(text)
    symbols = []
    unseen: list[ast.AST] = [*tree.body]  # and no recursion: a chain of a thousand `elif` is nested that deep
    while unseen:
        node = unseen.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            word = "class" if isinstance(node, ast.ClassDef) else "def"
            first = _with_comment(text, starts, _first_line(node) - 1, "#")
            body = max(node.lineno, _first_line(node.body[0]) - 1)
            end = starts[node.end_lineno or node.lineno]
            symbols.append(_Symbol(f"{word} {node.name}", starts[first], min(starts[body], end), end))
            if word == "class":
                unseen += node.body
        elif isinstance(node, ast.If | ast.Try | ast.With):
            unseen += ast.iter_child_nodes(node)
        elif isinstance(node, ast.ExceptHandler):
            unseen += node.body
    return symbols


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _with_comment(text: str, starts: list[int], line: int, marks: str | tuple[str, ...]) -> int:
    """The first line of the comment that stands right above, or the line itself. Lines count from 0."""
    while line > 0 and text[starts[line - 1] : starts[line]].lstrip().startswith(marks):
        line -= 1
    return line


@dataclass(frozen=True, slots=True)
class _Words:
    """How a language says it. `hidden` matches comments and strings; `types` may hold symbols, `functions` may not.

    `bare`: functions are announced by no word, so a name with parameters before a brace is one. Each pattern's groups
    are joined to the label; where there are none it is a name in a place of its own.
    """

    hidden: re.Pattern[str]
    types: re.Pattern[str]
    functions: re.Pattern[str] | None = None
    bare: bool = False


# Unterminated comments and double quotes run on to the end of the text or line, which also keeps the search linear.
_SLASHES = r"//[^\n]*|/\*(?:.*?\*/|.*)"
_DOUBLE = r'"(?:\\.|[^"\\\n])*+"?'
_SINGLE = r"'(?:\\.|[^'\\\n])*+'"
_CHARACTER = r"'(?:\\[^'\n]+|[^'\\\n])'"  # and not a lifetime or an apostrophe
_TRIPLE = r'"""(?:.*?"""|.*)'


def _hidden(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.DOTALL | re.MULTILINE)


def _named(words: str, name: str = r"[\w$.]+") -> str:
    return rf"\b({words})\s+({name})"


_JS = _Words(
    _hidden(
        _SLASHES,
        _DOUBLE,
        _SINGLE,
        r"`(?:\\.|[^`\\])*+`?",
        r"(?:(?<=[=(,:!&|?{};\n])|(?<=return))[ \t]*/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*+\]|[^/\\\n\[])++/",
    ),
    re.compile(_named("class|interface|enum|namespace|module")),
    re.compile(
        r"\b(function)\b\s*\*?\s*([\w$]+)|"
        r"\b(const|let|var)\s+([\w$]+)\s*(?::[^=]*)?=\s*(?:async\b\s*)?(?:function\b[^=]*|(?:\([^=]*\)|[\w$]+)\s*(?::[^=]*)?=>\s*)\Z"
    ),
    bare=True,
)
_C = _Words(
    _hidden(
        _SLASHES,
        r'R"([^\s()\\]{0,16})\((?:.*?\)\1"|.*)',
        _DOUBLE,
        r"(?<![0-9a-fA-F])" + _SINGLE,
        r"^[ \t]*#(?:\\.|[^\\\n])*+",
    ),
    re.compile(r"\b(enum\s+class|enum\s+struct|class|struct|union|enum|namespace)\s+(?:[A-Z][A-Z0-9_]+\s+)*([\w:]+)"),
    bare=True,
)
_JVM = _hidden(_SLASHES, _TRIPLE, _DOUBLE, _CHARACTER)
_BRACES: dict[str, _Words] = {
    **dict.fromkeys(("js", "mjs", "jsx", "ts", "tsx"), _JS),
    **dict.fromkeys(("c", "h", "cc", "cpp", "hpp"), _C),
    "cs": _Words(
        _hidden(_SLASHES, _TRIPLE, r'\$?@\$?"(?:""|[^"])*+"?', _DOUBLE, _CHARACTER, r"^[ \t]*#[^\n]*"),
        re.compile(_named("class|struct|interface|enum|record|namespace")),
        bare=True,
    ),
    "java": _Words(_JVM, re.compile(_named("class|interface|enum|record")), bare=True),
    "kt": _Words(
        _JVM,
        re.compile(r"\b(class|interface|companion object|object)\b(?:\s+(\w+))?"),
        re.compile(r"\b(fun)\s+(?:<[^>]*>\s*)?(?:[\w.?<>]+\.)?(\w+)"),
    ),
    "scala": _Words(_JVM, re.compile(_named("class|object|trait|enum")), re.compile(_named("def", r"[^\s(\[:=]+"))),
    "swift": _Words(
        _JVM, re.compile(_named("class|struct|enum|protocol|extension|actor")), re.compile(r"\b(func)\s+([^\s(<]+)|\b(init|deinit)\b[?!]?")
    ),
    "go": _Words(
        _hidden(_SLASHES, r"`[^`]*`?", _DOUBLE, _CHARACTER),
        re.compile(r"\b(type)\s+(\w+)\b[^=]*\b(?:struct|interface)\s*\Z"),
        re.compile(r"\b(func)\s*(?:\(\s*(?:\w+\s+)?\*?\s*(\w+)[^)]*\)\s*)?(\w+)\s*[(\[]"),
    ),
    "rs": _Words(
        _hidden(_SLASHES, r'\bb?r(#*)"(?:.*?"\1|.*)', _DOUBLE, _CHARACTER),
        re.compile(r"\b(struct|enum|union|trait|mod)\s+(\w+)|\b(impl)\b\s*([^{]*?)\s*(?:\bwhere\b[^{]*)?\Z"),
        re.compile(r"\b(fn)\s+(\w+)|\b(macro_rules!)\s*(\w+)"),
    ),
    "php": _Words(
        _hidden(
            _SLASHES,
            r"#(?!\[)[^\n]*",
            r"<<<[ \t]*(['\"]?)(\w+)\1\n.{0,20000}?^[ \t]*\2\b",
            r"\?>.*?(?:<\?php\b|\Z)",
            r'"(?:\\.|[^"\\])*+"?',
            r"'(?:\\.|[^'\\])*+'?",
        ),
        re.compile(_named("class|interface|trait|enum|namespace", r"[\w\\]+")),
        re.compile(r"\b(function)\s+&?\s*(\w+)"),
    ),
}
_RUBY = _hidden(
    r"#[^\n]*", r"^=begin\b(?:.*?^=end\b|.*)", r"<<[~-]?(['\"]?)([A-Z]\w*)\1(?:[^\n]*\n).{0,20000}?^[ \t]*\2$", _DOUBLE, _SINGLE
)
_PYTHON_WORDS = _Words(
    _hidden(_TRIPLE, r"'''(?:.*?'''|.*)", r"#[^\n]*", _DOUBLE, _SINGLE),
    re.compile(r"(class)\s+(\w+)"),
    re.compile(r"(?:async\s+)?(def)\s+(\w+)"),
)
_INDENTED: dict[str, _Words] = {
    "rb": _Words(_RUBY, re.compile(r"(class|module)\s+([A-Z][\w:]*)"), re.compile(r"(def)\s+([^\s(;]+)")),
    "ex": _Words(
        _hidden(_TRIPLE, r"#[^\n]*", _DOUBLE, _SINGLE),
        re.compile(r"(defmodule|defprotocol|defimpl)\s+([\w.]+)"),
        re.compile(r"(defp?|defmacrop?)\s+([\w.?!]+)"),
    ),
    "lua": _Words(
        _hidden(r"--\[(=*)\[(?:.*?\]\1\]|.*)", r"--[^\n]*", r"\[\[(?:.*?\]\]|.*)", _DOUBLE, _SINGLE),
        re.compile(r"(?!)"),
        re.compile(r"(?:local\s+)?(function)\s+([\w.:]+)"),
    ),
    "jl": _Words(
        _hidden(_TRIPLE, r"#=(?:.*?=#|.*)", r"#[^\n]*", _DOUBLE),
        re.compile(r"(module)\s+(\w+)"),
        re.compile(r"(function|macro|struct|mutable struct)\s+([\w.!]+)"),
    ),
}


def _mask(text: str, hidden: re.Pattern[str]) -> str:
    """The text with blanks for comments and strings; every other character keeps its place."""
    return hidden.sub(lambda match: _NOT_NEWLINE.sub(" ", match[0]), text)


_NOT_NEWLINE = re.compile(r"[^\n]")


def _by_indent(text: str, words: _Words) -> list[_Symbol]:
    """A symbol ends before the next line that is indented no deeper, or with it if that is its `end`."""
    starts = line_starts(text)
    lines = _mask(text, words.hidden).split("\n")
    symbols: list[_Symbol] = []
    open_: list[tuple[int, _Symbol, bool]] = []  # indent, symbol, whether it may hold others

    for number, line in enumerate(lines):
        stripped = line.lstrip()
        if not stripped or stripped.startswith(")"):
            continue  # the second is the end of a long signature
        indent = len(line) - len(stripped)
        while open_ and open_[-1][0] >= indent:
            before, symbol, _ = open_.pop()
            ends_here = before == indent and re.match(r"end\b", stripped)
            symbol.end = starts[number + 1] if ends_here else starts[_trimmed(lines, number)]
        if open_ and not open_[-1][2]:
            continue
        holds = words.types.match(stripped)
        found = holds or (words.functions and words.functions.match(stripped))
        if found:
            first = number
            while first > 0 and text[starts[first - 1] : starts[first]].lstrip().startswith(("#", "--", "@")):
                first -= 1
            symbols.append(_Symbol(_label(found), starts[first], starts[number + 1], len(text)))
            open_.append((indent, symbols[-1], bool(holds)))
    return symbols


def _trimmed(lines: list[str], number: int) -> int:
    """The number of lines up to `number` without the blank ones (and comments of what follows) at their end."""
    while number > 0 and not lines[number - 1].strip():
        number -= 1
    return number


_MARKS = re.compile(r"[(){};]")
# `interface{}` as a Go result, a type literal of TypeScript, a C++ member's initialiser: no body, for one more brace follows.
_LITERAL = re.compile(r"\{[^{};]*\}\s*(?=[,{])")


def _by_braces(text: str, words: _Words) -> list[_Symbol]:
    masked = _mask(text, words.hidden)
    starts = line_starts(text)
    symbols: list[_Symbol] = []
    # What each open brace is: its symbol if any, whether symbols may be in it; and the head and the parentheses outside.
    stack: list[tuple[_Symbol | None, bool, int, int]] = [(None, True, 0, 0)]
    head, parens, skip_to = 0, 0, 0

    for mark in _MARKS.finditer(masked):
        at = mark.start()
        if at < skip_to:
            continue
        match mark[0]:
            case "(":
                parens += 1
            case ")":
                parens = max(parens - 1, 0)
            case ";":
                if not parens:
                    head = at + 1
            case "{":
                owner, open_, _, _ = stack[-1]
                symbol, holds = None, False
                if open_ and not parens:
                    if literal := _LITERAL.match(masked, at):
                        skip_to = literal.end()
                        continue
                    symbol, holds = _judge(text, masked, starts, head, at, words, owner is not None)
                    if symbol:
                        symbols.append(symbol)
                stack.append((symbol, holds, head, parens))
                head, parens = at + 1, 0
            case "}":
                if len(stack) > 1:
                    symbol, _, head, parens = stack.pop()
                    if symbol:
                        symbol.end = (_CLOSERS.match(masked, at + 1) or mark).end()
                if not parens:
                    head = at + 1  # inside parentheses the statement goes on
    for symbol in symbols:
        symbol.body = min(symbol.body, symbol.end)
    return symbols


# What closes a statement after its brace.
_CLOSERS = re.compile(r"[ \t]*[;,)]+")
_TRANSPARENT = re.compile(r"(?:\bnamespace|\bextern)\s*\Z|\bexport\s+(?:declare\s+)?(?:module|global)\s*\Z")


def _judge(text: str, masked: str, starts: list[int], head: int, brace: int, words: _Words, in_type: bool) -> tuple[_Symbol | None, bool]:
    """What the words before a brace make of it: the symbol, if it is one, and whether symbols may be inside."""
    said = masked[head:brace]
    if len(said) > 5000:  # no signature; a table of data before it
        said, head = masked[brace - 5000 : brace], brace - 5000
    plain = _without_angles(said)
    found: tuple[str, int] | None = None
    holds = False
    if words.bare:
        found = _bare(plain, in_type)
    if found is None and words.functions:
        for match in words.functions.finditer(said):
            found = (_label(match), match.start())
    if found is None:
        for match in words.types.finditer(said if words.types.pattern.endswith(r"\Z") else plain):
            if "=" not in plain[match.end() :] or not words.bare:
                found, holds = (_label(match), match.start()), True
    if found is None:
        return None, bool(_TRANSPARENT.search(said.rstrip() or " "))
    label, offset = found
    line = _line_of(starts, head + offset)
    # Up to what is above it without a blank line: annotations, the result's type, comments. They are part of the same statement.
    first = line
    while first > 0 and starts[first - 1] >= head and text[starts[first - 1] : starts[first]].strip():
        first -= 1
    after = text.find("\n", brace)
    body = len(text) if after < 0 else after + 1
    return _Symbol(label, max(starts[first], head), body, len(text)), holds


def _label(match: re.Match[str]) -> str:
    """`class Engine`, `fn load`, `func Reader.Read`: the words of the language, as far as they were said."""
    words = [" ".join(group.split()) for group in match.groups() if group]
    return " ".join(words) if len(words) < 3 else f"{words[0]} {'.'.join(words[1:])}"


def _line_of(starts: list[int], at: int) -> int:
    return bisect_right(starts, at, 0, len(starts) - 2) - 1


def _without_angles(said: str) -> str:
    """Blanks for `<...>`, so that `template <class T>` names no class."""
    for _ in range(4):  # nested
        said, count = re.subn(r"<[^<>;{}]*>", lambda match: _NOT_NEWLINE.sub(" ", match[0]), said)
        if not count:
            break
    return said


_CONTROL = frozenset(
    "if for foreach while switch catch do else return synchronized using lock fixed when new sizeof typeof await yield with unless "  # noqa: SIM905
    "function decltype alignas defined throw case".split()
)
_NO_RESULT = {*_CONTROL, "record", "class", "struct"}
_ANNOTATION = re.compile(
    r"@[\w.]+(?:\s*\([^()]*\))?|^[ \t]*\[[^\]\n]*\][ \t]*$|(?:__attribute__|alignas|__declspec)\s*\(+[^()]*\)+", re.MULTILINE
)
# What `throws` names is taken whole, or a list of 40 has 2^40 ways to be cut into such lists.
_TRAILER = re.compile(r"\)(?:\s*(?:const|noexcept|override|final|volatile|mutable|&&?|throws\b[\w\s.,]*+|where\b.*|->.*))*\s*\Z", re.DOTALL)
_NAME = re.compile(r"((?:[\w$]+\s*::\s*)*~?[\w$#]+|operator\s*[^\s\w(]{1,3}|operator\s*\(\s*\))\s*\Z")


def _bare(said: str, in_type: bool) -> tuple[str, int] | None:
    """`int area(int w) const` -> (`area()`, where its name begins): a name with parameters, and a type or a class around it."""
    said = _ANNOTATION.sub(lambda match: _NOT_NEWLINE.sub(" ", match[0]), said)
    # A C++ constructor's initialisers, a TypeScript result.
    said = re.split(r"(?<=\))\s*:(?!:)", said, maxsplit=1)[0]
    trailer = _TRAILER.search(said)
    if not trailer:
        return None
    depth, at = 0, trailer.start()
    while at >= 0:
        depth += {")": 1, "(": -1}.get(said[at], 0)
        if not depth:
            break
        at -= 1
    named = _NAME.search(said, 0, max(at, 0))
    if not named:
        return None
    name = "".join(named[1].split())
    before = said[: named.start()]
    same_line = before.rpartition("\n")[2].strip()
    words = re.findall(r"[\w$]+", same_line)
    # `record Point(int X)` of C# and Java is a type.
    if name in _CONTROL or name.isdigit() or "=" in same_line or (words and words[-1] in _NO_RESULT):
        return None
    result = same_line or before.rstrip().rpartition("\n")[2]  # C's old style has the result's type on a line of its own
    if not (in_type or "::" in name or ("=" not in result and re.search(r"[\w>*&\]?]\Z", result))):
        return None
    return f"{name}()", named.start()
