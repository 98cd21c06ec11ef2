"""Qdrant Edge, imported where it is first needed. The only importer of `qdrant_edge`, for `store.py`, `shard.py` and `languages.py`."""

from __future__ import annotations

from typing import Any

from rag.errors import MissingPackage


def library() -> Any:
    """The module. Raises `MissingPackage`."""
    try:
        import qdrant_edge
    except ImportError as error:
        raise MissingPackage(f"qdrant-edge-py cannot be imported: {error}.", "Run `make venv` again.") from error
    return qdrant_edge


def is_panic(error: BaseException) -> bool:
    """Whether Rust panicked: such an error derives from BaseException, in a module that cannot be imported."""
    return type(error).__name__ == "PanicException"
