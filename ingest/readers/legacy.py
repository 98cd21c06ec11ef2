"""Word's and PowerPoint's formats before 2007 (doc, ppt): LibreOffice makes them docx and pptx, which are then read.

How a program is started and ended is in `ingest/programs.py`; the readers of what comes out are in `readers/elements.py`.
"""

from __future__ import annotations

from pathlib import Path

from ingest import programs
from ingest.parse import Options, Parsed
from ingest.readers import elements, package
from rag.errors import ParseFailed

_TIMEOUT_S = 40.0  # below the 45 s of ingest.parse_timeout_s, for a better word than its; the samples take 1 to 6 s on the 2-core machine
# Names of streams, as an OLE container writes them: what Office calls a protected document, and what holds the text.
_ENCRYPTED = ("EncryptedPackage", "EncryptedSummary")


def read_doc(data: bytes, options: Options) -> Parsed:
    """An old Word file. Raises `ParseFailed`, with `missing_program` where there is no LibreOffice."""
    # The text's stream begins with EC A5; bit 0 of its byte 11 says "encrypted" ([MS-DOC] 2.5.2). Streams begin at multiples of 64.
    at = data.find(b"\xec\xa5", 512)
    if at >= 0 and at % 64 == 0 and len(data) > at + 11 and data[at + 11] & 0x01:
        raise package.encrypted("The document is protected by a password.")
    return elements.read_docx(_convert(data, "doc", "docx", "Old Word files are"), options)


def read_ppt(data: bytes, options: Options) -> Parsed:
    """An old presentation. Raises `ParseFailed`, with `missing_program` where there is no LibreOffice."""
    if any(name.encode("utf-16-le") in data for name in _ENCRYPTED):
        raise package.encrypted("The presentation is protected by a password.")
    return elements.read_pptx(_convert(data, "ppt", "pptx", "Old PowerPoint files are"), options)


def _convert(data: bytes, suffix: str, target: str, what: str) -> bytes:
    with programs.scratch() as folder:
        (folder / f"in.{suffix}").write_bytes(data)
        # A profile of its own: another soffice, the user's, would take the file over. A fresh one costs less than can be measured
        # (0.5 s of CPU with and without, 0.6 MB), so it goes with the folder.
        profile = folder / "profile"
        arguments = [
            f"-env:UserInstallation={profile.as_uri()}",
            "--headless", "--norestore", "--nolockcheck", "--nodefault", "--nologo",
            "--convert-to", target, "--outdir", str(folder), str(folder / f"in.{suffix}"),
        ]  # fmt: skip
        programs.run("libreoffice", arguments, what=what, cwd=folder, timeout=_TIMEOUT_S)
        try:
            return _read(folder / f"in.{target}")
        except FileNotFoundError:
            # LibreOffice says so on paper only: it ends with 0.
            raise ParseFailed(
                "broken_file", "LibreOffice cannot open the file: it is damaged or protected.", "Save it again in a newer format."
            ) from None


def _read(path: Path) -> bytes:
    if path.stat().st_size > package.LARGEST_UNPACKED:
        raise ParseFailed("too_large", "What LibreOffice makes of the file is too large.", "Split the file.")
    return path.read_bytes()
