"""Conversations: whose they are, what is kept of them, and what goes with a document. On a real SQLite file."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rag import golden, prompt, transcript
from rag.conversations import Conversations, Erased
from rag.errors import InvalidInput, UnknownConversation
from rag.keeping import keeping
from rag.records import Citation, Document, Done, Event, Passage, PassagesFound, Timings, Token, Turn, Usage, document_id
from tests.conftest import document

FEE = "The library asks a fee of seven florins for each lost book."
HOURS = "The reading room opens at nine and closes at six on all working days."
DOCUMENTS = {"fees": document_id("house", "fees.md"), "hours": document_id("house", "hours.md")}


def passage(name: str, text: str) -> Passage:
    """A passage that is the whole of a document."""
    return Passage(f"{name}-0", DOCUMENTS[name], "house", f"house/{name}.md", name.title(), (), None, 0, len(text), text, 1.0)


def citation(name: str, quote: str, sentence: str | None = None) -> Citation:
    """A citation of a document's first words."""
    return Citation(sentence or quote, quote, DOCUMENTS[name], f"house/{name}.md", None, 0, len(quote), 1.0)


@dataclasses.dataclass
class Answer:
    """What a scripted answer says, from which passages; the last `unread` of them are not in the prompt."""

    text: str
    passages: tuple[Passage, ...] = ()
    citations: tuple[Citation, ...] = ()
    refused: bool = False
    searched_for: str = ""
    unread: int = 0

    async def events(self, question: str) -> AsyncGenerator[Event, None]:
        """As `rag.answer.answer` gives them."""
        left_out = tuple(one.chunk_id for one in self.passages[len(self.passages) - self.unread :])
        yield PassagesFound(self.passages, self.searched_for or question, left_out)
        for n, word in enumerate(self.text.split(" ")):
            yield Token(f" {word}" if n else word)
        for one in self.citations:
            yield one
        yield Done(self.text, self.refused, self.citations, Usage(9, 8, 7), Timings(1.0, 0.0, 2.0, 3.0), "scripted")


FEE_ANSWER = Answer(FEE, (passage("fees", FEE), passage("hours", HOURS)), (citation("fees", FEE),), unread=1)
REFUSAL = Answer(prompt.REFUSAL, (passage("hours", HOURS),), refused=True)


@dataclasses.dataclass
class Shelf:
    """An index: document id -> content. What is renamed stands on it under another id."""

    contents: dict[str, str]
    renamed: dict[str, Document] = dataclasses.field(default_factory=dict)

    def content(self, document_id: str) -> str | None:
        """What a document holds."""
        return self.contents.get(document_id)

    def holder(self, content: str) -> Document | None:
        """What was renamed."""
        return self.renamed.get(content)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Conversations]:
    """Conversations in a file."""
    conversations = Conversations(tmp_path / "conversations.db")
    yield conversations
    conversations.close()


def ask(conversations: Conversations, question: str, answer: Answer, id: str | None = None, owner: str = "", **options: Any) -> Done:
    """Ask in a conversation, None for a new one; returns the `Done` that a client would see."""

    async def run() -> Done:
        draft = conversations.draft(id, owner, question, options.get("domain"), options.get("turn"))
        events = [event async for event in keeping(answer.events(question), draft, conversations)]
        assert isinstance(events[-1], Done)
        return events[-1]

    return asyncio.run(run())


def begun(conversations: Conversations, question: str, answer: Answer, **options: Any) -> str:
    """The id of a conversation that begins with a question."""
    done = ask(conversations, question, answer, **options)
    assert done.conversation_id is not None
    return done.conversation_id


