"""Encryption at rest: the key of a data directory, and what is sealed with it. Off unless a key is set (`[encryption]`).

    data_dir/encryption.json     the data key, 32 random bytes, locked with the key that a person gives (scrypt, then AES-256-GCM)
    *.db                         SQLCipher with a key made of the data key: `rag/db.py`
    store/                       what a passage says is one sealed field of its point: `rag/store.py`

The data key never changes but with `readingroom privacy rekey`, which writes everything anew. How a data directory is encrypted, decrypted
and given another key is in `rag/reseal.py`. Vectors, BM25 terms (hashes of word stems), ids, domains and file sizes stay readable: against
who can read those, and the watched folder itself, only an encrypted disk helps. Neither package is imported where no key is set.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag import db
from rag.errors import DataInClear, DataLocked, InvalidSettings, MissingPackage
from rag.settings import Encryption, Settings

FILE = "encryption.json"
SEALED = "sealed"
"""The payload's field that holds what a passage says."""

INSTALL = "python -m pip install -c constraints.txt -e '.[encryption]'"
REMEDY = "Set READINGROOM_ENCRYPTION__KEY, or encryption.key_file, to the key that it was encrypted with."

_LEAST = 16
"""Characters of a key. Below, it can be guessed from `encryption.json` alone, scrypt or not."""
_KDF = {"n": 1 << 15, "r": 8, "p": 1}
"""scrypt's costs: 32 MiB and about 0.1 s a guess; OWASP's password storage cheat sheet lists n=2^15 with p=3, for people's passwords."""
_NONCE = 12

_CLEAR = ("document_id", "domain", "language", "words")
"""Fields of a payload that searches filter by."""


