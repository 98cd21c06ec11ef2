"""How the next token is chosen and when an answer ends: sampling, stop strings, grammars, log probabilities, deadlines, places."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag import grammar
from rag.engine import Engine
from rag.errors import InvalidInput
from rag.generation import Generation, Request, Text
from rag.records import Turn
from tests.conftest import wait_until


def ask(engine: Engine, question: str, max_tokens: int, **options: object) -> Request:
    """A request for one question."""
    return Request(engine.render([Turn("user", question)]), max_tokens, **options)  # type: ignore[arg-type]


async def read(generation: Generation) -> str:
    """The whole text."""
    return "".join([piece async for piece in generation.pieces()])


def said(engine: Engine, request: Request) -> tuple[str, Generation]:
    """The text, and what carried it."""

    async def run() -> tuple[str, Generation]:
        generation = engine.submit(request)
        return await read(generation), generation

    return asyncio.run(run())


# Stop strings


@given(st.text("ab<é", max_size=30), st.lists(st.text("ab<é", min_size=1, max_size=4), max_size=3), st.data())
def test_text_ends_before_the_first_stop_string_however_it_comes(text: str, stop: list[str], data: st.DataObject) -> None:
    """In any pieces, characters cut in two included: exactly what stands before the earliest one, and all of it without one."""
    encoded, pieces, at = text.encode(), [], 0
    while at < len(encoded):
        n = data.draw(st.integers(1, 4))
        pieces.append(encoded[at : at + n])
        at += n
    feed = Text(stop)
    given_on = "".join([feed.feed(piece) for piece in pieces] + [feed.feed(b"", final=True)])
    ends = [found for each in stop if (found := text.find(each)) >= 0]
    if not ends:
        assert given_on == text and not feed.stopped
    else:
        # A stop string is seen when its last character comes, so of two that overlap the one that is complete first counts.
        complete = min(text.find(each) + len(each) for each in stop if each in text)
        assert feed.stopped
        assert text.startswith(given_on)
        assert min(ends) <= len(given_on) <= complete
        assert not any(each in given_on for each in stop)


def test_what_may_begin_a_stop_string_is_held_back_and_given_on_if_it_does_not() -> None:
    """Nobody sees half of one."""
    feed = Text(["</end>"])
    assert feed.feed(b"one <") == "one "
    assert feed.feed(b"/e") == ""
    assert feed.feed(b"ither") == "</either"
    assert feed.feed(b" two </end> three") == " two "
    assert feed.stopped
    assert feed.feed(b" four") == ""


def test_an_answer_ends_at_a_stop_string(engine: Engine) -> None:
    """Before it, as `stop`, and the engine is idle then."""
    whole, _ = said(engine, ask(engine, "Count from one to ten in words.", 40))
    word = whole.split()[2]
    text, generation = said(engine, ask(engine, "Count from one to ten in words.", 40, stop=(word,)))
    assert text == whole.partition(word)[0]
    assert generation.finish_reason == "stop"
    assert generation.usage.completion_tokens < 40


# Sampling


def test_each_way_of_sampling_counts(engine: Engine) -> None:
    """The same seed with another setting gives another text; top_k 1 and a tiny top_p are greedy."""
    question = "Write a story about a dragon and a bridge."
    greedy, _ = said(engine, ask(engine, question, 24))
    hot, _ = said(engine, ask(engine, question, 24, temperature=1.5, seed=7))
    assert hot != greedy
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        text, _ = said(engine, ask(engine, question, 24, temperature=1.5, seed=7, **narrow))
        assert text == greedy, narrow
    for other in ({"repeat_penalty": 1.0}, {"presence_penalty": 2.0, "frequency_penalty": 2.0}):
        text, _ = said(engine, ask(engine, question, 60, **other))
        assert text != said(engine, ask(engine, question, 60))[0], other


# Grammars


def test_a_schema_makes_json_of_that_shape(engine: Engine) -> None:
    """From a model that would not do so by itself, greedy and sampled."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["city", "large", "kind"],
        "additionalProperties": False,
    }
    rules = grammar.of_schema(schema)
    for options in ({}, {"temperature": 1.2, "seed": 3}, {"temperature": 1.2, "seed": 4}):
        text, generation = said(engine, ask(engine, "Describe Paris.", 120, grammar=rules, **options))
        value = json.loads(text)
        assert set(value) == {"city", "large", "kind"}
        assert isinstance(value["city"], str) and value["large"] in (True, False) and value["kind"] in ("a", "b")
        assert generation.finish_reason == "stop"


