"""Kept results: what they hold, what they do not, and how drift is found in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rag import prompt, results
from rag.errors import InvalidInput
from rag.evaluate import Outcome
from rag.golden import Item, Span
from rag.records import Citation, Done, Timings, Usage
from rag.settings import Engine, Retrieve, Settings

ITEMS = [Item(str(n), f"secret question {n}", ("secret answer",), spans=(Span("g/secret.md", "secret quote"),)) for n in range(30)]


def outcomes(right: Sequence[bool]) -> list[Outcome]:
    cited = Citation("secret sentence", "secret quote", "id", "g/secret.md", None, 0, 12, 1.0)
    done = Done("secret words", False, (cited,), Usage(), Timings(), "m")
    return [
        Outcome(item.id, {"contains": float(good)}, model="m", done=done, lost=("g/secret.md: 'secret quote'",))
        for item, good in zip(ITEMS, right, strict=True)
    ]


def made(right: int, **given: object) -> dict:
    return results.report("mine", ITEMS, outcomes([n < right for n in range(30)]), **given)  # type: ignore[arg-type]


def test_a_kept_result_has_no_text(tmp_path: Path) -> None:
    """What is deleted from the index must not live on in results: no question, answer, quote or path."""
    path = results.keep(made(10), tmp_path)
    assert path.parent == tmp_path / "evaluations"
    assert path.name.endswith("-mine.json")
    assert "secret" not in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8"))["lost"] == 30


def test_a_key_is_not_kept(tmp_path: Path) -> None:
    """Nor is what does not bear on answers: how many at once."""
    settings = Settings(data_dir=tmp_path, corpora=tmp_path / "c", engine=Engine(key="hush", sequences=3))
    said = results.configuration(settings)
    assert "hush" not in json.dumps(said)
    assert said == results.configuration(dataclasses.replace(settings, engine=Engine(key="other", sequences=4)))


def test_two_runs_in_one_second_are_two_files(tmp_path: Path) -> None:
    """Their order is that of their time."""
    result = made(10)
    first, second = results.keep(result, tmp_path), results.keep(result, tmp_path)
    assert first != second
    assert len(results.kept(tmp_path, "mine")) == 2
    assert results.kept(tmp_path, "other") == []


def test_drift_is_seen_with_what_was_changed(tmp_path: Path) -> None:
    """The change against the last run of the same questions, and the settings that differ."""
    settings = Settings(data_dir=tmp_path, corpora=tmp_path / "c")
    other = dataclasses.replace(settings, retrieve=Retrieve(focus=0.5))
    first = made(10, settings=results.configuration(settings), versions={"numpy": "1"}) | {"date": "2026-01-01T00:00:00+00:00"}
    between = results.report("mine", ITEMS[:5], outcomes([True] * 30)[:5]) | {"date": "2026-01-02T00:00:00+00:00"}
    last = made(25, settings=results.configuration(other), versions={"numpy": "2"}) | {"date": "2026-01-03T00:00:00+00:00"}
    for result in (last, first, between):
        results.keep(result, tmp_path)
    found = results.kept(tmp_path, "mine")
    assert [result["date"][:10] for result in found] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert results.before(found, 0) is None
    assert results.before(found, 1) is None, "other questions are no comparison"
    earlier = results.before(found, 2)
    assert earlier is not None
    assert earlier["date"] == first["date"]
    (change,) = results.compared(earlier, found[2])
    assert (change.metric, change.value, change.sure) == ("contains", pytest.approx(0.5), True)
    assert results.changed(earlier, found[2]) == [f"retrieve.focus {Settings().retrieve.focus} -> 0.5", "numpy 1 -> 2"]
    assert earlier["fingerprint"] != found[2]["fingerprint"]


def test_the_wording_of_the_prompt_is_part_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word of it changes answers, and no setting."""
    settings = Settings(data_dir=tmp_path, corpora=tmp_path / "c")
    before = results.configuration(settings)
    monkeypatch.setattr(prompt, "RULES", prompt.RULES + " Be brief.")
    after = results.configuration(settings)
    assert {key for key in before if before[key] != after[key]} == {"prompt"}


def test_a_domains_own_settings_are_part_of_it(tmp_path: Path) -> None:
    """They decide before the others do."""
    settings = Settings(data_dir=tmp_path, corpora=tmp_path / "c")
    (tmp_path / "c" / "law").mkdir(parents=True)
    (tmp_path / "c" / "law" / "domain.toml").write_text('abstain_below = 0.6\nprompt = "Be strict."\n')
    said = results.configuration(settings)
    assert said["law/domain.toml: abstain_below"] == 0.6
    assert "strict" not in json.dumps(said)


def test_versions_name_the_models_bytes(tmp_path: Path) -> None:
    """By its digest: the same name may be another file tomorrow. What is not installed is not invented."""
    settings = Settings(data_dir=tmp_path, corpora=tmp_path / "c")
    found = results.versions(settings, None, None)
    assert len(found["model_sha256"]) == 16
    assert found["numpy"]
    assert "model_sha256" not in results.versions(settings, "no-such-model", "none")


def test_a_file_that_is_no_result_is_said(tmp_path: Path) -> None:
    """Rather than left out in silence."""
    results.keep(made(10), tmp_path)
    (tmp_path / "evaluations" / "notes.json").write_text("[]")
    with pytest.raises(InvalidInput, match=r"notes\.json"):
        results.kept(tmp_path, "mine")
