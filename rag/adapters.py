"""LoRA adapters: small files that change how a model answers, for one domain or one task.

An adapter is a folder `data_dir/adapters/<name>/` with `adapter.gguf` and `adapter.toml`. Loading one into a model is
`rag/engine.py`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as a request names it: by its name, and how strongly it is applied (1 as trained)."""

    name: str
    scale: float = 1.0

    def __str__(self) -> str:
        return self.name if self.scale == 1.0 else f"{self.name}@{self.scale:g}"
