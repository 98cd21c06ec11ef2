"""Many at a time: 200 who only listen beside 8 who ask, and 1,000 calls a second of people without a key beside one answer.

The first server has no key. Its listeners hold `/rag/events` open; the askers ask round after round, and after each the server's memory is
read: what grows from round to round is a leak. At the end a document is saved, of which every listener must hear.

The second server has one. Whoever has it asks question after question for 20 seconds, alone and beside the flood (`bench/flood.py`, a
process of its own), in turns, and the tokens of the answers are counted from the first to the last. Both run on the same machine: the
flood has the lowest priority, so what it costs the answer is the server's own work of turning it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.corpus import GUIDE, ROOT
from bench.figures import Part, Skipped, at_least, at_most, plain, summary
from bench.memory import resident
from bench.served import Served, environment

_LISTENERS = 200  # issue 6
_ASKERS = 8  # issue 6
_RATE = 1000.0  # issue 6, calls a second
_SHARE = 0.8  # issue 6: within 20 % of its speed
_KEY = "the-key-of-this-bench"

_GROWTH = 0.03
"""Of the memory from the second round to the last, which is no leak: the allocator's own to and fro was 1 % here."""

PAGES = ("start", "domains", "formats", "privacy", "models", "keys", "widget")
"""Of the guide, which the questions are about: what there is to be asked, not how much, is the point here."""

QUESTIONS = (
    "How do I add a domain?",
    "Which file formats can it read?",
    "Does anything leave my machine?",
    "How do I remove a domain?",
    "How can I use another language model?",
    "What is in the audit log?",
    "How do I put the widget on a page?",
    "What does a site key let a page do?",
)


def measure(*, quick: bool) -> Part:
    """6 rounds, and 3 turns of 20 s each way (quick: 2 rounds, 1 turn of 5 s)."""
    if not Path("/proc/self/status").is_file():
        raise Skipped("needs /proc, to read another process's memory")
    part = _listening(2 if quick else 6, judged=not quick)
    other = _flooded(1 if quick else 3, 5.0 if quick else 20.0, judged=not quick)
    return Part(part.rows + other.rows, {"listening": part.figures, "flood": other.figures}, part.notes + other.notes)


# Many listeners, some askers


class Listeners:
    """Hold so many streams of `/rag/events` open while the `with` block runs, in a thread with a loop of its own."""

    def __init__(self, url: str, count: int) -> None:
        self._url, self._count = urlsplit(url), count
        self._texts = [b""] * count
        self.closed = 0
        self._begun, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Listeners:
        self._thread.start()
        if not self._begun.wait(60):
            raise RuntimeError(f"{self.heard(b'event: state')} of {self._count} streams of events began within a minute")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def heard(self, text: bytes) -> int:
        """How many of them were told that."""
        return sum(text in told for told in self._texts)

    async def _run(self) -> None:
        tasks = [asyncio.create_task(self._listen(n)) for n in range(self._count)]
        while not self._over.is_set():
            if self.heard(b"event: state") == self._count:
                self._begun.set()
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, n: int) -> None:
        reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            writer.write(f"GET /rag/events HTTP/1.1\r\nHost: {self._url.netloc}\r\n\r\n".encode())
            while data := await reader.read(1 << 16):
                self._texts[n] += data
            self.closed += 1
        finally:
            writer.close()


def _listening(rounds: int, *, judged: bool) -> Part:
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        _write(folder / "corpora" / "guide")
        with Served(folder) as served:
            served.wait_indexed(len(PAGES))
            served.wait_quiet()
            before = _sockets(served.pid)
            errors: list[str] = []
            took_s: list[float] = []
            memory: list[float] = []
            with Listeners(str(served.client.base_url), _LISTENERS) as listeners:
                for n in range(rounds):
                    took_s += _round(served, n, errors)
                    memory.append(resident(served.pid))
                    _progress(f"round {n + 1} of {rounds}: {memory[-1]:.0f} MB, {len(errors)} errors, {listeners.closed} streams closed")
                (served.corpora / "guide" / "heard.md").write_text("# Heard\n\nEverybody hears of this.\n", encoding="utf-8")
                served.until(lambda: listeners.heard(b"guide/heard.md") == _LISTENERS or listeners.closed, 60, "not all heard", 0.1)
                heard, closed = listeners.heard(b"guide/heard.md"), listeners.closed
            # The askers' own connections may still be open, to be used again.
            left = before + _ASKERS + 2
            served.until(lambda: _sockets(served.pid) <= left, 30, f"more than {left} sockets stayed open after the listeners left", 0.2)
    growth = memory[-1] / memory[min(1, len(memory) - 1)] - 1
    rows = [
        at_most(f"errors of {_ASKERS} askers beside {_LISTENERS} listeners", len(errors) + closed, 0, digits=0),
        at_least("listeners that hear of a new document", heard, _LISTENERS, digits=0),
        (at_most if judged else lambda what, value, limit: plain(what, value))("memory, last round / second, growth", growth, _GROWTH),
        plain("memory after the last round", memory[-1], "MB", digits=0),
        plain("an answer, of eight at a time, p50", statistics.median(took_s), "s"),
    ]
    figures = {"memory_mb": [round(one, 1) for one in memory], "answer_s": summary(took_s), "errors": errors[:20], "rounds": rounds}
    notes = [f"{len(took_s)} answers in {rounds} rounds; memory after each: {', '.join(f'{one:.0f}' for one in memory)} MB."]
    return Part(rows, figures, notes)


