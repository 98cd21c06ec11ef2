"""TOML files that both people and programs write: values changed in place, and small files written whole.

The standard library reads TOML and does not write it. `set_value` and `set_values` leave every other line of a person's file as it is.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag.errors import InvalidSettings

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")

Value = str | int | float | bool | Sequence[str]


def dumps(values: Mapping[str, Value]) -> str:
    """Flat keys and values as TOML, in their order."""
    return "".join(f"{key if _PLAIN_KEY.fullmatch(key) else _quoted(key)} = {_written(value)}\n" for key, value in values.items())


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader, or a crash, sees the old one or the new one. Keeps the file's mode."""
    # A file that is a link to another stays one.
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o7777)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def set_value(path: Path, section: str, key: str, value: Value) -> None:
    """Set `[section] key` in a TOML file, which is made if it is not there; other lines and comments stay.

    Raises `InvalidSettings` for a file that is not TOML, or that has the key in a way this cannot change.
    """
    text, before = _read(path)
    changed = _with_value(text, section, key, _written(value))
    wanted = {**before, section: {**before.get(section, {}), key: value}} if isinstance(before.get(section, {}), dict) else None
    if not _says(changed, wanted):
        raise InvalidSettings(f"{section}.{key} cannot be changed in {path} by a program.", f"Set {key} = {_written(value)} there by hand.")
    write(path, changed)


def set_values(path: Path, values: Mapping[str, Value | None]) -> None:
    """Set keys that stand before all sections, in a TOML file, which is made if it is not there; None takes a key out.

    Other lines and comments stay. Raises `InvalidSettings` as `set_value` does.
    """
    text, wanted = _read(path)
    for key, value in values.items():
        text = _with_statement(text, key, None if value is None else _written(value, lines=True))
        wanted.pop(key, None)
        if value is not None:
            wanted[key] = value if isinstance(value, str | int | float) else list(value)
    if not _says(text, wanted):
        raise InvalidSettings(f"{path.name} cannot be changed by a program.", f"Set {', '.join(values)} there by hand.")
    write(path, text)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """A file's text, and what it says."""
    try:
        text = path.read_bytes().decode("utf-8") if path.exists() else ""
        return text, tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not valid TOML: {error}.", "Correct that line.") from error


def _says(text: str, wanted: Mapping[str, Any] | None) -> bool:
    """The proof that nothing else was touched: read again, the file says what it said but for what was to change."""
    try:
        return wanted is not None and tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def _with_value(text: str, section: str, key: str, written: str) -> str:
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    inside = False
    after = None  # where a new line of the section belongs: behind its last line that says something
    for i, line in enumerate(lines):
        header = re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line)
        if header or re.match(r"\s*\[\[", line):
            inside = header is not None and header[1].strip() == section
            after = i if inside else after
            continue
        if not inside or not line.strip() or line.lstrip().startswith("#"):
            continue
        after = i
        if replaced := _with_value_in_line(line, key, written):
            lines[i] = replaced
            return "".join(lines)
    new = f"{key} = {written}{end}"
    if after is None:
        gap = "" if not lines else end if lines[-1].endswith("\n") else end * 2
        return f"{text}{gap}[{section}]{end}{new}"
    if not lines[after].endswith("\n"):
        lines[after] += end
    lines.insert(after + 1, new)
    return "".join(lines)


def _with_value_in_line(line: str, key: str, written: str) -> str | None:
    """The line with another value and the comment behind it, if it gives that key a value of one line."""
    found = re.match(rf"(\s*{re.escape(key)}\s*=\s*)(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^#\s]+)([^\r\n]*)", line)
    # Of a list the expression sees a part only.
    return found[1] + written + line[found.end(2) :] if found and re.fullmatch(r"\s*(#.*)?", found[3]) else None


def _with_statement(text: str, key: str, written: str | None) -> str:
    """The text with `key = written` before all sections, or without that key."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    new = "" if written is None else f"{key} = {written}{end}"
    after, i = 0, 0  # where a new line belongs: behind the last one before the sections that says something
    while i < len(lines) and not re.match(r"\s*\[", lines[i]):
        if not lines[i].strip() or lines[i].lstrip().startswith("#"):
            i += 1
            continue
        stop = _statement_end(lines, i)
        if key in tomllib.loads("".join(lines[i:stop])):
            kept = _with_value_in_line(lines[i], key, written) if written is not None and stop == i + 1 and "\n" not in written else None
            lines[i:stop] = [kept or new]
            return "".join(lines)
        after = i = stop
    if after and not lines[after - 1].endswith("\n"):
        lines[after - 1] += end
    elif not after:
        after = i if i == len(lines) else 0  # behind a file's comments, or before its first section
        if after and not lines[after - 1].endswith("\n"):
            lines[after - 1] += end
    lines.insert(after, new)
    return "".join(lines)


def _statement_end(lines: Sequence[str], start: int) -> int:
    """Behind which line a statement ends: it is the fewest lines that are TOML by themselves. A text or a list may have many."""
    for stop in range(start + 1, len(lines) + 1):
        try:
            tomllib.loads("".join(lines[start:stop]))
        except tomllib.TOMLDecodeError:
            continue
        return stop
    return len(lines)  # not reached in a file that is TOML


def _written(value: Value, *, lines: bool = False) -> str:
    """`lines`: a text of several lines is written as such."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted_lines(value) if lines and "\n" in value else _quoted(value)
    return repr(value) if isinstance(value, int | float) else f"[{', '.join(map(_quoted, value))}]"


def _quoted_lines(text: str) -> str:
    escaped = "\n".join(_quoted(line)[1:-1].replace('\\"', '"') for line in text.split("\n"))
    return '"""\n' + escaped.replace('"""', '\\"\\"\\"') + '"""'


def _quoted(text: str) -> str:
    escaped = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escaped.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text) + '"'
