"""Settings: frozen dataclasses, loaded once at the composition root and passed down.

`load(toml, env, flags)` merges, later wins: defaults, `readingroom.toml`, `READINGROOM_<SECTION>__<KEY>`
variables, command-line flags. An unknown key or a value of the wrong type raises `InvalidSettings` that names both.
What belongs to one domain (prompt, adapter, threshold) is not here but in its `domain.toml`: see `rag/domains.py`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from rag.errors import InvalidSettings

PREFIX = "READINGROOM_"


@dataclass(frozen=True, slots=True)
class Server:
    """`[server]`: where the service listens and what it accepts."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine needs `key`."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    key: str = ""
    """An administrator's key. Where it or any other key is set, a call must carry one: `Authorization: Bearer ...`."""
    trusted_proxies: str = ""
    """Addresses or networks, with commas, of proxies whose `X-Forwarded-For` is believed (`10.0.0.2, 172.16.0.0/12`)."""
    max_upload_mb: int = 64
    """Largest file that `POST /rag/documents` takes, in MiB."""
    max_question_chars: int = 8000
    """Longest question, in characters."""
    usage_days: int = 400
    """How long the daily usage of each key is kept, in days."""
    audit_days: int = 400
    """How long the audit log of administrative acts is kept, in days."""
    stop_s: int = 30
    """How long running answers may take to end when the service is told to stop, in seconds; new questions are answered 503 meanwhile."""


@dataclass(frozen=True, slots=True)
class Ingest:
    """`[ingest]`: how files become passages."""

    settle_ms: int = 200
    """A file is read once its size and time stand still for this long, in milliseconds."""
    reconcile_s: int = 300
    """Every so many seconds the whole folder is compared with the ledger, events or not."""
    polling: bool = False
    """Poll instead of using file events (network mounts); chosen by itself where events cannot be had."""
    max_file_mb: int = 256
    """Larger files become `failed`, in MiB."""
    parse_timeout_s: int = 45
    """A parser that gets no further with a file is stopped after this many seconds; each page read counts as further."""
    parse_longest_s: int = 1800
    """A parser is stopped after this many seconds on one file in any case (a long scan takes a second a page)."""
    parse_memory_mb: int = 4096
    """Address space of a parser process, in MiB."""
    max_members: int = 10000
    """Files that may lie in one archive or mail; one with more becomes `failed`."""
    max_unpacked_mb: int = 1024
    """Size of those files together, unpacked, in MiB."""
    max_depth: int = 3
    """How deep they may lie: an archive in an archive in a mail is 3."""
    chunk_tokens: int = 200
    """Most tokens of text in a chunk, in the embedder's own count; headings come on top (model limit: 256)."""
    batch_chunks: int = 256
    """Chunks embedded and stored together, across documents."""


@dataclass(frozen=True, slots=True)
class Embed:
    """`[embed]`: the embedding model."""

    model: str = "all-MiniLM-L6-v2"
    """A name from `rag/models.py`, a folder, or a sentence-transformers name that is on this machine."""
    backend: str = "auto"
    """Runs it: `onnx` (8-bit weights, BERT encoders), `torch` (any model, slower), or `auto`: onnx where the model's files allow it."""
    threads: int = 0
    """CPU threads; 0 is all cores."""
    query_prefix: str = ""
    """Put before a question; some models (E5, BGE) want one."""
    passage_prefix: str = ""
    """Put before a passage."""


@dataclass(frozen=True, slots=True)
class Store:
    """`[store]`: where passages are kept."""

    url: str = ""
    """Empty: Qdrant Edge in `data_dir/store`. Otherwise the address of a Qdrant server or cluster (`http://127.0.0.1:6333`)."""
    collection: str = "readingroom"
    """Name of the collection there; of one data directory alone."""
    api_key: str = field(default="", repr=False)
    """The server's API key, if it wants one. For the environment (READINGROOM_STORE__API_KEY)."""
    timeout_s: int = 10
    """How long the server may take for one call."""