class Seal:
    """What a data directory is sealed with. From any thread.

    `keys` are data keys, each of 32 bytes: all of them open, the last one closes. While a data directory is encrypted, decrypted or
    given another key there are two, or none that closes (`closing` false). Raises `MissingPackage`.
    """

    def __init__(self, keys: Sequence[bytes], *, closing: bool = True) -> None:
        self._ciphers = [_aes(_derived(key, b"passages")) for key in keys]
        self._invalid = _invalid_tag()
        self._closing = closing
        self.databases = tuple(_derived(key, b"sqlite").hex() for key in keys)
        """SQLCipher's raw keys, in hexadecimal; the last one is for what is written."""

    @property
    def database(self) -> str:
        """SQLCipher's raw key, 64 hexadecimal digits."""
        return self.databases[-1]

    def close(self, id: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """A point's payload with all that says something of the text in one sealed field, which is bound to the point's id."""
        if not self._closing:
            return dict(payload)
        said = {key: value for key, value in payload.items() if key not in _CLEAR}
        nonce = secrets.token_bytes(_NONCE)
        sealed = self._ciphers[-1].encrypt(nonce, json.dumps(said, ensure_ascii=False).encode(), id.encode())
        clear = {key: payload[key] for key in _CLEAR if key in payload}
        return {**clear, SEALED: base64.b64encode(nonce + sealed).decode()}

    def open(self, id: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload as it was before `close`; one that is not sealed as it is. Raises `DataLocked` for one of another key or point."""
        if SEALED not in payload:
            return dict(payload)
        found = base64.b64decode(payload[SEALED])
        for cipher in reversed(self._ciphers):
            with contextlib.suppress(self._invalid):
                said = json.loads(cipher.decrypt(found[:_NONCE], found[_NONCE:], id.encode()))
                return {**{key: value for key, value in payload.items() if key != SEALED}, **said}
        raise DataLocked("A passage in the index is sealed with another key.", "Delete `data_dir/store`: it is rebuilt from the folder.")


@dataclass(frozen=True, slots=True)
class Ring:
    """What `encryption.json` says: the data keys, and which change of them was begun (`encrypt`, `decrypt`, `rekey`; empty: none)."""

    keys: tuple[bytes, ...]
    change: str = ""


def unlock(settings: Settings) -> Seal | None:
    """The seal of the settings' data directory, None for one in clear; an empty one gets its data key now.

    Raises `DataLocked` for a key that is wrong, missing, or readable by others, `DataInClear` for a key where there is nothing to open
    with it, `InvalidSettings`, `MissingPackage`.
    """
    data_dir, secret = settings.data_dir, given(settings.encryption)
    text = _text(data_dir)
    if text is None and secret and holdings(data_dir):
        raise DataInClear(
            f"A key is given, and {data_dir} is not encrypted.",
            "Encrypt what is there with `readingroom privacy encrypt`, or leave the key out.",
        )
    if text is None and not secret:
        if _is_lost(data_dir.absolute()):
            raise DataLocked(f"{data_dir} is encrypted, and {FILE} is not there.", "Put that file back: nothing opens without it.")
        return None
    if text is None:
        text = _begun(data_dir, secret)
    if change := _parsed(data_dir, text)["change"]:
        raise DataLocked(f"`privacy {change}` of {data_dir} was cut short.", f"Run it again: readingroom privacy {change}")
    if not secret:
        raise DataLocked(f"{data_dir} is encrypted, and no key is given.", REMEDY)
    return Seal(read(data_dir, secret).keys)


def given(encryption: Encryption) -> str:
    """The key that the settings give; empty if none. Raises `InvalidSettings`, `DataLocked` for a file that others may read."""
    key = encryption.key.strip() or (_of_file(Path(encryption.key_file).expanduser()) if encryption.key_file else "")
    if key and len(key) < _LEAST:
        raise InvalidSettings(f"The encryption key has {len(key)} characters.", f"Take {_LEAST} or more: openssl rand -base64 32")
    return key


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(1 << 16).decode()
    except (OSError, UnicodeDecodeError) as error:
        made = f"Make one: (umask 077; openssl rand -base64 32 > {path})"
        raise DataLocked(f"The key file {path} cannot be read: {error}.", made) from error
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o077:
        raise DataLocked(f"Others than you may read or change the key file {path}.", f"Take that from them: chmod 600 {path}")
    if not text.strip():
        raise DataLocked(f"The key file {path} is empty.", f"Make a key: (umask 077; openssl rand -base64 32 > {path})")
    return text.strip()


# The file with the data key


def is_encrypted(data_dir: Path) -> bool:
    """Whether it has a data key. Needs no key."""
    return (data_dir / FILE).exists()


def begun_change(data_dir: Path) -> str:
    """The change that was cut short: `encrypt`, `decrypt`, `rekey`, or empty. Needs no key."""
    text = _text(data_dir)
    return "" if text is None else str(_parsed(data_dir, text)["change"])


def read(data_dir: Path, secret: str) -> Ring:
    """What the file says. Raises `DataLocked` if this is not its key."""
    text = _text(data_dir)
    if text is None:
        raise DataInClear(f"{data_dir} is not encrypted.", "Encrypt it: readingroom privacy encrypt")
    _parsed(data_dir, text)
    return _unlocked(data_dir, text, secret)


def write(data_dir: Path, secret: str, ring: Ring) -> None:
    """Put a ring, locked with that key, in the place of the one that is there, in one stroke."""
    partial = _partial(data_dir, _locked(secret, ring))
    partial.replace(data_dir / FILE)
    sync_folder(data_dir)


def new_key() -> bytes:
    """A data key."""
    return secrets.token_bytes(32)


def holdings(data_dir: Path) -> list[Path]:
    """What there is in a data directory that a key would have to seal: databases, and the folder of the index."""
    store = data_dir / "store"
    return [*sorted(data_dir.glob("*.db")), *([store] if (store / "current").exists() else [])]


def in_clear(path: Path) -> bool:
    """Whether a SQLite file can be read without a key; one that is missing or empty can. Not for one that this process has open."""
    try:
        with path.open("rb") as file:
            return file.read(16) in (b"", b"SQLite format 3\0")
    except FileNotFoundError:
        return True


@functools.lru_cache(maxsize=64)
def _is_lost(data_dir: Path) -> bool:
    """Whether no database is in clear, of two or more: one alone may be damaged.

    Looked for once in a process, before it opens the first one: to close a file that SQLite has open in the same process would undo its
    locks.
    """
    found = list(data_dir.glob("*.db"))
    return len(found) > 1 and not any(map(in_clear, found))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _begun(data_dir: Path, secret: str) -> str:
    """The text of the file, which is made now; of another process if that made it meanwhile. Without the packages nothing is made."""
    db.cipher()
    data_dir.mkdir(parents=True, exist_ok=True)
    partial = _partial(data_dir, _locked(secret, Ring((new_key(),))))
    with contextlib.suppress(FileExistsError):
        os.link(partial, data_dir / FILE)
    partial.unlink()
    sync_folder(data_dir)
    return (data_dir / FILE).read_text(encoding="utf-8")


def _partial(data_dir: Path, text: str) -> Path:
    path = data_dir / f".{FILE}.{secrets.token_hex(4)}"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


def _text(data_dir: Path) -> str | None:
    try:
        return (data_dir / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _parsed(data_dir: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if found["version"] == 1 and found["change"] in ("", "encrypt", "decrypt", "rekey"):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise DataLocked(f"{data_dir / FILE} is damaged, or of a newer program.", "Put a copy of it back: nothing opens without it.")


def _locked(secret: str, ring: Ring) -> str:
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(_NONCE)
    locked = _aes(_stretched(secret, salt, **_KDF)).encrypt(nonce, b"".join(ring.keys), ring.change.encode())
    told = {"version": 1, "change": ring.change, "scrypt": {**_KDF, "salt": salt.hex()}, "keys": (nonce + locked).hex()}
    return json.dumps(told, indent=1) + "\n"


@functools.lru_cache(maxsize=4)  # a command opens several files; each look would cost scrypt's 0.1 s again
def _unlocked(data_dir: Path, text: str, secret: str) -> Ring:
    told = _parsed(data_dir, text)
    try:
        costs = dict(told["scrypt"])
        salt, found = bytes.fromhex(costs.pop("salt")), bytes.fromhex(told["keys"])
        cipher = _aes(_stretched(secret, salt, **costs))
        keys = cipher.decrypt(found[:_NONCE], found[_NONCE:], told["change"].encode())
    except _invalid_tag():
        raise DataLocked(f"The key is not the one that {data_dir} is encrypted with.", REMEDY) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataLocked(f"{data_dir / FILE} is damaged: {error}.", "Put a copy of it back: nothing opens without it.") from error
    return Ring(tuple(keys[i : i + 32] for i in range(0, len(keys), 32)), told["change"])


# Ciphers


def _stretched(secret: str, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 << 20, dklen=32)


def _derived(key: bytes, purpose: bytes) -> bytes:
    """A key for one purpose, 32 bytes (HKDF's second step, RFC 5869; its first is for keys that are not random)."""
    hashes, hkdf = _library("hazmat.primitives.hashes"), _library("hazmat.primitives.kdf.hkdf")
    return hkdf.HKDFExpand(hashes.SHA256(), 32, b"readingroom " + purpose).derive(key)


def _aes(key: bytes) -> Any:
    return _library("hazmat.primitives.ciphers.aead").AESGCM(key)


def _invalid_tag() -> type[Exception]:
    return _library("exceptions").InvalidTag


def _library(name: str) -> Any:
    """A module of `cryptography`. Raises `MissingPackage`."""
    try:
        import importlib

        return importlib.import_module(f"cryptography.{name}")
    except ImportError as error:
        raise MissingPackage(f"Encryption needs the package cryptography: {error}.", f"Install it: {INSTALL}") from error
