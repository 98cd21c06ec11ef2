"""What leaves this machine because its owner set it so, in sentences for people: `readingroom privacy show`, `readingroom doctor`.

By itself nothing does. Two settings name other servers: `engine.url` (`rag/remote.py`) and `store.url` (`rag/served_store.py`).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from rag.settings import Settings
from server.auth import is_loopback


def is_here(url: str) -> bool:
    """Whether an address is of this machine. Of what is no address nobody can know."""
    try:
        return is_loopback(urlsplit(url.strip()).hostname or "")
    except ValueError:
        return False


def of_engine(settings: Settings) -> str:
    """What goes to the server at `engine.url`; empty if nothing leaves."""
    url = settings.engine.url
    return "" if not url or is_here(url) else f"questions and passages leave this machine{_in_clear(url)}"


def of_store(settings: Settings) -> str:
    """What goes to the server at `store.url`; empty if nothing leaves."""
    url = settings.store.url
    if not url or is_here(url) or settings.ephemeral:
        return ""
    sealed = settings.encryption.key or settings.encryption.key_file
    text = "vectors and encrypted passages leave this machine" if sealed else "passages and their vectors leave this machine"
    return text + _in_clear(url)


def _in_clear(url: str) -> str:
    return ", unencrypted" if url.strip().lower().startswith("http:") else ""
