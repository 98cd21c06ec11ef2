"""Programs of the system that a reader needs: tesseract, LibreOffice. Found, started under the parser's limits, and ended.

Only `run` starts a program; the parser's process forbids it otherwise (`ingest/child.py`). The program inherits the
memory limit, the closed network and the process group of the parser, and the group is killed as a whole
(`ingest/sandbox.py`). Which programs are on this machine is asked by `doctor`, and by the pipeline, which tries again a
file that failed for want of one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rag.errors import ParseFailed

# name -> (commands that are it, what it is for, how it is installed)
KNOWN = {
    "tesseract": (
        ("tesseract",),
        "text in pictures and scanned pages",
        "Debian: apt-get install tesseract-ocr; macOS: brew install tesseract",
    ),
    "libreoffice": (
        ("soffice", "libreoffice", "/Applications/LibreOffice.app/Contents/MacOS/soffice"),
        "old Office files (doc, ppt)",
        "Debian: apt-get install libreoffice-writer-nogui libreoffice-impress-nogui; macOS: brew install --cask libreoffice",
    ),
}

running = False
"""True while `run` starts a program; the audit hook of the parser's process looks at it."""

left_behind = False
"""True once a program was stopped and may have left children: the parser's process then ends, and its group with it."""


def find(name: str) -> str | None:
    """The command of a program of `KNOWN`, or None if it is not on this machine."""
    return next((found for command in KNOWN[name][0] if (found := shutil.which(command))), None)


def available() -> tuple[str, ...]:
    """Those of `KNOWN` that are on this machine, sorted."""
    return tuple(sorted(name for name in KNOWN if find(name)))


def missing(name: str, what: str) -> ParseFailed:
    """What a file ends as that cannot be read without the program. `what` begins the sentence: "Old Word files are"."""
    return ParseFailed(
        "missing_program", f"{what} read with {name}, which is not installed.", f"Install it, and the file is read. {KNOWN[name][2]}."
    )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder that is gone afterwards. In it the parser may write, up to the limit of one file."""
    with _may_write():
        folder = Path(tempfile.mkdtemp(prefix="parse-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def run(name: str, args: Sequence[str], *, what: str, stdin: bytes = b"", cwd: Path | None = None, timeout: float = 60.0) -> bytes:
    """What the program prints. Raises `ParseFailed`: `missing_program`, `timed_out`, or `broken_file` if it fails.

    `what` begins the sentence for people if the program is missing ("Scanned pages are"); `timeout` in seconds.
    """
    global running, left_behind
    command = find(name)
    if command is None:
        raise missing(name, what)
    env = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TMPDIR", "TESSDATA_PREFIX") if key in os.environ}
    env |= {"HOME": str(cwd or os.sep), "OMP_THREAD_LIMIT": "1", "SAL_USE_VCLPLUGIN": "svp"}
    with _may_write():
        running = True
        try:
            process = subprocess.Popen(
                [command, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=env,
            )
        finally:
            running = False
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        left_behind = True  # LibreOffice is a script that starts another
        raise ParseFailed("timed_out", f"{name} took longer than {timeout:g} s.", "Split the file, or save it in a newer format.") from None
    finally:
        process.kill()
        process.communicate()
    if process.returncode:
        said = err.decode("utf-8", errors="replace").strip().splitlines()
        raise ParseFailed(
            "broken_file",
            f"{name} cannot read the file{': ' + said[-1][:200] if said else ''}.",
            "Save or download it again.",
        )
    return out


@contextlib.contextmanager
def _may_write() -> Iterator[None]:
    """A parser may write nothing (RLIMIT_FSIZE is 0); inside here it may, up to its hard limit."""
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
