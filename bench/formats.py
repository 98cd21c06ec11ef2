"""Files and chunks per second by format, over the real files of ../shared/data/files; source code and TOML are our own.

    files/s    reading alone: through the parser's process, members of mails and archives included
    chunks/s   the whole way: `Pipeline.sync` of a folder with these files, the real embedder, Qdrant Edge, the ledger

The samples are small and of all kinds, so the figures tell formats apart by their order of magnitude, no more. How quality stands is
for the tests to say; what cannot be read is counted as failed here.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from bench import corpus
from bench.figures import Part, Row, Skipped
from bench.index import Index
from ingest import formats
from ingest.parse import Parsed
from ingest.sandbox import Sandbox
from rag.embed import Embedder
from rag.settings import Embed

_LARGEST = 300_000
"""Bytes of a file that is embedded too: the novel of 3 MB alone would take a minute and more."""
_LONGEST_S = 20.0
"""Of reading one format: OCR takes a second a page, and some files have hundreds."""


def measure(*, quick: bool) -> Part:
    """At most 12 files a format read, 6 of them embedded too (quick: 2 and 1)."""
    most, most_embedded = (2, 1) if quick else (12, 6)
    if not (corpus.SHARED / "files").is_dir():
        raise Skipped("needs real files: there is no ../shared/data/files")
    found = _by_reader()
    embedder = Embedder(Embed())
    embedder.embed_passages(["warm up"] * 8)
    rows: list[Row] = []
    figures: dict[str, Any] = {}
    absent = []
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name, Index(Path(name), embedder) as index:
        index.sandbox.warm()
        for reader in get_args(formats.Reader):
            files = found.get(reader, [])
            if not files:
                absent.append(reader)
                continue
            read = _read(index.sandbox, _spread(files, most))
            small = [file for file in files if file.stat().st_size <= _LARGEST]
            whole = _whole(index, reader, _spread(small, most_embedded))
            figures[reader] = {"read": read, "whole": whole}
            rows.append(_row(reader, read, whole))
            print(f"formats: {reader}: {figures[reader]}", file=sys.stderr, flush=True)
    notes = [
        f"read: at most {most} files a format, evenly out of all by name, {_LONGEST_S:.0f} s at most; embedded: at most {most_embedded} of "
        f"up to {_LARGEST // 1000} KB. Failed are those that are locked, damaged, or need a program that is not installed.",
    ]
    if absent:
        notes.append(f"there is no file here of: {', '.join(absent)}.")
    return Part(rows, figures, notes)


def _by_reader() -> dict[str, list[Path]]:
    """The files by the reader that their names choose, in the order of their paths."""
    found: dict[str, list[Path]] = {}
    ours = [*(corpus.ROOT / "rag").glob("*.py"), *(corpus.ROOT / "server").rglob("*.js"), *(corpus.ROOT / "server").rglob("*.css")]
    ours.append(corpus.ROOT / "pyproject.toml")
    for file in [*sorted((corpus.SHARED / "files").rglob("*")), *sorted(ours)]:
        form = formats.format_of(file.name)
        if form is not None and file.is_file() and formats.suffix_of(file.name) and file.stat().st_size:
            found.setdefault(form.reader, []).append(file)
    return found


def _spread(files: list[Path], most: int) -> list[Path]:
    """At most so many, evenly out of all."""
    count = min(most, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def _read(sandbox: Sandbox, files: list[Path]) -> dict[str, Any]:
    """Read them one after another until they are through or the time is up."""
    done = failed = members = characters = size = 0
    started = time.perf_counter()
    for file in files:
        for entry in sandbox.read(file):
            if isinstance(entry.result, Parsed):
                characters += len(entry.result.text)
            elif not entry.path:
                failed += 1
            members += bool(entry.path)
        done += 1
        size += file.stat().st_size
        if time.perf_counter() - started > _LONGEST_S:
            break
    seconds = time.perf_counter() - started
    return {
        "files": done,
        "failed": failed,
        "members": members,
        "bytes": size,
        "characters": characters,
        "s": round(seconds, 3),
        "files_per_s": round(done / seconds, 2),
    }


def _whole(index: Index, reader: str, files: list[Path]) -> dict[str, Any] | None:
    """Copy them into a folder of their own and index it; None if there are none."""
    if not files:
        return None
    folder = index.settings.corpora / reader
    folder.mkdir()
    for i, file in enumerate(files):
        shutil.copyfile(file, folder / f"{i:02}-{file.name}")
    before = index.ledger.chunk_count()
    started = time.perf_counter()
    report = index.pipeline.sync([folder])
    seconds = time.perf_counter() - started
    chunks = index.ledger.chunk_count() - before
    return {
        "files": len(files),
        "failed": report.failed,
        "chunks": chunks,
        "s": round(seconds, 3),
        "files_per_s": round(len(files) / seconds, 2),
        "chunks_per_s": round(chunks / seconds, 1),
    }


def _row(reader: str, read: dict[str, Any], whole: dict[str, Any] | None) -> Row:
    of = f"{read['files']} file{'s' * (read['files'] != 1)}" + (f", {read['members']} in them" if read["members"] else "")
    of += f", {read['failed']} failed" if read["failed"] else ""
    embedded = f"{whole['chunks_per_s']:.0f} chunks/s of {whole['chunks']}" if whole else "none small enough to embed"
    return Row(f"{reader}: {of}", f"{read['files_per_s']:.1f} files/s read, {embedded}")
