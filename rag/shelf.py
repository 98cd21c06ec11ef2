"""The shelf: models are put below `data_dir/models/` and taken away again, each all at once or not at all.

`add` takes a file that is on this machine; `rag/pull.py` fetches one. Finding and checking what is there: `rag/models.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from rag import gguf, models, tomlfile
from rag.catalogue import Entry, key, licence, recognise
from rag.errors import InvalidInput, ModelUnusable, StoreFull
from rag.models import CARD, CARDS, FILE, LICENCE, PIECE, ModelCard, ModelFile, Progress


def add(
    path: Path,
    data_dir: Path,
    *,
    name: str = "",
    copy: bool = False,
    source: str = "",
    sha256_said: str = "",
    entry: Entry | None = None,
    licence_text: str = "",
    progress: Progress | None = None,
) -> ModelFile:
    """Install a GGUF file that is on this machine, in place or as a copy; its sha256 becomes part of its card.

    `sha256_said` is what somebody else says it is: then the file is compared with it when it is first loaded, unless it is
    copied. Raises `ModelUnusable`, `InvalidInput` (the name is taken or no name), `StoreFull`.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if not path.is_file():
        raise ModelUnusable(f"There is no file at {path}.", "Correct the path.")
    header = models.details(path)
    check_usable(header, path.name)
    name = free_name(name or path.stem, data_dir)
    with staging(name, data_dir) as folder:
        try:
            digest = _copy(path, folder / FILE, progress) if copy else sha256_said or models.sha256(path, progress)
        except OSError as error:
            raise ModelUnusable(
                f"{path} cannot be {'copied' if copy else 'read'}: {error.strerror or error}.", "Check who may read it, and the free space."
            ) from error
        if sha256_said and digest != sha256_said:
            raise ModelUnusable(f"The sha256 of {path.name} is {digest[:12]}..., not {sha256_said[:12]}...", "Fetch that file again.")
        if licence_text:
            (folder / LICENCE).write_text(licence_text, encoding="utf-8")
        card = card_of(
            header,
            name=name,
            source=source or str(path),
            digest=digest,
            digest_from="registry" if sha256_said else "recorded",
            size=path.stat().st_size,
            file=FILE if copy else str(path),
            entry=entry,
            licence_text=licence_text,
        )
        model = publish(folder, card, data_dir)
    if copy or not sha256_said:
        models.stamp(model)
    return model


def check_usable(header: gguf.Header, file: str) -> None:
    """Raises `ModelUnusable` for a GGUF file that writes no text: an adapter, a vision projector, an embedder, a part of a model."""
    if header.kind == "adapter":
        raise ModelUnusable(f"{file} is a LoRA adapter, not a model.", "Install it with `readingroom adapters`.")
    if header.kind not in ("model", "") or header.architecture == "clip":
        raise ModelUnusable(
            f"{file} is a {header.kind or 'clip'} file: a part of a model that sees, not one that writes.", "Choose another."
        )
    if header.embeds:
        raise ModelUnusable(f"{file} makes vectors, not text.", "For searching, set embed.model to a sentence-transformers folder.")
    if header.parts > 1:
        raise ModelUnusable(
            f"{file} is one of {header.parts} parts of a model.",
            "Join them with llama.cpp's `llama-gguf-split --merge`, or choose one file.",
        )


