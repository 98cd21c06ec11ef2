"""Fetching models, only when a person says so: from an address, or from a registry that speaks Ollama's protocol.

    a name of the catalogue -> its reference; `name[:tag]`, `host/namespace/name:tag` -> manifest -> layers; `https://.../file.gguf`

A download goes on where it was broken off, also days later and in another process, and becomes a model only when every byte
is there and has the right sha256 (`rag/shelf.py` puts it into place). Whatever a server does, the answer is a `ReadingRoomError`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from rag import catalogue, gguf, models, shelf
from rag.catalogue import Entry, key
from rag.download import Report, Session, Step, fetch
from rag.errors import Busy, InvalidInput, ModelUnusable, PullFailed, UnknownModel
from rag.models import FILE, LICENCE, ModelFile

REGISTRY = "registry.ollama.ai"
HUGGINGFACE = "https://huggingface.co"

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER = "application/vnd.ollama.image."
# The small layers, and what they are called in the model's folder. Licences may be several.
_TEXTS = {"template": "TEMPLATE", "system": "SYSTEM", "params": "params.json", "license": LICENCE}


@dataclass(frozen=True, slots=True)
class Reference:
    """A model in a registry. `base` is the registry's address, without a slash at its end."""

    base: str
    namespace: str
    name: str
    tag: str
    short: str
    """As people write it: without the default registry, `library` and `latest`."""

    @property
    def source(self) -> str:
        """For the card: host, namespace, name and tag."""
        return f"{urlsplit(self.base).netloc}/{self.namespace}/{self.name}:{self.tag}"


def parse(text: str, registry: str = REGISTRY) -> Reference:
    """Read `name[:tag]`, `namespace/name[:tag]` or `host/namespace/name[:tag]`. Raises `InvalidInput`.

    `registry` is a host, or an address that begins with http:// or https://; without one it is https.
    """
    base = (registry if "://" in registry else f"https://{registry}").rstrip("/")
    *before, last = text.split("/")
    name, _, tag = last.partition(":")
    tag = tag or "latest"
    host = ""
    if len(before) == 2:
        host, namespace = before
    else:
        namespace = before[0] if before else "library"
    parts = (namespace, name, tag)
    if len(before) > 2 or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", part) for part in parts):
        raise InvalidInput(
            f"{text!r} names no model.",
            "Write a name of `readingroom models list --catalogue`, name:tag, host/namespace/name:tag, or https://...",
        )
    if host and not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?", host):
        raise InvalidInput(f"{host!r} in {text!r} is no host.", "Write host/namespace/name:tag.")
    if host and host != urlsplit(base).netloc:
        base = f"https://{host}"
    short = name if tag == "latest" else f"{name}:{tag}"
    if namespace != "library":
        short = f"{namespace}/{short}"
    if urlsplit(base).netloc != REGISTRY and host:
        short = f"{host}/{short}"
    return Reference(base, namespace, name, tag, short)


def pull(
    text: str,
    data_dir: Path,
    *,
    registry: str = REGISTRY,
    name: str = "",
    sha256: str = "",
    huggingface: bool = False,
    report: Report = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> ModelFile:
    """Fetch a model and install it under `name`, or the name it was asked for by. Blocks for as long as the download takes.

    `sha256` (hex) is what the file must have. Without it, and where neither registry nor catalogue say one, that of the bytes
    that came is recorded: the card's `sha256_from` says which. `huggingface` prefers that source of a catalogue's model.
    Raises `PullFailed`, `UnknownModel`, `InvalidInput`, `ModelUnusable` (not a usable model, or damaged), `StoreFull`, `Busy`.
    """
    from filelock import FileLock, Timeout

    sha256 = sha256.lower().removeprefix("sha256:")
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InvalidInput(f"{sha256!r} is no sha256.", "A sha256 has 64 digits, 0 to 9 and a to f.")
    wanted = _wanted(text, registry, sha256, huggingface)
    name = (name or wanted.name).removesuffix(".gguf")
    if not key(name) or any(key(card.name) == key(name) for card in models.CARDS):
        shelf.free_name(name, data_dir)
    (data_dir / "models").mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(data_dir / "models" / f".{key(name)}.lock"))
    try:
        with lock.acquire(timeout=0), Session(wanted.url or (wanted.reference.base if wanted.reference else ""), report, pause) as session:
            return _Pull(session, data_dir, name, wanted).run()
    except Timeout:
        raise Busy(f"{name} is being fetched already.", "Wait for that, or choose another --name.") from None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be fetched: either a registry's reference or an address, and what is known of it beforehand."""

    name: str
    source: str
    reference: Reference | None = None
    url: str = ""
    sha256: str = ""
    sha256_from: str = ""
    entry: Entry | None = None


