"""Everything that has a name in Ollama's dialect, and what `create`, `copy` and `delete` do to it. Reads files: for a thread.

The documents (`readingroom`, `readingroom/<domain>`), the language models of this machine, the embedding model, and the assistants
that are made of them: names with a Modelfile, never copies of a model (`rag/modelfile.py`). The calls are in `ollama_models.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from rag import modelfile, models, prompt, shelf
from rag.domains import Domain, read_domains
from rag.errors import InvalidInput, ModelUnusable, UnknownModel
from rag.gguf import Header
from rag.modelfile import Assistant, Assistants, Modelfile
from rag.models import ModelFile
from server.app import ReadingRoom
from server.routes.dialect import ROOM, shown, wrong
from server.routes.ollama_wire import Message, stamp
from server.scopes import Caller

# A model stays in memory while there is room, so it never expires.
_NEVER = "9999-12-31T23:59:59Z"


class Details(msgspec.Struct):
    """What a model is, in short. `parent_model`: what an assistant is made from, what the documents are answered with."""

    parent_model: str = ""
    format: str = "gguf"
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class Listed(msgspec.Struct):
    """A line of the list; `size` in bytes."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Loaded(msgspec.Struct):
    """One that is in memory; `size_vram` is 0 where there is no GPU."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int = 0


class Shown(msgspec.Struct):
    """All that is known of one. `template` is the model's own chat template, in Jinja."""

    modelfile: str
    parameters: str
    template: str
    system: str
    license: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    messages: list[Message]


def unknown(name: str) -> UnknownModel:
    """In Ollama's words, which its clients look for."""
    return UnknownModel(f"model '{name}' not found.", "GET /api/tags lists those there are.")


@dataclass(frozen=True, slots=True)
class Known:
    """Something that has a name. `file` is how it is made; `model` its file, None for a model on another server.

    `rules`: what the documents are answered by, where that is not the file's SYSTEM.
    """

    name: str
    file: Modelfile
    model: ModelFile | None
    digest: str
    modified_at: float
    capabilities: tuple[str, ...] = ("completion",)
    rules: str = ""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return (self.model.card.bytes if self.model.card else self.model.bytes) if self.model else 0

    def details(self) -> Details:
        """In short, from its header, or its card where it is no GGUF file."""
        parent = self.file.base if self.file.base != self.name else self.model.name if self.model and self.model.name != self.name else ""
        if self.model is None:
            return Details(parent, "")
        card, header = self.model.card, header_of(self.model)
        if header is None:
            family = card.architecture if card else ""
            return Details(parent, "safetensors", family, [family], card.parameters if card else "", card.quantization if card else "")
        size = header.size_label or (card.parameters if card else "") or f"{header.parameters / 1e9:.2g}B"
        return Details(parent, "gguf", header.architecture, [header.architecture], size, header.quantization)

    def listed(self) -> Listed:
        """As a line of the list."""
        return Listed(self.name, self.name, stamp(self.modified_at), self.size, self.digest, self.details())

    def loaded(self) -> Loaded:
        """As one that is in memory."""
        return Loaded(self.name, self.name, self.size, self.digest, self.details(), _NEVER)

    def shown(self, *, verbose: bool = False) -> Shown:
        """All of it. Blocks while the header is read."""
        header = header_of(self.model) if self.model else None
        licence = "\n".join(self.file.license)
        if not licence and self.model is not None:
            licence = models.licence_text(self.model) or self.model.licence
        return Shown(
            modelfile=f"# To make one of your own of this, put in place of the FROM line:\n# FROM {self.name}\n\n{self.file}",
            parameters=self.file.parameters_text,
            template=header.chat_template if header else "",
            system=self.rules or self.file.system,
            license=licence,
            details=self.details(),
            model_info=info_of(header, verbose=verbose) if header else {},
            capabilities=[*self.capabilities, *(["tools"] if header and "tools" in header.chat_template else [])],
            modified_at=stamp(self.modified_at),
            messages=[Message(turn.role, turn.content) for turn in self.file.messages],
        )


def header_of(model: ModelFile) -> Header | None:
    """What its file says of itself; None where it is no GGUF file, or none that can be read."""
    try:
        return models.details(model.path) if model.path.is_file() else None
    except ModelUnusable:
        return None


def info_of(header: Header, *, verbose: bool = False) -> dict[str, Any]:
    """The keys of a header, as it has them. Long lists, such as the vocabulary, are left out, and cut with `verbose`."""
    kept = {name: value for name, value in header.values.items() if verbose or not isinstance(value, list) or len(value) < 64}
    return {**kept, "general.parameter_count": header.parameters}


