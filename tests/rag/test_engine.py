"""The engine on the real default model: batching, leaving, queueing, the prefix cache."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rag.engine import Engine, _next_piece
from rag.errors import ModelUnusable, NotReady, QueueFull
from rag.generation import Generation, Request
from rag.records import Turn
from rag.settings import Engine as EngineSettings
from tests.conftest import wait_until

QUESTIONS = ("What is the capital of France?", "Name three colours.", "What is two plus two?", "Write one sentence about cats.")


def prompt(engine: Engine, question: str, times: int = 1) -> tuple[int, ...]:
    """A chat prompt."""
    return engine.render([Turn("system", "You are helpful."), Turn("user", " ".join([question] * times))])


async def read(generation: Generation) -> str:
    """The whole text."""
    return "".join([piece async for piece in generation.pieces()])


async def idle(engine: Engine) -> None:
    """Wait until nothing runs."""
    await asyncio.to_thread(wait_until, lambda: engine.running == 0 and engine.waiting == 0)


def test_answers_written_together_are_those_written_alone(engine: Engine) -> None:
    """More requests than sequences, mixed lengths: greedy text is the same, so no stream reads another's memory."""

    async def run() -> None:
        requests = [Request(prompt(engine, question), 24) for question in QUESTIONS]
        alone = [await read(engine.submit(request)) for request in requests]
        together = await asyncio.gather(*(read(engine.submit(request)) for request in requests * 2))
        assert together == alone * 2
        assert len(set(alone)) == len(alone)

    asyncio.run(run())


def test_the_capital_of_france_is_paris(engine: Engine) -> None:
    """The model, its template and the tokens fit together."""

    async def run() -> None:
        generation = engine.submit(Request(prompt(engine, QUESTIONS[0]), 30))
        assert "Paris" in await read(generation)
        assert generation.finish_reason == "stop"
        assert 0 < generation.usage.completion_tokens < 30

    asyncio.run(run())


def test_max_tokens_ends_an_answer_and_says_so(engine: Engine) -> None:
    """`length`, with exactly that many tokens."""

    async def run() -> None:
        generation = engine.submit(Request(prompt(engine, "Write a long story."), 7))
        assert await read(generation)
        assert (generation.finish_reason, generation.usage.completion_tokens) == ("length", 7)

    asyncio.run(run())


def test_a_seed_makes_a_sampled_answer_repeatable(engine: Engine) -> None:
    """And another seed makes another one."""

    async def run() -> None:
        tokens = prompt(engine, "Write a story about a dragon.")
        texts = [await read(engine.submit(Request(tokens, 24, 1.0, seed))) for seed in (1, 1, 2)]
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]

    asyncio.run(run())


