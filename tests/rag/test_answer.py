"""The path of a question, in process: real retrieval, a scripted engine where the model's own words would hide the point."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rag import adapters, prompt
from rag.adapters import Adapter
from rag.answer import Library, Question, answer
from rag.embed import Embedder
from rag.errors import QueueFull, UnknownAdapter, UnknownDomain, UnknownModel
from rag.generation import TokenChances
from rag.metrics import Metrics
from rag.records import Citation, Done, Event, PassagesFound, Queued, Token, Turn, Unsupported, Usage, Withdrawn
from rag.settings import Cite, Settings
from rag.store import EdgeStore
from tests.conftest import chunk, document

TEXT = "The reading room opens at nine in the morning. It closes at six in the evening."


class Scripted:
    """An engine that says what it is told to, in pieces, and notes what it was asked and whether it was left.

    It is the only one of its room, has one adapter, `legal`, and lets who asks wait behind `places`.
    """

    model = "scripted"
    context_tokens = 2048
    style = adapters.Style()

    def __init__(self, *pieces: str | Exception, places: Sequence[int] = ()) -> None:
        self.script = pieces
        self.places = places
        self.request: Any = None
        self.cancelled = False
        self.turns: Sequence[Turn] = ()
        self.usage = Usage(10, 5, 0)
        self.finish_reason = "stop"
        self.chances: list[TokenChances] = []
        self.submitted_at = self.admitted_at = 0.0

    async def find(self, name: str | None) -> Scripted:
        """Itself, by its name or none."""
        if name not in (None, "", self.model):
            raise UnknownModel(f"There is no model {name!r}.", "Leave it out.")
        return self

    def adapter(self, text: str | None) -> Adapter | None:
        """`legal`, at any scale; none by itself."""
        legal = adapters.Package("legal", Path(), "scripted", (), "CC0-1.0", 4, "1")
        return adapters.resolve(text, {"legal": legal}) if text not in (None, "", "auto", "none") else None

    def prompt_of(self, adapter: Adapter | None) -> str:
        """The adapter's rules."""
        return "Answer like a lawyer." if adapter else ""

    def style_of(self, adapter: Adapter) -> adapters.Style:
        """The adapter's style."""
        return self.style

    async def queued(self) -> AsyncGenerator[int, None]:
        """The places."""
        for place in self.places:
            yield place

    def render(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """A token a word."""
        self.turns = turns
        return tuple(range(sum(len(turn.content.split()) for turn in turns)))

    def tokenize(self, text: str) -> tuple[int, ...]:
        """A token a character."""
        return tuple(map(ord, text))

    def submit(self, request: Any) -> Scripted:
        """Itself is the generation; an exception first in the script is raised here."""
        if self.script and isinstance(self.script[0], Exception):
            raise self.script[0]
        self.request = request
        return self

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The script."""
        for piece in self.script:
            yield str(piece)

    def cancel(self) -> None:
        """Noted."""
        self.cancelled = True


@pytest.fixture
def store(tmp_path: Path, embedder: Embedder) -> EdgeStore:
    """One document of two sentences, in domain `a`."""
    (tmp_path / "corpora" / "a").mkdir(parents=True)
    store = EdgeStore(tmp_path / "store", embedder.dimension, embedder.fingerprint)
    of = document("a/hours.txt")
    store.upsert(of, [chunk(of, TEXT)], embedder.embed_passages([TEXT]))
    return store


def library(
    tmp_path: Path, embedder: Embedder, store: EdgeStore, engine: Scripted, text: str | None = TEXT, *, withhold_above: float = 0.5
) -> Library:
    """What an answer is made with; the document now says `text`."""
    settings = Settings(corpora=tmp_path / "corpora", cite=Cite(withhold_above))
    return Library(settings, embedder, store, engine, lambda _: text, Metrics(), ThreadPoolExecutor(1))  # type: ignore[arg-type]


def ask(question: Question, given: Library) -> list[Event]:
    """All events."""

    async def run() -> list[Event]:
        return [event async for event in answer(question, given)]

    return asyncio.run(run())


def test_events_come_in_the_order_of_the_path(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """Passages, tokens, after each sentence its citation or that it has none, done."""
    engine = Scripted(" It opens", " at nine in the morning.", " And the moon", " is made of green cheese.")
    events = ask(Question("When does the reading room open?", "a"), library(tmp_path, embedder, store, engine))
    assert [type(event) for event in events] == [PassagesFound, Token, Token, Token, Citation, Token, Unsupported, Done]
    assert events[-2] == Unsupported("And the moon is made of green cheese.")
    done = events[-1]
    assert isinstance(done, Done)
    assert done.answer == "It opens at nine in the morning. And the moon is made of green cheese."
    assert [citation.sentence for citation in done.citations] == ["It opens at nine in the morning."]
    assert (done.refused, done.withheld) == (False, False)
    assert done.unsupported == ("And the moon is made of green cheese.",)
    assert TEXT in engine.turns[-1].content


def test_who_waits_is_told_so_between_the_passages_and_the_answer(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """Each place as it changes."""
    engine = Scripted("It opens at nine in the morning.", places=(3, 1))
    events = ask(Question("When does the reading room open?", "a"), library(tmp_path, embedder, store, engine))
    assert events[1:3] == [Queued(3), Queued(1)]
    assert [type(event) for event in events] == [PassagesFound, Queued, Queued, Token, Citation, Done]


def test_an_adapter_is_asked_for_by_the_question_or_its_domain_and_brings_its_rules(
    tmp_path: Path, embedder: Embedder, store: EdgeStore
) -> None:
    """The question's wish counts more; a domain's own rules count more than the adapter's. The answer says which it was."""
    toml = tmp_path / "corpora" / "a" / "domain.toml"
    asked = "When does the reading room open?"
    for of_domain, wish, rules, told in (
        ("", "legal", "Answer like a lawyer.", "legal"),
        ('adapter = "legal@0.5"', None, "Answer like a lawyer.", "legal@0.5"),
        ('adapter = "legal"', "legal@0.25", "Answer like a lawyer.", "legal@0.25"),
        ('adapter = "legal"\nprompt = "Be brief."', None, "Be brief.", "legal"),
        ("", None, prompt.RULES, None),
    ):
        toml.write_text(of_domain)
        engine = Scripted("It opens at nine in the morning.")
        done = ask(Question(asked, "a", adapter=wish), library(tmp_path, embedder, store, engine))[-1]
        assert isinstance(done, Done)
        assert done.adapter == told
        assert (engine.request.adapter and str(engine.request.adapter)) == told
        assert engine.turns[0] == Turn("system", rules)


def test_the_numbers_that_an_adapter_writes_are_not_shown(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """Cut anywhere; the second numbered sentence is no recital, and what the adapter was trained with is asked of the engine."""
    pieces = ("[", "1", "] It opens", " at nine in the morning. [1", "] It closes at six in the evening.")
    engine = Scripted(*pieces)
    engine.style = adapters.Style(marks=True, repeat_penalty=1.0)
    events = ask(Question("When does the reading room open?", adapter="legal"), library(tmp_path, embedder, store, engine))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.answer == "It opens at nine in the morning. It closes at six in the evening."
    assert "".join(event.text for event in events if isinstance(event, Token)) == done.answer
    assert [citation.sentence for citation in done.citations] == ["It opens at nine in the morning.", "It closes at six in the evening."]
    assert engine.request.repeat_penalty == 1.0


def test_an_adapter_that_nearly_refuses_is_heard(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """The chance of its first token to begin the refusal is evidence; where it outweighs the rest, nothing of the answer is shown."""
    question = Question("When does the reading room open?", adapter="legal")
    for refusing, refused in ((0.999, True), (1e-6, False)):
        engine = Scripted("[1] ", "It opens at nine in the morning.")
        engine.style = adapters.Style(marks=True)
        engine.chances = [TokenChances(b"[", -0.1, ((b"[", -0.1), (b"I", math.log(refusing))))]
        events = ask(question, library(tmp_path, embedder, store, engine))
        done = events[-1]
        assert isinstance(done, Done)
        assert engine.request.logprobs
        assert engine.request.begin == (ord("["),)
        assert done.evidence is not None
        assert done.evidence.refusing == pytest.approx(refusing)
        assert done.refused is refused
        assert "".join(event.text for event in events if isinstance(event, Token)) == done.answer
        assert (done.answer == prompt.REFUSAL) is refused
        assert engine.cancelled


def test_a_lone_passage_has_a_number_for_who_was_taught_to_name_it(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """And none for others."""
    for marks in (True, False):
        engine = Scripted("It opens at nine in the morning.")
        engine.style = adapters.Style(marks=marks)
        ask(Question("When does the reading room open?", adapter="legal"), library(tmp_path, embedder, store, engine))
        assert (f"[1] {TEXT}" in engine.turns[-1].content) is marks


def test_a_refusal_generates_nothing(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """The engine is not even asked; the passages are shown."""
    events = ask(Question("Who won the world cup in 2018?"), library(tmp_path, embedder, store, Scripted(AssertionError("asked"))))
    assert [type(event) for event in events] == [PassagesFound, Token, Done]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.refused, done.answer, done.finish_reason) == (True, prompt.REFUSAL, "refused")


def test_an_answer_that_the_documents_do_not_support_is_withheld(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """It was told already, so it is taken back; what stands in `done` is the refusal, and the passages were shown before."""
    given = library(
        tmp_path, embedder, store, Scripted("It never opens its gates.", " It closes at six in the evening.", " Nor its doors.")
    )
    events = ask(Question("When does the reading room open?"), given)
    shown = [event for event in events if not isinstance(event, Token)]
    assert [type(event) for event in shown] == [PassagesFound, Unsupported, Citation, Unsupported, Withdrawn, Done]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.answer, done.refused, done.withheld, done.citations) == (prompt.REFUSAL, True, True, ())
    assert done.finish_reason == "refused"
    assert done.unsupported == ("It never opens its gates.", "Nor its doors.")
    assert given.metrics.registry.get_sample_value("readingroom_answers_total", {"outcome": "withheld"}) == 1


def test_how_much_may_be_unsupported_is_set(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """By the settings, and by a domain for itself; half of this answer is."""
    toml = tmp_path / "corpora" / "a" / "domain.toml"
    for of_settings, of_domain, withheld in (
        (0.5, "", False),
        (0.49, "", True),
        (0.5, "withhold_above = 0.4", True),
        (0.0, "withhold_above = 1", False),
    ):
        toml.write_text(of_domain)
        engine = Scripted("It never opens its gates. It closes at six in the evening.")
        given = library(tmp_path, embedder, store, engine, withhold_above=of_settings)
        done = ask(Question("When does the reading room open?", "a"), given)[-1]
        assert isinstance(done, Done)
        assert done.withheld is withheld


def test_an_answer_that_was_cut_off_is_not_withheld_for_its_end(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """What supports the sentence may have been the rest of it."""
    for reason, withheld in (("length", False), ("stop", True)):
        engine = Scripted("The reading room never")
        engine.finish_reason = reason
        done = ask(Question("When does the reading room open?"), library(tmp_path, embedder, store, engine))[-1]
        assert isinstance(done, Done)
        assert done.withheld is withheld


def test_where_nothing_is_withheld_an_answer_without_support_ends_with_what_the_documents_say(
    tmp_path: Path, embedder: Embedder, store: EdgeStore
) -> None:
    """The invention is out already; the closest sentence, verbatim and cited, is put beside it."""
    given = library(tmp_path, embedder, store, Scripted("It never opens its gates."), withhold_above=1.0)
    events = ask(Question("When does the reading room open?"), given)
    done = events[-1]
    assert isinstance(done, Done)
    assert done.answer.startswith("It never opens its gates.")
    assert done.answer.endswith("> The reading room opens at nine in the morning.")
    assert [citation.quote for citation in done.citations] == ["The reading room opens at nine in the morning."]
    assert "".join(event.text for event in events if isinstance(event, Token)) == done.answer


def test_a_model_that_says_nothing_does_not_make_an_empty_answer(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """The closest sentence stands alone."""
    done = ask(Question("When does the reading room open?"), library(tmp_path, embedder, store, Scripted()))[-1]
    assert isinstance(done, Done)
    assert done.answer == "The closest sentence in your documents is:\n\n> The reading room opens at nine in the morning."
    assert len(done.citations) == 1


def test_a_document_that_is_gone_is_not_cited(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """Deleted between the search and the sentence: invariant 3."""
    given = library(tmp_path, embedder, store, Scripted("It opens at nine in the morning."), text=None)
    done = ask(Question("When does the reading room open?"), given)[-1]
    assert isinstance(done, Done)
    assert done.citations == ()


def test_an_answer_that_begins_to_loop_or_recite_is_ended(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """A sentence told twice, or the next passage's number, is the end of what the model has to say."""
    for rest in ("It opens at nine.\n\nNever reached.", "[2] The next passage.\n\nNever reached."):
        engine = Scripted("It opens at nine. ", *(piece + " " for piece in rest.split(" ")), "Not", " this.")
        done = ask(Question("When does the reading room open?"), library(tmp_path, embedder, store, engine))[-1]
        assert isinstance(done, Done)
        assert "Not this" not in done.answer
        assert engine.cancelled


def test_leaving_at_any_event_stops_the_engine(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """Invariant 7: after the first event, after a token, after a citation."""

    async def leave_after(count: int, given: Library) -> None:
        async with contextlib.aclosing(answer(Question("When does the reading room open?"), given)) as events:
            for _ in range(count):
                await anext(events)

    for count in (1, 2, 4):
        engine = Scripted("It opens at nine in the morning.", " It", " closes", " at six.")
        given = library(tmp_path, embedder, store, engine)
        asyncio.run(leave_after(count, given))
        assert engine.cancelled
        assert given.metrics.registry.get_sample_value("readingroom_answers_total", {"outcome": "left"}) == 1


def test_what_is_wrong_with_the_call_is_raised_before_the_first_event(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """So that HTTP can answer with a status: a full queue, an unknown domain, a model that is not there."""
    for question, engine, error in (
        (Question("When does the reading room open?"), Scripted(QueueFull("Full.", "Wait.")), QueueFull),
        (Question("When?", "nowhere"), Scripted(), UnknownDomain),
        (Question("When?", model="other"), Scripted(), UnknownModel),
        (Question("When?", adapter="other"), Scripted(), UnknownAdapter),
    ):

        async def first(question: Question = question, engine: Scripted = engine) -> Event:
            return await anext(answer(question, library(tmp_path, embedder, store, engine)))

        with pytest.raises(error):
            asyncio.run(first())


def test_a_domain_sets_its_prompt_its_model_and_its_threshold(tmp_path: Path, embedder: Embedder, store: EdgeStore) -> None:
    """From its domain.toml, at the next question."""
    toml = tmp_path / "corpora" / "a" / "domain.toml"
    engine = Scripted("It opens at nine in the morning.")
    toml.write_text('prompt = "Answer like a pirate."')
    ask(Question("When does the reading room open?", "a"), library(tmp_path, embedder, store, engine))
    assert engine.turns[0] == Turn("system", "Answer like a pirate.")
    for missing, error in (('adapter = "another"', UnknownAdapter), ('model = "other"', UnknownModel)):
        toml.write_text(missing)
        with pytest.raises(error, match=missing.split('"')[1]):
            ask(Question("When does the reading room open?", "a"), library(tmp_path, embedder, store, engine))
    toml.write_text("abstain_below = 1.0")
    done = ask(Question("When does the reading room open?", "a"), library(tmp_path, embedder, store, engine))[-1]
    assert isinstance(done, Done)
    assert done.refused
