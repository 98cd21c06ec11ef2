"""Words of a language, for BM25 and for what is compared by words; and what changes when a domain's languages do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag import languages
from rag.languages import language_of, query_vector, segmented, stamp, stamped, term
from rag.sentences import content_stems
from rag.store import EdgeStore
from tests.conftest import chunk, document

GERMAN = "Die Häuser am Fluss wurden im Jahr 1911 gebaut und gehören der Stadt."
ENGLISH = "The houses by the river were built in 1911 and belong to the city."


def test_every_language_that_is_known_makes_vectors() -> None:
    """Those that Edge has stems or function words for under the names that we give it, and any other as written."""
    for code in (*languages._KNOWN, "xx", "deutsch"):
        assert languages.document_vector("Wort 1911", code).indices
        assert query_vector("Wort 1911", [code, "en"]).indices


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("de", "haus", "häuser"),
        ("fr", "cheval", "cheval"),
        ("es", "biblioteca", "bibliotecas"),
        ("it", "libro", "libri"),
        ("nl", "boek", "boeken"),
        ("pt", "livro", "livros"),
        ("ru", "книга", "книги"),
        ("en", "house", "houses"),
    ],
)
def test_the_forms_of_a_word_are_one(language: str, one: str, other: str) -> None:
    """By its own language's rules."""
    assert term(one, language) == term(other, language) != ""


def test_function_words_and_words_that_ask_say_nothing() -> None:
    """Of the language, and of no other: `die` is a word in English."""
    assert content_stems("Wann wurde das gebaut?", "de") == content_stems("gebaut", "de")
    assert content_stems("Was ist es?", "de") == []
    assert term("die", "de") == "" != term("die", "en")
    assert content_stems("Quand la maison est-elle construite ?", "fr")[0] == term("maison", "fr")


@pytest.mark.parametrize(
    ("text", "named", "expected"),
    [
        (GERMAN, ("en", "de"), "de"),
        (ENGLISH, ("de", "en"), "en"),
        ("When did the war end?", ("de", "en"), "en"),
        ("Wann war das?", ("en", "de"), "de"),
        ("1911 2.5 XJ-9", ("de", "en"), "de"),
        ("Biblioteka jest otwarta codziennie od dziewiątej.", ("en", "pl"), "pl"),
        ("图书馆九点开门。", ("en", "zh"), "zh"),
        ("Библиотека открыта с девяти.", ("en", "ru"), "ru"),
        (GERMAN, (), "en"),
        (GERMAN, ("fr",), "fr"),
    ],
)
def test_a_text_is_in_one_of_the_languages_that_its_domain_names(text: str, named: tuple[str, ...], expected: str) -> None:
    """By its letters and function words; the first named where neither says more."""
    assert language_of(text, named) == expected


def test_text_without_spaces_is_cut_into_runs_that_are_found_again() -> None:
    """Pairs of ideograms with the single ones, pairs of Hangul, threes of Thai; everything else is as it was."""
    assert segmented("图书馆 opens").split() == ["图书", "书馆", "图", "书", "馆", "opens"]
    assert segmented("도서관은 열려").split() == ["도서", "서관", "관은", "열려"]
    assert segmented("ห้องสมุด").split()[:2] == ["ห้อ", "้อง"]
    assert segmented(GERMAN) == GERMAN


@settings(deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x24F)))
def test_latin_text_is_never_cut(text: str) -> None:
    """Whatever is in it."""
    assert segmented(text) == text


def test_english_vectors_are_those_of_before() -> None:
    """So that the default needs no new index: Edge's own for English."""
    import qdrant_edge

    plain = qdrant_edge.Bm25(qdrant_edge.Bm25Config(avg_len=150.0))
    assert languages.document_vector(ENGLISH, "en").indices == plain.embed_document(ENGLISH).indices
    assert languages.document_vector(ENGLISH, "en").values == plain.embed_document(ENGLISH).values
    assert query_vector(ENGLISH, ["en"]).indices == plain.embed_query(ENGLISH).indices


def test_a_question_over_several_languages_has_the_stems_of_all_and_the_function_words_of_none_of_its_own() -> None:
    """`war` is a function word of German, and what an English question is about."""
    asked = set(query_vector("When did the war about the houses end?", ["en", "de"]).indices)
    assert {int(term("war", "en")), int(term("houses", "en")), int(term("houses", "de"))} <= asked
    assert not {int(term("the", "de")), int(term("when", "de"))} & asked


def test_a_stamp_is_read_back() -> None:
    """No language is English."""
    assert stamped(stamp(("de", "en"))) == ("de", "en")
    assert stamped(stamp(())) == ("en",)


