"""What the adapter is shown: the product's own prompts, answers that stand in their passages, and nothing that is measured on."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from pathlib import Path

import pytest

from rag import prompt
from rag.errors import InvalidInput
from rag.marks import unmarked
from rag.train import answers, swaps, tables
from rag.train.examples import ANSWERED, REFUSAL, SHARES, Example, Mix, split, turns_of
from rag.train.pool import Pool, fingerprint, fingerprints, held_out, says
from tests.conftest import SHARED

LAKE = (
    "Lake Orne is the largest lake in the province of Varda. It was dammed in 1932 (after a decade of planning) by the engineer Mara Holt, "
    "and supplies 41 towns with water. The dam is 87 metres high. Its keeper lives in Holm."
)
HILL = "Mount Tessen is a hill in the north of Varda. It was climbed first by Ola Brandt in 1871, who wrote a book about it."
MILL = "The Karsk Mill was built in 1804 near Holm by the miller Jon Vask. It was sold in 1911 to the town for 900 crowns."


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    """A pool of three passages, as the real one is written."""
    path = tmp_path / "pool.json.gz"
    write(path, [LAKE, HILL, MILL])
    return path


def write(path: Path, texts: list[str]) -> None:
    """Two questions that have an answer and one that has none for the first passage, one for each other."""
    answerable = [
        ("Who dammed Lake Orne?", "Mara Holt", 0),
        ("How many towns does Lake Orne supply with water?", "41", 0),
        ("Who climbed Mount Tessen first?", "Ola Brandt", 1),
        ("When was the Karsk Mill built by Jon Vask?", "1804", 2),
    ]
    pool = {
        "passages": [{"text": text, "group": "ss_wiki:Varda", "source": "ss_wiki"} for text in texts],
        "answerable": [
            {"question": q, "answer": a, "accepted": [a], "passage": p, "source": "ss_wiki"} for q, a, p in answerable if p < len(texts)
        ],
        "unanswerable": [{"question": "Who drained Lake Orne?", "passage": 0, "source": "sq2_real"}],
    }
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(pool, file)


def some(pool: Pool, count: int = 400, seed: int = 1) -> list[Example]:
    """The first examples of the mix."""
    return list(itertools.islice(Mix(pool, seed), count))


def passages_of(example: Example) -> list[str]:
    """The texts that the model reads, without their numbers, in the order of these."""
    body = example.turns[-1].content.removeprefix("Passages:\n\n").rpartition("\n\nUsing only the passages above")[0]
    parts = re.split(r"(?:^|\n\n)\[(\d+)\] ", body)
    return parts[2::2] if len(parts) > 1 else parts


def test_examples_are_written_as_the_product_writes_its_prompts() -> None:
    """A change of the prompt is a change of the examples: they are made by the same function."""
    turns = turns_of("Who?", ["One.", "Two."])
    assert [turn.role for turn in turns] == ["system", "user"]
    assert turns[0].content == prompt.RULES
    assert turns[1].content == "Passages:\n\n[1] One.\n\n[2] Two.\n\nUsing only the passages above, answer in one or two sentences: Who?"


def test_each_answered_sentence_is_from_the_passage_that_it_names(pool_file: Path) -> None:
    """Word by word, but for yes and no, made-up tables, and what was shortened."""
    seen = set()
    for example in some(Pool.read(pool_file)):
        if example.kind not in ANSWERED:
            continue
        texts = passages_of(example)
        shown, numbers = unmarked(example.answer)
        assert len(numbers) == (2 if example.kind == "two" else 1) or len(texts) == 1
        assert all(1 <= number <= len(texts) for number in numbers)
        if example.kind in ("plain", "what"):
            text = texts[numbers[0] - 1 if numbers else 0]
            words = re.findall(r"\w+", text.lower())
            told = iter(words)
            assert all(word in told for word in re.findall(r"\w+", shown.lower())), (shown, text)
        seen.add(example.kind)
    assert seen >= {"plain", "two", "table", "yes"}


def test_what_has_no_answer_is_refused_in_the_words_of_the_product(pool_file: Path) -> None:
    """All kinds of it, and nothing else is."""
    kinds = {(example.kind in ANSWERED, example.answer == REFUSAL) for example in some(Pool.read(pool_file))}
    assert kinds == {(True, False), (False, True)}
    assert prompt.REFUSAL == REFUSAL


def test_the_right_passage_that_is_taken_away_is_nowhere(pool_file: Path) -> None:
    """Nor is its answer in another."""
    pool = Pool.read(pool_file)
    answers_of = {each.question.lower().rstrip("? "): each.accepted for each in pool.answerable}
    found = [example for example in some(pool, 1500) if example.kind in ("gone", "cut")]
    assert found
    for example in found:
        question = example.turns[-1].content.rpartition(": ")[2].lower().rstrip("? ")
        assert not any(says(text, answers_of[question]) for text in passages_of(example))


def test_the_same_seed_makes_the_same_mix(pool_file: Path) -> None:
    """And another one another."""
    pool = Pool.read(pool_file)
    assert some(pool, 40) == some(pool, 40)
    assert some(pool, 40) != some(pool, 40, seed=2)


def test_about_half_is_answered() -> None:
    """A mix that is mostly one of both would be learnt as that."""
    answered = sum(share for kind, share in SHARES.items() if kind in ANSWERED) / sum(SHARES.values())
    assert 0.5 <= answered <= 0.6


def test_a_long_sentence_is_shortened_around_its_answer() -> None:
    """Asides and clauses after the answer go; the question's words stay."""
    sentence = (
        "The dam, which is the largest of its kind in the whole country, was built in 1932 (after a decade of planning) by Mara Holt "
        "and her brother, while the province paid for the roads, the bridges and the houses of the workers."
    )
    short = answers.shortened(sentence, "Mara Holt", "Who built the dam?")
    assert "Mara Holt" in short
    assert "the bridges" not in short
    assert short.endswith(".")
    assert answers.shortened("Short as it is, it stays.", "stays", "?") == "Short as it is, it stays."