def on_disk(folder: Path) -> bytes:
    """All bytes of all files."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_turn_is_kept_with_all_that_was_answered(kept: Conversations) -> None:
    """Question, answer, sources, what was searched for, model, times; and the title is the first question."""
    id = begun(kept, "  What does a\nlost book cost? ", dataclasses.replace(FEE_ANSWER, searched_for="cost of a lost book"), domain="house")
    conversation = kept.read(id, "")
    [turn] = conversation.turns
    assert conversation.title == "What does a lost book cost?"
    assert (turn.number, turn.question, turn.answer, turn.domain) == (1, "What does a\nlost book cost?", FEE, "house")
    assert turn.found["searched_for"] == "cost of a lost book"
    assert [one["text"] for one in turn.found["passages"]] == [FEE, HOURS]
    assert [one["quote"] for one in turn.done["citations"]] == [FEE]
    assert turn.done["usage"] == {"prompt_tokens": 9, "completion_tokens": 8, "cached_tokens": 7}
    assert (turn.done["model"], turn.done["timings"]["total_ms"], turn.done["refused"]) == ("scripted", 3.0, False)


def test_a_follow_up_gets_what_was_said_before_it_and_not_more(kept: Conversations) -> None:
    """The last questions with their answers, in order; those before the turn that is asked again; bounded in number and length."""
    id = begun(kept, "one", Answer("first"))
    ask(kept, "two", REFUSAL, id)
    assert kept.history(id, "") == (Turn("user", "one"), Turn("assistant", "first"), Turn("user", "two"), Turn("assistant", prompt.REFUSAL))
    assert kept.history(id, "", before=2) == (Turn("user", "one"), Turn("assistant", "first"))
    for n in range(20):
        ask(kept, f"more {n}", Answer("x"), id)
    assert [turn.content for turn in kept.history(id, "") if turn.role == "user"] == [f"more {n}" for n in range(14, 20)]
    ask(kept, "long", Answer("y" * 20_000), id)
    assert kept.history(id, "") == ()


def test_a_turn_asked_again_stands_in_its_own_place(kept: Conversations) -> None:
    """With its new question and answer, without the old thumb; the next number is the next, a farther one is an error."""
    id = begun(kept, "one", Answer("first"))
    ask(kept, "two", Answer("second"), id)
    kept.judge(id, "", 1, "down")
    ask(kept, "one, I mean", Answer("better"), id, turn=1)
    assert [(turn.question, turn.answer, turn.thumb) for turn in kept.read(id, "").turns] == [
        ("one, I mean", "better", None),
        ("two", "second", None),
    ]
    ask(kept, "three", Answer("third"), id, turn=3)
    assert len(kept.read(id, "").turns) == 3
    with pytest.raises(InvalidInput):
        kept.draft(id, "", "five", None, 5)


def test_two_questions_at_once_are_both_kept(kept: Conversations) -> None:
    """Both were told the same place; none takes the other's."""
    id = begun(kept, "one", Answer("first"))
    drafts = [kept.draft(id, "", question, None) for question in ("two", "three")]
    for draft in drafts:
        assert kept.keep(draft, {"answer": f"to {draft.question}", "refused": False, "citations": []})
    assert [(turn.number, turn.answer) for turn in kept.read(id, "").turns] == [(1, "first"), (2, "to two"), (3, "to three")]


def test_who_leaves_keeps_what_was_said_until_then(kept: Conversations) -> None:
    """By closing the stream, as a client that disconnects does."""

    async def leave() -> str:
        draft = kept.draft(None, "", "What does it cost?", None)
        events = keeping(FEE_ANSWER.events("What does it cost?"), draft, kept)
        async for event in events:
            if isinstance(event, Token) and event.text == " fee":
                break
        await events.aclose()
        return draft.conversation_id

    [turn] = kept.read(asyncio.run(leave()), "").turns
    assert (turn.answer, turn.finish_reason) == ("The library asks a fee", "stopped")
    assert turn.found["passages"]


