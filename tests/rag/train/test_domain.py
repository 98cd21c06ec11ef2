"""An adapter for one domain: what is kept apart, what is learnt, and how it is said whether that helped."""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rag import adapters
from rag.errors import AdapterUnusable, InvalidInput
from rag.models import ModelFile
from rag.records import Turn
from rag.settings import Engine as EngineSettings
from rag.train import convert, domain, lora, questions, verdict
from rag.train.examples import ANSWERED, REFUSAL, Example
from tests.rag.train.tiny import HEADS, HEADS_KV, random_lora, write

pytest.importorskip("gguf", reason="the extra `train` is not installed")

RIGHT = "[1] The mill was built in 1804."


def documents(count: int) -> dict[str, list[str]]:
    """Texts of which questions can be made: of each eight."""
    return {
        f"d{n}.md": [
            f"The mill of {name} was built in {1800 + n} by the two brothers. The river of {name} is crossed by four bridges. "
            f"The market of {name} was moved to the new square. The tower of {name} was painted white and green in spring."
        ]
        for n, name in enumerate(f"Ham{chr(97 + n)}" for n in range(count))
    }


def example(kind: str, answer: str = RIGHT) -> Example:
    return Example((Turn("user", "When was the mill built?"),), answer, kind)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """The small model."""
    path = write(tmp_path_factory.mktemp("base") / "tiny.gguf")
    return ModelFile("tiny", path, None)


@pytest.fixture(scope="module")
def began(tmp_path_factory: pytest.TempPathFactory, base: ModelFile) -> adapters.Package:
    """An adapter for it, installed."""
    folder = tmp_path_factory.mktemp("began")
    weights = convert.write(random_lora(4), folder / "began.gguf", alpha=8.0, heads=HEADS, kv_heads=HEADS_KV)
    return adapters.add(weights, folder, base, licence="CC0-1.0")


def test_what_is_judged_by_is_about_other_documents() -> None:
    """About a fifth, the same each time; what is taught does not show their passages."""
    pool = questions.pool_of(documents(20))
    seen, unseen = domain.kept_apart(pool)
    of = [{pool.passages[asked.passage].group for asked in part.answerable} for part in (seen, unseen)]
    assert not of[0] & of[1]
    assert len(seen.answerable) + len(unseen.answerable) == len(pool.answerable)
    assert 0.2 <= len(unseen.answerable) / len(pool.answerable) < 0.3
    assert {passage.group for passage in seen.passages if not passage.text} == of[1]
    assert all(passage.text for passage in unseen.passages)
    assert [asked.question for asked in domain.kept_apart(pool)[1].answerable] == [asked.question for asked in unseen.answerable]


def test_of_one_long_document_a_part_is_kept_apart() -> None:
    """A handbook is often the whole domain."""
    (pages,) = {"book.md": [text for (text,) in documents(26).values()]}.values()
    pool = questions.pool_of({"book.md": pages})
    seen, unseen = domain.kept_apart(pool)
    assert not {asked.passage for asked in seen.answerable} & {asked.passage for asked in unseen.answerable}
    assert 0.1 < len(unseen.answerable) / len(pool.answerable) < 0.5
    assert all(not seen.passages[asked.passage].text for asked in unseen.answerable)


def test_a_lesson_says_what_is_too_little() -> None:
    """With how many questions there are, and how many it takes."""
    with pytest.raises(InvalidInput, match=r"3 documents only \d+ questions can be made; 60"):
        domain.lesson(documents(3))


def test_examples_to_judge_by_are_half_and_half_and_of_the_domain() -> None:
    """No prompt twice, no made-up table; the general ones are of the general pool."""
    general = questions.pool_of({f"g{name}": text for name, text in documents(26).items()})
    lesson = domain.lesson(documents(26), general=general, count=20)
    for judged in (lesson.judged, lesson.general):
        kinds = Counter(each.kind in ANSWERED for each in judged)
        assert kinds[True] == kinds[False] > 0
        assert len({each.turns for each in judged}) == len(judged)
        assert not {"table", "no-cell"} & {each.kind for each in judged}
    assert (lesson.documents, lesson.questions) == (26, len(questions.pool_of(documents(26)).answerable))
    assert 0 < lesson.apart < lesson.questions


