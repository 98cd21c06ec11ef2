"""One file over HTTP: resumed where it was broken off, compared with its sha256, and bounded in every way. See `fetch`.

Whatever a server does, the answer is a `ReadingRoomError`; what may pass is tried again. What is fetched is `rag/pull.py`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rag import gguf, models, shelf, tomlfile
from rag.errors import Broken, InvalidInput, ModelUnusable, PullFailed, StoreFull, UnknownModel

if TYPE_CHECKING:
    import httpx

# A manifest or a text layer is some kilobytes; licences reach 20 KB.
_TEXT_BYTES = 4 << 20
_REDIRECTS = 5
# Goes without a new byte before a download is given up; between them 1, 2, 4, 8 s.
_GOES = 5
# A server that sends what was asked for at the wrong place, or something else each time, is not asked for ever.
_RESTARTS = 2
# Kept free beside the model, for the index and the ledger.
_SPARE = 64 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """Where a pull stands: what it does, and of a file that is being fetched its digest and bytes (`total` 0: not known)."""

    status: str
    digest: str = ""
    done: int = 0
    total: int = 0


Report = Callable[[Step], None]
"""Called often; what it raises ends the pull, and what was fetched is kept."""


@dataclass(frozen=True, slots=True)
class Got:
    """`announced`: whether the server itself said the sha256 beforehand."""

    sha256: str
    announced: bool


def fetch(session: Session, url: str, target: Path, *, digest: str, size: int) -> Got:
    """Fetch a GGUF file, or the rest of it, to `target`. `digest` (hex) and `size` may be unknown: empty and 0."""
    if target.exists() and digest and models.sha256(target) == digest:
        return Got(digest, False)  # it was all here, and what came after it failed
    with Part(target.with_name(f"{target.name}.part"), url, digest) as part:
        idle = restarts = 0
        while True:
            before = part.size
            try:
                if digest and part.sha256 == digest:
                    break  # all of it was here already
                if _go(session, url, part, digest, size):
                    break
                restarts += 1
                if restarts > _RESTARTS:
                    raise PullFailed(f"{place_of(url)} does not send the file as it was asked for.", "Try again later, or another source.")
            except Interrupted as interrupted:
                idle = 1 if part.size > before else idle + 1
                if idle >= _GOES:
                    raise PullFailed(
                        f"The download broke off after {part.size / 1e6:,.1f} MB: {interrupted}.",
                        "Run the same command again: it goes on from there.",
                    ) from interrupted
                session.report(Step(f"waiting: {interrupted}", digest, part.size, part.total))
                session.pause(2.0 ** (idle - 1))
        session.report(Step("verifying sha256", digest, part.size, part.size))
        got = part.sha256
        expected = digest or part.announced
        if expected and got != expected:
            part.discard()
            raise ModelUnusable(
                f"What {place_of(url)} sent has the sha256 {got[:12]}..., not {expected[:12]}...; it was thrown away.",
                "Try again. If it stays so, the file there is not the one that was named: do not use it.",
            )
        part.finish(target)
        return Got(got, bool(part.announced) and not digest)


class Interrupted(Exception):
    """A go that ended early, for a reason that may pass."""


def _go(session: Session, url: str, part: Part, digest: str, size: int) -> bool:
    """One request for the rest; whether the file is complete. False: it was begun anew, and another go is due."""
    headers = {}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if not digest and part.validator:
            headers["If-Range"] = part.validator
    with session.open(url, headers) as (response, announced):
        total = _total(response)
        if response.status_code == 416:
            if part.size and part.size == (total or part.total):
                return True
            part.restart()
            return False
        session.check(response, url)
        validator = _validator(response)
        if response.status_code == 206:
            start = int((re.match(r"bytes (\d+)-", response.headers.get("content-range", "")) or ["", "-1"])[1])
            if start != part.size or (not digest and (validator, total) != (part.validator, part.total)):
                part.restart()
                return False
        elif part.size:
            # The server ignores ranges, or has another file now.
            session.report(Step("the server begins anew"))
            part.restart()
        if size and total and total != size:
            raise PullFailed(f"{place_of(url)} sends {total:,} bytes where {size:,} were announced.", "Try again later, or another source.")
        total = total or size
        shelf.room(part.path.parent, max(total - part.size, 0) + _SPARE)
        part.begin(validator, total, announced)
        try:
            for piece in response.iter_raw():  # as they come: what waited for more would be lost with the connection
                part.append(piece)
                if part.head != gguf.MAGIC[: len(part.head)]:
                    part.discard()
                    raise ModelUnusable(f"What {place_of(url)} sends is not a GGUF file.", "Give the address of the file itself.")
                if total and part.size > total:
                    part.discard()
                    raise PullFailed(f"{place_of(url)} sends more than the {total:,} bytes it announced.", "Try another source.")
                session.report(Step("pulling", digest or part.announced, part.size, total))
        except session.broken as error:
            raise Interrupted(_said(error)) from error
        if total and part.size < total:
            raise Interrupted("the connection was closed early")
        if part.size < len(gguf.MAGIC):
            part.discard()
            raise ModelUnusable(f"What {place_of(url)} sends is not a GGUF file.", "Give the address of the file itself.")
        return True


class Part:
    """A file on its way: its bytes so far, their hash, and by what the server knows the file again.

    Beside it lies a note with that; a part without a note, or with that of another file, is begun anew.
    """

    def __init__(self, path: Path, url: str, digest: str) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}.json")
        # A signed address is another one each time; its path is not.
        self._identity = {"url": urlsplit(url)._replace(query="", fragment="").geturl(), "sha256": digest}
        self.validator = ""
        self.total = 0
        self.announced = ""
        self.size = 0
        self.head = b""
        self._hash = hashlib.sha256()

    def __enter__(self) -> Part:
        note = self._read_note()
        known = bool(note) and (bool(self._identity["sha256"]) or bool(note.get("validator")))
        # Unbuffered: what a full disk did not take must not come again when the file is closed.
        self._file = self.path.open("r+b" if known and self.path.exists() else "w+b", buffering=0)
        if known:
            self.validator, self.total, self.announced = str(note["validator"]), int(note["total"]), str(note["announced"])
        while piece := self._file.read(1 << 20):
            self._take(piece)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            fits = {name: note[name] for name in self._identity} == self._identity and {"validator", "total", "announced"} <= note.keys()
            return note if fits else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def _take(self, piece: bytes) -> None:
        self._hash.update(piece)
        if len(self.head) < len(gguf.MAGIC):
            self.head = (self.head + piece)[: len(gguf.MAGIC)]
        self.size += len(piece)

    @property
    def sha256(self) -> str:
        """Of all bytes so far, hex."""
        return self._hash.hexdigest()

    def begin(self, validator: str, total: int, announced: str) -> None:
        """Note by what the server knows this file again, before its first byte is written."""
        self.validator, self.total, self.announced = validator, total, announced or self.announced
        with _disk(self.path):
            note = {**self._identity, "validator": validator, "total": total, "announced": self.announced}
            tomlfile.write(self._note, json.dumps(note))

    def append(self, piece: bytes) -> None:
        """Write the next bytes. Raises `StoreFull`; what is written stays, and counts."""
        with _disk(self.path):
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        self._take(piece)

    def restart(self) -> None:
        """Forget all that came."""
        self._file.seek(0)
        self._file.truncate(0)
        self.validator, self.total, self.announced, self.size, self.head = "", 0, "", 0, b""
        self._hash = hashlib.sha256()

    def discard(self) -> None:
        """Delete the file and its note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the file its name."""
        with _disk(self.path):
            os.fsync(self._file.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


class Session:
    """An HTTP client for one pull."""

    def __init__(self, base: str, report: Report, pause: Callable[[float], None]) -> None:
        import httpx

        self._httpx = httpx
        self.broken = (httpx.TransportError, httpx.StreamError)
        self.report = report
        self.pause = pause
        self._client = httpx.Client(
            headers={"User-Agent": "readingroom", "Accept-Encoding": "identity"},
            # Reading: a server that fetches the file itself first may be silent for long.
            timeout=httpx.Timeout(30, read=60),
            # Proxies and certificates of the environment are how many machines get out; this machine needs none.
            trust_env=not _is_here(base),
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextlib.contextmanager
    def open(self, url: str, headers: dict[str, str]) -> Iterator[tuple[httpx.Response, str]]:
        """A response whose body is still to be read, and the sha256 that the server announced on the way to it, if any.

        Redirects are followed, to other hosts too, but not from https to http. Raises `Interrupted`, `PullFailed`.
        """
        announced = ""
        try:
            request = self._client.build_request("GET", url, headers=headers)
            for _ in range(_REDIRECTS + 1):
                response = self._client.send(request, stream=True)
                announced = _announced(response) or announced
                if response.next_request is None:
                    break
                response.close()
                after = response.next_request
                if request.url.scheme == "https" and after.url.scheme != "https":
                    raise PullFailed(f"{place_of(url)} sends on to {after.url.host} without encryption.", "Choose another source.")
                request = after
            else:
                raise PullFailed(f"{place_of(url)} sends in circles.", "Check the address.")
        except (self._httpx.InvalidURL, self._httpx.UnsupportedProtocol) as error:
            raise InvalidInput(f"{url!r} is no address: {error}.", "Correct it.") from error
        except self.broken as error:
            raise Interrupted(_said(error)) from error
        try:
            yield response, announced
        finally:
            response.close()

    def check(self, response: httpx.Response, url: str, missing: Exception | None = None) -> None:
        """Raises for a status that is no success: `Interrupted` if it may pass, else `PullFailed` or `missing`."""
        status, place = response.status_code, place_of(url)
        if status in (200, 206):
            return
        if status in (408, 425, 429) or status >= 500:
            raise Interrupted(f"{place} answers {status}")
        if status in (401, 403):
            raise PullFailed(
                f"{place} does not give this file to everybody ({status}).",
                "Fetch it in a browser, where you can log in and agree to its terms, then: readingroom models add FILE",
            )
        if status in (404, 410):
            raise missing or UnknownModel(f"There is no such file at {place} ({status}).", "Check the address.")
        raise PullFailed(f"{place} answers {status}.", "Check the address; try again later.")

    def small(self, url: str, digest: str = "", accept: str = "*/*", missing: Exception | None = None) -> bytes:
        """A body of at most `_TEXT_BYTES`, with that sha256. Tries again while the reason may pass."""
        for go in range(_GOES):
            try:
                with self.open(url, {"Accept": accept}) as (response, _):
                    self.check(response, url, missing)
                    body = bytearray()
                    try:
                        for piece in response.iter_raw(1 << 16):
                            body += piece
                            if len(body) > _TEXT_BYTES:
                                raise PullFailed(f"{place_of(url)} sends too much for a text.", "Check the registry.")
                    except self.broken as error:
                        raise Interrupted(_said(error)) from error
                if digest and hashlib.sha256(body).hexdigest() != digest:
                    raise Interrupted("a text came with the wrong sha256")
                return bytes(body)
            except Interrupted as interrupted:
                if go == _GOES - 1:
                    raise PullFailed(f"{place_of(url)}: {interrupted}.", "Check the connection, and try again.") from interrupted
                self.pause(2.0**go)
        raise AssertionError("unreachable")


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(
                f"The disk of {path.parent.parent} is full; what was fetched is kept.",
                "Free some space, and run the same command again: it goes on from there.",
            ) from error
        raise Broken(f"{path} cannot be written: {error.strerror or error}.", "Check the data directory.") from error


def _total(response: httpx.Response) -> int:
    """The size of the whole file, 0 if the response does not say."""
    found = re.search(r"/(\d+)$", response.headers.get("content-range", ""))
    if found:
        return int(found[1])
    length = response.headers.get("content-length", "")
    return int(length) if response.status_code == 200 and length.isdigit() else 0


def _validator(response: httpx.Response) -> str:
    """By what the server knows the file again: a strong ETag, else the time of its last change, else nothing."""
    tag = str(response.headers.get("etag", ""))
    return tag if tag.startswith('"') else str(response.headers.get("last-modified", ""))


def _announced(response: httpx.Response) -> str:
    """Hugging Face says the sha256 of a large file where it sends on to the store that has it."""
    tag = str(response.headers.get("x-linked-etag", "")).strip('"').lower()
    return tag if re.fullmatch(r"[0-9a-f]{64}", tag) else ""


def _said(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def place_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