def test_who_is_cancelled_keeps_what_was_said_until_then(kept: Conversations) -> None:
    """As when the server drops the task of a client without a stream."""

    async def cancel() -> str:
        draft = kept.draft(None, "", "q", None)
        spoken = asyncio.Event()

        async def slow() -> AsyncGenerator[Event, None]:
            yield PassagesFound((), "q")
            yield Token("half")
            spoken.set()
            await asyncio.Event().wait()

        async def drain() -> None:
            async for _ in keeping(slow(), draft, kept):
                pass

        task = asyncio.ensure_future(drain())
        await spoken.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return draft.conversation_id

    [turn] = kept.read(asyncio.run(cancel()), "").turns
    assert (turn.answer, turn.finish_reason) == ("half", "stopped")


def test_a_failed_answer_keeps_nothing(kept: Conversations) -> None:
    """Neither a turn nor the conversation that it would have begun."""

    async def fail() -> None:
        async def broken() -> AsyncGenerator[Event, None]:
            yield Token("half")
            raise RuntimeError

        draft = kept.draft(None, "", "q", None)
        with pytest.raises(RuntimeError):
            async for _ in keeping(broken(), draft, kept):
                pass

    asyncio.run(fail())
    assert kept.page("") == ([], None)


def test_a_conversation_is_its_owners_only(kept: Conversations) -> None:
    """For another one it does not exist, whatever is tried; None is whoever answers for the whole file."""
    id = begun(kept, "mine", Answer("yes"), owner="k1")
    begun(kept, "yours", Answer("no"), owner="k2")
    attempts = (
        lambda: kept.read(id, "k2"),
        lambda: kept.turn(id, "", 1),
        lambda: kept.rename(id, "k2", "stolen"),
        lambda: kept.history(id, "k2"),
        lambda: kept.judge(id, "k2", 1, "up"),
        lambda: kept.draft(id, "k2", "q", None),
        lambda: kept.delete(id, "k2"),
        lambda: kept.read("nowhere", "k1"),
    )
    for attempt in attempts:
        with pytest.raises(UnknownConversation):
            attempt()
    assert [one.title for one in kept.page("k1")[0]] == ["mine"]
    assert {one.title for one in kept.page(None)[0]} == {"mine", "yours"}
    assert kept.erase("k2").conversations == 1
    assert [(one.owner, one.conversations, one.turns) for one in kept.owners()] == [("k1", 1, 1)]


def test_the_list_is_paged_newest_first_and_searched(tmp_path: Path) -> None:
    """Each conversation once, the one last used first; found by title, question or answer, letter case aside, signs as they are."""
    now = [1000.0]
    conversations = Conversations(tmp_path / "c.db", clock=lambda: now[0])
    ids = []
    for n in range(25):
        now[0] += 1
        ids.append(begun(conversations, f"question {n}", Answer(f"answer {n}")))
    now[0] += 1
    ask(conversations, "Wie groß ist das ÄRGER_nis?", Answer("100 % sure"), ids[3])
    found, cursor = [], None
    for _ in range(3):
        page, cursor = conversations.page("", cursor=cursor, limit=10)
        found += [one.id for one in page]
    assert cursor is None
    assert found == [ids[3], *(id for id in reversed(ids) if id != ids[3])]
    for q in ("GROSS IST", "ärger_NIS", "100 %", "question 3"):
        assert [one.id for one in conversations.page("", q=q)[0]] == [ids[3]], q
    assert conversations.page("", q="%")[0][0].id == ids[3]
    assert len(conversations.page("", q="%")[0]) == 1
    assert conversations.page("", q="answer 9999") == ([], None)
    with pytest.raises(InvalidInput):
        conversations.page("", cursor="abc")
    conversations.close()


def test_a_title_can_be_changed_and_keeps(kept: Conversations) -> None:
    """A later question does not take it back; an empty or a long one is an error."""
    id = begun(kept, "one " * 60, Answer("x"))
    assert len(kept.read(id, "").title) <= 80
    kept.rename(id, "", "  About \n fees ")
    ask(kept, "two", Answer("y"), id)
    assert kept.read(id, "").title == "About fees"
    for title in (" ", "x" * 81):
        with pytest.raises(InvalidInput):
            kept.rename(id, "", title)


