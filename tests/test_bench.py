"""The bench: its figures are computed right, it prints a table and ends in one JSON line, and a missing part is said, not suffered.

No time is asserted here; `readingroom bench` measures, and `bench/RESULTS.md` says what was seen.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import corpus, run
from bench.answer import Timing, _decode_ratios, _first_ratios
from bench.figures import Part, Row, Skipped, at_least, at_most, percentile, plain, summary, table
from bench.save import with_marker
from bench.scale import rates_by_tenth
from bench.vectors import perturbed


def last_line(captured: str) -> dict:
    return json.loads(captured.splitlines()[-1])


def test_the_smallest_part_prints_a_table_and_ends_in_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What `readingroom bench --quick --only help` prints."""
    assert run.run(quick=True, only=["help"]) == 0
    out = capsys.readouterr().out
    said = last_line(out)
    assert "| help | readingroom --help, median" in out
    assert (said["quick"], list(said["parts"])) == (True, ["help"])
    assert said["parts"]["help"]["figures"]["seconds"]["n"] == 3
    assert {"cpu", "cores", "python", "packages", "date"} <= said["machine"].keys()


def test_an_unknown_part_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and the parts that there are."""
    assert run.run(quick=True, only=["speed"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "'speed'" in captured.err
    assert all(part in captured.err for part in run.PARTS)


def test_a_skipped_or_broken_part_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its line says so; a broken one makes the exit status 1, a skipped one does not."""

    def skipped(*, quick: bool) -> Part:
        raise Skipped("needs real texts")

    def broken(*, quick: bool) -> Part:
        raise RuntimeError("the server ended with 1")

    def works(*, quick: bool) -> Part:
        return Part([Row("things", "1 s", "<= 2 s", True)], {"things_s": 1.0}, ["one thing."])

    monkeypatch.setattr(run, "PARTS", {"a": skipped, "b": broken, "c": works})
    assert run.run(quick=True) == 1
    out = capsys.readouterr().out
    parts = last_line(out)["parts"]
    assert parts["a"] == {"skipped": "needs real texts"}
    assert parts["b"] == {"error": "RuntimeError: the server ended with 1"}
    assert (parts["c"]["figures"], parts["c"]["rows"][0]["met"]) == ({"things_s": 1.0}, True)
    assert "- a: skipped, needs real texts." in out
    monkeypatch.setattr(run, "PARTS", {"a": skipped, "c": works})
    assert run.run(quick=True) == 0


