"""TOML files that both people and programs write: one value changed in place, and small files written whole.

The standard library reads TOML and does not write it. `set_value` leaves every other line of a person's file as it is.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from rag.errors import InvalidSettings

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")

Value = str | int | float | bool


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
    try:
        text = path.read_bytes().decode("utf-8") if path.exists() else ""
        before = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not valid TOML: {error}.", "Correct that line.") from error
    changed = _with_value(text, section, key, _written(value))
    # The proof that nothing else was touched: read again, the file says the same but for this one value.
    wanted = {**before, section: {**before.get(section, {}), key: value}} if isinstance(before.get(section, {}), dict) else None
    try:
        proven = wanted is not None and tomllib.loads(changed) == wanted
    except tomllib.TOMLDecodeError:
        proven = False
    if not proven:
        raise InvalidSettings(f"{section}.{key} cannot be changed in {path} by a program.", f"Set {key} = {_written(value)} there by hand.")
    write(path, changed)


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
        # The value of one line, and the comment behind it.
        found = re.match(rf"(\s*{re.escape(key)}\s*=\s*)(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^#\s]+)([^\r\n]*)", line)
        if found:
            lines[i] = found[1] + written + line[found.end(2) :]
            return "".join(lines)
    new = f"{key} = {written}{end}"
    if after is None:
        gap = "" if not lines else end if lines[-1].endswith("\n") else end * 2
        return f"{text}{gap}[{section}]{end}{new}"
    if not lines[after].endswith("\n"):
        lines[after] += end
    lines.insert(after + 1, new)
    return "".join(lines)


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    escaped = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escaped.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text) + '"'