def test_a_deleted_conversation_is_in_no_file_and_an_answer_does_not_bring_it_back(kept: Conversations, tmp_path: Path) -> None:
    """The receipt counts; who was still being answered is told that nothing is kept."""
    id = begun(kept, "What does the zebrafinch cost?", FEE_ANSWER)
    draft = kept.draft(id, "", "And the quagga?", None)
    assert b"zebrafinch" in on_disk(tmp_path)
    assert kept.delete(id, "") == Erased(conversations=1, turns=1, remaining=0)
    assert b"zebrafinch" not in on_disk(tmp_path)
    assert FEE.encode() not in on_disk(tmp_path)
    assert kept.keep(draft, {"answer": "x", "refused": False, "citations": []}) is False
    assert kept.page("") == ([], None)


def test_what_a_conversation_holds_of_a_document_goes_with_it(kept: Conversations, tmp_path: Path) -> None:
    """Passages, quotes, the answer that was made of it and the later one that repeats it, also on the disk; the rest stays."""
    id = begun(kept, "What does a lost book cost?", FEE_ANSWER)
    ask(kept, "Say that again.", Answer(f"I said: {FEE.lower()}"), id)
    ask(
        kept,
        "And when is it open?",
        Answer(HOURS, (passage("hours", HOURS),), (citation("hours", HOURS),), searched_for="lost book hours"),
        id,
    )
    ask(kept, "Is there a lion?", REFUSAL, id)
    assert kept.forget_document(DOCUMENTS["fees"]) == 3
    first, again, hours, refused = kept.read(id, "").turns
    assert (first.question, first.answer, first.finish_reason, first.gone) == ("What does a lost book cost?", "", "removed", 1)
    assert [one["document_id"] for one in first.found["passages"]] == [DOCUMENTS["hours"]]
    assert (again.answer, again.finish_reason) == ("", "removed")
    assert (hours.answer, hours.finish_reason, hours.found["searched_for"]) == (HOURS, "stop", "")
    assert (refused.answer, refused.gone) == (prompt.REFUSAL, 0)
    kept.forget_due()
    data = on_disk(tmp_path).lower()
    assert b"seven florins" not in data
    assert DOCUMENTS["fees"].encode() not in data
    assert HOURS.lower().encode() in data
    # What is asked next does not hear of it either.
    assert all("florins" not in turn.content for turn in kept.history(id, ""))
    assert kept.forget_document(DOCUMENTS["fees"]) == 0


def test_a_passage_that_was_not_read_leaves_the_answer(kept: Conversations) -> None:
    """It was found and not given to the model: the answer says nothing of it."""
    id = begun(kept, "What does a lost book cost?", FEE_ANSWER)
    assert kept.forget_document(DOCUMENTS["hours"]) == 1
    [turn] = kept.read(id, "").turns
    assert (turn.answer, turn.gone, len(turn.found["passages"]), turn.found["left_out"]) == (FEE, 1, 1, [])


def test_a_document_that_goes_while_its_answer_is_written_is_not_kept(tmp_path: Path) -> None:
    """Nor is one that went while the service was down, once the folder was looked at."""
    there = Shelf(dict.fromkeys(DOCUMENTS.values(), FEE))
    conversations = Conversations(tmp_path / "c.db", index=there)
    del there.contents[DOCUMENTS["fees"]]
    id = begun(conversations, "cost?", FEE_ANSWER)
    [turn] = conversations.read(id, "").turns
    assert (turn.answer, turn.gone) == ("", 1)
    there.contents.clear()
    assert conversations.forget_missing() == 1
    assert conversations.read(id, "").turns[0].found["passages"] == []
    conversations.close()