@dataclass(frozen=True, slots=True)
class Retrieve:
    """`[retrieve]`: how passages are found."""

    passages: int = 4
    """Passages found for an answer, unless the call or the domain says otherwise."""
    focus: float = 0.88
    """The model reads only passages that score at least this share of the best one; 0 gives it all of them."""
    candidates: int = 50
    """Candidates taken from each of the two searches before fusion."""
    dense_weight: float = 1.0
    """Weight of the vector search in the fused score; only its share of both weights counts."""
    bm25_weight: float = 1.0
    """Weight of the BM25 search in the fused score."""
    abstain_below: float = 0.5
    """Probability that the documents hold the answer (0..1, see `rag/gate.py`) under which it is a refusal; a domain may set its own."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """`[rerank]`: the second look at the best passages, which orders them anew."""

    model: str = "reranker"
    """The one that comes along; or the folder or name of a CrossEncoder of sentence-transformers on this machine. Empty: none."""
    candidates: int = 20
    """Passages that are looked at again at most, before the best of them are kept: those that the search puts near its first."""
    weight: float = 0.3
    """Share of the second look in a passage's score, 0 to 1; the rest is the search's."""
    tokens: int = 64
    """Read of each passage: its sentences nearest to the question. A CrossEncoder reads all."""
    read: int = 4
    """Of the passages in their new order, so many are read whole, until one seems to hold the answer; 0 leaves that to the search."""
    read_weight: float = 0.12
    """Share in those passages' score of the chance that they hold the answer, 0 to 1."""
    threads: int = 0
    """CPU threads; 0 is all cores."""


@dataclass(frozen=True, slots=True)
class Cite:
    """`[cite]`: how answers are checked against the documents."""

    withhold_above: float = 0.5
    """The answer is withheld, and the refusal told, where more than this share of its sentences is unsupported; 1 withholds none."""


@dataclass(frozen=True, slots=True)
class Engine:
    """`[engine]`: the language model that writes answers."""

    model: str = "smollm2-135m-instruct"
    """A name from `rag/models.py` or the path of a GGUF file."""
    adapter: str = "auto"
    """The LoRA adapter that answers from documents, unless the call or the domain names one; `auto`: the model's own; `none`."""
    context_tokens: int = 2048
    """Tokens of prompt and answer together, for each answer that runs at the same time."""
    sequences: int = 0
    """Answers that run at the same time; 0 is two for each core, as far as memory goes."""
    queue: int = 32
    """Questions that may wait; one more is answered 503."""
    threads: int = 0
    """CPU threads; 0 is all cores."""
    gpu_layers: int = -1
    """Layers on the GPU, if llama.cpp was built for one; -1 is all, 0 none."""
    max_tokens: int = 256
    """Longest answer, unless the call says otherwise."""
    temperature: float = 0.0
    """0 is greedy: the same question gets the same answer."""
    deadline_s: int = 300
    """An answer ends after so many seconds with what it has; `finish_reason` is then `length`."""
    memory_mb: int = 0
    """What the loaded models may take together, in MiB; the one longest unused leaves for another. 0 is half of the machine's."""
    url: str = ""
    """Empty: the built-in engine. Otherwise an OpenAI-compatible server that writes the answers (`http://127.0.0.1:8080/v1`)."""
    key: str = ""
    """Sent to that server as `Authorization: Bearer ...`."""
    timeout_s: int = 60
    """How long that server may be silent."""
    requantize: bool = True
    """Rewrite a file whose format this CPU reads slowly to Q8_0 once, cached in `data_dir/models`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`, for each client address; `[plans.NAME]`, for each key of that plan. 0 is no limit."""

    requests_per_minute: int = 0
    """Calls in any 60 seconds."""
    streams: int = 0
    """Answers that are written at the same time."""
    tokens_per_day: int = 0
    """Tokens read and written for answers in a day (UTC)."""
    upload_mb_per_day: int = 0
    """Uploads in a day (UTC), in MiB."""


PLANS: Mapping[str, Limits] = MappingProxyType(
    {"unlimited": Limits(), "site": Limits(requests_per_minute=120, streams=4, tokens_per_day=500_000)}
)
"""The plans that are there without being set. `site` is that of public keys: enough for a small site, and a bound to what a visitor can
cost. 500,000 tokens are some 500 answers of the default size. A plan of that name in the settings takes its place."""


@dataclass(frozen=True, slots=True)
class Conversations:
    """`[conversations]`: whether questions and answers are kept."""

    keep: bool = True
    """Keep conversations in `data_dir/conversations.db`; false: nothing is written, a conversation lasts as long as its page."""
    expire_days: int = 0
    """Delete a conversation so many days after its last question; 0 is never."""


