"""Zip archives: the archive's own document is the list of its files, and each file is a member.

Also `Names`, which turns the paths that archives and mails give their parts into ones that are safe to show and to
store. Nothing is unpacked here: `ingest/members.py` decides how much of it is read, and is where to read next.
"""

from __future__ import annotations

import functools
import io
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence

from ingest.parse import Builder, Member, Options, Parsed
from rag.errors import ParseFailed

MAX_FILES = 100_000
"""Files of one archive. A list of that many takes 2 s to read (of one core, with 0.8 s of it in zipfile)."""

_MAX_LISTED = 1_000  # as many as become documents by default; more lines would only fill the index with names
_MAX_PART = 200  # characters; file systems take 255 bytes
_MAX_PATH = 800

_JUNK = {".ds_store", "thumbs.db", "desktop.ini"}  # written by file managers, read by nobody
_UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

# Windows writes names in the code page that its old DOS programs had in that country.
_DOS_PAGES = {
    "he": "cp862", "ja": "cp932", "zh": "gb18030", "ko": "cp949", "ru": "cp866", "uk": "cp866", "bg": "cp866", "el": "cp737", "tr": "cp857",
    "pl": "cp852", "cs": "cp852", "hu": "cp852", "ro": "cp852", "sk": "cp852", "hr": "cp852", "sl": "cp852", "ar": "cp720", "fa": "cp720",
    "de": "cp850", "fr": "cp850", "es": "cp850", "it": "cp850", "pt": "cp850", "nl": "cp850", "sv": "cp850", "da": "cp850",
}  # fmt: skip


class Names:
    """Makes the paths of one parent's parts relative, free of tricks, bounded, and different from each other."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def add(self, path: str) -> str:
        """`path` as it may be stored: parts joined with `/`, no `..`, no drive, no control characters, ` (2)` if it is taken."""
        path = _UNWANTED.sub("", path).replace("\\", "/")
        path = re.sub(r"\A\s*[A-Za-z]:", "", path)
        parts = [_shorten(part.strip()) for part in path.split("/")]
        parts = [part for part in parts if part.strip(".")][-_MAX_PATH // 2 :] or ["unnamed"]
        while len(parts) > 1 and sum(map(len, parts)) + len(parts) > _MAX_PATH:
            parts.pop(0)  # the file's own name says most
        path = "/".join(parts)
        unique, number = path, self._next.get(path, 1)
        while unique in self._next:
            number += 1
            folder, slash, name = path.rpartition("/")
            stem, dot, suffix = name.rpartition(".")
            name = f"{stem} ({number}).{suffix}" if dot and stem else f"{name} ({number})"
            unique = f"{folder}{slash}{name}"
        self._next[path] = number
        self._next.setdefault(unique, 1)
        return unique


def _shorten(part: str) -> str:
    """At most `_MAX_PART` characters, with the suffix kept: it says how the file is read."""
    if len(part) <= _MAX_PART:
        return part
    stem, dot, suffix = part.rpartition(".")
    return f"{stem[: _MAX_PART - 20]}.{suffix}" if dot and len(suffix) < 20 else part[:_MAX_PART]


def read(data: bytes, options: Options) -> Parsed:
    """The list of files, and the files as members. Raises `ParseFailed` with `broken_file` or `too_large`."""
    archive = _open(data)
    files = [item for item in archive.infolist() if _is_file(item)]
    pages = [_DOS_PAGES[language] for language in options.languages if language in _DOS_PAGES]
    names = Names()
    members = tuple(Member(names.add(_name(item, pages)), item.file_size, functools.partial(_unpack, archive, item)) for item in files)
    builder = Builder()
    builder.add("paragraph", f"An archive of {len(members):,} files." if len(members) != 1 else "An archive of one file.")
    for member in members[:_MAX_LISTED]:
        builder.add("list_item", f"{member.path} ({spoken_size(member.size or 0)})", glue="\n")
    if len(members) > _MAX_LISTED:
        builder.add("paragraph", f"And {len(members) - _MAX_LISTED:,} more files.")
    parsed = builder.build(None)
    return Parsed(parsed.text, parsed.blocks, None, members)


def spoken_size(size: int) -> str:
    """A size in bytes as people read it: `12 bytes`, `4.1 KB`, `3.0 MB`."""
    if size < 1024:
        return f"{size} bytes"
    return f"{size / 1024:.1f} KB" if size < 1 << 20 else f"{size / (1 << 20):,.1f} MB"


def _open(data: bytes) -> zipfile.ZipFile:
    if _entries(data) > MAX_FILES:
        raise ParseFailed("too_large", f"The archive holds more than {MAX_FILES:,} files.", "Unpack it into the folder, or split it.")
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError, IndexError) as error:
        raise ParseFailed("broken_file", f"The archive is damaged: {error}.", "Save or download it again.") from error


def _entries(data: bytes) -> int:
    """At most how many files the directory has, counted without building a record for each.

    zipfile goes by the directory's size and not by the declared number of entries, so we count the signatures in it.
    """
    end = data.rfind(b"PK\x05\x06")
    if end < 0 or len(data) < end + 22:
        return 0
    size = struct.unpack_from("<L", data, end + 12)[0]
    return data.count(b"PK\x01\x02", max(0, end - size - 76), end)  # 76: zip64's own end record and locator


def _is_file(item: zipfile.ZipInfo) -> bool:
    # Links, devices and pipes exist where Unix made the archive: the upper half has the mode then.
    mode = item.external_attr >> 16 if item.create_system == 3 else 0
    parts = item.filename.replace("\\", "/").split("/")
    return (
        parts[-1] != ""
        and stat.S_IFMT(mode) in (0, stat.S_IFREG)
        and "__MACOSX" not in parts
        and parts[-1].lower() not in _JUNK
    )  # fmt: skip


def _name(item: zipfile.ZipInfo, pages: Sequence[str]) -> str:
    """The name as its writer meant it. Without the flag for UTF-8 zipfile has read it as cp437, which loses nothing."""
    if item.flag_bits & 0x800 or item.filename.isascii():
        return item.filename
    try:
        raw = item.filename.encode("cp437")
    except UnicodeEncodeError:
        return item.filename  # it came from the Unicode field beside the name
    for encoding in ("utf-8", *pages):  # macOS and Linux write UTF-8 and forget the flag
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return item.filename


def _unpack(archive: zipfile.ZipFile, item: zipfile.ZipInfo, limit: int) -> bytes:
    """A file's bytes, whatever size the directory declares. Raises `ParseFailed` with `encrypted`, `broken_file` or `too_large`."""
    if item.flag_bits & 0x41:
        raise ParseFailed("encrypted", "The file is protected by a password in its archive.", "Unpack the archive into the folder.")
    # zipfile bounds what deflate gives by the size we ask for, but unpacks all that it has read of the others: 4 KB of
    # bzip2 can hold 90 MB.
    step = 1 << 20 if item.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else 4096
    parts, size = [], 0
    try:
        with archive.open(item) as file:
            while size <= limit and (part := file.read(min(step, limit + 1 - size))):
                parts.append(part)
                size += len(part)
    except NotImplementedError as error:
        raise ParseFailed(
            "broken_file",
            f"The archive packs it in a way that is not known: {error}.",
            "Pack it again as an ordinary zip file.",
        ) from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError, struct.error) as error:
        raise ParseFailed("broken_file", f"The file is damaged in its archive: {error}.", "Save or download it again.") from error
    if size > limit:
        raise ParseFailed("too_large", f"It unpacks to more than {spoken_size(limit)}.", "Unpack the archive into the folder.")
    return b"".join(parts)