def _wanted(text: str, registry: str, sha256: str, huggingface: bool) -> _Wanted:
    text = text.strip()
    said = "given" if sha256 else ""
    if re.match(r"https?://", text, re.IGNORECASE):
        return _address(text, sha256, said)
    entry = catalogue.find(text)
    if entry is not None and entry.huggingface and (huggingface or not entry.ollama):
        owner, repository, file = entry.huggingface.split("/")
        url = f"{HUGGINGFACE}/{owner}/{repository}/resolve/main/{quote(file)}"
        known, origin = (sha256, said) if sha256 or not entry.sha256 else (entry.sha256, "catalogue")
        return _Wanted(text, url, None, url, known, origin, entry)
    if huggingface:
        raise InvalidInput(
            f"The catalogue has no file of {text!r} on Hugging Face.", "Leave --huggingface out, or give the file's address."
        )
    reference = parse(entry.ollama if entry else text, registry)
    if entry is None and reference.namespace == "library":
        entry = catalogue.find(f"{reference.name}:{reference.tag}")
    return _Wanted(text if entry and "/" not in text else reference.short, reference.source, reference, "", sha256, said, entry)


def _address(text: str, sha256: str, said: str) -> _Wanted:
    parts = urlsplit(text)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise InvalidInput(f"{text!r} is no address.", "Write https://host/path/file.gguf.")
    path = parts.path
    if host in ("huggingface.co", "hf.co"):
        # The address of the page about a file, which is what people copy; the file itself is one word away.
        path = path.replace("/blob/", "/resolve/", 1)
    url = parts._replace(path=path).geturl()
    # Neither a password nor the token of a signed address belongs into a card.
    place = host if parts.port is None else f"{host}:{parts.port}"
    source = f"{parts.scheme.lower()}://{place}{path}"
    stem = unquote(path.rsplit("/", 1)[-1])
    return _Wanted(re.sub(r"\.gguf$", "", stem, flags=re.IGNORECASE), source, None, url, sha256, said)