def test_sources_follow_a_renamed_document(tmp_path: Path) -> None:
    """Its old id is gone, its text is not: the answer stays, and its quotes open where the text is now, the next time too."""
    shelf = Shelf({DOCUMENTS["fees"]: FEE, DOCUMENTS["hours"]: HOURS})
    conversations = Conversations(tmp_path / "c.db", index=shelf)
    id = begun(conversations, "cost?", FEE_ANSWER)
    for name in ("costs", "prices"):
        old = conversations.turn(id, "", 1).done["citations"][0]["document_id"]
        heir = dataclasses.replace(document(f"house/{name}.md"), title=name.title())
        shelf.contents[heir.id] = shelf.contents.pop(old)
        shelf.renamed[FEE] = heir
        assert conversations.forget_document(old) == 1
        turn = conversations.turn(id, "", 1)
        assert (turn.answer, turn.gone) == (FEE, 0)
        cited, found = turn.done["citations"][0], turn.found["passages"][0]
        assert (cited["document_id"], cited["path"]) == (heir.id, f"house/{name}.md")
        assert (found["document_id"], found["path"], found["title"]) == (heir.id, f"house/{name}.md", name.title())
    shelf.renamed.clear()
    assert conversations.forget_document(heir.id) == 1
    assert conversations.turn(id, "", 1).answer == ""
    conversations.close()


def test_sources_move_with_the_text_and_dead_ones_go(kept: Conversations) -> None:
    """Every quote that is left stands at its offsets; the answer stays, and says that something has changed."""
    id = begun(kept, "cost?", dataclasses.replace(FEE_ANSWER, unread=0))
    text = f"# Fees\n\n{FEE}"
    kept.document_changed(DOCUMENTS["fees"], {DOCUMENTS["fees"]: text}.get)
    [turn] = kept.read(id, "").turns
    for item, words in ((turn.done["citations"][0], "quote"), (turn.found["passages"][0], "text")):
        assert text[item["start"] : item["end"]] == item[words] == FEE
    assert "changed" not in turn.done
    kept.document_changed(DOCUMENTS["fees"], {DOCUMENTS["fees"]: "# Fees\n\nThere are none."}.get)
    [turn] = kept.read(id, "").turns
    assert (turn.answer, turn.done["citations"], turn.done["changed"]) == (FEE, [], True)
    assert [one["document_id"] for one in turn.found["passages"]] == [DOCUMENTS["hours"]]


def test_a_crash_before_the_files_forgot_is_made_good_at_the_next_start(tmp_path: Path) -> None:
    """What is due is noted in the file itself."""
    first = Conversations(tmp_path / "c.db")
    begun(first, "cost?", FEE_ANSWER)
    first.forget_document(DOCUMENTS["fees"])
    first._db.close()  # as a crash: nothing is tidied
    second = Conversations(tmp_path / "c.db")
    assert second._db.read("SELECT forgetting FROM due") == [(0,)]
    assert b"florins" not in on_disk(tmp_path)
    second.close()


def test_conversations_expire_by_their_last_question(tmp_path: Path) -> None:
    """Not a day early; then they are gone from list, address and file."""
    now = [1_000_000.0]
    conversations = Conversations(tmp_path / "c.db", expire_days=30, clock=lambda: now[0])
    old = begun(conversations, "of the dodo", Answer("x"))
    used = begun(conversations, "used again", Answer("x"))
    now[0] += 29 * 86_400
    ask(conversations, "more", Answer("y"), used)
    assert conversations.read(old, "").title == "of the dodo"
    now[0] += 2 * 86_400
    with pytest.raises(UnknownConversation):
        conversations.read(old, "")
    assert [one.id for one in conversations.page("")[0]] == [used]
    assert b"of the dodo" not in on_disk(tmp_path)
    conversations.close()


