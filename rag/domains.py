"""Domains: one sub-folder of `corpora/` each, with an optional `domain.toml` that says how it is answered.

A domain is a folder, so adding one is making a folder. Files directly below `corpora/` belong to no domain and
are not indexed. Read next: `rag/answer.py`, which takes the prompt and the limits from here.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag import tomlfile
from rag.errors import InvalidSettings, OutsideCorpora, UnknownDomain

FILE = "domain.toml"

# Files that editors, browsers and systems leave behind; they come and go and hold nothing to ask.
ALWAYS_IGNORED = (
    ".*", "~$*", "*~", "*.part", "*.partial", "*.crdownload", "*.download", "*.swp", "*.swx", "*.tmp", "#*#", "Thumbs.db", "desktop.ini",
    "*.sb-????????-??????",  # macOS: what TextEdit and Preview write before they rename
    "__MACOSX", "Icon\r",  # macOS: beside the files of an unpacked archive; a folder's own icon
    "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir", "#recycle",  # of disks and network storage
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Domain:
    """What `domain.toml` says. None means: as the settings say."""

    name: str
    title: str = ""
    description: str = ""
    prompt: str = ""
    adapter: str | None = None
    model: str | None = None
    passages: int | None = None
    abstain_below: float | None = None
    withhold_above: float | None = None
    languages: tuple[str, ...] = ("en",)
    ignore: tuple[str, ...] = ()
    error: str | None = None
    """What is wrong with its `domain.toml`; the defaults hold until that is corrected."""

    def ignores(self, relative: str) -> bool:
        """Whether a file is left out; `relative` is its `/`-separated path below the domain's folder.

        A pattern (shell style) is tried on the whole path, and on each of its parts: `drafts` leaves out a folder.
        """
        is_ignored_part, is_ignored_path = _patterns(self.ignore)
        if relative == FILE or is_ignored_path(relative):
            return True
        return any(map(is_ignored_part, relative.split("/")))

    def ignored_by(self, relative: str) -> str | None:
        """The first pattern that leaves a file out, of `ALWAYS_IGNORED` or its own; None if `ignores` does not."""
        if relative == FILE:
            return FILE
        parts = relative.split("/")
        for pattern in ALWAYS_IGNORED:
            if any(fnmatch.fnmatchcase(part, pattern) for part in parts):
                return pattern
        for pattern in self.ignore:
            if fnmatch.fnmatchcase(relative, pattern) or any(fnmatch.fnmatchcase(part, pattern.rstrip("/")) for part in parts):
                return pattern
        return None


@functools.lru_cache(maxsize=256)
def _patterns(ignore: tuple[str, ...]) -> tuple[Callable[[str], object], Callable[[str], object]]:
    """What matches an ignored part of a path, and an ignored path: one expression each, for a look at the folder asks of every file.

    50,000 paths took 4.1 s a pattern at a time, and take 0.17 s so.
    """
    return _any_of((*ALWAYS_IGNORED, *(pattern.rstrip("/") for pattern in ignore))), _any_of(ignore)


def _any_of(patterns: Iterable[str]) -> Callable[[str], object]:
    # Without a pattern the expression must match nothing, not everything.
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)").match


_KINDS = {
    "title": str, "description": str, "prompt": str, "adapter": str, "model": str,
    "passages": int, "abstain_below": (int, float), "withhold_above": (int, float), "languages": list, "ignore": list,
}  # fmt: skip


def read_domain(folder: Path) -> Domain:
    """Read one domain's `domain.toml`, if it has one. Raises `InvalidSettings` that names the key and the value."""
    return _checked(folder.name, _values(folder))


def write_domain(folder: Path, values: Mapping[str, str | tuple[str, ...]]) -> Domain:
    """Change `domain.toml`: each key gets its value, or is taken out where that is empty; other lines and comments stay.

    Raises `InvalidSettings` where `read_domain` would, before anything is written, and `OutsideCorpora` for a file that is a link.
    """
    path = folder / FILE
    if folder.is_symlink() or path.is_symlink():
        raise OutsideCorpora(f"{folder.name}/{FILE} is a link.", "Change the file that it leads to by hand.")
    present = _values(folder)
    wanted = {key: value or None for key, value in values.items() if (present.get(key) or None) != (_plain(value) or None)}
    domain = _checked(folder.name, {key: _plain(value) for key, value in {**present, **wanted}.items() if value is not None})
    if wanted:
        tomlfile.set_values(path, wanted)
    return domain


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _values(folder: Path) -> dict[str, Any]:
    """What stands in its `domain.toml`; nothing if there is none."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSettings(f"{folder.name}/{FILE} cannot be read: {error}.", "Correct that line.") from error


def _checked(name: str, values: dict[str, Any]) -> Domain:
    for key, value in values.items():
        if key not in _KINDS:
            raise InvalidSettings(f"{name}/{FILE} has an unknown key {key!r}.", f"Known keys: {', '.join(_KINDS)}.")
        listed = isinstance(value, list) and not all(isinstance(item, str) for item in value)
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool) or listed:
            raise InvalidSettings(f"{name}/{FILE}: {key} = {value!r} has the wrong type.", "See `corpora/guide/domains.md`.")
    if not 1 <= values.get("passages", 1) <= 50:
        raise InvalidSettings(f"{name}/{FILE}: passages = {values['passages']} must lie in 1 to 50.", "Correct its value.")
    for key in ("abstain_below", "withhold_above"):
        if not 0 <= values.get(key, 0) <= 1:
            raise InvalidSettings(f"{name}/{FILE}: {key} = {values[key]} must lie in 0 to 1.", "Correct its value.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Domain(name, **{"title": name, **values})


def read_domains(corpora: Path) -> dict[str, Domain]:
    """All domains by name, sorted. One with a broken `domain.toml` is there, with its `error` and the defaults."""
    return {folder.name: _in_any_case(folder) for folder in _folders(corpora)}


def find_domain(corpora: Path, name: str, within: Collection[str] | None = None) -> Domain:
    """The domain of that name. Raises `UnknownDomain`, naming those there are; `within` are those that may be named, None all.

    Each question asks for one, so only that one's file is read.
    """
    folders = {folder.name: folder for folder in _folders(corpora) if within is None or folder.name in within}
    if name not in folders:
        known = ", ".join(folders) or "none yet"
        raise UnknownDomain(f"There is no domain {name!r}.", f"Make the folder {name!r} in the watched folder, or choose one of: {known}.")
    return _in_any_case(folders[name])


def _folders(corpora: Path) -> list[Path]:
    """Those that are domains, sorted."""
    # A linked folder could lead anywhere, so a domain is a real one.
    return [
        folder
        for folder in (sorted(corpora.iterdir()) if corpora.is_dir() else ())
        if folder.is_dir() and not folder.is_symlink() and not _patterns(())[0](folder.name)
    ]


def _in_any_case(folder: Path) -> Domain:
    try:
        return read_domain(folder)
    except InvalidSettings as error:
        return Domain(folder.name, title=folder.name, error=error.message)
