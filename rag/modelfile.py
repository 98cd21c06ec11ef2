"""Modelfiles, as Ollama has them, and the assistants that are made of them: a model with its own instructions, by a name.

    FROM readingroom/handbook
    SYSTEM \"\"\"You are polite and brief.\"\"\"
    PARAMETER temperature 0.2
    MESSAGE user Hello
    MESSAGE assistant Good day. What are you looking for?

`parse` reads the text, `str` of a `Modelfile` writes it. `Assistants` keeps them, one JSON file each, in
`data_dir/assistants`. What an assistant is made from and how it answers is `server/routes/ollama.py`'s business: no model
is looked for here, and no template is run. The format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

import msgspec

from rag.errors import Broken, InvalidInput, UnknownModel
from rag.records import Turn

log = logging.getLogger(__name__)

Value = bool | int | float | tuple[str, ...]

# Parameters that change how an answer is written: kind, least and largest value.
_USED: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 5),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "top_k": (int, 0, 2**31 - 1),
    "repeat_penalty": (float, 0.1, 10),
    "frequency_penalty": (float, -10, 10),
    "presence_penalty": (float, -10, 10),
    "seed": (int, -(2**63), 2**63 - 1),
    "num_predict": (int, -2, 2**31 - 1),
    "stop": (tuple, 0, 0),
}

# Known to Ollama and taken, so that its Modelfiles can be used as they are; here they are settings of the service or nothing.
_WITHOUT_EFFECT = {
    "num_ctx", "num_keep", "num_batch", "num_gpu", "num_gqa", "main_gpu", "num_thread", "numa", "use_mmap", "use_mlock", "low_vram",
    "f16_kv", "vocab_only", "logits_all", "embedding_only", "penalize_newline", "repeat_last_n", "tfs_z", "typical_p",
    "mirostat", "mirostat_tau", "mirostat_eta",
}  # fmt: skip

_SPACE = " \t\r"
_COMMAND = re.compile(r"([A-Za-z]+)[ \t]+(?=[^ \t\r])")
_WORD = re.compile(r"(\w+)[ \t]+(?=[^ \t\r])")
# A closing mark ends its line, so quotation marks may stand within.
_QUOTED = (re.compile(r'"""(.*?)"""[ \t\r]*(?:\n|\Z)', re.DOTALL), re.compile(r'"(.*?)"[ \t\r]*(?:\n|\Z)', re.DOTALL))
_COMMANDS = ("FROM", "SYSTEM", "PARAMETER", "TEMPLATE", "ADAPTER", "MESSAGE", "LICENSE")
_ROLES = ("system", "user", "assistant")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_LATEST = ":latest"


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says. `base` is FROM; `adapter` is as `rag/adapters.py` reads it; `messages` are the turns that come first."""

    base: str
    system: str = ""
    template: str = ""
    adapter: str = ""
    parameters: dict[str, Value] = field(default_factory=dict)
    messages: tuple[Turn, ...] = ()
    license: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The text of it. `parse` reads it back, but for texts in which a line ends with three quotation marks."""
        lines = [f"FROM {_written(self.base)}"]
        for command in ("template", "system", "adapter"):
            if text := getattr(self, command):
                lines.append(f"{command.upper()} {_written(text)}")
        lines += [f"PARAMETER {name} {text}" for name, text in _lines(self.parameters)]
        lines += [f"MESSAGE {turn.role} {_written(turn.content)}" for turn in self.messages]
        lines += [f"LICENSE {_written(text)}" for text in self.license]
        return "\n".join(lines) + "\n"

    @property
    def parameters_text(self) -> str:
        """The parameters as `ollama show` prints them."""
        return "\n".join(f"{name:<30} {text}" for name, text in _lines(self.parameters))

    @property
    def digest(self) -> str:
        """Hex sha256 of what it says."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def over(self, parent: Modelfile) -> Modelfile:
        """It on top of the assistant that it is made from: what it leaves out is as there."""
        return Modelfile(
            parent.base,
            self.system or parent.system,
            self.template or parent.template,
            self.adapter or parent.adapter,
            {**parent.parameters, **self.parameters},
            self.messages or parent.messages,
            self.license or parent.license,
        )