def test_a_general_pool_too_small_to_judge_by_is_mixed_in_all_the_same() -> None:
    """Of one article all is taught: what was forgotten is then not measured."""
    lesson = domain.lesson(documents(26), general=questions.pool_of({"g.md": documents(1)["d0.md"]}), count=10)
    assert lesson.general == ()
    assert "g.md" in {lesson.taught.passages[asked.passage].group for asked in lesson.taught.answerable}


def test_two_pools_are_joined_with_their_passages() -> None:
    """Each question still about its own."""
    both = domain.joined(questions.pool_of(documents(2)), questions.pool_of(documents(3)))
    assert len(both.passages) == 5
    assert all(asked.accepted[0] in both.passages[asked.passage].text for asked in both.answerable)


@pytest.mark.parametrize(
    ("kind", "said", "score", "refused"),
    [
        ("plain", RIGHT, 1.0, False),
        ("plain", "The mill was built in 1804.", 1.0, False),
        ("plain", "[2] It was sold in 1911 to the town.", pytest.approx(2 * 2 / 12), False),
        ("plain", REFUSAL, 0.0, True),
        ("gone", REFUSAL, 1.0, True),
        ("gone", RIGHT, 0.0, False),
        ("gone", "", 0.0, False),
    ],
)
def test_an_answer_is_worth_what_it_says(kind: str, said: str, score: float, refused: bool) -> None:
    """The number of the passage is no part of it; a refusal where there is an answer is worth nothing."""
    judged = verdict.judged(example(kind), said)
    assert (judged.refused, judged.due) == (refused, kind == "gone")
    assert judged.score == score


def test_a_bare_model_refuses_in_its_own_words() -> None:
    """It was never taught ours."""
    said = "The passages do not mention when the mill was built."
    assert verdict.judged(example("gone"), said, bare=True).refused
    assert not verdict.judged(example("gone"), said).refused