def card_of(
    header: gguf.Header,
    *,
    name: str,
    source: str,
    digest: str,
    digest_from: str,
    size: int,
    file: str = FILE,
    entry: Entry | None = None,
    licence_text: str = "",
) -> ModelCard:
    """A card from what the file says of itself. Its licence: the catalogue's, else the file's own, else what its text looks like."""
    said = licence(header.licence)
    if said.commercial == "unknown" and isinstance(more := header.values.get("general.license.name"), str):
        said = licence(more)
    if said.commercial == "unknown" and (known := recognise(licence_text)).commercial != "unknown":
        said = known
    if entry is not None:
        said = entry.licence
    return ModelCard(
        name=name,
        kind="generator",
        licence=said.name,
        commercial=said.commercial,
        conditions=said.conditions,
        source=source,
        sha256=digest,
        sha256_from=digest_from,
        bytes=size,
        file=file,
        context_tokens=header.context_tokens,
        architecture=header.architecture,
        parameters=header.size_label or (f"{header.parameters / 1e9:.2g}B" if header.parameters else ""),
        quantization=header.quantization,
        added=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def free_name(name: str, data_dir: Path) -> str:
    """The name, if a model may be installed under it. Raises `InvalidInput`."""
    # A name that ends so would be taken for a path.
    name = name.removesuffix(".gguf")
    if not key(name):
        raise InvalidInput(f"A model cannot be called {name!r}.", "Choose a name of letters, digits, dots and hyphens with --name.")
    if any(key(card.name) == key(name) for card in CARDS) or (models.folder_of(name, data_dir) / CARD).exists():
        raise InvalidInput(
            f"There is a model {name!r} already.", f"Choose another name with --name, or first: readingroom models remove {key(name)}"
        )
    return name


@contextlib.contextmanager
def staging(name: str, data_dir: Path, *, keep: bool = False) -> Iterator[Path]:
    """The folder in which a model is put together before `publish` puts it into its place.

    With `keep` it outlives a failure, if a part of a model is in it by then.
    """
    folder = partial_folder(name, data_dir)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not keep or not any(folder.glob("*.gguf*")):
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, card: ModelCard, data_dir: Path) -> ModelFile:
    """Make a staging folder the installed model of that card, all at once; an older one of that name is replaced."""
    fields = {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}
    tomlfile.write(folder / CARD, tomlfile.dumps({name: value for name, value in fields.items() if value not in ("", None)}))
    target = models.folder_of(card.name, data_dir)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        # A running server has the old file mapped: it goes on with that one.
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return models.read(target)


def remove(name: str, data_dir: Path) -> Path | None:
    """Uninstall a model: its folder and what was requantized from it. A file that is used in place stays; its path is returned.

    A download that was broken off is removed the same way. Raises `UnknownModel`, `InvalidInput` (the default model).
    """
    if any(key(card.name) == key(name) for card in CARDS):
        raise InvalidInput(f"{name} comes with the installation.", "It is a package: leave it, or uninstall that with pip.")
    partial = partial_folder(name, data_dir)
    folder = models.folder_of(name, data_dir)
    if not key(name) or not (folder.is_dir() or partial.is_dir()):
        models.find(name, data_dir)
    shutil.rmtree(partial, ignore_errors=True)
    if not folder.is_dir():
        return None
    stays = None
    with contextlib.suppress(ModelUnusable):
        model = models.read(folder)
        models.requantized(model, data_dir).unlink(missing_ok=True)
        stays = model.path if model.in_place else None
    gone = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)
    return stays


def partial_folder(name: str, data_dir: Path) -> Path:
    """Where a model is put together, and where a broken-off download waits for its rest."""
    return data_dir / "models" / f".{key(name)}.part"


def partials(data_dir: Path) -> list[str]:
    """Models of which a part was downloaded, by the name of their folder."""
    return sorted(folder.name[1:-5] for folder in (data_dir / "models").glob(".*.part") if folder.is_dir())


def _copy(path: Path, target: Path, progress: Progress | None) -> str:
    """Copy a file; returns the hex sha256 of what was copied."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    room(target.parent, total)
    done = 0
    with path.open("rb") as source, target.open("wb") as copied:
        while piece := source.read(PIECE):
            digest.update(piece)
            copied.write(piece)
            done += len(piece)
            if progress is not None:
                progress(done, total)
        copied.flush()
        os.fsync(copied.fileno())
    return digest.hexdigest()


def room(folder: Path, wanted: int) -> None:
    """Raises `StoreFull` if the disk of `folder` has less than `wanted` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise StoreFull(
            f"The model takes {wanted / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free on the disk of {folder.parent}.",
            "Free some space, or set data_dir to a larger disk.",
            wanted,
        )