def test_what_was_read_is_not_read_again_and_the_answer_stays_the_same(engine: Engine) -> None:
    """The common beginning comes from the prefix cache, in whole grains; logits are those of a cold start, so is the text."""

    async def run() -> None:
        for words in (60, 77, 300):
            tokens = prompt(engine, "Name three colours of the rainbow, please. " + "And say why. " * (words // 4))
            engine.erase()
            await idle(engine)
            cold = engine.submit(Request(tokens, 16))
            text = await read(cold)
            warm = engine.submit(Request(tokens, 16))
            assert await read(warm) == text
            assert cold.usage.cached_tokens == 0
            assert warm.usage.cached_tokens == (len(tokens) - 64) // 64 * 64

    asyncio.run(run())


@pytest.mark.parametrize(
    ("pending", "room"), [(1, 512), (512, 512), (513, 512), (575, 512), (576, 512), (2000, 512), (700, 64), (100, 64), (65, 64), (9, 5)]
)
def test_prompts_are_read_in_pieces_that_round_alike(pending: int, room: int) -> None:
    """Each piece fits the room; none is below 64 tokens where that can be helped; together they are the prompt."""
    pieces = []
    while pending:
        pieces.append(_next_piece(pending, room))
        assert 0 < pieces[-1] <= room
        pending -= pieces[-1]
    if room >= 128:
        assert min(pieces) >= min(64, sum(pieces))
        assert all(piece % 64 == 0 for piece in pieces[:-1])


def test_an_erased_cache_holds_nothing(engine: Engine) -> None:
    """After a delete the text of a document must not sit in the model's memory, not even of answers that were running."""

    async def run() -> None:
        tokens = prompt(engine, "A secret that must go.")
        running = engine.submit(Request(tokens, 60))
        pieces = running.pieces()
        await anext(pieces)
        engine.erase()
        async for _ in pieces:
            pass
        await idle(engine)
        await asyncio.to_thread(wait_until, lambda: not engine._erase)
        assert all(not slot.read for slot in engine._slots)
        again = engine.submit(Request(tokens, 4))
        await read(again)
        assert again.usage.cached_tokens == 0

    asyncio.run(run())


def test_leaving_stops_the_work_while_the_prompt_is_read(engine: Engine) -> None:
    """Invariant 7: nothing more is decoded after a cancel in mid-prefill, and the next answer is right."""

    async def run() -> None:
        engine.erase()
        await idle(engine)
        long = prompt(engine, "Tell me about the history of the world.", 150)[-1900:]
        generation = engine.submit(Request(long, 10))
        await asyncio.to_thread(wait_until, lambda: engine._batch_for)
        before = engine.prefill_tokens
        generation.cancel()
        assert await read(generation) == ""
        assert generation.finish_reason == "cancelled"
        assert generation.decoded_after_cancel == 0
        assert engine.prefill_tokens - before < len(long)
        assert "Paris" in await read(engine.submit(Request(prompt(engine, QUESTIONS[0]), 30)))

    asyncio.run(run())


def test_leaving_stops_the_work_while_the_answer_is_written(engine: Engine) -> None:
    """Invariant 7: at most one more token, with others running beside it unharmed."""

    async def run() -> None:
        other = asyncio.ensure_future(read(engine.submit(Request(prompt(engine, QUESTIONS[3]), 24))))
        generation = engine.submit(Request(prompt(engine, "Write a very long story."), 500))
        pieces = generation.pieces()
        await anext(pieces)
        await pieces.aclose()
        await asyncio.to_thread(wait_until, lambda: generation.finish_reason == "cancelled")
        assert generation.decoded_after_cancel <= 1
        alone = await read(engine.submit(Request(prompt(engine, QUESTIONS[3]), 24)))
        assert await other == alone

    asyncio.run(run())


def test_a_full_queue_is_said_and_running_answers_go_on(engine: Engine) -> None:
    """Invariant 8. Four sequences and a queue of four: the ninth is refused."""

    async def run() -> None:
        request = Request(prompt(engine, "Write a long story."), 40)
        running = [engine.submit(request) for _ in range(8)]
        with pytest.raises(QueueFull) as caught:
            engine.submit(request)
        assert caught.value.status == 503
        texts = await asyncio.gather(*(read(generation) for generation in running))
        assert len(set(texts)) == 1
        assert texts[0]
        await read(engine.submit(request))

    asyncio.run(run())


def test_a_waiting_request_that_leaves_never_runs(engine: Engine) -> None:
    """It gives its place in the queue back."""

    async def run() -> None:
        request = Request(prompt(engine, "Write a long story."), 30)
        running = [engine.submit(request) for _ in range(6)]
        running[5].cancel()
        assert await read(running[5]) == ""
        assert running[5].usage.completion_tokens == 0
        await asyncio.gather(*(read(generation) for generation in running[:5]))

    asyncio.run(run())


def test_a_prompt_over_the_context_is_refused_not_cut(engine: Engine) -> None:
    """Silently cut prompts are the peers' commonest complaint."""

    async def run() -> None:
        with pytest.raises(ModelUnusable, match="this model is set to"):
            engine.submit(Request(tuple([1] * (engine.context_tokens + 1)), 5))

    asyncio.run(run())


def test_the_slow_format_was_requantized_once(engine: Engine, models_dir: Path) -> None:
    """Q4_1 becomes Q8_0 in the data directory, under a name that carries the source's hash."""
    [file] = (models_dir / "models").iterdir()
    assert file.name.endswith("-Q8_0.gguf")
    assert file.name.startswith("SmolLM2-135M-Instruct")


@pytest.mark.parametrize(("content", "why"), [(None, "no model"), (b"hello", "not a GGUF"), (b"GGUF" + bytes(100), "cannot be loaded")])
def test_a_missing_or_broken_model_file_is_an_error_with_a_remedy(tmp_path: Path, content: bytes | None, why: str) -> None:
    """Not a crash of the process."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    engine = Engine(EngineSettings(model=str(path)), tmp_path)
    with pytest.raises(ModelUnusable, match=why) as caught:
        engine.load()
    assert caught.value.remedy


def test_before_the_model_is_loaded_the_engine_says_so(tmp_path: Path) -> None:
    """503 with Retry-After, not a hang."""
    with pytest.raises(NotReady):
        Engine(EngineSettings(), tmp_path).render([Turn("user", "x")])


def test_a_template_without_a_system_turn_gets_its_words_in_the_users(engine: Engine) -> None:
    """Gemma's raises at one; and one that raises at everything is said to be the reason."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    llama = engine._loaded()
    own = llama._template
    no_system = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    try:
        llama._template = Jinja2ChatFormatter(no_system, eos_token="", bos_token="")
        tokens = engine.render([Turn("system", "Be brief."), Turn("user", "Hello?")])
        assert b"".join(llama.piece(token) for token in tokens).decode() == "<user>Be brief.\n\nHello?"
        llama._template = Jinja2ChatFormatter("{{ raise_exception('never') }}", eos_token="", bos_token="")
        with pytest.raises(ModelUnusable, match="never"):
            engine.render([Turn("system", "Be brief."), Turn("user", "Hello?")])
    finally:
        llama._template = own


def test_prompts_are_read_in_the_order_in_which_they_came(models_dir: Path) -> None:
    """Beside a running answer only a little of a prompt is read at a time: who comes later, into a slot of a lower number, waits."""
    engine = Engine(EngineSettings(sequences=3, queue=8), models_dir)
    engine.load()

    async def run() -> None:
        writing = engine.submit(Request(prompt(engine, "Write a long story about a dragon."), 600))
        await asyncio.to_thread(wait_until, lambda: writing.first_token_at)
        short = engine.submit(Request(prompt(engine, QUESTIONS[0]), 2))
        first = engine.submit(Request(prompt(engine, "The first of two long prompts. ", 150), 2))
        await read(short)
        second = engine.submit(Request(prompt(engine, "The second of two long prompts. ", 150), 2))
        await asyncio.gather(read(first), read(second))
        writing.cancel()
        assert first.first_token_at is not None and second.first_token_at is not None
        assert first.first_token_at < second.first_token_at

    try:
        asyncio.run(run())
    finally:
        engine.stop()


def test_an_answer_can_be_begun_for_the_model(engine: Engine) -> None:
    """It goes on from there as if it had chosen so; what it would have said is told by the chances."""

    async def run() -> None:
        prompt = engine.render([Turn("user", "What is the capital of France? Answer in a sentence.")])
        begin = engine.tokenize("In the year 1989")
        generation = engine.submit(Request(prompt, 24, begin=begin, logprobs=3, repeat_penalty=1.0))
        text = "".join([piece async for piece in generation.pieces()])
        assert text.startswith("In the year 1989")
        plain = engine.submit(Request((*prompt, *begin), 24 - len(begin), repeat_penalty=1.0))
        assert text == "In the year 1989" + "".join([piece async for piece in plain.pieces()])
        first = generation.chances[0]
        assert first.text == b"In"
        assert first.top[0][1] > first.logprob or first.top[0][0] == b"In"
        free = engine.submit(Request(prompt, 4, logprobs=3, logprobs_tokens=1))
        async for _ in free.pieces():
            pass
        assert (len(generation.chances), len(free.chances)) == (generation.usage.completion_tokens, 1)
        assert free.chances[0].top[0][0] == first.top[0][0]
        assert free.chances[0].top[0][1] == pytest.approx(first.top[0][1], abs=0.05)

    asyncio.run(run())