def test_what_takes_half_an_hour_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`make bench` leaves it out, `--only` runs it."""
    assert run.PARTS.keys() >= run.LONG
    monkeypatch.setattr(run, "PARTS", {"short": lambda *, quick: Part(), "scale-real": lambda *, quick: Part()})
    assert run.run(quick=True) == 0
    assert list(last_line(capsys.readouterr().out)["parts"]) == ["short"]
    assert run.run(quick=True, only=["scale-real"]) == 0
    assert list(last_line(capsys.readouterr().out)["parts"]) == ["scale-real"]


def test_rates_by_tenth_are_those_of_the_chunks_not_of_the_calls() -> None:
    """A hundred chunks at 10 a second, then a hundred at 20; the calls are of uneven size, and the clock does not begin at 0."""
    marks = [(5.0, 0), (8.0, 30), (15.0, 100), (16.5, 130), (20.0, 200)]
    assert rates_by_tenth(marks) == pytest.approx([10.0] * 5 + [20.0] * 5)


def test_percentiles_are_numpys() -> None:
    """Interpolated between the closest ranks, whatever the order."""
    values = [float(value) for value in np.random.default_rng(1).permutation(37)]
    assert [percentile(values, p) for p in (0, 5, 50, 95, 100)] == pytest.approx(np.percentile(values, [0, 5, 50, 95, 100]))
    assert percentile([3.0], 95) == 3.0
    assert percentile([1.0, 2.0], 50) == 1.5


@pytest.mark.parametrize(("values", "p"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_a_percentile_of_nothing_is_an_error(values: list[float], p: float) -> None:
    """A silent 0 would meet every target."""
    with pytest.raises(ValueError):
        percentile(values, p)


def test_a_summary_is_rounded_and_counts() -> None:
    """What goes into the JSON line."""
    assert summary([1.23456, 2.0, 3.0], 2) == {"n": 3, "p50": 2.0, "p95": 2.9, "p99": 2.98, "min": 1.23, "max": 3.0}


def test_a_target_is_judged_on_the_unrounded_value() -> None:
    """1.504 s shows as 1.50 and does not meet 1.5."""
    assert at_most("save", 1.504, 1.5, "s") == Row("save", "1.50 s", "<= 1.5 s", False)
    assert at_most("save", 1.5, 1.5, "s").met
    assert at_least("ratio", 0.799, 0.8) == Row("ratio", "0.80", ">= 0.8", False)
    assert plain("p50", 12.34, "ms", digits=1) == Row("p50", "12.3 ms")


def test_the_table_is_aligned_markdown() -> None:
    """For the terminal and for RESULTS.md alike."""
    rows = [("save", Row("p95", "1.20 s", "<= 1.5 s", True)), ("ingest", Row("ratio", "0.70", ">= 0.8", False)), ("x", Row("y", "1"))]
    assert table(rows).splitlines() == [
        "| part   | what  | measured | target   | met? |",
        "|--------|-------|----------|----------|------|",
        "| save   | p95   | 1.20 s   | <= 1.5 s | yes  |",
        "| ingest | ratio | 0.70     | >= 0.8   | NO   |",
        "| x      | y     | 1        |          |      |",
    ]


def test_cached_tokens_are_taken_off_the_bare_side_too() -> None:
    """Half the prompt cached: ours is compared with half the bare prefill."""
    timing = Timing(first_s=0.6, clocks=[], prompt_tokens=100, cached_tokens=50, search_s=0.0)
    assert _first_ratios([{"http": timing, "bare": (1.0, [])}], "http") == pytest.approx([1.2])


def test_decoding_is_compared_over_the_answers_own_length() -> None:
    """Bare runs on after our answer ended; those tokens do not count. Ours takes twice as long here."""
    bare = [0.1 * i for i in range(10)] + [100.0 + i for i in range(118)]
    timing = Timing(first_s=0.1, clocks=[5 + 0.2 * i for i in range(10)], prompt_tokens=9, cached_tokens=0, search_s=0.0)
    ratios, pooled = _decode_ratios([{"http": timing, "bare": (0.1, bare)}], "http")
    assert (ratios, pooled) == (pytest.approx([0.5]), pytest.approx(0.5))


def test_stand_in_vectors_are_unit_rows_near_real_ones() -> None:
    """The real rows come first; the others are as near to one of them as passages of one page are."""
    real = np.eye(8, 384, dtype=np.float32)
    made = perturbed(real, 100)
    assert made.shape == (100, 384)
    assert made[:8].tolist() == real.tolist()
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(100), abs=1e-5)
    assert (made @ real.T).max(axis=1).min() > 0.8


def test_prose_never_repeats_a_passage() -> None:
    """A file whose passages are known already would be answerable without embedding."""
    texts = corpus.prose(10_000)
    made = [next(texts) for _ in range(40)]
    assert len(set(made)) == 40
    assert all(8000 <= len(text) <= 12_000 for text in made)


def test_a_later_edition_shares_no_passage_but_keeps_its_headings() -> None:
    """What is saved in one size must not have been embedded in another."""
    first, later = corpus.book(5), corpus.book(5, 1000)
    passages = [{part for part in text.split("\n\n") if not part.startswith("#")} for text in (first, later)]
    headings = [[part for part in text.split("\n\n") if part.startswith("#")] for text in (first, later)]
    assert not passages[0] & passages[1]
    shared = min(map(len, headings))
    assert headings[0][:shared] == headings[1][:shared]
    assert shared


def test_the_marker_stands_outside_code() -> None:
    """In the middle, as a paragraph of its own."""
    text = "one\n\n```\ntwo\n\nthree\n```\n\nfour"
    paragraphs = with_marker(text, "MARK").split("\n\n")
    assert paragraphs in (["one", "MARK", "```\ntwo", "three\n```", "four"], ["one", "```\ntwo", "three\n```", "MARK", "four"])


def test_what_needs_the_data_folder_says_so_where_it_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the parts that can do without use the guide."""
    monkeypatch.setattr(corpus, "SHARED", tmp_path)
    with pytest.raises(Skipped, match=r"no rust-book\.tar\.gz"):
        corpus.mixture(100)
    assert 8000 <= len(next(corpus.prose(10_000))) <= 12_000
    assert any(questions for _, _, questions in corpus.guide())
