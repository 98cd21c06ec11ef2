"""What came of a question, as values and figures. Here the room is scripted: the right figures must be known beforehand.

The real pipeline is measured in `tests/server/test_eval_command.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncGenerator, Sequence

import pytest

from rag import evaluate, prompt
from rag.errors import EngineUnreachable, InvalidQuestion, QueueFull
from rag.evaluate import METRICS, Outcome, differences, figures, judged, locate, ranks, run, sourced
from rag.golden import Item, Page, Span
from rag.records import Citation, Done, Event, Passage, Timings, Token, Usage, document_id

TEXT = "Tea is kept in the blue tin.  Coffee is kept\nin the red one. The tins stand on the top shelf."


def passage(path: str, page: int | None = None, start: int = 0, end: int = 10) -> Passage:
    domain, _, relative = path.partition("/")
    return Passage("", document_id(domain, relative), domain, path, path, (), page, start, end, "", 1.0)


def citation(sentence: str, path: str, start: int, end: int, page: int | None = None, support: float = 0.8, text: str = TEXT) -> Citation:
    return Citation(sentence, text[start:end], document_id(*path.split("/", 1)), path, page, start, end, support)


def done(answer: str, *citations: Citation, refused: bool = False) -> Done:
    return Done(answer, refused, citations, Usage(), Timings(), "scripted")


class Script:
    """A room that finds and says what it is told; each `ask` takes the next answer, an error is raised."""

    def __init__(self, found: Sequence[Passage] = (), *said: Done | Exception, text: str | None = TEXT) -> None:
        self.found, self.said, self.document = list(found), list(said), text
        self.searched: list[tuple[str, int]] = []
        self.left = 0

    async def search(self, item: Item, limit: int) -> Sequence[Passage]:
        self.searched.append((item.id, limit))
        return self.found

    async def ask(self, item: Item) -> AsyncGenerator[Event, None]:
        try:
            said = self.said.pop(0)
            if isinstance(said, Exception):
                raise said
            yield Token(said.answer)
            yield said
        finally:
            self.left += 1

    async def text(self, document_id: str) -> str | None:
        return self.document


def played(
    items: Sequence[Item], *rooms: Script, search_only: bool = False, timed: bool = False, at_a_time: int = 1
) -> list[list[Outcome]]:
    outcomes: list[list[Outcome]] = [[] for _ in rooms]
    asyncio.run(
        run(items, rooms, lambda place, outcome: outcomes[place].append(outcome), at_a_time=at_a_time, search_only=search_only, timed=timed)
    )
    return outcomes


def test_documents_are_ranked_by_their_best_passage() -> None:
    """Three passages of one wrong document take one rank, not three."""
    found = [passage("g/a.md"), passage("g/a.md"), passage("g/a.md"), passage("g/b.md")]
    values = ranks(found, Item("1", "?", None, ("g/b.md",)))
    assert values["document.hit@1"] == 0
    assert values["document.mrr@10"] == pytest.approx(1 / 2)
    assert values["document.ndcg@10"] == pytest.approx(1 / math.log2(3))


def test_of_several_gold_documents_recall_counts_the_share() -> None:
    """Where hit is content with one."""
    values = ranks([passage("g/a.md"), passage("g/b.md")], Item("1", "?", None, ("g/a.md", "g/z.md")))
    assert (values["document.hit@5"], values["document.recall@5"], values["document.recall@1"]) == (1, 0.5, 0.5)


def test_pages_are_ranked_as_passages_and_may_be_one_off() -> None:
    """A reader turns one page; the exact figure stands beside it. The page of another document is none."""
    found = [passage("g/b.pdf", 7), passage("g/a.pdf", 6), passage("g/a.pdf", 6), passage("g/a.pdf", 7), passage("g/a.pdf", None)]
    values = ranks(found, Item("1", "?", None, pages=(Page("g/a.pdf", 7),)))
    assert values["page.hit@1"] == values["near_page.hit@1"] == 0
    assert values["page.mrr@10"] == pytest.approx(1 / 4)
    assert (values["page.hit@5"], values["near_page.hit@5"], values["document.mrr@10"]) == (1, 1, 0.5)
    only_near = ranks(found[:3], Item("1", "?", None, pages=(Page("g/a.pdf", 7),)))
    assert (only_near["page.hit@5"], only_near["near_page.hit@5"]) == (0, 1)


def test_a_passage_is_right_if_it_holds_half_of_the_gold_one() -> None:
    """Wherever the chunks are cut; in the same document only."""
    item = Item("1", "?", None, spans=(Span("g/a.md", "x"),))
    spans = [("g/a.md", 100, 120)]
    assert ranks([passage("g/a.md", start=0, end=110)], item, spans)["passage.hit@1"] == 1
    assert ranks([passage("g/a.md", start=0, end=109)], item, spans)["passage.hit@1"] == 0
    assert ranks([passage("g/b.md", start=0, end=200)], item, spans)["passage.hit@1"] == 0


def test_without_gold_evidence_there_is_nothing_to_rank() -> None:
    """Absent, not zero."""
    assert ranks([passage("g/a.md")], Item("1", "?", ("x",))) == {}


def test_an_answerable_question_that_is_refused_is_wrong() -> None:
    """Even if the refusal's words contain the gold answer."""
    item = Item("1", "?", ("documents",))
    assert judged(done(prompt.REFUSAL, refused=True), item) == {
        "refused.answerable": 1,
        "exact": 0,
        "f1": 0,
        "contains": 0,
        "own.contains": 0,
    }
    assert judged(done("In the documents."), item)["contains"] == 1


