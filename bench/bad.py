"""Bad files, dropped one after another into the folder of a running server: each must end, and searches must go on as before.

The files of ../shared/data/bad: malformed and fuzzed PDFs, XML bombs. Each is waited for until its record says `indexed` or `failed`: some
have text that can be read. A search every 100 ms is timed before, during and after, with the same looks at the records meanwhile; what
is compared is the p95 during with that of before and after together, so that a machine that slows down is no fault of the files.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench import corpus
from bench.figures import Part, Skipped, at_most, percentile, plain, summary
from bench.served import Searching, Served

_LIMIT_S = 60.0
_RATIO = 1.2
_SEARCH_S = 0.1
_LOOK_S = 0.05
_GIVE_UP_S = 240.0  # far above the limit, so that how far it is missed is measured
_LEAST = 200
"""Searches, below which a p95 is that of a handful."""


@dataclass(frozen=True, slots=True)
class _Ended:
    path: str
    s: float
    code: str
    """Of the failure, or `indexed`."""


def measure(*, quick: bool) -> Part:
    """All of them, and 30 s before and after (quick: every 15th, and 5 s)."""
    files = _files()[:: 15 if quick else 1]
    rest_s = 5.0 if quick else 30.0
    articles = corpus.articles()
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        base, bad = folder / "corpora" / "articles", folder / "corpora" / "bad"
        base.mkdir(parents=True)
        bad.mkdir()
        for i, (title, text, _) in enumerate(articles):
            (base / f"article-{i:02}.md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
        questions = [question for _, _, asked in articles for question in asked[:3]]
        with Served(folder) as served:
            served.wait_indexed(len(articles))
            for question in questions:
                served.search(question)
            before = _at_rest(served, questions, rest_s)
            ended = []
            with Searching(served, questions, _SEARCH_S) as during:
                for n, file in enumerate(files):
                    ended.append(_drop(served, file, bad / f"{n:03}-{file.name}"))
                    if ended[-1].s > _LIMIT_S / 2 or n % 25 == 0:
                        _progress(f"{n + 1}/{len(files)}: {ended[-1]}")
            restarts = served.metrics("readingroom_parser_restarts_total").get("", 0.0)
            after = _at_rest(served, questions, rest_s)
            still = served.counts("articles").get("indexed", 0)
    idle = before + after
    slowest = max(ended, key=lambda one: one.s)
    late = [one.path for one in ended if one.s > _LIMIT_S]
    codes = Counter(one.code for one in ended)
    ratio = percentile(during.ms, 95) / percentile(idle, 95)
    figures = {
        "files": len(files),
        "ended_s": summary([one.s for one in ended], 2),
        "slowest": slowest.path,
        "late": late,
        "codes": dict(codes.most_common()),
        "search_ms": {"before": summary(before, 1), "during": summary(during.ms, 1), "after": summary(after, 1)},
        "search_p95_ratio": round(ratio, 3),
        "search_p50_ratio": round(percentile(during.ms, 50) / percentile(idle, 50), 3),
        "parser_restarts": restarts,
        "articles_still_indexed": still,
    }
    if still != len(articles):
        raise RuntimeError(f"of {len(articles)} good documents {still} are left")
    what = "search p95, during / before and after"
    rows = [
        at_most(f"{len(files)} bad files, the slowest ended after", slowest.s, _LIMIT_S, "s", digits=1),
        plain("p95 of them", percentile([one.s for one in ended], 95), "s", digits=1),
        at_most(what, ratio, _RATIO) if min(len(during.ms), len(idle)) >= _LEAST else plain(what, ratio),
        plain("search p95, during", percentile(during.ms, 95), "ms", digits=1),
    ]
    said = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    notes = [
        f"ended as: {said}; the slowest is {slowest.path}; {restarts:.0f} parsers were killed or died; searches: {len(during.ms)} during, "
        f"p95 {percentile(before, 95):.1f} ms before and {percentile(after, 95):.1f} ms after."
    ]
    return Part(rows, figures, notes)


def _files() -> list[Path]:
    folder = corpus.SHARED / "bad"
    if not folder.is_dir():
        raise Skipped("needs bad files: there is no ../shared/data/bad")
    return sorted(file for file in folder.rglob("*") if file.is_file() and "LICENSE" not in file.name)


def _at_rest(served: Served, questions: list[str], seconds: float) -> list[float]:
    """Milliseconds of searches while nothing happens but the looks that there will be during."""
    deadline = time.perf_counter() + seconds

    def over() -> bool:
        served.documents(q="no document has this name")
        return time.perf_counter() > deadline

    with Searching(served, questions, _SEARCH_S) as searching:
        served.until(over, seconds + 60, "the rest did not end", _LOOK_S)
    return searching.ms


def _drop(served: Served, file: Path, target: Path) -> _Ended:
    """Copy it into the folder, and wait until it ended. It appears there complete: half a bad file is another one."""
    beside = target.with_name(f".{target.name}.part")
    shutil.copyfile(file, beside)
    beside.rename(target)
    dropped = time.perf_counter()
    found: list[str] = []

    def ended() -> bool:
        for item in served.documents(q=target.name):
            if item["path"] == f"bad/{target.name}" and item["status"] in ("indexed", "failed"):
                found.append(item["error"]["code"] if item["error"] else item["status"])
        return bool(found)

    now = served.until(ended, _GIVE_UP_S, f"{file.name} did not end", _LOOK_S)
    return _Ended(file.relative_to(corpus.SHARED).as_posix(), now - dropped, found[0])


def _progress(text: str) -> None:
    print(f"bad: {text}", file=sys.stderr, flush=True)