class _Pull:
    """One pull, with its name's lock held."""

    def __init__(self, session: Session, data_dir: Path, name: str, wanted: _Wanted) -> None:
        self._session = session
        self._data_dir = data_dir
        self._name = name
        self._wanted = wanted

    def run(self) -> ModelFile:
        wanted, session = self._wanted, self._session
        layers: dict[str, list[_Layer]] = {}
        url, digest, digest_from, size = wanted.url, wanted.sha256, wanted.sha256_from, 0
        if wanted.reference is not None:
            session.report(Step("pulling manifest"))
            layers = _layers(session, wanted.reference)
            layer = _model_layer(layers, wanted.reference)
            url, size = _blob(wanted.reference, layer), layer.size
            if digest and digest != layer.digest:
                raise InvalidInput(
                    f"The registry's file has the sha256 {layer.digest[:12]}..., not {digest[:12]}...", "Correct --sha256, or leave it out."
                )
            digest, digest_from = layer.digest, digest_from or "registry"
        present = self._present(digest)
        if present is not None:
            session.report(Step("up to date"))
            return present
        with shelf.staging(self._name, self._data_dir, keep=True) as folder:
            got = fetch(session, url, folder / FILE, digest=digest, size=size)
            digest, digest_from = got.sha256, digest_from or ("server" if got.announced else "recorded")
            header = self._checked(folder / FILE)
            licence_text = self._texts(layers, folder)
            card = shelf.card_of(
                header,
                name=self._name,
                source=wanted.source,
                digest=digest,
                digest_from=digest_from,
                size=(folder / FILE).stat().st_size,
                entry=wanted.entry,
                licence_text=licence_text,
            )
            session.report(Step("writing card"))
            model = shelf.publish(folder, card, self._data_dir)
        models.stamp(model)
        session.report(Step("success"))
        return model

    def _present(self, digest: str) -> ModelFile | None:
        """The model if it is here already, byte for byte. Raises `InvalidInput` if another one has its name."""
        try:
            model = models.find(self._name, self._data_dir)
        except (UnknownModel, ModelUnusable):  # a broken card is replaced
            return None
        if model.card is not None and model.card.source != self._wanted.source:
            shelf.free_name(self._name, self._data_dir)
        if not digest or model.sha256 != digest:
            return None
        try:
            models.verify(model)
        except ModelUnusable:
            return None
        return model

    def _checked(self, file: Path) -> gguf.Header:
        try:
            header = models.details(file)
            shelf.check_usable(header, self._name)
        except ModelUnusable:
            file.unlink()
            raise
        return header

    def _texts(self, layers: dict[str, list[_Layer]], folder: Path) -> str:
        """Fetch the small layers into the folder; returns the licences' text."""
        reference = self._wanted.reference
        licences = ""
        for kind, file in _TEXTS.items():
            texts = [self._session.small(_blob(reference, layer), layer.digest) for layer in layers.get(kind, ()) if reference]
            if texts:
                joined = "\n\n".join(text.decode("utf-8", "replace") for text in texts)
                (folder / file).write_text(joined, encoding="utf-8")
                licences = joined if kind == "license" else licences
        for n, layer in enumerate(layers.get("adapter", ()), 1):
            # Part of the reference, and of use as an adapter of its own; it is not applied by itself.
            if reference is not None:
                fetch(self._session, _blob(reference, layer), folder / f"adapter-{n}.gguf", digest=layer.digest, size=layer.size)
        return licences


@dataclass(frozen=True, slots=True)
class _Layer:
    digest: str
    size: int


def _blob(reference: Reference, layer: _Layer) -> str:
    return f"{reference.base}/v2/{reference.namespace}/{reference.name}/blobs/sha256:{layer.digest}"


def _layers(session: Session, reference: Reference) -> dict[str, list[_Layer]]:
    """The layers of a model by kind (`model`, `license`, ...), as its manifest lists them."""
    url = f"{reference.base}/v2/{reference.namespace}/{reference.name}/manifests/{reference.tag}"
    body = session.small(url, accept=_MANIFEST, missing=UnknownModel(
        f"{urlsplit(reference.base).netloc} has no model {reference.short!r}.",
        "Check its name and tag; `readingroom models list --catalogue` has some that exist.",
    ))  # fmt: skip
    found: dict[str, list[_Layer]] = {}
    try:
        for layer in json.loads(body)["layers"]:
            kind, digest, size = str(layer["mediaType"]), str(layer["digest"]), int(layer["size"])
            if not kind.startswith(_LAYER):
                continue
            # The digest becomes part of addresses and file names.
            if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or size < 0:
                raise ValueError(digest)
            found.setdefault(kind.removeprefix(_LAYER), []).append(_Layer(digest.removeprefix("sha256:"), size))
    except (ValueError, KeyError, TypeError) as error:
        raise PullFailed(
            f"What {urlsplit(url).netloc} sent is no manifest of a model.", "Check the registry; is it one of Ollama's kind?"
        ) from error
    return found


def _model_layer(layers: dict[str, list[_Layer]], reference: Reference) -> _Layer:
    files = layers.get("model", [])
    if len(files) == 1:
        return files[0]
    what = "holds no GGUF file" if not files else f"is split over {len(files)} files"
    raise PullFailed(f"{reference.short} {what}.", "Choose another tag, or the address of one GGUF file.")