def parse(text: str) -> Modelfile:
    """Read a Modelfile. Commands in any case and order; `#` begins a line of comment; later values win, `stop`, ADAPTER,
    MESSAGE and LICENSE gather. Raises `InvalidInput` that names the line."""
    found: dict[str, list[str]] = {command: [] for command in _COMMANDS}
    parameters: dict[str, Value] = {}
    messages: list[Turn] = []
    for line, command, value in _commands(text.removeprefix("\ufeff")):
        if command == "PARAMETER":
            name = value[0].lower()
            _gather(parameters, _checked(name, _typed(name, value[1], f"Line {line}"), f"Line {line}"))
        elif command == "MESSAGE":
            role = value[0].lower()
            if role not in _ROLES:
                raise InvalidInput(f"Line {line}: the role {value[0]!r} is not one of: {', '.join(_ROLES)}.", "Correct that line.")
            messages.append(Turn(role, value[1]))  # type: ignore[arg-type]
        else:
            found[command].append(value[1])
    if not found["FROM"] or not found["FROM"][-1].strip():
        raise InvalidInput("The Modelfile has no FROM line.", "Begin it with FROM and the name of a model.")
    last = {command: (values or [""])[-1] for command, values in found.items()}
    return Modelfile(
        last["FROM"].strip(),
        last["SYSTEM"],
        last["TEMPLATE"],
        "+".join(filter(None, found["ADAPTER"])),
        parameters,
        tuple(messages),
        tuple(found["LICENSE"]),
    )


def _commands(text: str) -> Iterator[tuple[int, str, tuple[str, str]]]:
    """Each command with the number of its line, and its value: (first word, rest) for PARAMETER and MESSAGE, else ("", value)."""
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        # White space before a command is not part of it.
        start = at + len(text[at:end]) - len(text[at:end].lstrip(_SPACE))
        line = text.count("\n", 0, at) + 1
        if start >= end or text[start] == "#":
            at = end + 1
            continue
        command = re.match(r"\S+", text[start:end])
        name = command.group().upper() if command else ""
        if name not in _COMMANDS:
            raise InvalidInput(f"Line {line}: {text[start:end].strip()[:40]!r} is no command.", f"Commands: {', '.join(_COMMANDS)}.")
        match = _COMMAND.match(text, start, end)
        word = ""
        if match and name in ("PARAMETER", "MESSAGE"):
            first = _WORD.match(text, match.end(), end)
            word = first.group(1) if first else ""
            match = first
        if match is None:
            raise InvalidInput(f"Line {line}: {name} has no value.", 'Write it after the command; `""` is an empty one.')
        value, at = _value(text, match.end(), end, f"Line {line}")
        yield line, name, (word, value)


def _value(text: str, start: int, end: int, where: str) -> tuple[str, int]:
    """The value that begins at `start`, and where the next line begins: to the end of the line, or to its closing mark."""
    if text[start] != '"':
        return text[start:end].rstrip(_SPACE), end + 1
    match = _QUOTED[0 if text.startswith('"""', start) else 1].match(text, start)
    if match is None:
        raise InvalidInput(f"{where}: the quotation is not closed.", "End it with the mark it begins with, at the end of a line.")
    return match.group(1).replace("\r\n", "\n"), match.end()


def _written(value: str) -> str:
    if value and "\n" not in value and value[0] != '"' and value == value.strip(_SPACE):
        return value
    return f'"""{value}"""' if '"' in value else f'"{value}"'


def _lines(parameters: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    for name, value in parameters.items():
        if isinstance(value, tuple):
            yield from ((name, _written(item)) for item in value)
        else:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)


def checked_parameters(values: Mapping[str, object], *, strict: bool) -> dict[str, Value]:
    """Parameters of a call in their types, without those that are null. Raises `InvalidInput` that names key and value.

    An unknown one is an error where `strict`, else left out: clients send options of many servers along.
    """
    found: dict[str, Value] = {}
    for name, value in values.items():
        if value is not None and (strict or name in _USED):
            found |= _checked(name, value, "The parameters")
    return found


def _typed(name: str, text: str, where: str) -> object:
    """A value of a Modelfile in the type of its parameter."""
    kind = _USED[name][0] if name in _USED else None
    if kind is tuple or name not in _USED.keys() | _WITHOUT_EFFECT:
        return text
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    if kind is None and text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise InvalidInput(f"{where}: {name} is {text!r}, which is not a number.", "Correct its value.")