def test_conversations_that_are_not_kept_live_in_memory_for_an_hour(tmp_path: Path) -> None:
    """They can be followed up, are few and short, and no file is made."""
    now = [1_000_000.0]
    conversations = Conversations(None, clock=lambda: now[0])
    assert not conversations.kept
    id = begun(conversations, "one", Answer("first"))
    for n in range(20):
        ask(conversations, f"more {n}", Answer("x"), id)
    assert conversations.history(id, "")[-2] == Turn("user", "more 19")
    assert [turn.number for turn in conversations.read(id, "").turns] == list(range(14, 22))
    for _ in range(300):
        now[0] += 1
        begun(conversations, "q", Answer("a"))
    assert sum(1 for _ in conversations.each(None)) == 256
    with pytest.raises(UnknownConversation):
        conversations.history(id, "")
    now[0] += 3601
    assert conversations.page("") == ([], None)
    assert list(tmp_path.iterdir()) == []
    conversations.close()


def test_thumbs_are_kept_and_exported_as_an_evaluation_set(kept: Conversations, tmp_path: Path) -> None:
    """What `readingroom eval` reads: a good answer's quotes are gold, a good refusal has no answer, a bad one is only a question."""
    id = begun(kept, "cost?", FEE_ANSWER, domain="house")
    ask(kept, "lions?", REFUSAL, id)
    ask(kept, "tigers?", Answer("Three."), id)
    ask(kept, "unjudged", Answer("x"), id)
    assert kept.judge(id, "", 1, "up", " well sourced ").reason == "well sourced"
    kept.judge(id, "", 2, "up")
    kept.judge(id, "", 3, "down", "there are none")
    kept.judge(id, "", 4, "down")
    assert kept.judge(id, "", 4, None, "whatever").reason == ""
    with pytest.raises(InvalidInput):
        kept.judge(id, "", 1, "up", "x" * 2001)
    with pytest.raises(UnknownConversation):
        kept.judge(id, "", 9, "up")
    good, refused, bad = golden.parse(golden.dumps(transcript.as_golden(kept.each(""))), "thumbs")
    assert (good.id, good.question, good.domain, good.answerable) == (f"up-{id}-1", "cost?", "house", True)
    assert [(span.document, span.quote) for span in good.spans] == [("house/fees.md", FEE)]
    assert (refused.answers, refused.answerable, refused.history) == ((), False, (Turn("user", "cost?"), Turn("assistant", FEE)))
    assert (bad.id, bad.answerable, len(bad.history)) == (f"down-{id}-3", None, 4)
    kept.forget_document(DOCUMENTS["fees"])
    assert [item.id for item in transcript.as_golden(kept.each(""))] == [f"up-{id}-2", f"down-{id}-3"]


def test_a_conversation_as_markdown_reads_like_one(kept: Conversations) -> None:
    """Headings are questions, sources are numbered, what was searched for is said; markup in a question makes no second heading."""
    id = begun(kept, "cost?\n# not a heading", dataclasses.replace(FEE_ANSWER, searched_for="cost of a lost book"), domain="house")
    kept.judge(id, "", 1, "down", "too dear")
    text = transcript.as_markdown(kept.read(id, ""))
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# cost? # not a heading", "## cost? # not a heading"]
    assert "asked in house · searched for: cost of a lost book" in text
    assert f"1. house/fees.md: \N{LEFT DOUBLE QUOTATION MARK}{FEE}\N{RIGHT DOUBLE QUOTATION MARK}" in text
    assert "Thumb down. too dear" in text


def test_markdown_says_why_there_is_no_answer(kept: Conversations) -> None:
    """One that was stopped before its first word, and one that went with its document."""
    id = begun(kept, "cost?", FEE_ANSWER)

    async def leave() -> None:
        stream = keeping(FEE_ANSWER.events("again?"), kept.draft(id, "", "again?", None), kept)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    kept.forget_document(DOCUMENTS["fees"])
    first, second = transcript.as_markdown(kept.read(id, "")).split("## ")[1:]
    assert "The answer is gone" in first
    assert "The answer is gone" not in second
    assert "stopped before its first word" in second
