"""Follow-ups are completed, and questions that need no completion come out as they went in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.golden import read
from rag.records import Turn
from rag.standalone import standalone
from tests.conftest import ROOT

ADD = "How do I add a domain?"


def after(question: str, *talk: str) -> str:
    """The question after turns of user and assistant."""
    return standalone(question, [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(talk)])


@pytest.mark.parametrize(
    ("earlier", "question", "whole"),
    [
        ("When does the library open on weekdays?", "And on Sundays?", "When does the library open on Sundays?"),
        ("How do I install tesseract?", "And on macOS?", "How do I install tesseract on macOS?"),
        ("How long may a question be?", "What about an answer?", "How long may an answer be?"),
        ("Which licence does the model have?", "And which size?", "Which size does the model have?"),
        ("What does MRR@10 mean?", "And hit@5?", "What does hit@5 mean?"),
        ("How do I use LlamaIndex?", "How about LiteLLM?", "How do I use LiteLLM?"),
        ("How do I fetch a model?", "And remove it?", "How do I remove a model?"),
        ("Are mails read?", "What about archives?", "Are archives read?"),
        (ADD, "How do I remove it?", "How do I remove a domain?"),
        ("What is a LoRA adapter?", "Who trains them?", "Who trains LoRA adapters?"),
        ("What is an adapter?", "What are its parts?", "What are an adapter's parts?"),
        ("Which model is the default?", "How large is it?", "How large is the default model?"),
    ],
)
def test_what_is_plain_is_put_in_its_place(earlier: str, question: str, whole: str) -> None:
    """The new part in the place of the old one, a pronoun's thing in its place."""
    assert after(question, earlier, "So and so.") == whole


@pytest.mark.parametrize(
    "question", ["Why?", "How often?", "And how long?", "How long does it take?", "What is the default?", "What else?", "Not even then?"]
)
def test_what_is_not_plain_stands_beside_the_earlier_question(question: str) -> None:
    """As people would say it."""
    assert after(question, "Is the folder compared with the index?", "Yes.") == f"Is the folder compared with the index? {question}"


@pytest.mark.parametrize(
    "question",
    [
        "Does anything leave my machine?",
        "What happens to a document when I delete it?",
        "If a file fails, is it tried again?",
        "Which file formats can it read?",
        "Is it possible to use a GPU?",
        "Is there a limit to the length of a question?",
        "What happens with a link that leads out of the folder?",
        "Are files that failed listed?",
        "Where do I type my first question?",
        "Does a citation say where its quote stands?",
        "On which port does the server listen?",
        "Without a key, can others reach the service?",
        "How much does this service cost?",
        "port of the server",
        "Thanks! Now, how do I change the port?",
        "Wie ändere ich den Port?",
        "",
    ],
)
def test_a_question_that_stands_alone_is_left_as_it_is(question: str) -> None:
    """To the letter, whatever was said before."""
    assert after(question, ADD, "Make a folder.") == question


def test_without_a_history_nothing_is_completed() -> None:
    """There is nothing to complete it with; neither do the assistant's own words make a history."""
    assert after("And on Sundays?") == "And on Sundays?"
    assert standalone("Why?", [Turn("assistant", "Welcome.")]) == "Why?"
    assert after("And on Sundays?", "Good morning!", "What can I do for you?") == "And on Sundays?"
    assert after("And remove it?", ADD, "Make a folder.", "Thanks.", "You are welcome.") == "How do I remove a domain?"


def test_a_thread_is_followed_through_its_turns() -> None:
    """The follow-up of a follow-up, and after a new topic that one alone."""
    assert after("And in Docker?", ADD, "Make a folder.", "And remove it?", "Delete the folder.") == "How do I remove a domain in Docker?"
    assert after("And in Docker?", ADD, "Make a folder.", "How do I change the port?", "...") == "How do I change the port in Docker?"


def test_the_last_of_what_an_answer_lists() -> None:
    """By its place in the list; where the answer lists nothing, both questions stand together."""
    asked = "Which libraries are tested?"
    assert after("How do I use the last one?", asked, "LangChain, LlamaIndex and LiteLLM.") == "How do I use LiteLLM?"
    assert after("How do I use the second one?", asked, "LangChain, LlamaIndex and LiteLLM.") == "How do I use LlamaIndex?"
    assert after("How do I use the latter?", asked, "LangChain and LiteLLM.") == "How do I use LiteLLM?"


@pytest.mark.parametrize(
    ("earlier", "question"),
    [
        ("Wann öffnet die Bibliothek?", "Und am Sonntag?"),
        ("Wann öffnet die Bibliothek?", "Was ist mit den Feiertagen?"),
        ("Wann öffnet die Bibliothek?", "Warum?"),
        ("Quand ouvre la bibliothèque ?", "Et le dimanche ?"),
        ("¿Cuándo abre la biblioteca?", "¿Y los domingos?"),
        ("Quando apre la biblioteca?", "E la domenica?"),
        ("Wanneer gaat de bibliotheek open?", "En op zondag?"),
        ("Quando abre a biblioteca?", "E aos domingos?"),
    ],
)
def test_follow_ups_in_other_languages_stand_beside_the_earlier_question(earlier: str, question: str) -> None:
    """Where they begin as one, or are hardly more than a question word."""
    assert after(question, earlier, "So.") == f"{earlier} {question}"


@pytest.mark.parametrize(
    "question",
    [
        "In welchem Ordner liegt der Index?",
        "Und wie ändere ich den Port des Servers?",
        "So wird das Wort geschrieben?",
        "On peut supprimer un document ?",
        "En quelle année la maison a-t-elle été construite ?",
        "¿En qué carpeta está el índice?",
        "O que é um adaptador?",
        "In quale cartella si trova l'indice?",
        "Of which languages does the model know the words?",
    ],
)
def test_words_that_mean_something_else_in_another_language_make_no_follow_up(question: str) -> None:
    """`On`, `en`, `o`, `of` and `so` begin whole questions, too."""
    assert after(question, ADD, "Make a folder.") == question


def test_a_pasted_page_is_no_topic() -> None:
    """Of a long question its last sentence that asks is taken."""
    long = "Here is my log. " * 100 + "Why did the file fail? Thank you."
    assert after("And how often?", long, "It is locked.") == "Why did the file fail? And how often?"


@settings(deadline=None)
@given(st.text(), st.lists(st.text(), max_size=4))
def test_any_text_is_completed_without_an_error(question: str, talk: list[str]) -> None:
    """And not without bounds: two texts and a little."""
    whole = after(question, *talk)
    assert len(whole) <= len(question) + 2 * sum(map(len, talk)) + 200


def test_the_golden_set_is_about_the_guide_and_its_halves_are_alike() -> None:
    """Each follow-up has its question in full in the other file, and every quote stands in the guide."""
    items, whole = (read(ROOT / "tests" / "golden" / name) for name in ("followups.jsonl", "followups-alone.jsonl"))
    assert [item.id for item in items] == [item.id for item in whole]
    assert all(item.history for item in items)
    assert not any(item.history for item in whole)
    for item in items:
        for span in item.spans:
            text = " ".join((ROOT / "corpora" / span.document).read_text(encoding="utf-8").split())
            assert " ".join(span.quote.split()) in text, f"{item.id}: {span.quote}"


def test_what_stands_alone_in_the_golden_set_is_left_alone() -> None:
    """All 28 of them: a completed one would be searched for with a topic that it has nothing to do with."""
    alone = [item for item in read(ROOT / "tests" / "golden" / "followups.jsonl") if item.id.startswith("alone")]
    assert [item.id for item in alone if standalone(item.question, item.history) != item.question] == []