@dataclass(frozen=True, slots=True)
class Log:
    """`[log]`: what a server writes to its standard error."""

    format: str = "console"
    """`console`: lines for people; `json`: an object a line, for programs that collect logs."""
    level: str = "info"
    """The least that is written: `debug`, `info`, `warning` or `error`."""
    access: bool = True
    """A line for each call: method, path without its query, status, time. Never what was asked."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """`[encryption]`: whether the data directory is encrypted (`rag/seal.py`). Both empty: it is not."""

    key: str = field(default="", repr=False)
    """Its key, 16 characters or more. For the environment, not for a file that lies beside the data."""
    key_file: str = ""
    """Or a file with the key, which nobody else may read."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything, with the two folders that the rest is relative to."""

    data_dir: Path = Path(".readingroom")
    """State: `store/`, `ledger.db`, `models/` are rebuilt from `corpora` when they are deleted; `conversations.db` is not."""
    corpora: Path = Path("corpora")
    """The watched folder; each sub-folder is a domain."""
    ephemeral: bool = False
    """Keep nothing: the index and conversations are in a private temporary folder that is gone when the program ends."""
    server: Server = field(default_factory=Server)
    ingest: Ingest = field(default_factory=Ingest)
    embed: Embed = field(default_factory=Embed)
    store: Store = field(default_factory=Store)
    retrieve: Retrieve = field(default_factory=Retrieve)
    cite: Cite = field(default_factory=Cite)
    rerank: Rerank = field(default_factory=Rerank)
    engine: Engine = field(default_factory=Engine)
    conversations: Conversations = field(default_factory=Conversations)
    encryption: Encryption = field(default_factory=Encryption)
    log: Log = field(default_factory=Log)
    limits: Limits = field(default_factory=Limits)
    plans: Mapping[str, Limits] = field(default_factory=lambda: dict(PLANS), hash=False)
    """The plans that keys may have, by name."""