def test_figures_are_means_of_the_kinds() -> None:
    """And the difference of two is paired: the same examples."""
    yes, no = example("plain"), example("gone")
    before = [verdict.judged(yes, REFUSAL), verdict.judged(yes, RIGHT), verdict.judged(no, RIGHT), verdict.judged(no, REFUSAL)]
    after = [verdict.judged(yes, RIGHT), verdict.judged(yes, RIGHT), verdict.judged(no, REFUSAL), verdict.judged(no, REFUSAL)]
    assert verdict.figures(before) == {"right": 0.5, "answers": 0.5, "refused": 0.5, "wrongly_refused": 0.5}
    assert verdict.figures(after) == {"right": 1.0, "answers": 1.0, "refused": 1.0, "wrongly_refused": 0.0}
    change = verdict.difference(before * 10, after * 10)
    assert change["value"] == 0.5
    assert change["low"] > 0
    assert verdict.difference(after * 10, after * 10) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_domain_is_taught_further_and_told_as_a_package(base: ModelFile, began: adapters.Package, tmp_path: Path) -> None:
    """What comes out is an adapter for the same base that is another than the one it began from, with its card and its figures."""
    lesson = domain.lesson(documents(26), count=10)
    folder = tmp_path / "ham"
    recipe = lora.Recipe(seconds=1e9, steps=3, tokens=4096, piece=2048, rate=1e-2)
    told = domain.train(lesson, folder, base=base.path, begin=began, recipe=recipe, count=60)
    assert (told["steps"], told["recipe"]["rank"], told["recipe"]["alpha"]) == (3, 4, 8.0)
    again, _ = convert.read(folder / adapters.WEIGHTS, heads=HEADS, kv_heads=HEADS_KV)
    known, _ = convert.read(began.weights, heads=HEADS, kv_heads=HEADS_KV)
    assert any(np.abs(again[name][1] - known[name][1]).max() > 1e-3 for name in known)

    said = {"name": "ham", "domain": "ham", "licence": "CC0-1.0", "base": base, "begin": began, "lesson": lesson, "told": told}
    domain.describe(folder, **said, general="", date="2026-01-02")  # type: ignore[arg-type]
    heard: list[tuple[int, int]] = []
    settings = EngineSettings(model=str(base.path))
    found = domain.evaluate(lesson, folder, began, settings, tmp_path, lambda done, of: heard.append((done, of)))
    assert found["domain"]["count"] * 3 == len(heard) == heard[-1][1] == heard[-1][0]
    assert set(found["domain"]["made"]) == {"right", "answers", "refused", "wrongly_refused"}
    assert (found["general"], found["helped"]) == (None, found["domain"]["difference"]["low"] > 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ham", "models"]

    domain.describe(folder, **said, general="pool.json.gz", date="2026-01-02", evaluation=found)  # type: ignore[arg-type]
    manifest = tomllib.loads((folder / adapters.MANIFEST).read_text())
    assert manifest["evaluation"]["made_right"] == found["domain"]["made"]["right"]
    assert (manifest["base_sha256"], manifest["marks"], manifest["licence"]) == (adapters.base_digest(base), True, "CC0-1.0")
    card = (folder / domain.CARD).read_text()
    assert all(word in card for word in (adapters.base_digest(base), "CC0-1.0", "pool.json.gz", "3 steps", "- began: right"))
    assert adapters.add(folder, tmp_path, base).style == adapters.Style(marks=True, repeat_penalty=1.0)


def test_an_adapter_that_leaves_layers_out_cannot_be_begun_from(base: ModelFile, tmp_path: Path) -> None:
    """Said before anything is trained."""
    some = {name: pair for name, pair in random_lora(1).items() if "layers.0" in name}
    weights = convert.write(some, tmp_path / "half.gguf", alpha=8.0, heads=HEADS, kv_heads=HEADS_KV)
    package = adapters.add(weights, tmp_path, base, licence="CC0-1.0")
    with pytest.raises(AdapterUnusable, match="half leaves out layers"):
        domain.begun(package, base.path)


def test_an_adapter_that_is_applied_weakly_is_begun_from_as_it_is_applied(base: ModelFile, began: adapters.Package) -> None:
    """What it is compared with is answered at its own scale, and what is made has a scale of 1."""
    assert domain.begun(began, base.path)[1] == 8.0
    assert domain.begun(replace(began, scale=0.5), base.path)[1] == 4.0


def test_stopped_before_the_first_step_nothing_is_written(base: ModelFile, tmp_path: Path) -> None:
    """No file that looks like an adapter and is none."""
    lesson = domain.lesson(documents(26), count=10)
    told = domain.train(
        lesson, tmp_path / "out", base=base.path, begin=None, recipe=domain.recipe("cpu", 60), count=20, watch=lambda _: False
    )
    assert told["steps"] == 0
    assert not (tmp_path / "out").exists()


def test_the_shipped_adapter_can_be_begun_from(tmp_path: Path) -> None:
    """It is there, and of all layers of the default model."""
    from rag.models import locate

    package = adapters.find(tmp_path, "grounded")
    model = locate("smollm2-135m-instruct", "generator")
    assert package.fits(adapters.base_digest(model))
    known, alpha = domain.begun(package, model.path)
    assert (len(known), alpha, next(iter(known.values()))[0].shape[0]) == (210, 16.0, 8)


def test_a_pool_without_real_unanswerable_questions_is_refused_as_often() -> None:
    """What is made by rule takes their place: about half of what a domain teaches is to refuse."""
    pool = questions.pool_of(documents(26))
    kinds = [each.kind in ANSWERED for each, _ in zip(domain.verdict.Mix(pool, 1), range(600), strict=False)]
    assert 0.4 < sum(kinds) / len(kinds) < 0.66  # .70 to .72 where nothing takes their place
