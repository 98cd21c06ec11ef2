"""The language models that are loaded, by name: which one answers, and which one leaves when memory is short.

One `Engine` a model, each with its own thread and context; see `rag/engine.py`. Which models there are on this machine is
`rag/models.py`.
"""

from __future__ import annotations

from pathlib import Path

from rag.engine import Engine
from rag.errors import UnknownModel
from rag.settings import Engine as EngineSettings


class Engines:
    """The default model, and others once they are asked for. `load` blocks; `find` waits for a model that must be loaded first."""

    def __init__(self, settings: EngineSettings, data_dir: Path) -> None:
        self.default = Engine(settings, data_dir)

    def load(self) -> None:
        """Load the default model. Raises `ModelUnusable`."""
        self.default.load()

    async def find(self, name: str | None) -> Engine:
        """The engine of a model, loaded; None or "" is the default one. Raises `UnknownModel`, `ModelUnusable`, `NotReady`."""
        if name in (None, "", self.default.model):
            return self.default
        raise UnknownModel(
            f"The model {name!r} is not loaded.", f"Leave `model` out, here or in domain.toml, or name {self.default.model!r}."
        )

    def loaded(self) -> tuple[Engine, ...]:
        """Those that are in memory, the default one first."""
        return (self.default,)

    def erase(self) -> None:
        """Forget what finished generations have read, in all of them."""
        for engine in self.loaded():
            engine.erase()

    def stop(self) -> None:
        """Stop all and free their memory."""
        for engine in self.loaded():
            engine.stop()