def test_of_two_sentences_with_the_answer_the_one_that_is_asked_for_is_taken() -> None:
    """The one with the question's words."""
    text = "Holm was founded in 1804. The mill of Holm was built in 1804 by Jon Vask. It burnt in 1804."
    assert answers.answer(text, "When was the mill built?", ("1804",)) == "The mill of Holm was built in 1804 by Jon Vask."
    assert answers.answer(text, "When was the mill built?", ("1805",)) is None


def test_sentences_in_small_letters_are_told_apart() -> None:
    """Half of the real unanswerable questions come with such texts."""
    text = "the lake is deep. it has an area of 28.70 km2, st. orne lies on it. see also holm."
    assert [text[a:b] for a, b in answers.spans(text)] == [
        "the lake is deep.",
        "it has an area of 28.70 km2, st. orne lies on it.",
        "see also holm.",
    ]


def test_a_sentence_is_turned_into_a_question() -> None:
    """And back into what follows Yes."""
    assert answers.turned("The Karsk Mill was built in 1804 near Holm.") == (
        "Was the Karsk Mill built in 1804 near Holm?",
        "the Karsk Mill was built in 1804 near Holm.",
    )
    assert answers.turned("It was built in 1804 near the town of Holm.") is None


def test_swaps_change_what_the_passage_says() -> None:
    """To what it does not say at all, or says of something else."""
    rng = random.Random(1)
    question = "When was the Karsk Mill built by Jon Vask in 1804?"
    changed = swaps.with_other_number(question, MILL, rng)
    assert changed is not None
    assert not set(swaps.numbers(changed)) & set(swaps.numbers(MILL))
    assert swaps.with_other_name(question, MILL, ["Ola Brandt", "Mara"], rng) is not None
    assert swaps.with_other_name("when was it built?", MILL, ["Ola Brandt"], rng) is None
    assert swaps.with_opposite("What is the largest lake?", LAKE, rng) == "What is the smallest lake?"
    assert swaps.with_opposite("What is the largest lake?", LAKE + " The smallest is Ern.", rng) is None
    assert swaps.with_number_of("Who sold it in 1911?", "It was sold in 1911.", "It was built in 1804.", rng) == "Who sold it in 1804?"
    assert swaps.negated("What did Jon build there?") == "What did Jon not build there?"


def test_a_table_answers_for_its_own_cells_only() -> None:
    """The value stands in the row that is asked for; a row or column that is asked for in vain is not there."""
    rng = random.Random(2)
    for _ in range(100):
        made = tables.cell(rng, answered=True)
        value = made.answer.rpartition(" is ")[2].rstrip(".")
        assert value in made.table
        assert tables.cell(rng, answered=False).answer == ""


def test_unseen_articles_are_kept_apart(pool_file: Path) -> None:
    """Every question is in one of the two parts, and an article in one only."""
    pool = Pool.read(pool_file)
    for one_in in (1, 2, 40):
        seen, unseen = split(pool, one_in)
        assert sorted(q.question for q in seen.answerable + unseen.answerable) == sorted(q.question for q in pool.answerable)
        assert not {pool.passages[q.passage].group for q in seen.answerable} & {pool.passages[q.passage].group for q in unseen.answerable}


def test_what_is_measured_on_is_not_trained_on(tmp_path: Path, pool_file: Path) -> None:
    """A question, a passage, or one sentence of it in another text, however it is written; and no mix is made without the check."""
    sets = tmp_path / "qa"
    sets.mkdir()
    (sets / "set.jsonl").write_text(json.dumps({"question": "who climbed MOUNT TESSEN first"}) + "\n", encoding="utf-8")
    with gzip.open(sets / "set.json.gz", "wt", encoding="utf-8") as file:
        json.dump({"data": [{"context": f"Another text. {MILL.split('. ')[0]}. And more."}]}, file)
    pool = Pool.read(pool_file, held_out(sets))
    assert pool.dropped == 3  # the question, the mill's passage, and the question about that
    assert [each.question for each in pool.answerable] == ["Who dammed Lake Orne?", "How many towns does Lake Orne supply with water?"]
    assert [bool(each.text) for each in pool.passages] == [True, True, False]
    listed = tmp_path / "held.txt"
    listed.write_text("\n".join(held_out(sets)), encoding="ascii")
    assert held_out(listed) == held_out(sets)
    for nothing in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(InvalidInput):
            held_out(nothing)


@pytest.mark.skipif(not (SHARED / "train").is_dir(), reason="needs the data folder ../shared/data")
def test_no_item_of_any_evaluation_set_is_in_the_mix() -> None:
    """The real pool against all the real sets: by normalised question, passage and sentence, of what examples really contain."""
    held = held_out(SHARED / "qa")
    with gzip.open(SHARED / "qa" / "squad2-dev-half" / "squad2-dev-half.json.gz", "rt", encoding="utf-8") as file:
        paragraph = json.load(file)["data"][0]["paragraphs"][0]
    assert fingerprint(paragraph["context"]) in held
    assert fingerprint(paragraph["qas"][0]["question"]) in held
    pool = Pool.read(SHARED / "train" / "pool.json.gz", held)
    assert len(pool.answerable) > 40_000
    assert len(pool.unanswerable) > 12_000
    for passage in pool.passages:
        assert held.isdisjoint(fingerprints(passage.text)) or not passage.text
    for asked in pool.answerable + pool.unanswerable:
        assert fingerprint(asked.question) not in held
        assert pool.passages[asked.passage].text
