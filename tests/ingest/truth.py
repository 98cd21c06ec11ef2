"""What the index should hold, read from the folder by other means than the code under test: the model of the convergence tests.

Knows only the formats that those tests write: `.md`, `.txt` and names without an ending, whose text is the file's own, UTF-8
or unreadable; `.toml`, since a domain's settings are a document where its folder was moved into another; and `.zip`, whose
members are documents too. Shares nothing with `ingest` on purpose.
"""

from __future__ import annotations

import fnmatch
import io
import os
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import EllipsisType

from .conftest import Rig

_TEXT = (".md", ".txt", "")


def truth(corpora: Path) -> dict[str, str | EllipsisType | None]:
    """The text of each document by its path; None for one that cannot be read and should be `failed`; `...` if the reader words it."""
    found: dict[str, str | EllipsisType | None] = {}
    for domain in os.scandir(corpora):
        if domain.is_dir(follow_symlinks=False) and not _left_behind(domain.name):
            ignored = _ignored(Path(domain.path))
            for folder, _, names in os.walk(domain.path):
                for name in names:
                    file = Path(folder, name)
                    below = file.relative_to(domain.path)
                    if str(below) != "domain.toml" and not _leaves_out(ignored, below) and _is_inside(file, corpora):
                        for path, text in _documents(file):
                            if not _leaves_out(ignored, below / path):
                                found[f"{domain.name}/{(below / path).as_posix()}"] = text
    return found


def assert_index_is_folder(rig: Rig) -> None:
    """Ledger and store agree; the documents are the files of the folder, each from its present bytes, or failed with a reason."""
    rig.check()
    documents = {d.path: d for d in rig.ledger.documents(limit=1000)[0]}
    expected = truth(rig.corpora)
    assert sorted(documents) == sorted(expected)
    for path, text in expected.items():
        document = documents[path]
        if text is None:
            assert document.status == "failed", path
            assert document.error is not None and document.error.message and document.error.remedy
        else:
            assert document.status == "indexed", (path, document.error)
            if text is ...:
                continue
            assert rig.ledger.text(document.id) == text, path
            # The file's words are all there to be found, each once: nothing is twice, nothing is left out.
            chunks = rig.ledger.chunks(document.id)
            assert len({chunk.id for chunk in chunks}) == len(chunks)
            words = [word for chunk in chunks for word in text[chunk.start : chunk.end].split()]
            assert words == text.split(), path


def _documents(file: Path) -> Iterator[tuple[str, str | EllipsisType | None]]:
    """The file itself, as an empty path, and what lies in it."""
    data = file.read_bytes()
    if file.suffix.lower() != ".zip":
        yield "", _text(file.suffix, data)
        return
    if not data:
        yield "", ""  # a file begun and not yet written is an empty document, as of every kind
        return
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        yield "", None
        return
    yield "", ...
    for name in archive.namelist():
        yield name, _text(Path(name).suffix, archive.read(name))


def _text(suffix: str, data: bytes) -> str | EllipsisType | None:
    if suffix == ".toml":
        return ...
    if suffix.lower() not in _TEXT or b"\0" in data:
        return None
    return data.decode("utf-8").replace("\r\n", "\n")


def _ignored(domain: Path) -> list[str]:
    try:
        return tomllib.loads((domain / "domain.toml").read_text("utf-8")).get("ignore", [])
    except (OSError, ValueError):
        return []


def _left_behind(name: str) -> bool:
    return name.startswith(".") or name.endswith(("~", ".tmp", ".part"))


def _leaves_out(patterns: list[str], below: Path) -> bool:
    if any(map(_left_behind, below.parts)):
        return True
    return any(fnmatch.fnmatchcase(part, pattern) for part in (below.as_posix(), *below.parts) for pattern in patterns)


def _is_inside(file: Path, corpora: Path) -> bool:
    real = Path(os.path.realpath(file))
    return real.is_file() and real.is_relative_to(os.path.realpath(corpora))
