"""`readingroom doctor`: what is installed, missing or slow on this machine, and the remedy. Changes nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rag import models, seal
from rag.domains import Domain, read_domains
from rag.errors import ReadingRoomError
from rag.languages import named
from rag.settings import Settings
from server import elsewhere
from server.auth import check_binding
from server.keys import any_keys
from server.lock import address_of

_PACKAGES = ("torch", "sentence-transformers", "llama-cpp-python", "qdrant-edge-py", "unstructured", "pypdfium2", "litestar", "watchdog")

_REBUILD = "python -m pip install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36"

# The index needs about 6 KB a chunk; below this a first ingest of a few thousand files may not fit.
_DISK_LOW = 2 << 30

# Linux's limit on watched folders: man 7 inotify.
_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")

# Bytes: the service takes 1 to 1.5 GB with the default models, a parser child up to its own limit on top.
_MEMORY_LOW = 3 << 30


@dataclass(frozen=True)
class Check:
    """`ok`; `slow` or `missing`: works, but not as well as it could; `broken`: must be mended first."""

    name: str
    state: Literal["ok", "slow", "missing", "broken"]
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Program:
    """A program of the system that some files need: its command if it is there, what for, and how it is installed."""

    name: str
    found: str | None
    purpose: str
    install: str


def examine(settings: Settings, programs: Sequence[Program]) -> list[Check]:
    """All checks, in the order in which one would mend things. None of them raises."""
    checks: list[Check] = []
    parts: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        _python,
        _packages,
        _machine,
        _models,
        _generator,
        _store,
        _folders,
        _watching,
        _binding,
    )
    for part in parts:
        try:
            checks.extend(part(settings))
        except ReadingRoomError as error:
            checks.append(Check(part.__name__.strip("_"), "broken", error.message, error.remedy))
    return checks + [_program(program) for program in programs]


def _python(_: Settings) -> Iterator[Check]:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    remedy = "" if fits else "Use Python 3.11, 3.12 or 3.13: make clean && make serve PYTHON=python3.12"
    yield Check("Python", "ok" if fits else "broken", platform.python_version(), remedy)


def _packages(_: Settings) -> Iterator[Check]:
    for name in _PACKAGES:
        try:
            yield Check(name, "ok", version(name))
        except PackageNotFoundError:
            yield Check(name, "broken", "not installed", "Install everything again: make venv")
    if importlib.util.find_spec("torchvision") is not None:
        # transformers imports it if it is there, and a CUDA build beside a CPU torch dies at that ("torchvision::nms").
        yield Check("torchvision", "slow", "installed, not needed, and known to break the embedder", "pip uninstall torchvision timm")


def _program(program: Program) -> Check:
    if program.found:
        return Check(program.name, "ok", program.found)
    detail = f"not installed; files that need it fail: {program.purpose}"
    return Check(program.name, "missing", detail, f"{program.install}. Those files are then read by themselves.")


def _machine(_: Settings) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check(
        "CPU",
        "ok" if cores > 1 else "slow",
        f"{cores} cores, {platform.machine()}",
        "" if cores > 1 else "Answers take twice as long on one core.",
    )
    if Path("/proc/cpuinfo").is_file() and platform.machine() in {"x86_64", "AMD64"}:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        fast = " avx2 " in flags.replace("\n", " \n ")
        remedy = "" if fast else "No remedy but a newer CPU or a GPU build (README)."
        yield Check("AVX2", "ok" if fast else "slow", "yes" if fast else "no: generation is several times slower", remedy)
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        low = total < _MEMORY_LOW
        yield Check(
            "memory",
            "slow" if low else "ok",
            f"{total / 2**30:.1f} GiB",
            "Lower ingest.parse_memory_mb and engine.sequences." if low else "",
        )
    except (ValueError, OSError):
        return


def _models(settings: Settings) -> Iterator[Check]:
    for kind, name in (("generator", settings.engine.model), ("embedder", settings.embed.model)):
        if kind == "generator" and settings.engine.url:
            continue  # its model is elsewhere
        try:
            model = models.locate(name, kind, settings.data_dir)  # type: ignore[arg-type]
            models.verify(model)
        except ReadingRoomError as error:
            yield Check(f"{kind} model", "broken", error.message, error.remedy)
            continue
        licence = model.card.licence if model.card else "licence unknown: see where you got it"
        yield Check(f"{kind} model", "ok", f"{model.name} ({licence}), {'sha256 right' if model.card else model.path}")


def _generator(settings: Settings) -> Iterator[Check]:
    """Load the model and read a prompt with it: the only way to know that this build runs on this CPU.

    In a process of its own: a llama.cpp built for a newer CPU dies of an illegal instruction.
    """
    if settings.engine.url:
        yield _remote(settings)
        return
    model = models.locate(settings.engine.model, "generator", settings.data_dir)
    trial = [sys.executable, "-m", "server.doctor", str(model.path), str(settings.engine.threads), str(settings.engine.gpu_layers)]
    try:
        ran = subprocess.run(trial, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent.parent)
    except subprocess.TimeoutExpired:
        yield Check("generation", "broken", "reading 256 tokens took over five minutes", "Use a smaller model.")
        return
    if ran.returncode < 0:
        died = signal.Signals(-ran.returncode).name
        yield Check("generation", "broken", f"llama.cpp died of {died}", f"Build it on this machine: {_REBUILD}")
        return
    if ran.returncode > 0:
        reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Check("generation", "broken", reason, f"Correct engine.model, or build llama.cpp again: {_REBUILD}")
        return
    rate, gpu = json.loads(ran.stdout)
    # A prompt of four passages has about 1,000 tokens: below this rate its first token takes over ten seconds.
    slow = rate < 100
    remedy = "Use a smaller model, fewer passages (retrieve.passages), or a GPU build (README)." if slow else ""
    detail = f"reads {rate:.0f} prompt tokens/s as the file is on disk, {'GPU' if gpu else 'CPU'} build"
    yield Check("generation", "slow" if slow else "ok", detail, remedy)


def _remote(settings: Settings) -> Check:
    """Whether the server that writes the answers is another one than this service, can be reached, and has the model."""
    from rag._upstream import Upstream
    from rag.remote import RemoteEngine

    try:
        Upstream(settings.engine).check()
        address = urlsplit(settings.engine.url)
        if elsewhere.is_here(settings.engine.url) and address.port == settings.server.port:
            remedy = "Set engine.url to another server, or leave it empty."
            return Check("engine.url", "broken", "is the address of this service: it would ask itself", remedy)
        model = RemoteEngine(settings.engine).reach()
    except ReadingRoomError as error:
        return Check("engine.url", "broken", error.message, error.remedy)
    leaves = elsewhere.of_engine(settings)
    return Check("engine.url", "ok", f"{settings.engine.url}: {model}{leaves and f'; {leaves}'}")


def _store(settings: Settings) -> Iterator[Check]:
    """Whether the Qdrant server that keeps the passages answers and takes the key, and what of them it sees."""
    if not settings.store.url:
        return
    from rag import _qdrant

    try:
        version = _qdrant.version_of(settings.store)
    except ReadingRoomError as error:
        yield Check("store.url", "broken", error.message, error.remedy)
        return
    leaves = elsewhere.of_store(settings)
    yield Check(
        "store.url", "ok", f"{settings.store.url}: Qdrant {version}, collection {settings.store.collection}{leaves and f'; {leaves}'}"
    )


def _trial(path: str, threads: str, gpu_layers: str) -> str:
    """The child of `_generator`: tokens of prompt a second, and whether this build can use a GPU, as JSON."""
    from rag import _llama

    llama = _llama.Llama(Path(path), context_tokens=512, sequences=1, threads=int(threads), gpu_layers=int(gpu_layers))
    prompt = [_llama.Piece(token, i, 0, i == 255) for i, token in enumerate((llama.tokenize("the quick brown fox ") * 64)[:256])]
    llama.decode(prompt)
    llama.forget(0)
    started = time.perf_counter()
    llama.decode(prompt)
    return json.dumps([len(prompt) / (time.perf_counter() - started), _llama.gpu_offload()])


def _folders(settings: Settings) -> Iterator[Check]:
    folder = settings.data_dir if settings.data_dir.exists() else settings.data_dir.absolute().parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
        low = free < _DISK_LOW
        yield Check(
            "data directory",
            "slow" if low else "ok",
            f"{settings.data_dir}, {free / 2**30:.1f} GiB free",
            "Free some space." if low else "",
        )
    except OSError as error:
        yield Check("data directory", "broken", f"{settings.data_dir}: {error.strerror}", "Choose another with --data-dir.")
    where = address_of(settings.data_dir)
    if where:
        yield Check("server", "ok", f"runs at {where}")
    if not settings.corpora.is_dir():
        yield Check("corpora", "missing", f"no folder {settings.corpora}", f"Make it: mkdir -p {settings.corpora}/mine")
        return
    domains = read_domains(settings.corpora)
    yield Check("corpora", "ok", f"{settings.corpora}: {len(domains)} domains")
    for domain in domains.values():
        if domain.error:
            yield Check(f"domain {domain.name}", "broken", domain.error, "Correct its domain.toml.")
    yield from _languages(settings, domains)


def _languages(settings: Settings, domains: Mapping[str, Domain]) -> Iterator[Check]:
    """Whether the embedding model was made for the languages of each domain; where it was not, words have to find what meaning cannot."""
    try:
        model = models.locate(settings.embed.model, "embedder", settings.data_dir)
    except ReadingRoomError:
        return  # said above
    known = models.languages_of(model)
    if not known or "multilingual" in known:
        return
    for domain in domains.values():
        unknown = [named(code) for code in domain.languages if code not in known]
        if unknown:
            yield Check(
                f"domain {domain.name}",
                "slow",
                f"{model.name} was not made for {' and '.join(unknown)}: passages are found by their words more than by meaning",
                "Set embed.model to a multilingual model: corpora/guide/models.md says how.",
            )


def _watching(settings: Settings) -> Iterator[Check]:
    """Whether the system has enough file events to give: inotify takes one watch a folder, of a number a user may have."""
    if settings.ingest.polling:
        yield Check("file events", "ok", "not used: ingest.polling is set")
        return
    folders = sum(1 for _ in os.walk(settings.corpora))
    try:
        limit = int(_WATCHES.read_text(encoding="ascii"))
    except (OSError, ValueError):
        yield Check("file events", "ok", f"{folders:,} folders")
        return
    # Editors and other programs of the same user take from the same number.
    scarce = folders > limit // 2
    yield Check(
        "file events",
        "slow" if scarce else "ok",
        f"{folders:,} folders, {limit:,} watches a user" + ("; without one for each the folder is polled every 2 s" if scarce else ""),
        f"sudo sysctl fs.inotify.max_user_watches={max(524_288, 4 * folders)}" if scarce else "",
    )


def _binding(settings: Settings) -> Iterator[Check]:
    try:
        # Only of what is there: to look makes nothing.
        there = seal.is_encrypted(settings.data_dir) or seal.holdings(settings.data_dir)
        check_binding(settings.server, keys=any_keys(settings.data_dir, seal.unlock(settings) if there else None))
        yield Check("listening", "ok", f"{settings.server.host}:{settings.server.port}")
    except ReadingRoomError as error:
        yield Check("listening", "broken", error.message, error.remedy)


if __name__ == "__main__":
    sys.stdout.write(_trial(*sys.argv[1:]))