def _round(served: Served, n: int, errors: list[str]) -> list[float]:
    """Each asker asks four questions, one after another, each beginning with another one; seconds of each answer."""

    def ask(asker: int) -> list[float]:
        took = []
        for question in itertools.islice(itertools.cycle(QUESTIONS), asker + n, asker + n + 4):
            started = time.perf_counter()
            try:
                events = list(served.ask(question, domain="guide"))
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            if events[-1][1] != "done":
                errors.append(f"{question}: ended with {events[-1][1:]}")
            took.append(time.perf_counter() - started)
        return took

    with ThreadPoolExecutor(_ASKERS) as askers:
        return [one for took in askers.map(ask, range(_ASKERS)) for one in took]


def _write(domain: Path) -> None:
    domain.mkdir(parents=True)
    for page in PAGES:
        shutil.copy(GUIDE / f"{page}.md", domain)


def _sockets(pid: int) -> int:
    """Open ones. Files are no sign: what the first question opens (models, databases) stays."""
    count = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(file.readlink()).startswith("socket:")
    return count


# A flood beside one answer


@dataclass(slots=True)
class Turn:
    """Answers one after another: their tokens but the first of each, the seconds from the first to the last, and of the whole calls."""

    tokens: int = 0
    decode_s: float = 0.0
    answers: int = 0
    whole_s: float = 0.0
    flood: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """While they were written."""
        return self.tokens / self.decode_s

    @property
    def answer_s(self) -> float:
        """Of a call, from the question to the end, on average."""
        return self.whole_s / self.answers


def ratios(alone: Sequence[Turn], beside: Sequence[Turn]) -> tuple[float, float]:
    """Of the medians: tokens a second beside the flood to those alone, and the time of a call likewise."""
    speed = statistics.median(turn.tokens_per_s for turn in beside) / statistics.median(turn.tokens_per_s for turn in alone)
    time_ = statistics.median(turn.answer_s for turn in beside) / statistics.median(turn.answer_s for turn in alone)
    return speed, time_


def _flooded(turns: int, seconds: float, *, judged: bool) -> Part:
    alone, beside = [], []
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        _write(folder / "corpora" / "guide")
        with Served(folder, SERVER__KEY=_KEY) as served:
            served.client.headers["Authorization"] = f"Bearer {_KEY}"
            served.wait_indexed(len(PAGES))
            served.wait_quiet()
            _asked(served, 2.0)  # what is there to be read once is read
            for n in range(turns):
                alone.append(_asked(served, seconds))
                beside.append(_asked(served, seconds, flood=True))
                _progress(f"turn {n + 1} of {turns}: {alone[-1].tokens_per_s:.1f} tokens/s alone, {beside[-1].tokens_per_s:.1f} beside")
    speed, time_ = ratios(alone, beside)
    sent = statistics.median(turn.flood["sent_per_s"] for turn in beside)
    answered = statistics.median(turn.flood["answered_per_s"] for turn in beside)
    statuses = sorted({status for turn in beside for status in turn.flood["answered"]})
    lower = at_least if judged else lambda what, value, limit: plain(what, value)
    rows = [
        lower(f"tokens/s of an answer beside {_RATE:.0f} calls/s without a key / alone", speed, _SHARE),
        plain("a whole answer beside them / alone, time", time_),
        plain("calls without a key sent", sent, "a second", digits=0),
        plain("calls without a key answered", answered, "a second", digits=0),
        plain("tokens/s alone, median", statistics.median(turn.tokens_per_s for turn in alone), digits=1),
    ]
    figures = {
        "alone_tokens_per_s": [round(turn.tokens_per_s, 2) for turn in alone],
        "beside_tokens_per_s": [round(turn.tokens_per_s, 2) for turn in beside],
        "speed_ratio": round(speed, 3),
        "time_ratio": round(time_, 3),
        "flood": [turn.flood for turn in beside],
        "seconds": seconds,
    }
    notes = [
        f"{turns} turns of {seconds:.0f} s each way; every call was answered {', '.join(statuses)}; the flood took "
        f"{statistics.mean(turn.flood['own_cpu_s'] for turn in beside):.1f} s of CPU of its own a turn, at the lowest priority."
    ]
    return Part(rows, figures, notes)


def _asked(served: Served, seconds: float, *, flood: bool = False) -> Turn:
    """Ask until so many seconds are over; an answer that has begun is ended. With `flood`, from half a second after that begins."""
    turn = Turn()
    process = None
    if flood:
        arguments = ["--rate", str(_RATE), "--seconds", str(seconds)]
        command = [sys.executable, "-m", "bench.flood", str(served.client.base_url), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
    try:
        end = time.perf_counter() + seconds - (0.5 if flood else 0.0)
        for question in itertools.cycle(QUESTIONS):
            if time.perf_counter() > end:
                break
            started = time.perf_counter()
            first = last = 0.0
            for now, name, data in served.ask(question, domain="guide"):
                if name == "token":
                    first, last = first or now, now
                elif name == "done" and last > first:
                    turn.tokens += data["usage"]["completion_tokens"] - 1
                    turn.decode_s += last - first
                elif name == "error":
                    raise RuntimeError(f"the server said: {data}")
            turn.answers += 1
            turn.whole_s += time.perf_counter() - started
        if process is not None:
            turn.flood = json.loads(process.communicate(timeout=seconds + 30)[0])
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
    if not turn.tokens:
        raise RuntimeError("no question was answered")
    return turn


def _progress(text: str) -> None:
    print(f"load: {text}", file=sys.stderr, flush=True)