def test_what_we_put_beside_an_answer_is_not_the_models() -> None:
    """People see the quote, so containment counts it; what the model itself said is told apart."""
    given = done("The red tin." + prompt.UNBACKED + prompt.QUOTED.format(quote="It is in the blue tin."))
    values = judged(given, Item("1", "?", ("blue tin",)))
    assert (values["contains"], values["own.contains"]) == (1, 0)
    assert judged(given, Item("1", "?", ("the red tin",)))["exact"] == 1
    assert judged(done(prompt.QUOTED.format(quote="It is blue.")), Item("1", "?", ("it is blue",)))["exact"] == 1


def test_an_unanswerable_question_is_judged_by_its_refusal_alone() -> None:
    """There is no gold answer to compare with."""
    assert judged(done(prompt.REFUSAL, refused=True), Item("1", "?", ())) == {"refused.unanswerable": 1}
    assert judged(done("Louis."), Item("1", "?", ())) == {"refused.unanswerable": 0}


def test_where_nothing_is_known_nothing_is_judged() -> None:
    """And where only the document is known, the answer's words are not."""
    assert judged(done("Louis."), Item("1", "?")) == {}
    assert judged(done("Louis."), Item("1", "?", None, ("g/a.md",))) == {"refused.answerable": 0}


def test_a_given_answer_must_cite_the_gold_evidence() -> None:
    """One right citation is enough; none at all counts against it; a refusal is not asked for one."""
    item = Item("1", "?", ("x",), ("g/a.pdf",), (Page("g/a.pdf", 2),), (Span("g/a.pdf", "x"),))
    spans = [("g/a.pdf", 0, 28)]
    right = citation("Tea.", "g/a.pdf", 0, 28, page=2)
    values = sourced(done("Tea. Milk.", citation("Milk.", "g/b.pdf", 0, 9, page=2), right), item, spans, [True, True])
    assert [values[f"cited.{level}"] for level in ("document", "page", "near_page", "passage")] == [1, 1, 1, 1]
    off = sourced(done("Tea.", citation("Tea.", "g/a.pdf", 40, 60, page=3)), item, spans, [True])
    assert [off[f"cited.{level}"] for level in ("document", "page", "near_page", "passage")] == [1, 0, 1, 0]
    none = sourced(done("Tea."), item, spans, [])
    assert [none[f"cited.{level}"] for level in ("document", "page", "near_page", "passage")] == [0, 0, 0, 0]
    assert "verbatim" not in none
    assert sourced(done(prompt.REFUSAL, refused=True), item, spans, []) == {}
    assert "cited.document" not in sourced(done("Tea.", right), Item("1", "?", ()), [], [True])


def test_support_is_of_the_answers_own_sentences() -> None:
    """Two of three sentences are cited: 2/3 with a source, and their support spread over all three."""
    answer = "Tea is in the tin. It is blue. I like it."
    values = sourced(
        done(answer, citation("Tea is in the tin.", "g/a.md", 0, 28, support=0.9), citation("It is blue.", "g/a.md", 0, 28, support=0.6)),
        Item("1", "?"),
        [],
        [True, True],
    )
    assert values["supported"] == pytest.approx(2 / 3)
    assert values["support"] == pytest.approx(0.5)


