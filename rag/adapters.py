"""LoRA adapters: small files that change how a model answers, for one domain or one task.

An adapter is a folder, below `data_dir/adapters/`, of that name:

    adapter.gguf    the weights, as llama.cpp reads them
    adapter.toml    name, base model and its hash, licence, rank, scale, prompt, evaluation

Made for one base model, and refused by any other: their numbers would be read as nonsense. Those that come with the program lie
below `rag/packages/` and are there without being installed, for the models that they fit; one of the same name in the data directory
takes their place. Which requests are decoded together is `rag/engine.py`'s business; an adapter is applied by `rag/_llama.py`.
"""

from __future__ import annotations

import math
import re
import shutil
import tomllib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag import gguf, models
from rag.errors import AdapterUnusable, InvalidInput, ModelUnusable, UnknownAdapter

WEIGHTS, MANIFEST = "adapter.gguf", "adapter.toml"

SHIPPED = Path(__file__).parent / "packages"

AUTO, NONE = "auto", "none"
"""In place of a name: the one that answers from documents unless another is wanted, and none at all."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LARGEST_SCALE = 10.0
_MOST = 4  # applied at the same time


@dataclass(frozen=True, slots=True)
class Share:
    """One adapter of a request: how strongly it is applied (1 is as trained), and which file of that name it is."""

    name: str
    scale: float = 1.0
    version: str = ""

    @property
    def key(self) -> str:
        """What it is loaded as: a replaced file of the same name is another adapter."""
        return f"{self.name}:{self.version}"

    def __str__(self) -> str:
        return self.name if self.scale == 1.0 else f"{self.name}@{self.scale:g}"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a request asks for: one or several adapters. As text `legal`, `legal@0.5` or `legal@0.5+brief`.

    Equal ones, and only these, may be decoded in one batch and share what was read.
    """

    parts: tuple[Share, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


@dataclass(frozen=True, slots=True)
class Style:
    """How answers with an adapter are to be asked for and read.

    `marks`: it begins each sentence with the number of its passage (`rag/marks.py`), or would refuse with the words of `rag/prompt.py`:
    its first token tells which, and whether it may is for `rag/gate.py`.
    `repeat_penalty`: what it was trained to be sampled with; None is the usual one.
    """

    marks: bool = False
    repeat_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """An installed adapter, as its `adapter.toml` and its weights say.

    `base_sha256`: of the model files that it was made for, before requantizing. `scale` is what a request gets that names none.
    `version` tells a file from the one that it replaced.
    `prompt` takes the place of the usual rules where a domain has none of its own. `evaluation` is for people.
    """

    name: str
    folder: Path
    base: str
    base_sha256: tuple[str, ...]
    licence: str
    rank: int
    version: str
    scale: float = 1.0
    description: str = ""
    prompt: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    style: Style = Style()
    default: bool = False
    """Whether it answers from the documents where no adapter is named."""

    @property
    def shipped(self) -> bool:
        """Whether it came with the program."""
        return self.folder.parent == SHIPPED

    @property
    def weights(self) -> Path:
        """The GGUF file."""
        return self.folder / WEIGHTS

    @property
    def key(self) -> str:
        """What it is loaded as; see `Share.key`."""
        return Share(self.name, version=self.version).key

    def fits(self, sha256: str) -> bool:
        """Whether it was made for the model file of that hash."""
        return sha256 in self.base_sha256


def parse(text: str) -> Adapter:
    """What `legal@0.5+brief` asks for. A scale that is left out is nan until `resolve` fills it in. Raises `InvalidInput`."""
    parts = []
    for part in text.split("+"):
        name, at, number = part.strip().partition("@")
        try:
            scale = float(number) if at else math.nan
        except ValueError:
            scale = math.inf
        if not _NAME.fullmatch(name) or abs(scale) > _LARGEST_SCALE or (at and math.isnan(scale)):
            raise InvalidInput(f"{text!r} names no adapter.", f"Write a name, or name@scale with a scale of at most {_LARGEST_SCALE:g}.")
        parts.append(Share(name, scale))
    if len({part.name for part in parts}) < len(parts) or len(parts) > _MOST:
        raise InvalidInput(f"{text!r} names an adapter twice, or more than {_MOST}.", "Name each once.", _MOST)
    return Adapter(tuple(sorted(parts, key=lambda part: part.name)))


def resolve(text: str, packages: Mapping[str, Package]) -> Adapter:
    """What the text asks for, of these installed ones, with their own scales filled in. Raises `UnknownAdapter`, `InvalidInput`."""
    parts = []
    for part in parse(text).parts:
        package = packages.get(part.name)
        if package is None:
            known = ", ".join(sorted(packages)) or "none"
            raise UnknownAdapter(f"There is no adapter {part.name!r}.", f"Leave `adapter` out, or name one of: {known}.")
        parts.append(Share(part.name, package.scale if math.isnan(part.scale) else part.scale, package.version))
    return Adapter(tuple(parts))


def stamp(data_dir: Path) -> int:
    """Changes when an adapter is installed, replaced or removed (nanoseconds); 0 if there is no folder of adapters."""
    try:
        return (data_dir / "adapters").stat().st_mtime_ns
    except OSError:
        return 0


def installed(data_dir: Path) -> tuple[dict[str, Package], dict[str, AdapterUnusable]]:
    """The adapters of the program and those below `data_dir/adapters` by name, and those that cannot be read, with what is wrong."""
    packages: dict[str, Package] = {}
    broken: dict[str, AdapterUnusable] = {}
    for path in [*_folders(SHIPPED), *_folders(data_dir / "adapters")]:
        packages.pop(path.name, None)
        try:
            packages[path.name] = read(path)
        except AdapterUnusable as error:
            broken[path.name] = error
    return packages, broken


def _folders(of: Path) -> list[Path]:
    """The folders of adapters; of the program's packages those that are none are left out."""
    found = sorted(path for path in of.iterdir() if path.is_dir() and not path.name.startswith(".")) if of.is_dir() else []
    return [path for path in found if (path / MANIFEST).is_file()] if of == SHIPPED else found


def find(data_dir: Path, name: str) -> Package:
    """An installed adapter. Raises `UnknownAdapter`, `AdapterUnusable`."""
    packages, broken = installed(data_dir)
    if name in broken:
        raise broken[name]
    if name not in packages:
        raise UnknownAdapter(f"There is no adapter {name!r}.", f"Installed: {', '.join(packages) or 'none'}. `readingroom adapters add`.")
    return packages[name]


_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str, "base": str, "base_sha256": (str, list), "licence": str, "rank": int, "scale": (int, float),
    "description": str, "prompt": str, "evaluation": dict, "marks": bool, "default": bool, "repeat_penalty": (int, float),
}  # fmt: skip
_NEEDED = ("base", "base_sha256", "licence")