def load(toml: Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings from a TOML file, the environment and flags (dotted keys: `server.port`).

    `toml=None` reads `readingroom.toml` of the working directory if it is there; a named file must exist.
    Raises `InvalidSettings`.
    """
    merged: dict[str, Any] = {}
    path = toml or Path("readingroom.toml")
    if toml is not None and not toml.is_file():
        raise InvalidSettings(f"There is no settings file at {toml}.", "Correct --config, or leave it out.")
    if path.is_file():
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidSettings(f"{path} is not valid TOML: {error}.", "Correct that line.") from error
        for key, value in tree.items():
            if key == "plans" and isinstance(value, dict):
                merged.update({f"plans.{name}.{inner}": item for name, plan in value.items() for inner, item in _table(name, plan)})
            elif isinstance(value, dict):
                merged.update({f"{key}.{inner}": item for inner, item in value.items()})
            else:
                merged[key] = value
    for name, text in (os.environ if env is None else env).items():
        if name.startswith(PREFIX):
            merged[name[len(PREFIX) :].lower().replace("__", ".")] = text
    merged.update({key: value for key, value in (flags or {}).items() if value is not None})
    return _build(merged)


def _table(name: str, plan: object) -> Iterable[tuple[str, Any]]:
    if not isinstance(plan, dict):
        raise InvalidSettings(f"Setting 'plans.{name}' is {plan!r}, which is not a plan.", f"Write a table: [plans.{name}].")
    return plan.items() or [("requests_per_minute", 0)]  # a plan without limits is one, too


def _build(values: Mapping[str, Any]) -> Settings:
    hints = typing.get_type_hints(Settings)
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        owner = Limits if section.startswith("plans.") else hints.get(section) if section else Settings
        names = {f.name for f in dataclasses.fields(owner)} if owner and dataclasses.is_dataclass(owner) else set()
        if name not in names or (not section and (name == "plans" or dataclasses.is_dataclass(hints[name]))):
            raise InvalidSettings(f"Unknown setting {key!r}.", "See `corpora/guide/operations.md` for the list, or remove it.")
        typed = _convert(key, value, typing.get_type_hints(owner)[name])
        (sections.setdefault(section, {}) if section else top)[name] = typed
    plans = {name.removeprefix("plans."): Limits(**fields) for name, fields in sections.items() if name.startswith("plans.")}
    built = {name: hints[name](**fields) for name, fields in sections.items() if not name.startswith("plans.")}
    settings = Settings(**top, **built, plans={**PLANS, **plans})
    _check(settings)
    return settings


def _convert(key: str, value: Any, kind: type) -> Any:
    wrong = InvalidSettings(f"Setting {key!r} is {value!r}, which is not {_WORDS[kind]}.", "Correct its value.")
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise wrong
    if isinstance(value, bool):
        raise wrong
    if kind is Path:
        if isinstance(value, (str, Path)) and str(value):
            return Path(value).expanduser()
        raise wrong
    if kind is str:
        if isinstance(value, str):
            return value
        raise wrong
    try:
        if isinstance(value, float) and kind is int:
            raise wrong
        return kind(value)
    except (TypeError, ValueError):
        raise wrong from None


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}

# Qdrant takes more signs, some of which are none in an address or a file's name.
_COLLECTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

_WORDS_OF = {
    "embed.backend": ("auto", "onnx", "torch"),
    "log.format": ("console", "json"),
    "log.level": ("debug", "info", "warning", "error"),
}

_RANGES = {
    "server.port": (0, 65535),
    "server.max_upload_mb": (1, 100_000),
    "server.max_question_chars": (1, 1_000_000),
    "server.usage_days": (1, 100_000),
    "server.audit_days": (1, 100_000),
    "server.stop_s": (0, 3600),
    "ingest.settle_ms": (0, 60_000),
    "ingest.reconcile_s": (1, 86_400),
    "ingest.max_file_mb": (1, 100_000),
    "ingest.parse_timeout_s": (1, 86_400),
    "ingest.parse_longest_s": (1, 86_400),
    "ingest.max_members": (0, 100_000),
    "ingest.max_unpacked_mb": (1, 100_000),
    "ingest.max_depth": (0, 10),
    "ingest.parse_memory_mb": (512, 1_000_000),
    "ingest.chunk_tokens": (32, 8192),
    "ingest.batch_chunks": (1, 100_000),
    "embed.threads": (0, 1024),
    "store.timeout_s": (1, 600),
    "retrieve.passages": (1, 50),
    "retrieve.focus": (0, 1),
    "retrieve.candidates": (1, 1000),
    "retrieve.dense_weight": (0, 1000),
    "retrieve.bm25_weight": (0, 1000),
    "retrieve.abstain_below": (0, 1),
    "cite.withhold_above": (0, 1),
    "rerank.candidates": (1, 200),
    "rerank.weight": (0, 1),
    "rerank.tokens": (16, 400),
    "rerank.read": (0, 50),
    "rerank.read_weight": (0, 1),
    "rerank.threads": (0, 1024),
    "engine.context_tokens": (256, 1_000_000),
    "engine.sequences": (0, 64),
    "engine.queue": (0, 10_000),
    "engine.threads": (0, 1024),
    "engine.gpu_layers": (-1, 10_000),
    "engine.max_tokens": (1, 1_000_000),
    "engine.temperature": (0, 5),
    "engine.deadline_s": (1, 86_400),
    "engine.memory_mb": (0, 10_000_000),
    "engine.timeout_s": (1, 86_400),
    "conversations.expire_days": (0, 36_500),
    "limits.requests_per_minute": (0, 1_000_000),
    "limits.streams": (0, 10_000),
    "limits.tokens_per_day": (0, 1_000_000_000_000),
    "limits.upload_mb_per_day": (0, 100_000_000),
}


def _check(settings: Settings) -> None:
    if settings.store.url:
        _check_store(settings.store)
    for key, words in _WORDS_OF.items():
        section, name = key.split(".")
        if (word := getattr(getattr(settings, section), name)) not in words:
            raise InvalidSettings(f"Setting '{key}' is {word!r}.", f"Use one of: {', '.join(words)}.")
    if settings.encryption.key and settings.encryption.key_file:
        raise InvalidSettings("Settings 'encryption.key' and 'encryption.key_file' are both set.", "Leave one of them out.")
    for network in filter(None, map(str.strip, settings.server.trusted_proxies.split(","))):
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise InvalidSettings(
                f"Setting 'server.trusted_proxies' has {network!r}, which is no address or network.", "Write 10.0.0.2 or 10.0.0.0/8."
            ) from None
    for key, (low, high) in _RANGES.items():
        section, name = key.split(".")
        owners = {section: getattr(settings, section)}
        if section == "limits":
            owners |= {f"plans.{plan}": limits for plan, limits in settings.plans.items()}
        for owner, values in owners.items():
            value = getattr(values, name)
            if not low <= value <= high:
                raise InvalidSettings(f"Setting '{owner}.{name}' is {value!r}; it must lie in {low} to {high}.", "Correct its value.")


def _check_store(store: Store) -> None:
    try:
        url = urlsplit(store.url.strip())
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0 and "@" not in url.netloc and not url.query + url.fragment
    except ValueError:
        good = False
    if not good:  # not shown: a key may stand in it
        raise InvalidSettings(
            "Setting 'store.url' is not an address such as http://127.0.0.1:6333.",
            "Correct it. A key belongs into store.api_key, not into the address.",
        )
    if not _COLLECTION.fullmatch(store.collection):
        raise InvalidSettings(
            f"Setting 'store.collection' is {store.collection!r}.",
            "Use up to 100 letters, digits, `_`, `-` and `.`, a letter or digit first.",
        )
    if not (store.api_key.isascii() and store.api_key.isprintable()):
        raise InvalidSettings("Setting 'store.api_key' has characters that cannot be sent.", "Copy it again: letters, digits and signs.")