class Catalogue:
    """Everything that has a name in a room, as far as a caller may see it. Reads files, so it is for a thread."""

    def __init__(self, room: ReadingRoom, caller: Caller) -> None:
        self._room = room
        self._caller = caller
        self._data_dir = room.settings.data_dir
        self.assistants = Assistants(self._data_dir)

    def all(self) -> list[Known]:
        """The documents first, then the language models, the embedding model, the assistants."""
        domains = [domain for name, domain in read_domains(self._room.settings.corpora).items() if self._caller.sees(name)]
        found = [self._documents(None), *(self._documents(domain) for domain in domains)]
        default = self._default()
        found += [default, *(_of_model(model) for model in models.installed(self._data_dir) if model.name != default.name)]
        embedder = self._embedder()
        return [
            *found,
            *([embedder] if embedder else []),
            *(self._of_assistant(each) for each in self.assistants.all() if self._shows(each)),
        ]

    def _shows(self, assistant: Assistant) -> bool:
        return shown(assistant.modelfile.base, self._caller)

    def find(self, name: str) -> Known:
        """One by its name, with or without `:latest`. Raises `UnknownModel`, and `Broken` for a damaged assistant."""
        bare = modelfile.bare_name(name.strip())
        assistant = self.assistants.find(bare)
        if assistant is not None and self._shows(assistant):
            return self._of_assistant(assistant)
        return self._base(bare)

    def _base(self, name: str) -> Known:
        if name == ROOM:
            return self._documents(None)
        if name.startswith(f"{ROOM}/"):
            domains = read_domains(self._room.settings.corpora)
            if (domain := name.removeprefix(f"{ROOM}/")) in domains and self._caller.sees(domain):
                return self._documents(domains[domain])
            raise unknown(name)
        for known in (self._embedder(), self._default()):
            if known is not None and known.name.lower() == name.lower():
                return known
        try:
            return _of_model(models.find(name, self._data_dir))
        except UnknownModel as error:
            raise unknown(name) from error

    def _default(self) -> Known:
        """The model that answers from the documents."""
        name = self._room.engine.model
        try:
            return _of_model(models.find(name, self._data_dir))
        except (UnknownModel, ModelUnusable):
            model = self._of_settings()
            return _of_model(replace(model, name=name)) if model else Known(name, Modelfile(name), None, _digest(name), 0.0)

    def _of_settings(self) -> ModelFile | None:
        """The file that the settings name by its path; None if the model is missing, or on another server."""
        settings = self._room.settings.engine
        with contextlib.suppress(ModelUnusable):
            return None if settings.url else models.locate(settings.model, "generator", self._data_dir)
        return None

    def _documents(self, domain: Domain | None) -> Known:
        name = f"{ROOM}/{domain.name}" if domain else ROOM
        model = self._default().model
        if domain and domain.model:
            with contextlib.suppress(UnknownModel, ModelUnusable):
                model = models.find(domain.model, self._data_dir)
        rules = (domain.prompt if domain else "") or prompt.RULES
        digest = _digest(name, rules, model.sha256 if model else "")
        return Known(name, Modelfile(name), model, digest, _modified(model), rules=rules)

    def _embedder(self) -> Known | None:
        try:
            model = models.locate(self._room.settings.embed.model, "embedder")
        except ModelUnusable:
            return None
        return Known(model.name, Modelfile(model.name), model, model.sha256 or _digest(model.name), _modified(model), ("embedding",))

    def _of_assistant(self, assistant: Assistant) -> Known:
        model = None
        with contextlib.suppress(UnknownModel, ModelUnusable):  # it was deleted since
            model = self._base(assistant.modelfile.base).model
        return Known(assistant.name, assistant.modelfile, model, assistant.modelfile.digest, assistant.created_at)

    def checked(self, name: str, file: Modelfile) -> Modelfile:
        """What an assistant of that name would be: on top of the one that it is made from, and of a model that is there.

        Raises `UnknownModel` for what it is made from, `InvalidInput` for the name, a validation error for a template of its own.
        """
        self.check_free(name)
        parent = self.assistants.find(file.base)
        if parent is not None:
            file = file.over(parent.modelfile)
        by_path = next((model.name for model in models.installed(self._data_dir) if str(model.path) == file.base), file.base)
        base = self._base(by_path)
        if "completion" not in base.capabilities:
            raise wrong("from", f"{base.name!r} makes vectors and no answers.")
        if file.template:
            header = header_of(base.model) if base.model else None
            if header is None or header.chat_template.strip() != file.template.strip():
                raise wrong(
                    "template", f"is not that of {base.name!r}. Go templates are not run: leave it out, and the model's own is used."
                )
        return replace(file, base=base.name, template="")

    def copy(self, source: str, destination: str) -> Assistant:
        """An assistant again under another name; of a model or the documents, an assistant that adds nothing to them."""
        self.check_free(destination)
        known = self.find(source)
        assistant = self.assistants.find(source)
        return self.assistants.save(destination, assistant.modelfile if assistant else Modelfile(known.name))

    def delete(self, name: str) -> None:
        """An assistant, or an installed model with its file. Raises `UnknownModel`, `InvalidInput` for what is neither."""
        if self.assistants.find(name) is not None:
            self.assistants.delete(name)
            return
        known = self._base(modelfile.bare_name(name.strip()))
        if known.name == ROOM or known.name.startswith(f"{ROOM}/"):
            raise InvalidInput(f"{known.name!r} stands for documents.", "A domain goes with its folder.")
        if "completion" not in known.capabilities or known.name == self._default().name:
            raise InvalidInput(f"{known.name!r} is in use: answers from the documents need it.", "Set another model first.")
        shelf.remove(known.name, self._data_dir)

    def check_free(self, name: str) -> None:
        """Raises `InvalidInput` if it is no name for an assistant, or names something that is none."""
        bare = modelfile.checked_name(name)
        taken = bare.lower() == ROOM or bare.lower().startswith(f"{ROOM}/")
        if not taken:
            with contextlib.suppress(UnknownModel):
                taken = bool(self._base(bare))
        if taken:
            raise InvalidInput(f"The name {bare!r} is that of a model or of documents.", "Choose another.")


def _of_model(model: ModelFile) -> Known:
    return Known(model.name, Modelfile(model.name), model, model.sha256 or _digest(str(model.path), str(model.bytes)), _modified(model))


def _modified(model: ModelFile | None) -> float:
    try:
        return model.path.stat().st_mtime if model else 0.0
    except OSError:
        return 0.0


def _digest(*parts: str) -> str:
    """For what is no file, or one without a card: hashing gigabytes for a list is not worth it."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