def read(folder: Path) -> Package:
    """The adapter in a folder. Reads the manifest and the header of the weights. Raises `AdapterUnusable` that names the key."""
    path = folder / MANIFEST
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterUnusable(f"{folder.name} has no {MANIFEST}.", "`readingroom adapters add FILE --base MODEL` writes one.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AdapterUnusable(f"{folder.name}/{MANIFEST} cannot be read: {error}.", "Correct that line.") from error
    for key, value in values.items():
        if key not in _KINDS:
            raise AdapterUnusable(f"{folder.name}/{MANIFEST} has an unknown key {key!r}.", f"Known keys: {', '.join(_KINDS)}.")
        if not isinstance(value, _KINDS[key]) or (isinstance(value, bool) and _KINDS[key] is not bool):
            raise AdapterUnusable(f"{folder.name}/{MANIFEST}: {key} = {value!r} has the wrong type.", "See `corpora/guide/adapters.md`.")
    if missing := [key for key in _NEEDED if not values.get(key)]:
        raise AdapterUnusable(f"{folder.name}/{MANIFEST} lacks {', '.join(missing)}.", "Add it: see `corpora/guide/adapters.md`.")
    hashes = values["base_sha256"]
    hashes = tuple(hashes) if isinstance(hashes, list) else (hashes,)
    if not all(isinstance(each, str) and re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes):
        raise AdapterUnusable(f"{folder.name}/{MANIFEST}: base_sha256 must be 64 hex digits, or a list.", "Take the model's.")
    scale = float(values.get("scale", 1.0))
    if not 0 < abs(scale) <= _LARGEST_SCALE:
        raise AdapterUnusable(f"{folder.name}/{MANIFEST}: scale = {scale:g} is too large.", f"At most {_LARGEST_SCALE:g}; 1 is as trained.")
    penalty = float(values["repeat_penalty"]) if "repeat_penalty" in values else None
    if penalty is not None and not 0.5 <= penalty <= 2:
        raise AdapterUnusable(f"{folder.name}/{MANIFEST}: repeat_penalty = {penalty:g} must lie in 0.5 to 2.", "1 is none.")
    rank = check_weights(folder / WEIGHTS)
    if values.get("rank", rank) != rank:
        raise AdapterUnusable(f"{folder.name}/{MANIFEST}: rank = {values['rank']}, but the weights have {rank}.", "Correct the manifest.")
    stat = (folder / WEIGHTS).stat()
    return Package(
        folder.name, folder, values["base"], hashes, values["licence"], rank, f"{stat.st_mtime_ns:x}-{stat.st_size:x}", scale,
        values.get("description", ""), values.get("prompt", ""), values.get("evaluation", {}),
        Style(values.get("marks", False), penalty), values.get("default", False),
    )  # fmt: skip


def check_weights(path: Path) -> int:
    """The rank of a LoRA in GGUF. Reads its header. Raises `AdapterUnusable` for a file that is none."""
    remedy = "Convert it with llama.cpp's convert_lora_to_gguf.py."
    if not path.is_file():
        raise AdapterUnusable(f"There is no file {path}.", "Put the adapter's GGUF file there.")
    try:
        header = gguf.read(path)
    except ModelUnusable as error:
        raise AdapterUnusable(error.message, remedy) from error
    if header.kind != "adapter" or header.values.get("adapter.type") != "lora":
        raise AdapterUnusable(f"{path.name} is a GGUF file, but not of a LoRA adapter.", remedy)
    if not header.lora_rank:
        raise AdapterUnusable(f"{path.name} has no LoRA tensors.", remedy)
    return header.lora_rank


def base_digest(model: models.ModelFile) -> str:
    """The sha256 by which adapters know their base: of the file as it was fetched, before any requantizing."""
    return model.card.sha256 if model.card is not None else models.sha256(model.path)


def add(source: Path, data_dir: Path, base: models.ModelFile, *, name: str = "", licence: str = "", force: bool = False) -> Package:
    """Install an adapter for that model: a folder with both files, or a GGUF file, for which a manifest is written.

    Copied beside the others and moved into place in one stroke. Whether the model takes it is for the caller to try before
    (`_llama.check_adapter`). Raises `AdapterUnusable`, `InvalidInput`.
    """
    weights = source / WEIGHTS if source.is_dir() else source
    name = name or (source.name if source.is_dir() else source.stem).lower()
    if not _NAME.fullmatch(name) or name in (AUTO, NONE):
        raise InvalidInput(f"An adapter cannot be called {name!r}.", "Use a-z, 0-9, dot, dash and underscore: --name NAME.")
    rank = check_weights(weights)
    folder = data_dir / "adapters"
    target, staged = folder / name, folder / f".{name}-{uuid.uuid4().hex[:8]}"
    if target.exists() and not force:
        raise InvalidInput(f"There is an adapter {name!r} already.", "Choose another --name, or replace it with --force.")
    staged.mkdir(parents=True)
    try:
        shutil.copyfile(weights, staged / WEIGHTS)
        if source.is_dir() and (source / MANIFEST).is_file():
            shutil.copyfile(source / MANIFEST, staged / MANIFEST)
        else:
            if not licence:
                raise InvalidInput("An adapter without a manifest needs its licence.", "Name it: --licence Apache-2.0")
            (staged / MANIFEST).write_text(_manifest(name, base, licence, rank), encoding="utf-8")
        package = read(staged)
        if not package.fits(digest := base_digest(base)):
            raise AdapterUnusable(
                f"{name} was made for {package.base}, not for {base.name} (sha256 {digest[:12]}...).",
                "Set engine.model to its base, or add that file's sha256 to base_sha256 if you know that it fits.",
            )
        replaced = folder / f".{name}-old-{uuid.uuid4().hex[:8]}"
        if target.exists():
            target.rename(replaced)
        staged.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return read(target)


def remove(data_dir: Path, name: str) -> None:
    """Delete an installed adapter, readable or not. Raises `UnknownAdapter`."""
    folder = data_dir / "adapters" / name
    if (SHIPPED / name / MANIFEST).is_file() and not folder.is_dir():
        raise InvalidInput(f"The adapter {name} comes with the program.", f'To answer without it, set engine.adapter to "{NONE}".')
    if not _NAME.fullmatch(name) or not folder.is_dir():
        raise UnknownAdapter(f"There is no adapter {name!r}.", "`readingroom adapters list` shows those there are.")
    shutil.rmtree(folder)


def _manifest(name: str, base: models.ModelFile, licence: str, rank: int) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return (
        f"name = {quoted(name)}\nbase = {quoted(base.name)}\nbase_sha256 = {quoted(base_digest(base))}\n"
        f"licence = {quoted(licence)}\nrank = {rank}\nscale = 1.0\n"
    )