def test_any_object_is_json_and_what_is_running_beside_it_is_not_bound(engine: Engine) -> None:
    """The grammar belongs to one answer."""

    async def run() -> None:
        plain = ask(engine, "Name three colours.", 16)
        alone = await read(engine.submit(plain))
        bound = engine.submit(ask(engine, "Give the capital of France as JSON.", 200, grammar=grammar.JSON))
        beside = engine.submit(plain)
        text, free = await asyncio.gather(read(bound), read(beside))
        assert free == alone
        assert text.startswith("{")
        if bound.finish_reason == "stop":
            assert isinstance(json.loads(text), dict)

    asyncio.run(run())


def test_a_choice_of_words_is_kept_to(engine: Engine) -> None:
    """When nothing may follow, the answer is over."""
    text, generation = said(engine, ask(engine, "Is the sky blue?", 20, grammar='root ::= "yes" | "no" | "perhaps"'))
    assert text in ("yes", "no", "perhaps")
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize("rules", ["nothing", "root ::= other", 'root ::= "a', "root ::= root"])
def test_a_grammar_that_cannot_be_read_is_refused_before_it_is_queued(engine: Engine, rules: str) -> None:
    """And the engine goes on."""

    async def run() -> None:
        with pytest.raises(InvalidInput):
            engine.submit(ask(engine, "Hello", 4, grammar=rules))
        assert await read(engine.submit(ask(engine, "Hello", 4)))

    asyncio.run(run())


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://example.com/schema.json"},
        {"type": "no such type"},
        {"enum": ["x" * 40_000]},
        {"type": "array", "items": {"type": "string"}, "description": object()},
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, object]) -> None:
    """With a sentence, and nothing is fetched."""
    with pytest.raises(InvalidInput):
        grammar.of_schema(schema)


def test_a_schema_that_is_nested_without_end_is_refused() -> None:
    """It would take the converter's stack."""
    schema: dict[str, object] = {"type": "string"}
    for _ in range(500):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidInput, match="too large"):
        grammar.of_schema(schema)


# Log probabilities


def test_log_probabilities_are_of_the_tokens_that_were_chosen(engine: Engine) -> None:
    """One a token, negative, the likeliest first; what is joined of them is the text."""
    text, generation = said(engine, ask(engine, "What is the capital of France?", 12, logprobs=5, repeat_penalty=1.0))
    chances = generation.chances
    assert len(chances) == generation.usage.completion_tokens
    assert b"".join(chance.text for chance in chances).decode() == text
    for chance in chances:
        assert len(chance.top) == 5
        values = [value for _, value in chance.top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-6
        # Greedy without penalties: the chosen one is the likeliest.
        assert (chance.text, chance.logprob) == chance.top[0]
    _, plain = said(engine, ask(engine, "What is the capital of France?", 12))
    assert plain.chances == []


# Time and places


def test_an_answer_ends_at_its_deadline_with_what_it_has(engine: Engine) -> None:
    """Running or still waiting."""

    async def run() -> None:
        # Ten thousand tokens do not fit the context, so without a deadline it would end as `length`.
        running = engine.submit(ask(engine, "Write a long story.", 1500, deadline_s=1.0))
        others = [engine.submit(ask(engine, "Write a long story.", 1500)) for _ in range(len(engine._slots))]
        waiting = engine.submit(ask(engine, "Hello", 5, deadline_s=0.01))
        await asyncio.gather(read(running), read(waiting))
        assert running.finish_reason == "deadline"
        assert 0 < running.usage.completion_tokens < 1500
        assert (waiting.finish_reason, waiting.usage.completion_tokens) == ("deadline", 0)
        for generation in others:
            generation.cancel()

    asyncio.run(run())
    wait_until(lambda: engine.running == 0)


def test_who_waits_is_told_the_place_in_the_queue(engine: Engine) -> None:
    """It counts down as others leave; who runs at once is told nothing."""

    async def places(generation: Generation, told: list[int]) -> list[int]:
        async for place in generation.queued():
            told.append(place)
        return told

    async def run() -> None:
        running = [engine.submit(ask(engine, "Write a long story.", 1500)) for _ in range(len(engine._slots))]
        await asyncio.to_thread(wait_until, lambda: engine.running == len(running))
        assert await places(running[0], []) == []
        first, second, third = (engine.submit(ask(engine, "Hello", 3)) for _ in range(3))
        assert [each.position for each in (first, second, third)] == [1, 2, 3]
        seen: list[int] = []
        told = asyncio.create_task(places(third, seen))
        await asyncio.to_thread(wait_until, lambda: seen == [3])
        first.cancel()
        await asyncio.to_thread(wait_until, lambda: seen[:2] == [3, 2])
        for generation in running:
            generation.cancel()
        # The last step may be passed over, if two places become free at once.
        assert await asyncio.wait_for(told, 60) in ([3, 2], [3, 2, 1])
        assert await read(third)
        assert await read(second)

    asyncio.run(run())