def test_a_quote_put_beside_an_unbacked_answer_does_not_support_it() -> None:
    """It is ours, not the model's. Where the quote is all there is, it is the answer."""
    quote = TEXT[:28]
    beside = done("Milk is in it." + prompt.UNBACKED + prompt.QUOTED.format(quote=quote), citation(quote, "g/a.md", 0, 28, support=1.0))
    assert sourced(beside, Item("1", "?"), [], [True])["supported"] == 0
    alone = done(prompt.QUOTED.format(quote=quote), citation(quote, "g/a.md", 0, 28, support=1.0))
    assert sourced(alone, Item("1", "?"), [], [True])["supported"] == 1


def test_quotes_are_compared_with_the_document_at_their_offsets() -> None:
    """A quote that stands elsewhere in it is not verbatim at its place; one of a document that is gone is not either."""
    item = Item("1", "?", ("blue",))
    good, moved = citation("Tea.", "g/a.md", 0, 28), dataclasses.replace(citation("Tins.", "g/a.md", 0, 28), start=1, end=29)
    ((one,),) = played([item], Script([], done("Tea. Tins.", good, moved)))
    assert one.values["verbatim"] == 0.5
    ((gone,),) = played([item], Script([], done("Tea.", good), text=None))
    assert gone.values["verbatim"] == 0


def test_a_gold_quote_is_found_whatever_its_white_space() -> None:
    """Lines are broken anew when a document is edited; offsets that are no longer right are not trusted."""
    assert locate(Span("g/a.md", "Coffee is kept in the red one."), TEXT) == (30, 60)
    assert locate(Span("g/a.md", "kept", 37 + 3, 41 + 3), TEXT) == (40, 44)
    assert locate(Span("g/a.md", "kept", 1, 5), TEXT) == (7, 11)
    assert locate(Span("g/a.md", "cocoa"), TEXT) is None
    assert locate(Span("g/a.md", "tin. (or (not"), TEXT) is None


def test_gold_evidence_that_is_not_in_the_index_is_told() -> None:
    """A document that is gone is not found, and said; a quote that is gone gives no figure of passages, and is said."""
    item = Item("1", "?", ("x",), spans=(Span("g/a.md", "no such words"), Span("g/a.md", "the blue tin")))
    ((stale,),) = played([item], Script([passage("g/a.md", start=0, end=28)]), search_only=True)
    assert stale.lost == ("g/a.md: 'no such words'",)
    assert (stale.values["document.hit@1"], stale.values["passage.recall@5"]) == (1, 1)
    ((gone,),) = played([item], Script([passage("g/b.md")], text=None), search_only=True)
    assert gone.lost == ("g/a.md",)
    assert gone.values["document.hit@5"] == 0
    assert "passage.hit@5" not in gone.values


def test_the_search_is_asked_as_answers_ask_it() -> None:
    """Its depth must not widen the candidates that are fused (twice the limit, at least 50), or another ranking is measured."""
    room = Script([passage("g/a.md")])
    played([Item("1", "?", None, ("g/a.md",))], room, search_only=True)
    assert room.searched == [("1", evaluate.DEPTH)]
    assert evaluate.DEPTH * 2 <= 50


def test_times_are_of_given_answers_and_only_when_asked_for() -> None:
    """A refusal comes at once; it would make a slow model look fast. Beside others an answer is slower than alone."""
    items = [Item("1", "?", ("x",)), Item("2", "?", ())]
    (first,) = played(items, Script([], done("Tea."), done(prompt.REFUSAL, refused=True)), timed=True)
    assert 0 <= first[0].values["first_token_ms"] <= first[0].values["total_ms"]
    assert "total_ms" not in first[1].values
    (second,) = played(items, Script([], done("Tea."), done("Tea.")))
    assert not any("total_ms" in outcome.values for outcome in second)
    (searched,) = played([Item("1", "?")], Script(), search_only=True, timed=True)
    assert list(searched[0].values) == ["search_ms"]


