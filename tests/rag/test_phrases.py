"""What the service itself says, in the language of the domain; and what it says that it searched for."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag import adapters, phrases, prompt
from rag.answer import Question
from rag.embed import Embedder
from rag.generation import TokenChances
from rag.phrases import BY_LANGUAGE, own_words
from rag.records import Done, PassagesFound, Token, Turn
from rag.store import EdgeStore
from tests.rag.test_answer import Scripted, ask, library, store  # noqa: F401 - a fixture

OPENING = "When does the reading room open?"
GERMAN = BY_LANGUAGE["de"]


@pytest.fixture
def german(tmp_path: Path, store: EdgeStore) -> None:  # noqa: F811
    """Domain `a` is in German."""
    (tmp_path / "corpora" / "a" / "domain.toml").write_text('languages = ["de", "en"]')


def test_the_first_language_counts_and_english_where_there_is_nothing_in_it() -> None:
    """All of them are different, and have a place for the quote."""
    assert phrases.of(("de", "en")) is GERMAN
    assert phrases.of(("fi",)) is phrases.of(()) is phrases.ENGLISH
    assert phrases.ENGLISH.refusal == prompt.REFUSAL
    assert len({said.refusal for said in BY_LANGUAGE.values()}) == len(BY_LANGUAGE)
    assert all(said.quoted.format(quote="Q").endswith("\n\n> Q") for said in BY_LANGUAGE.values())


@pytest.mark.parametrize("language", BY_LANGUAGE)
def test_the_models_own_words_are_told_from_what_is_put_beside_them(language: str) -> None:
    """For whoever measures answers."""
    said = BY_LANGUAGE[language]
    quoted = said.quoted.format(quote="A quote.")
    assert own_words("The model's." + said.unbacked + quoted) == ("The model's.", True)
    assert own_words(quoted) == ("A quote.", False)
    assert own_words(said.refusal) == (said.refusal, False)


@pytest.mark.usefixtures("german")
def test_a_domain_is_refused_in_its_language(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:  # noqa: F811
    """Asked alone, or as the only one there is."""
    for domain in ("a", None):
        events = ask(
            Question("Wer gewann 2018 die Weltmeisterschaft?", domain),
            library(tmp_path, embedder, store, Scripted(AssertionError("asked"))),
        )
        done = events[-1]
        assert isinstance(done, Done)
        assert (done.refused, done.answer) == (True, GERMAN.refusal)
        assert [event.text for event in events if isinstance(event, Token)] == [GERMAN.refusal]


@pytest.mark.usefixtures("german")
def test_an_adapters_refusal_is_told_in_the_domains_language(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:  # noqa: F811
    """Whatever it goes on to say, which nobody sees."""
    engine = Scripted("[1] ", "It opens at nine in the morning.")
    engine.style = adapters.Style(marks=True)
    engine.chances = [TokenChances(b"[", -0.1, ((b"I", -0.001),))]
    events = ask(Question(OPENING, "a", adapter="legal"), library(tmp_path, embedder, store, engine))
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.refused, done.answer, done.citations) == (True, GERMAN.refusal, ())
    assert [event.text for event in events if isinstance(event, Token)] == [GERMAN.refusal]


def test_a_follow_up_is_searched_for_and_answered_as_it_would_be_asked_alone(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:  # noqa: F811
    """And shown so; a question that stands alone is what it was."""
    history = (Turn("user", OPENING), Turn("assistant", "At nine in the morning."))
    for asked, whole in (
        ("And in the evening?", "When does the reading room open in the evening?"),
        ("When does the reading room close?", "When does the reading room close?"),
    ):
        engine = Scripted("It closes at six in the evening.")
        found = ask(Question(asked, "a", history=history), library(tmp_path, embedder, store, engine))[0]
        assert isinstance(found, PassagesFound)
        assert found.searched_for == whole
        assert engine.turns[-1].content.endswith(whole)


def test_a_follow_up_that_would_be_too_long_in_full_is_asked_as_it_is(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:  # noqa: F811
    """The limit on a question holds for what is made of it, too."""
    given = library(tmp_path, embedder, store, Scripted("It opens at nine."))
    limit = given.settings.server.max_question_chars
    asked = "And " + "very " * ((limit - 20) // 5) + "early?"
    found = ask(Question(asked, history=(Turn("user", OPENING),)), given)[0]
    assert isinstance(found, PassagesFound)
    assert found.searched_for == asked
