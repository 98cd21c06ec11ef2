"""`readingroom adapters train --domain D`: an adapter for one domain, taught with questions that are made of its documents.

Parses, prints and says how far it is; the work is in `rag/train/domain.py`. What comes out lies in `data_dir/training/NAME/` until it is
installed. Ctrl-C ends the training with what was learnt so far; a second one ends it at once, and leaves nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import AdapterUnusable, InvalidInput, MissingPackage, ReadingRoomError
from rag.settings import Settings
from server.activity import Bulk
from server.bar import Bar, printable, span

if TYPE_CHECKING:
    from rag.adapters import Package
    from rag.models import ModelFile
    from rag.train.lora import Progress

_LINE_S = 30.0
"""Between two plain lines of progress."""

_BEGIN = "grounded"
_FIGURES = {"right": "all", "answers": "answers", "refused": "refused where it must", "wrongly_refused": "refused wrongly"}


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--domain", required=True, help="the domain whose documents are learnt from")
    parser.add_argument("--name", default="", help="what to call the adapter (default: the domain's name)")
    parser.add_argument("--minutes", type=_minutes, default=20.0, help="longest training; to measure it takes some more (default: 20)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for an NVIDIA GPU (default: cpu)")
    parser.add_argument(
        "--begin", default=_BEGIN, metavar="ADAPTER", help="an installed adapter to go on from, or none (default: grounded)"
    )
    parser.add_argument("--pool", type=Path, metavar="FILE", help="a pool of general questions to mix in: see `corpora/guide/training.md`")
    parser.add_argument("--questions", type=_count, default=60, help="questions to judge by (default: 60)")
    parser.add_argument("--licence", default="", help="its licence (default: that of the adapter it begins from)")
    parser.add_argument("--install", action="store_true", help="install it even where it did not help")
    parser.add_argument("--force", action="store_true", help="replace the installed adapter of that name")


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise ValueError
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 10:
        raise argparse.ArgumentTypeError("at least 10, or chance decides")
    return number


def run_train(args: argparse.Namespace, settings: Settings) -> int:
    """Train, judge, install; returns the exit status."""
    from rag import adapters, models

    if settings.engine.url:
        raise InvalidInput(
            f"The answers are written by the server at {settings.engine.url}, whose model cannot be trained from here.",
            "Leave engine.url empty to train for the built-in engine; a server's own adapters are made with its own tools.",
        )
    base = models.locate(settings.engine.model, "generator", settings.data_dir)
    name = args.name or _named(args.domain)
    if [part.name for part in adapters.parse(name).parts] != [name] or name in (adapters.AUTO, adapters.NONE):
        raise InvalidInput(f"An adapter cannot be called {name!r}.", "Use a-z, 0-9, dot, dash and underscore: --name NAME.")
    if not args.force and (settings.data_dir / "adapters" / name).exists():
        raise InvalidInput(f"There is an adapter {name!r} already.", "Choose another --name, or replace it with --force.")
    _check_parts(base, args.device)
    begin = _begin(args, settings, base)
    licence = args.licence or (begin.licence if begin is not None else "")
    if not licence:
        raise InvalidInput("An adapter that begins from nothing needs a licence.", "Name it: --licence LicenseRef-private, say.")
    texts = _texts(args.domain, settings)
    return _Run(args, settings, name, base, begin, licence).all(texts)


def _named(domain: str) -> str:
    """A domain's name as an adapter's."""
    return re.sub(r"[^a-z0-9._-]+", "-", domain.lower()).strip("-._")[:64] or "domain"


def _check_parts(base: ModelFile, device: str) -> None:
    """What would fail after minutes is found out now. Raises `MissingPackage`, `ModelUnusable`, `InvalidInput`."""
    from rag.train import convert
    from rag.train.tokens import INSTALL, Tokens

    convert.config(base.path)
    Tokens.of_gguf(base.path)
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingPackage(f"Training needs the package transformers: {error}.", f"Install it: {INSTALL}") from error
    from rag.train.lora import check_device

    check_device(device)


def _begin(args: argparse.Namespace, settings: Settings, base: ModelFile) -> Package | None:
    """The adapter to go on from. The shipped one is for the default model: others begin from nothing."""
    from rag import adapters
    from rag.train import domain

    if args.begin == adapters.NONE:
        return None
    package = adapters.find(settings.data_dir, args.begin)
    if package.fits(adapters.base_digest(base)):
        domain.begun(package, base.path)
        return package
    if args.begin != _BEGIN:
        raise AdapterUnusable(
            f"{package.name} was made for {package.base}, not for {base.name}.", "Begin from another one, or from `none`."
        )
    print(f"{_BEGIN} was made for {package.base}: for {base.name} the adapter begins from nothing.", file=sys.stderr)
    return None


def _texts(domain: str, settings: Settings) -> dict[str, list[str]]:
    """The passages of each indexed document of the domain, by its path; of a running server, if one holds the index."""
    from rag.train.questions import passages
    from server.client import open_room

    with open_room(settings, index=False, engine=False) as room:
        items = room.documents(domain=domain, status="indexed", q=None)
        texts = {item["path"]: passages(room.text(item["id"])) for item in items}
    if not any(texts.values()):
        raise InvalidInput(f"Nothing of the domain {domain} is indexed.", "Put documents into its folder, then: readingroom ingest")
    return texts


class _Run:
    """One training, from texts to an installed adapter."""

    def __init__(
        self, args: argparse.Namespace, settings: Settings, name: str, base: ModelFile, begin: Package | None, licence: str
    ) -> None:
        self._args, self._settings, self._name, self._base, self._begin, self._licence = args, settings, name, base, begin, licence
        self._folder = settings.data_dir / "training" / name
        self._interrupted = False

    def all(self, texts: dict[str, list[str]]) -> int:
        """Teach, judge and install; returns the exit status."""
        from rag.train import domain

        args = self._args
        lesson = domain.lesson(texts, general=self._pool(), count=args.questions)
        began = self._begin.name if self._begin is not None else "nothing"
        self._say(
            f"{lesson.documents} documents, {lesson.questions} questions made of their sentences; {lesson.apart} kept apart to judge by.\n"
            f"Training from {began} for at most {span(args.minutes * 60)} on {args.device}. Ctrl-C ends it with what is learnt by then."
        )
        staged = self._folder.with_name(f".{self._name}-{time.time_ns()}")
        try:
            with self._watched() as watch:
                told = domain.train(
                    lesson,
                    staged,
                    base=self._base.path,
                    begin=self._begin,
                    recipe=domain.recipe(args.device, args.minutes * 60),
                    watch=watch,
                )
            if not told["steps"]:
                print("Stopped before anything was learnt. Nothing is kept.", file=sys.stderr)
                return 130 if self._interrupted else 1
            self._describe(lesson, told, staged, None)
            shutil.rmtree(self._folder, ignore_errors=True)
            staged.rename(self._folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self._say(
            f"Taught in {span(told['seconds'])}: {told['steps']} steps, {told['passes']:g} times through {told['examples']} examples."
        )
        if self._interrupted:
            return self._unjudged()
        try:
            evaluation = self._evaluate(lesson)
        except KeyboardInterrupt:
            return self._unjudged()
        except ReadingRoomError:
            print(f"What was learnt is in {self._folder}, and could not be judged.", file=sys.stderr)
            raise
        self._describe(lesson, told, self._folder, evaluation)
        return self._end(told, evaluation, lesson)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr if self._args.json else sys.stdout, flush=True)

    def _pool(self) -> Any:
        from rag.train.pool import Pool

        if self._args.pool is None:
            return None
        try:
            return Pool.read(self._args.pool)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InvalidInput(f"{self._args.pool} is no pool of questions: {error}.", "See `corpora/guide/training.md`.") from error

    @contextmanager
    def _watched(self) -> Iterator[Any]:
        """What the training asks before each piece; the first Ctrl-C makes it say no, the next one interrupts."""
        show = _Shown(None if self._args.json else sys.stderr, self._args.minutes * 60)

        def stop(*_: object) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        def watch(progress: Progress) -> bool:
            show.show(progress)
            return not self._interrupted

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield watch
        finally:
            signal.signal(signal.SIGINT, before)
            show.end()

    def _evaluate(self, lesson: Any) -> dict[str, Any]:
        from rag.train import domain

        bar = Bar(None if self._args.json else sys.stderr, unit="answers")
        started = time.perf_counter()
        try:
            return domain.evaluate(
                lesson,
                self._folder,
                self._begin,
                self._settings.engine,
                self._settings.data_dir,
                lambda done, of: bar.show(Bulk(done, of, 0, time.perf_counter() - started)),
            )
        finally:
            bar.end()

    def _describe(self, lesson: Any, told: dict[str, Any], folder: Path, evaluation: dict[str, Any] | None) -> None:
        from rag.train import domain

        domain.describe(
            folder,
            name=self._name,
            domain=self._args.domain,
            licence=self._licence,
            base=self._base,
            begin=self._begin,
            lesson=lesson,
            told=told,
            general=self._args.pool.name if self._args.pool is not None else "",
            date=datetime.now(UTC).date().isoformat(),
            evaluation=evaluation,
        )

    def _unjudged(self) -> int:
        """Stopped: it is kept, and not installed."""
        print(
            f"Stopped. What was learnt is in {self._folder}, and was not judged.\nTo use it all the same: "
            f"readingroom adapters add {self._folder}",
            file=sys.stderr,
        )
        if self._args.json:
            print(json.dumps({"name": self._name, "installed": False, "helped": None, "folder": str(self._folder)}))
        return 130

    def _end(self, told: dict[str, Any], evaluation: dict[str, Any], lesson: Any) -> int:
        from rag import adapters
        from rag.train import domain
        from server.audit import noted_here

        install = evaluation["helped"] or self._args.install
        where = self._folder
        if install:
            package = adapters.add(self._folder, self._settings.data_dir, self._base, name=self._name, force=self._args.force)
            shutil.copyfile(self._folder / domain.CARD, package.folder / domain.CARD)
            shutil.rmtree(self._folder)
            where = package.folder
            noted_here(self._settings, "adapter.add", package.name, domain=self._args.domain)
        if self._args.json:
            fields = {"name": self._name, "domain": self._args.domain, "installed": install, "helped": evaluation["helped"]}
            fields |= {"folder": str(where), "documents": lesson.documents, "questions": lesson.questions, "apart": lesson.apart}
            print(json.dumps({**fields, "training": told, "evaluation": evaluation}))
            return 0
        self._table(evaluation)
        if install:
            print(f"{self._name} is installed, with its card in {where}.")
            print(f"Ask with it: readingroom ask --domain {self._args.domain} --adapter {self._name} QUESTION")
            print(f'For the whole domain: adapter = "{self._name}" in {self._settings.corpora}/{self._args.domain}/domain.toml.')
        else:
            print(f"It is not installed. It lies in {where}; to use it all the same: readingroom adapters add {where}")
        return 0

    def _table(self, evaluation: dict[str, Any]) -> None:
        names = {"base": self._base.name, "began": self._begin.name if self._begin is not None else "", "made": self._name}
        for what, part in (("of documents that it was not taught", evaluation["domain"]), ("of general questions", evaluation["general"])):
            if part is None:
                continue
            print(f"Judged by {part['count']} examples {what}:")
            shown = [(names[who], part[who]) for who in names if part[who] is not None]
            print(f"  {'':<24}" + "".join(f"{printable(name)[:22]:>24}" for name, _ in shown))
            for key, title in _FIGURES.items():
                print(f"  {title:<24}" + "".join(f"{figures[key]:>24.3f}" for _, figures in shown))
            change = part["difference"]
            print(f"  Difference of all: {change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})")
        own = evaluation["domain"]["difference"]
        if evaluation["helped"]:
            print("It helped.")
        elif own["high"] < 0:
            print("It did harm: it answers these documents worse than what it began from.")
        elif own["low"] > 0:
            print("It helped with these documents, and forgot what it knew of others.")
        else:
            print("It did not surely help: the difference may be chance.")


class _Shown:
    """How far a training is: a line on a terminal that is written over, elsewhere a line every half minute."""

    def __init__(self, out: Any, seconds: float) -> None:
        self._out, self._seconds = out, seconds
        self._live = out is not None and out.isatty()
        self._next = time.monotonic() + (0 if self._live else _LINE_S)

    def show(self, progress: Progress) -> None:
        """At most ten times a second."""
        now = time.monotonic()
        if self._out is None or now < self._next:
            return
        self._next = now + (0.1 if self._live else _LINE_S)
        loss = "" if progress.loss != progress.loss else f", loss {progress.loss:.3f}"
        text = f"{progress.share:.0%} of the training, step {progress.step}{loss}, {progress.speed:,.0f} tokens a second"
        self._out.write(f"\r\033[K{text}" if self._live else f"{text}\n")
        self._out.flush()

    def end(self) -> None:
        """Leave a clean line."""
        if self._live:
            self._out.write("\r\033[K")
            self._out.flush()