def test_a_question_that_cannot_be_asked_costs_only_itself() -> None:
    """The others go on; it is in no figure."""
    items = [Item("1", "?", ("tea",)), Item("2", "?", ("tea",))]
    (outcomes,) = played(items, Script([], InvalidQuestion("too long", "shorter"), done("Tea.")))
    assert [outcome.error for outcome in outcomes] == ["invalid_question", None]
    assert {figure.metric: figure.n for figure in figures(outcomes)}["contains"] == 1


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says for how long to wait."""
    monkeypatch.setattr(QueueFull, "retry_after", 0)
    room = Script([], QueueFull("full", "wait"), QueueFull("full", "wait"), done("Tea."))
    (outcomes,) = played([Item("1", "?", ("tea",))], room)
    assert outcomes[0].values["contains"] == 1
    assert room.left == 3


def test_what_breaks_ends_the_run_and_keeps_what_came() -> None:
    """The error itself is raised, not a group of them."""
    items = [Item(str(n), "?", ("tea",)) for n in range(4)]
    kept: list[Outcome] = []
    room = Script([], done("Tea."), done("Tea."), EngineUnreachable("gone", "start it"))
    with pytest.raises(EngineUnreachable):
        asyncio.run(run(items, [room], lambda _, outcome: kept.append(outcome), at_a_time=1, search_only=False, timed=False))
    assert [outcome.id for outcome in kept] == ["0", "1"]


def test_leaving_stops_the_answer_that_is_under_way() -> None:
    """As Ctrl-C does: what came is there, and the answer's generator is closed."""

    class Endless(Script):
        async def ask(self, item: Item) -> AsyncGenerator[Event, None]:
            try:
                if item.id == "0":
                    yield done("Tea.")
                else:
                    yield Token("T")
                    begun.set()
                    await asyncio.Event().wait()
            finally:
                self.left += 1

    kept: list[Outcome] = []
    room = Endless()
    begun = asyncio.Event()

    async def leave() -> None:
        items = [Item("0", "?", ("tea",)), Item("1", "?", ("tea",))]
        going = asyncio.ensure_future(
            run(items, [room], lambda _, outcome: kept.append(outcome), at_a_time=1, search_only=False, timed=False)
        )
        await begun.wait()
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    asyncio.run(leave())
    assert [outcome.id for outcome in kept] == ["0"]
    assert room.left == 2


def test_two_rooms_get_every_question_and_take_turns_at_being_first() -> None:
    """So that a machine that slows down slows both."""
    order: list[int] = []
    items = [Item(str(n), "?") for n in range(4)]
    rooms = [Script([], *[done("a")] * 4), Script([], *[done("b")] * 4)]
    asyncio.run(run(items, rooms, lambda place, _: order.append(place), at_a_time=1, search_only=False, timed=False))
    assert order == [0, 1, 1, 0, 0, 1, 1, 0]


def test_figures_are_means_over_those_that_have_a_value() -> None:
    """Of four questions two are answerable and two not; each rate is of its own two. What nobody has is not there."""
    outcomes = [
        Outcome("1", {"refused.answerable": 0, "contains": 1}),
        Outcome("2", {"refused.answerable": 1, "contains": 0}),
        Outcome("3", {"refused.unanswerable": 1}),
        Outcome("4", {"refused.unanswerable": 1}),
    ]
    found = {figure.metric: figure for figure in figures(outcomes)}
    assert list(found) == ["contains", "refused.unanswerable", "refused.answerable"]
    assert [(figure.value, figure.n) for figure in found.values()] == [(0.5, 2), (1, 2), (0.5, 2)]
    assert (found["contains"].low, found["contains"].high) == (0, 1)
    assert figures([]) == []


def test_a_difference_is_of_the_same_questions() -> None:
    """Also when one run was stopped earlier, and where each system refused others."""
    first = [Outcome(str(n), {"contains": float(n % 2), "cited.document": 1.0}) for n in range(40)]
    second = [Outcome(str(n), {"contains": 1.0} | ({"cited.document": 0.0} if n % 4 else {})) for n in range(30)]
    found = {change.metric: change for change in differences(first, second)}
    assert (found["contains"].first, found["contains"].second, found["contains"].n) == (0.5, 1.0, 30)
    assert found["contains"].value == 0.5
    assert found["contains"].sure
    assert (found["cited.document"].value, found["cited.document"].n) == (-1.0, 22)
    assert differences(first, []) == []
    assert not any(change.sure for change in differences(first, first))


def test_every_value_has_its_metric() -> None:
    """A value that no figure is made of would be measured for nothing; names are given once."""
    item = Item("1", "?", ("tea",), ("g/a.pdf",), (Page("g/a.pdf", 2),), (Span("g/a.pdf", "the blue tin"),))
    found = [passage("g/a.pdf", 2, 0, 28)]
    given = done("Tea.", citation("Tea.", "g/a.pdf", 0, 28, page=2))
    ((answered,),) = played([item], Script(found, given), timed=True)
    ((searched,),) = played([item], Script(found), timed=True, search_only=True)
    ((refused,),) = played([Item("2", "?", ())], Script([], done("Tea.")), timed=True)
    measured = {metric.value for metric in METRICS}
    assert set(answered.values) | set(searched.values) | set(refused.values) == measured
    assert len({metric.name for metric in METRICS}) == len(METRICS)