TEXTS = {
    "de/haus.txt": GERMAN,
    "de/fluss.txt": "Am Fluss schläft eine Katze.",
    "de/leer.txt": "Ein Satz über etwas anderes.",
    "en/house.txt": ENGLISH,
    "en/cat.txt": "A cat sleeps by the river.",
    "zh/a.txt": "图书馆每天早上九点开门，晚上六点关门。",
    "zh/b.txt": "水泵发生故障时显示错误代码。",
    "th/a.txt": "ห้องสมุดเปิดเวลาเก้าโมงเช้า",
    "th/b.txt": "แมวนอนหลับอยู่ริมแม่น้ำ",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    """Texts whose vectors say nothing, so that only words find them; all written as English."""
    store = EdgeStore(tmp_path / "store", 4, "none")
    for path, text in TEXTS.items():
        of = document(path)
        store.upsert(of, [chunk(of, text)], np.ones((1, 4), np.float32) / 2)
    yield store
    store.close()


def best(store: EdgeStore, question: str, domain: str | None = None) -> str | None:
    """The path of the passage that BM25 puts first; None if no word of the question is anywhere."""
    found = [
        p for p in store.search(np.ones(4, np.float32) / 2, question, domain=domain, weights=(0.0, 1.0), limit=len(TEXTS)) if p.scores.bm25
    ]
    return max(found, key=lambda p: p.scores.bm25 or 0).path if found else None


def test_text_without_spaces_is_found_in_any_domain(store: EdgeStore) -> None:
    """Without anybody saying which language it is."""
    assert best(store, "图书馆几点开门?", "zh") == "zh/a.txt"
    assert best(store, "故障代码是什么?", "zh") == "zh/b.txt"
    assert best(store, "ห้องสมุดเปิดกี่โมง", "th") == "th/a.txt"


def test_other_languages_make_the_words_of_a_domain_anew_and_nothing_else(store: EdgeStore) -> None:
    """A form that only German stemming joins is found afterwards; vectors, texts and other domains are as they were."""
    assert best(store, "Haus", "de") == "de/haus.txt"  # the word of the path
    assert best(store, "Städte", "de") is None
    ids = [chunk(document(path), text).id for path, text in TEXTS.items()]
    before = store.vectors(ids)
    count = store.count()
    assert store.reword("de", ("de",)) == 3
    assert store.reword("de", ("de",)) == 0
    assert best(store, "Städte", "de") == "de/haus.txt"
    assert {p.language for p in store.search(np.ones(4, np.float32) / 2, "Fluss", domain="de")} == {"de"}
    assert {p.language for p in store.search(np.ones(4, np.float32) / 2, "river", domain="en")} == {"en"}
    after = store.vectors(ids)
    assert after.keys() == before.keys()
    assert all(np.allclose(before[id], after[id]) for id in ids)
    assert (store.count(), store.unforgotten) == (count, 0)


def test_what_is_written_later_is_in_the_domains_languages(store: EdgeStore) -> None:
    """And of several, each passage in its own."""
    store.reword("de", ("de", "en"))
    for path, text in (("de/neu.txt", "Die Bäume sind im Garten."), ("de/new.txt", "The trees are in the garden.")):
        of = document(path)
        store.upsert(of, [chunk(of, text)], np.ones((1, 4), np.float32) / 2)
    assert best(store, "Baum", "de") == "de/neu.txt"
    assert best(store, "tree", "de") == "de/new.txt"
    found = store.search(np.ones(4, np.float32) / 2, "Baum", domain="de", limit=9)
    assert {p.path: p.language for p in found}["de/neu.txt"] == "de"
    assert {p.path: p.language for p in found}["de/new.txt"] == "en"


def test_a_question_to_all_domains_is_asked_in_all_their_languages(store: EdgeStore) -> None:
    """Each domain's passages by the stems of its own."""
    store.reword("de", ("de",))
    assert best(store, "Katzen am Fluss") == "de/fluss.txt"
    assert best(store, "cats by the rivers") == "en/cat.txt"


def test_a_question_to_some_domains_is_asked_in_their_languages_alone(store: EdgeStore) -> None:
    """What the others are in changes no score: who may not see them cannot tell that they are there."""
    store.reword("de", ("de",))
    of = document("en/lauf.txt")
    store.upsert(of, [chunk(of, "The lauf of a weapon.")], np.ones((1, 4), np.float32) / 2)
    found = store.search(np.ones(4, np.float32) / 2, "laufen", within={"en"})
    assert found
    assert [passage.scores for passage in found] == [p.scores for p in store.search(np.ones(4, np.float32) / 2, "laufen", domain="en")]


def test_the_languages_of_a_domain_that_is_gone_are_asked_no_more(store: EdgeStore) -> None:
    """At once, and not after the next start; they are again as soon as it has a document."""
    store.reword("de", ("de",))
    assert set(store._spoken.asked(None, None)) == {"en", "de"}
    gone = [document(path) for path in TEXTS if path.startswith("de/")]
    store.delete_documents([of.id for of in gone[1:]])
    assert set(store._spoken.asked(None, None)) == {"en", "de"}
    store.delete_documents([gone[0].id])
    assert store._spoken.asked(None, None) == ("en",)
    store.upsert(gone[0], [chunk(gone[0], GERMAN)], np.ones((1, 4), np.float32) / 2)
    assert set(store._spoken.asked(None, None)) == {"en", "de"}
    assert best(store, "Städte") == "de/haus.txt"


def test_the_languages_are_known_after_a_restart_and_a_change_goes_on_where_it_broke_off(store: EdgeStore, tmp_path: Path) -> None:
    """The passages say by what their words were made."""
    store.reword("en", ("fr",))
    assert store.reword("de", ("de",), limit=2) == 2
    store.close()
    store = EdgeStore(tmp_path / "store", 4, "none")
    try:
        assert store._spoken.asked("en", None) == ("fr",)
        assert store.reword("de", ("de",)) == 1
        assert best(store, "Städte", "de") == "de/haus.txt"
        assert store.reword("en", ("en",)) == 2
        assert store._spoken.asked("en", None) == ("en",)
    finally:
        store.close()


def test_passages_of_an_older_version_are_made_anew(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing of languages, or was made by older rules."""
    monkeypatch.setattr(languages, "VERSION", languages.VERSION + 1)
    assert store.reword("en", ("en",)) == 2
    assert store.reword("en", ("en",)) == 0