def _checked(name: str, value: object, where: str) -> dict[str, Value]:
    if name not in _USED:
        if name not in _WITHOUT_EFFECT:
            raise InvalidInput(f"{where}: there is no parameter {name!r}.", f"Known ones: {', '.join(_USED)}.")
        if not isinstance(value, bool | int | float):
            raise InvalidInput(f"{where}: {name} is {value!r}.", "Give it a number, true or false.")
        return {name: value}
    kind, low, high = _USED[name]
    if kind is tuple:
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise InvalidInput(f"{where}: {name} is {value!r}.", "Give it a text or a list of texts.")
        return {name: tuple(item for item in items if item)}
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (kind is int and number != int(number)):
        wanted = "a whole number" if kind is int else "a number"
        raise InvalidInput(f"{where}: {name} is {value!r}.", f"Give it {wanted} in {low} to {high}.")
    return {name: kind(number)}


def _gather(into: dict[str, Value], more: Mapping[str, Value]) -> None:
    for name, value in more.items():
        before = into.get(name)
        into[name] = before + value if isinstance(before, tuple) and isinstance(value, tuple) else value


def bare_name(name: str) -> str:
    """A name without Ollama's `:latest`, which every name may have."""
    return name[: -len(_LATEST)] if name.lower().endswith(_LATEST) else name


def checked_name(name: str) -> str:
    """The name of an assistant, without `:latest`. Letters, digits and `._-`, in parts between `/`, with a `:tag` at most.

    Raises `InvalidInput`: it becomes the name of a file.
    """
    bare = bare_name(name)
    stem, _, tag = bare.partition(":")
    parts = [*stem.split("/"), *([tag] if ":" in bare else [])]
    if len(bare) > 120 or len(parts) > 4 or ".." in bare or not all(_PART.fullmatch(part) for part in parts):
        raise InvalidInput(f"The name {name[:130]!r} is invalid.", "Use letters, digits and ._- in it, and / and :tag between parts.")
    return bare


@dataclass(frozen=True, slots=True)
class Assistant:
    """A named Modelfile. `created_at` in seconds since the epoch."""

    name: str
    modelfile: Modelfile
    created_at: float


class Assistants:
    """The assistants of a data directory. Names are compared without regard to case. Safe from any thread and process.

    Every read is a read of the file, so one that another process made is there at once.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "assistants"

    def all(self) -> tuple[Assistant, ...]:
        """All, by name. A damaged file is left out, with a line in the log."""
        found = []
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []:
            try:
                found.append(_read(path))
            except FileNotFoundError:  # deleted at this moment
                continue
            except Broken as error:
                log.warning("%s %s", error.message, error.remedy)
        return tuple(sorted(found, key=lambda assistant: assistant.name.lower()))

    def find(self, name: str) -> Assistant | None:
        """The one of that name, with or without `:latest`; None if there is none. Raises `Broken` for a damaged file."""
        try:
            return _read(self._path(checked_name(name)))
        except (InvalidInput, FileNotFoundError):  # what is no name of an assistant may be one of a model's
            return None

    def save(self, name: str, modelfile: Modelfile) -> Assistant:
        """Keep it under that name, in the place of one that was there. Raises `InvalidInput` for the name."""
        assistant = Assistant(checked_name(name), modelfile, time.time())
        path = self._path(assistant.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}.part")
        try:
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(assistant)))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return assistant

    def copy(self, source: str, destination: str) -> Assistant:
        """The same under another name. Raises `UnknownModel`, `InvalidInput`."""
        assistant = self.find(source)
        if assistant is None:
            raise _unknown(source)
        return self.save(destination, assistant.modelfile)

    def delete(self, name: str) -> None:
        """Raises `UnknownModel`."""
        try:
            self._path(checked_name(name)).unlink()
        except (InvalidInput, FileNotFoundError) as error:
            raise _unknown(name) from error

    def _path(self, name: str) -> Path:
        # Lower case: two names that differ in case alone would be one file on a Mac.
        return self._folder / f"{quote(name.lower(), safe='')}.json"


def _read(path: Path) -> Assistant:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Assistant)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Broken(f"The assistant's file {path.name} is damaged: {error}.", "Delete it, and create the assistant again.") from error


def _unknown(name: str) -> UnknownModel:
    return UnknownModel(f"model '{name}' not found.", "GET /api/tags lists those there are.")
