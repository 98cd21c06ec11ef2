"""Models that other programs keep on this machine, and that can be used where they are: Ollama's, LM Studio's, any folder's.

Looks only; `rag/shelf.py` puts what is wanted onto the shelf, as a reference to the file in its place.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rag import catalogue, models, shelf
from rag.catalogue import Entry
from rag.errors import ModelUnusable, UnknownModel
from rag.pull import REGISTRY

# Manifests and licences are kilobytes.
_TEXT_BYTES = 4 << 20

_DEPTHS = ("*.gguf", "*/*.gguf", "*/*/*.gguf")
"""LM Studio's folder is publisher/repository/file.gguf; a flat one serves as well."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model of a neighbour. `sha256` is what it says itself, empty if nothing; `problem` is why it cannot be used, empty if it can."""

    name: str
    path: Path
    source: str
    sha256: str = ""
    licence_text: str = ""
    entry: Entry | None = None
    problem: str = ""


def ollama_folders() -> list[Path]:
    """Where Ollama keeps its models: as its variable says, in the user's home, or where its service on Linux does."""
    said = os.environ.get("OLLAMA_MODELS")
    return [*([Path(said)] if said else []), Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]


def lmstudio_folders() -> list[Path]:
    """Where LM Studio keeps its models: today, and until 2024."""
    return [Path("~/.lmstudio/models").expanduser(), Path("~/.cache/lm-studio/models").expanduser()]


def look(folder: Path) -> list[Found]:
    """The models in a folder of Ollama's, of LM Studio's, or of GGUF files; by name. Raises `UnknownModel` if there is none."""
    for place in (folder, folder / "models"):
        if (place / "manifests").is_dir() and (place / "blobs").is_dir():
            found = sorted(_ollama(place), key=lambda found: found.name)
            break
    else:
        found = sorted(_files(folder), key=lambda found: found.name)
    if not found:
        raise UnknownModel(f"There are no models in {folder}.", "Name a GGUF file, or a folder that Ollama or LM Studio keeps models in.")
    return found


def first(folders: list[Path], whose: str) -> Path:
    """The first of the usual folders that is there. Raises `UnknownModel`."""
    for folder in folders:
        if folder.is_dir():
            return folder
    looked = ", ".join(map(str, folders))
    raise UnknownModel(f"{whose} keeps no models here: there is none of {looked}.", "Name its folder of models.")


def _ollama(folder: Path) -> Iterator[Found]:
    """Each manifest is a name: `manifests/host/namespace/name/tag`; what it lists lies in `blobs/`, by digest."""
    for manifest in folder.glob("manifests/*/*/*/*"):
        host, namespace, name, tag = manifest.relative_to(folder / "manifests").parts
        short = name if tag == "latest" else f"{name}:{tag}"
        if (host, namespace) != (REGISTRY, "library"):
            short = f"{namespace}/{short}" if host == REGISTRY else f"{host}/{namespace}/{short}"
        source = f"{host}/{namespace}/{name}:{tag}"
        try:
            layers = _layers(manifest)
        except (OSError, ValueError, KeyError, TypeError):
            yield Found(short, manifest, source, problem="its manifest cannot be read")
            continue
        files = layers.get("model", [])
        if len(files) != 1:
            yield Found(short, manifest, source, problem="it is no single GGUF file")
            continue
        if "adapter" in layers:
            # The base alone would answer as another model under this one's name.
            yield Found(short, manifest, source, problem="it is a model with an adapter: add its base, and the adapter by itself")
            continue
        path = folder / "blobs" / f"sha256-{files[0]}"
        licence_text = "\n\n".join(filter(None, (_text(folder / "blobs" / f"sha256-{digest}") for digest in layers.get("license", ()))))
        entry = catalogue.find(f"{name}:{tag}") if namespace == "library" else None
        yield Found(short, path, source, files[0], licence_text, entry, _problem(path))


def _layers(manifest: Path) -> dict[str, list[str]]:
    """Digests (hex) by kind of layer."""
    found: dict[str, list[str]] = {}
    for layer in json.loads(_text(manifest, strict=True))["layers"]:
        match = re.fullmatch(r"sha256:([0-9a-f]{64})", layer["digest"])
        if match is None:
            raise ValueError(layer["digest"])
        found.setdefault(str(layer["mediaType"]).rpartition(".")[2], []).append(match[1])
    return found


def _files(folder: Path) -> Iterator[Found]:
    seen = set()
    for depth in _DEPTHS:
        for path in folder.glob(depth):
            name = path.stem
            # Two publishers may have a file of the same name.
            if name in seen:
                name = f"{path.parent.name}-{name}"
            seen.add(name)
            yield Found(name, path, str(path), problem=_problem(path))


def _problem(path: Path) -> str:
    try:
        shelf.check_usable(models.details(path), "it")
    except ModelUnusable as error:
        return error.message.rstrip(".").removeprefix("it ")
    return ""


def _text(path: Path, *, strict: bool = False) -> str:
    """A small text file; empty if it is none, with `strict` that raises `OSError` or `ValueError`."""
    try:
        if path.stat().st_size > _TEXT_BYTES:
            raise ValueError(path)
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        if strict:
            raise
        return ""
