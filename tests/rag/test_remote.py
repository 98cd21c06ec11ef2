"""The engine at another address, against a server that does by script what servers do, right and wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from rag import _openai, remote
from rag.engine import Engine
from rag.errors import EngineUnreachable, InvalidInput, InvalidSettings, NotReady, QueueFull, ReadingRoomError, UnknownAdapter
from rag.generation import Generation, Request, TokenChances
from rag.records import Turn, Usage
from rag.remote import RemoteEngine
from rag.settings import Engine as EngineSettings
from tests.conftest import ROOT, wait_until
from tests.scripted import ANSWER, DONE, Scripted, event, head, said

KEY = "sk-nobody-may-see-this"
TURNS = (Turn("system", "Be brief."), Turn("user", "Grüße?"))
TEXT = "Hello world."


ENGINES: list[RemoteEngine] = []


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many tries as ever, but at once; and no engine goes on knocking after its test."""
    monkeypatch.setattr(remote, "_PAUSES_S", (0.0,) * len(remote._PAUSES_S))
    monkeypatch.setattr(remote, "_KNOCKS_S", (0.0, 0.02))
    yield
    while ENGINES:
        ENGINES.pop().stop()
    wait_until(lambda: not knocking())


def knocking() -> int:
    """How many engines look for their servers."""
    return sum(thread.name == "remote-engine" for thread in threading.enumerate())


def made(**settings: Any) -> RemoteEngine:
    """An engine that ends with its test."""
    engine = RemoteEngine(EngineSettings(**{"model": "m", **settings}))
    ENGINES.append(engine)
    return engine


def engine_of(server: Scripted, **settings: Any) -> RemoteEngine:
    """An engine that has reached it."""
    engine = made(**{"url": server.url, "key": KEY, "timeout_s": 20, **settings})
    engine.load()
    assert engine.error is None
    assert engine.ready
    return engine


def request(**options: Any) -> Request:
    """One for the usual turns."""
    return Request(**{"prompt": (0,) * 20, "max_tokens": 50, "turns": TURNS, **options})


async def read(generation: Generation) -> str:
    """The whole text."""
    return "".join([piece async for piece in generation.pieces()])


def ask(server: Scripted, settings: dict[str, Any] | None = None, **options: Any) -> tuple[str, Generation]:
    """The text of one answer, and its generation."""

    async def run() -> tuple[str, Generation]:
        generation = engine_of(server, **(settings or {})).submit(request(**options))
        return await read(generation), generation

    return asyncio.run(run())


async def until(condition: Callable[[], Any]) -> None:
    """Wait for it beside the loop."""
    await asyncio.to_thread(wait_until, condition)


# What is sent, and what comes of a good answer.


def test_the_messages_and_the_sampling_are_sent_as_openais_dialect_has_them() -> None:
    """And nothing that a strict server would refuse as unknown."""
    with Scripted(ANSWER) as server:
        text, _ = ask(server, temperature=0.5, seed=7, stop=("\n\n", "END"), top_p=0.9, presence_penalty=0.25)
    assert text == TEXT
    listed, asked = server.calls
    assert (listed.method, listed.path) == ("GET", "/v1/models")
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert listed.headers["authorization"] == asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["\n\n", "END"],
        "presence_penalty": 0.25,
    }


def test_without_a_key_none_is_sent() -> None:
    """Some servers refuse an empty one."""
    with Scripted(ANSWER) as server:
        ask(server, {"key": ""})
    assert "authorization" not in server.asked[0].headers


def test_half_a_character_in_a_document_does_not_stop_the_question() -> None:
    """JSON can carry it, UTF-8 cannot; the same in what the model says."""
    half = said("HALF!", "stop").replace(b"HALF", b"\\ud83d")
    with Scripted((head(), half, DONE)) as server:
        text, _ = ask(server, turns=(Turn("user", "What is \udc00?"),))
    assert text == "\ufffd!"
    assert server.asked[0].body["messages"][0]["content"] == "What is \ufffd?"


def test_the_servers_count_of_tokens_is_taken() -> None:
    """It comes in an event without choices, after the end."""
    usage = {"prompt_tokens": 31, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
    with Scripted((*ANSWER[:-1], event(choices=[], usage=usage), DONE)) as server:
        engine = engine_of(server)

        async def run() -> Generation:
            generation = engine.submit(request())
            assert generation.usage == Usage(20)
            await read(generation)
            return generation

        generation = asyncio.run(run())
    assert generation.usage == Usage(31, 5, 8)
    assert (engine.prefill_tokens, engine.decode_tokens) == (23, 5)
    assert generation.submitted_at <= generation.admitted_at <= generation.first_token_at
    assert generation.decoded_after_cancel == 0


def test_without_it_pieces_are_counted() -> None:
    """The prompt's is the estimate."""
    with Scripted(ANSWER) as server:
        _, generation = ask(server)
    assert generation.usage == Usage(20, 2)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("content_filter", "stop"), ("eos", "stop")]
)
def test_the_reason_of_the_end(theirs: str, ours: str) -> None:
    """Ours are fewer than there are."""
    with Scripted((head(), said("a"), said(None, theirs), DONE)) as server:
        assert ask(server)[1].finish_reason == ours


def test_log_probabilities_are_those_of_the_server() -> None:
    """Bytes where it gives them, since a token may be half a character."""
    top = [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "e", "logprob": -1.5, "bytes": None}]
    told = {"content": [{"token": "\ufffd", "logprob": -0.5, "bytes": [195], "top_logprobs": top}]}
    with Scripted((head(), said("é", "stop", logprobs=told), DONE)) as server:
        _, generation = ask(server, logprobs=2)
    assert generation.chances == [TokenChances(b"\xc3", -0.5, (("é".encode(), -0.5), (b"e", -1.5)))]
    assert (server.asked[0].body["logprobs"], server.asked[0].body["top_logprobs"]) == (True, 2)


# Streams as servers really send them.

GOOD = b"".join(ANSWER[1:])
LONG = "x" * 200_000
STREAMS = {
    "as specified": GOOD,
    "carriage returns": GOOD.replace(b"\n", b"\r\n"),
    "old carriage returns": GOOD.replace(b"\n", b"\r"),
    "no space": GOOD.replace(b"data: ", b"data:"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "comments and empty data": b": ping\n\n:\n\ndata:\n\ndata: \n\n" + GOOD.replace(b"\n\n", b"\n\n: still here\n\n"),
    "other fields": GOOD.replace(b"data:", b"id: 7\nretry: 10\nevent: message\nsomething\ndata:"),
    "no empty lines": GOOD.replace(b"\n\n", b"\n"),
    "data over several lines": GOOD.replace(b', "delta"', b',\ndata: "delta"'),
    "no [DONE]": b"".join(ANSWER[1:-1]),
    "no [DONE] and no last line end": b"".join(ANSWER[1:-1]).rstrip(),
    "no reason of the end": b"".join([*ANSWER[1:3], DONE]),
    "more after [DONE]": GOOD + said("!") + b"data: {garbled\n\n",
    "unknown members": GOOD.replace(b'{"choices"', b'{"object": "chat.completion.chunk", "x": {"y": [1]}, "error": null, "choices"'),
    "roles and nulls": event(choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}]) + said(None) + said("") + GOOD,
    "no delta": event(choices=[{"index": 0}]) + event(choices=[{"index": 0, "delta": None}]) + event(choices=None) + event() + GOOD,
    "thoughts": event(choices=[{"index": 0, "delta": {"reasoning_content": "Hm.", "content": None}}]) + GOOD,
    "another choice": event(choices=[{"index": 1, "delta": {"content": "Bye"}, "finish_reason": "stop"}]) + GOOD,
    "parts": event(choices=[{"delta": {"content": [{"type": "text", "text": TEXT}, {"type": "image"}]}, "finish_reason": "stop"}]),
    "usage of nonsense": event(choices=[], usage={"prompt_tokens": None, "completion_tokens": "5"}) + event(usage=[1]) + GOOD,
    "not an object": b"data: null\n\ndata: 5\n\n" + GOOD,
    "a long event": event(choices=[], padding=LONG) + GOOD,
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_may_be_untidy(name: str) -> None:
    """The text is the same, and the end is a good one."""
    with Scripted((head(), STREAMS[name])) as server:
        text, generation = ask(server)
    assert (text, generation.finish_reason) == (TEXT, "stop")


def test_a_stream_may_be_cut_anywhere() -> None:
    """Between any two bytes, and between all of them; within a character and between carriage return and line feed, too."""
    over_two_lines = said("Welt 🌍", "stop").replace(b', "delta"', b',\ndata: "delta"')
    stream = (said("Grüße, ") + over_two_lines + DONE).replace(b"\n", b"\r\n")
    assert "🌍".encode() in stream

    def texts(pieces: list[bytes]) -> list[str]:
        parser = _openai.Stream()
        events = [each for piece in pieces for each in parser.feed(piece)]
        assert parser.done
        return [_openai.read(each).text for each in events]

    assert texts([stream]) == ["Grüße, ", "Welt 🌍"]
    assert texts([stream[i : i + 1] for i in range(len(stream))]) == texts([stream])
    for at in range(len(stream)):
        assert texts([stream[:at], stream[at:]]) == texts([stream])


def test_an_answer_that_is_not_streamed_counts() -> None:
    """Some servers stream only some models."""
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "length"}]}
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    with Scripted((head(kind="application/json; charset=utf-8"), json.dumps({**whole, "usage": usage}, indent=1).encode())) as server:
        text, generation = ask(server)
    assert (text, generation.finish_reason, generation.usage) == (TEXT, "length", Usage(3, 4))


def test_what_follows_the_end_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says that it is done, and then neither says `[DONE]` nor closes."""
    monkeypatch.setattr(remote, "_TAIL_S", 0.05)
    with Scripted((*ANSWER[:-1], "hold")) as server:
        text, generation = ask(server, {"timeout_s": 3600})
        assert (text, generation.finish_reason) == (TEXT, "stop")
        assert server.left.acquire(timeout=30)


def test_an_answer_that_ended_is_good_though_the_connection_then_breaks() -> None:
    """All that was still to come is a count."""
    chunked = head(Connection="", Transfer_Encoding="chunked")
    body = b"".join(ANSWER[1:-1])
    with Scripted((chunked, b"%x\r\n%s\r\n" % (len(body), body))) as server:
        assert ask(server)[0] == TEXT


def test_a_server_that_does_not_keep_to_max_tokens_is_left() -> None:
    """Else it would write for ever, into our memory."""
    with Scripted((head(), *[said("word " * 10)] * 8, "hold")) as server:
        text, generation = ask(server, max_tokens=4)
        assert generation.finish_reason == "length"
        assert 4 * remote._CHARACTERS_A_TOKEN < len(text) <= 4 * remote._CHARACTERS_A_TOKEN + 50
        assert server.left.acquire(timeout=30)


# Faults that are final: said at once, with a remedy, and not tried again.

CHUNK = b"%x\r\n%s\r\n" % (len(said("Hello")), said("Hello"))
ECHO = b'{"error": {"message": "Incorrect key: %s"}}' % KEY.encode()
BROKEN_JSON = b'data: {"choices": [}\n\n'
FAULTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "an error instead of an answer": ((head(), event(error={"message": "out of memory"}), DONE), "failed while it answered: out of memory"),
    "an error within": ((head(), said("Hello"), event(error={"message": "out of memory", "code": 500})), "out of memory"),
    "an error within, with the key": ((head(), said("Hello"), event(error="x" * 185 + KEY)), "failed while it answered: xxx"),
    "an error as text": ((head(), event(error="out of memory")), "out of memory"),
    "an error of llama-server's old form": ((head(), b'error: {"code": 500, "message": "out of memory"}\n\n', DONE), "out of memory"),
    "an error of vLLM's old form": ((head(), event(object="error", message="out of memory")), "out of memory"),
    "an error event": ((head(), b'event: error\ndata: {"message": "out of memory"}\n\n'), "out of memory"),
    "an error without a stream": ((head(kind="application/json"), b'{"error": "out of memory"}'), "out of memory"),
    "a bare error": ((head(), b'{"error": {"message": "out of memory"}}'), "out of memory"),
    "a page": ((head(kind="text/html"), b"<html><body>Welcome</body></html>"), "a page for people"),
    "a page of an error": ((head(500, "text/html"), b"<html>Oh dear</html>"), "refused: 500."),
    "no JSON": ((head(), BROKEN_JSON), "not JSON"),
    "no JSON within": ((head(), said("Hello"), BROKEN_JSON), "not JSON"),
    "no JSON without a stream": ((head(kind="application/json"), b"[" * 100_000), "sent no answer"),
    "an endless line": ((head(), b"data: " + b"x" * (3 << 20)), "over 1 MiB"),
    "an endless event": ((head(), (b"data: [" + b" " * 1000 + b"\n") * 3000), "over 1 MiB"),
    "nothing": ((head(),), "broke off before it said a word"),
    "nothing but comments": ((head(), b": ping\n\n" * 3), "broke off before it said a word"),
    "half an event": ((head(), said("Hello")[:-12]), "broke off before it said a word"),
    "half an answer": ((head(), said("Hello")), "broke off"),
    "half an answer, chunked": ((head(Connection="", Transfer_Encoding="chunked"), CHUNK), "broke off"),
    "too long a prompt": (
        (head(400, "application/json"), b'{"error": {"message": "the request exceeds the available context size"}}'),
        "exceeds the available context size",
    ),
    "an unknown model": ((head(404, "application/json"), b'{"detail": "model m not found"}'), "model m not found"),
    "an unknown path": ((head(404, "text/html"), b"<h1>404</h1>"), "/v1/chat/completions"),
    "a problem of a field": ((head(422, "application/json"), b'{"detail": [{"msg": "x", "message": "top_p is odd"}]}'), "top_p is odd"),
    "another key": ((head(401, "application/json"), ECHO), "engine.key"),
    "no right": ((head(403, "text/plain"), b"not you, " + KEY.encode()), "engine.key"),
    "another place": ((head(307, "", Location=f"http://elsewhere.example/v1?key={KEY}"),), "http://elsewhere.example/v1"),
    "a place with a key": ((head(302, "", Location=f"http://u:{KEY}@elsewhere.example/{KEY}"),), "redirects to"),
    "no HTTP": ((b"SSH-2.0-OpenSSH_9.2\r\n",) , "cannot be reached"),
    "a mistake there": ((head(500, "application/json"), b'{"error": {"message": "see\\u001b[2J %s"}}' % KEY.encode()), "refused: 500 (see"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said_with_its_remedy_and_without_the_key(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """502 for whoever asks; what the server says is shown in one printable line."""
    caplog.set_level(logging.INFO)
    script, words = FAULTS[name]
    again = [script] * 3 if name == "no HTTP" else []  # which looks the same as a server that is just being stopped
    with Scripted(script, *again) as server, pytest.raises(EngineUnreachable) as caught:
        ask(server)
    error = caught.value
    assert words in f"{error.message} {error.remedy}"
    assert error.remedy
    assert error.status == 502
    assert f"{error.message}{error.remedy}".isprintable()
    assert len(server.asked) == 1 + len(again)
    for told in (*traceback.format_exception(error), error.remedy, caplog.text):
        assert KEY[:10] not in told


def test_what_was_said_before_the_fault_is_given_on() -> None:
    """Whoever reads along has it already."""
    heard = threading.Event()
    pieces = []

    async def run() -> None:
        async for piece in engine_of(server).submit(request()).pieces():
            pieces.append(piece)
            heard.set()

    with Scripted((head(), said("Hello"), heard, "reset"), ANSWER) as server, pytest.raises(EngineUnreachable, match="broke off"):
        asyncio.run(run())
    assert pieces == ["Hello"]
    assert len(server.asked) == 1


def test_a_server_that_falls_silent_is_left() -> None:
    """Before the first word, and within the answer; neither is tried again."""
    for script, words in (((head(), "hold"), "was silent for 1 s"), ((head(), said("Hello"), "hold"), "fell silent")):
        with Scripted(script) as server:
            with pytest.raises(EngineUnreachable, match=words):
                ask(server, {"timeout_s": 1})
            assert server.left.acquire(timeout=30)
            assert len(server.asked) == 1


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there: the call would fail."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Scripted(ANSWER) as server:
        assert ask(server)[0] == TEXT


# Faults that pass.

PASSING = {
    "busy": (head(503, "application/json"), b'{"error": "loading model"}'),
    "too many": (head(429, "text/plain", Retry_After="0"), b"slow down"),
    "behind a proxy": (head(502, "text/html"), b"<html>Bad gateway</html>"),
    "too slow for a proxy": (head(504, "text/html"), b""),
    "reset": ("reset",),
    "reset after the head": (head(), "reset"),
    "closed": (),
    "reset after signs of life": (head(), b": ping\n\n", said(None), "reset"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_before_the_first_word_is_tried_again(name: str) -> None:
    """Three times, and nobody notices."""
    with Scripted(*[PASSING[name]] * 3, ANSWER) as server:
        text, generation = ask(server)
    assert (text, generation.finish_reason) == (TEXT, "stop")
    assert len(server.asked) == 4


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_is_said(name: str) -> None:
    """After as many tries, and not one more."""
    with Scripted(*[PASSING[name]] * 9) as server:
        with pytest.raises(EngineUnreachable) as caught:
            ask(server)
        assert len(server.asked) == 4
    assert server.url in caught.value.message


def test_retry_after_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds or a date; a server that wants a long rest is not asked again."""
    waited = []
    really_sleep = asyncio.sleep

    async def sleep(seconds: float, *more: Any) -> None:
        if seconds > 1:
            waited.append(seconds)
        else:
            await really_sleep(seconds, *more)

    with Scripted((head(429, Retry_After="7"),), (head(503, Retry_After=formatdate(time.time() + 9)),), ANSWER) as server:
        engine = engine_of(server)
        monkeypatch.setattr(remote.asyncio, "sleep", sleep)
        assert asyncio.run(_read_one(engine)) == TEXT
    assert waited[0] == 7
    assert 1 < waited[1] <= 9
    for header in ("3600", formatdate(time.time() + 3600)):
        with Scripted((head(429, Retry_After=header),), ANSWER) as server, pytest.raises(EngineUnreachable, match="asks to wait 3"):
            ask(server)
        assert len(server.asked) == 1


async def _read_one(engine: RemoteEngine) -> str:
    return await read(engine.submit(request()))


def test_a_retry_after_that_cannot_be_read_is_none() -> None:
    """A pause of our own then."""
    assert [_openai.retry_after(text, 0.0) for text in (None, "", "soon", "-5", "1 s", "Thu, 01 Jan 1970 00:01:00 GMT")] == [0] * 5 + [60]


# Leaving.


def test_leaving_closes_the_connection_and_frees_the_place() -> None:
    """Within the answer, and while the server still reads the prompt: that is how it is told to stop."""

    async def run(server: Scripted) -> None:
        engine = engine_of(server, sequences=1, queue=0)
        generation = engine.submit(request())
        pieces = generation.pieces()
        assert await anext(pieces) == "Hello"
        await pieces.aclose()
        assert await asyncio.to_thread(server.left.acquire, timeout=30)
        await until(lambda: engine.running == 0)
        assert generation.finish_reason == "cancelled"

        generation = engine.submit(request())
        await until(lambda: len(server.asked) == 2)
        generation.cancel()
        generation.cancel()
        assert await read(generation) == ""
        assert await asyncio.to_thread(server.left.acquire, timeout=30)
        await until(lambda: engine.running == 0)
        assert generation.finish_reason == "cancelled"
        assert generation.decoded_after_cancel == 0

        assert await read(engine.submit(request())) == TEXT

    with Scripted((head(), said("Hello"), "hold"), ("hold",), ANSWER) as server:
        asyncio.run(run(server))


def test_leaving_from_another_thread_does_as_well() -> None:
    """The web server's threads call it."""

    async def run(server: Scripted) -> None:
        generation = engine_of(server).submit(request())
        await until(lambda: len(server.asked) == 1)
        await asyncio.to_thread(generation.cancel)
        assert await read(generation) == ""
        assert await asyncio.to_thread(server.left.acquire, timeout=30)

    with Scripted(("hold",)) as server:
        asyncio.run(run(server))


def test_a_loop_that_ends_in_the_midst_leaves_nothing_behind() -> None:
    """As a command does that is interrupted: the connection closes, and the place is free for the next loop."""
    with Scripted((head(), said("Hello"), "hold"), ANSWER) as server:
        engine = engine_of(server, sequences=1)

        async def leave() -> None:
            generation = engine.submit(request())
            engine.submit(request())
            assert await anext(generation.pieces()) == "Hello"

        asyncio.run(leave())
        assert server.left.acquire(timeout=30)
        assert (engine.running, engine.waiting) == (0, 0)
        assert asyncio.run(_read_one(engine)) == TEXT


def test_an_answer_ends_at_its_deadline_with_what_it_has() -> None:
    """Also one that still waits for its turn; the connection is closed."""

    async def run(server: Scripted) -> None:
        engine = engine_of(server, sequences=1)
        first = engine.submit(request(deadline_s=2.0))
        second = engine.submit(request(deadline_s=0.2))
        assert (first.position, second.position) == (0, 1)
        assert await read(second) == ""
        assert second.finish_reason == "deadline"
        assert await read(first) == "Hello"
        assert first.finish_reason == "deadline"
        assert await asyncio.to_thread(server.left.acquire, timeout=30)
        assert len(server.asked) == 1

    with Scripted((head(), said("Hello"), "hold")) as server:
        asyncio.run(run(server))


# The queue.


def test_no_more_are_out_than_may_be_and_the_queue_is_bounded() -> None:
    """One answers, two wait, the fourth is refused; who leaves the queue is never sent."""
    go = threading.Event()

    async def run(server: Scripted) -> None:
        engine = engine_of(server, sequences=1, queue=2)
        first, second, third = (engine.submit(request(turns=(Turn("user", name),))) for name in ("first", "second", "third"))
        with pytest.raises(QueueFull):
            engine.submit(request())
        await until(lambda: len(server.asked) == 1)
        assert [each.position for each in (first, second, third)] == [0, 1, 2]
        assert (engine.running, engine.waiting) == (1, 2)
        places = third.queued()
        assert await anext(places) == 2
        second.cancel()
        assert await read(second) == ""
        assert second.finish_reason == "cancelled"
        assert await anext(places) == 1
        await places.aclose()
        assert len(server.asked) == 1
        go.set()
        assert [await read(first), await read(third)] == [TEXT, TEXT]
        await until(lambda: engine.running == 0)
        assert first.admitted_at < third.admitted_at
        assert [call.body["messages"][0]["content"] for call in server.asked] == ["first", "third"]

    with Scripted((head(), go, *ANSWER[1:]), ANSWER) as server:
        asyncio.run(run(server))


def test_several_are_out_at_the_same_time() -> None:
    """None of them waits for another: each goes on only when all have been asked."""
    go = threading.Event()

    async def run(server: Scripted) -> None:
        engine = engine_of(server, sequences=3)
        answers = [asyncio.create_task(read(engine.submit(request()))) for _ in range(3)]
        await until(lambda: len(server.asked) == 3)
        assert engine.running == 3
        go.set()
        assert await asyncio.gather(*answers) == [TEXT] * 3

    with Scripted(*[(head(), go, *ANSWER[1:])] * 3) as server:
        asyncio.run(run(server))


def test_stopping_ends_what_runs_and_what_waits() -> None:
    """Each is told that it was the service that stopped."""

    async def run(server: Scripted) -> None:
        engine = engine_of(server, sequences=1)
        generations = [engine.submit(request()) for _ in range(2)]
        await until(lambda: len(server.asked) == 1)
        await asyncio.to_thread(engine.stop)
        for generation in generations:
            with pytest.raises(NotReady, match="stopping"):
                await read(generation)
        assert await asyncio.to_thread(server.left.acquire, timeout=30)
        assert engine.ready is False
        with pytest.raises(NotReady):
            engine.submit(request())
        assert len(server.asked) == 1

    with Scripted(("hold",), ANSWER) as server:
        asyncio.run(run(server))


# Finding the server and its model.


@pytest.mark.parametrize(
    ("set_to", "there", "sent", "shown"),
    [
        ("b", ("a", "b"), "b", "b"),
        (EngineSettings().model, ("only.gguf",), "only.gguf", "only.gguf"),
        (EngineSettings().model, ("readingroom", EngineSettings().model), EngineSettings().model, EngineSettings().model),
        ("qwen3", ("llama3:latest", "qwen3:latest"), "qwen3:latest", "qwen3"),
        ("qwen3:4b", ("qwen3:latest", "qwen3:4b"), "qwen3:4b", "qwen3:4b"),
    ],
)
def test_the_model_is_found_by_its_name(set_to: str, there: tuple[str, ...], sent: str, shown: str) -> None:
    """The server's own; where nobody set one and there is one only, that one."""
    with Scripted(ANSWER, models=there) as server:
        engine = engine_of(server, model=set_to)
        assert asyncio.run(_read_one(engine)) == TEXT
    assert (engine.model, server.asked[0].body["model"]) == (shown, sent)


OTHERS = b'{"data": [{"id": "a"}, {"id": "b\\u001b"}, {}, 7]}'
LISTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "other models": ((head(kind="application/json"), OTHERS), "has no model 'm'. It has: a, b."),
    "no model": ((head(kind="application/json"), b'{"data": null}'), "It has: none."),
    "no list": ((head(kind="application/json"), b'{"version": 1}'), "does not list its models"),
    "a page": ((head(kind="text/html"), b"<html>"), "does not list its models"),
    "another path": ((head(404, "text/html"), b"<html>"), "does not know /v1/models"),
    "another key": ((head(401, "application/json"), ECHO), "does not accept engine.key"),
    "another place": ((head(308, "", Location="https://elsewhere.example/v1/models"),), "https://elsewhere.example/v1/models"),
    "still loading": ((head(503, "application/json"), b'{"error": {"message": "Loading model"}}'), "Loading model"),
    "nothing": ((), "cannot be reached"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTINGS)
def test_a_server_that_cannot_be_used_is_said_at_the_start_and_tried_again(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """`load` raises nothing, so that the rest of the service runs; `error` is what `/ready` says, and what a question gets."""
    caplog.set_level(logging.INFO)
    with Scripted(ANSWER) as server:
        good, server.listing = server.listing, LISTINGS[name][0]
        engine = made(url=server.url + "/", key=f"{KEY}\n")
        with pytest.raises(EngineUnreachable):
            engine.reach()
        engine.load()
        assert engine.ready is False
        assert engine.model == "m"
        assert LISTINGS[name][1] in engine.error.message
        assert engine.error.remedy
        with pytest.raises(EngineUnreachable):
            asyncio.run(_read_one(engine))
        calls = len(server.calls)
        wait_until(lambda: len(server.calls) > calls + 2)
        assert knocking() == 1
        server.listing = good
        wait_until(lambda: engine.ready)
        assert engine.error is None
        assert asyncio.run(_read_one(engine)) == TEXT
        wait_until(lambda: not knocking())
        assert KEY not in caplog.text
        assert engine.reach() == "m"


def test_a_server_that_goes_and_comes_back_is_lost_and_found() -> None:
    """Without a restart of ours. While it is away questions are answered at once with the reason, without a try for each."""
    server = Scripted(ANSWER, ANSWER)
    with server:
        engine = engine_of(server)
        assert asyncio.run(_read_one(engine)) == TEXT
    with pytest.raises(EngineUnreachable, match="cannot be reached") as caught:
        asyncio.run(_read_one(engine))
    assert "Start that server" in caught.value.remedy
    assert engine.ready is False
    assert engine.error is not None
    with server:
        wait_until(lambda: engine.ready)
        assert asyncio.run(_read_one(engine)) == TEXT


def test_several_that_fail_together_look_for_the_server_once() -> None:
    """One thread, however many questions were out when it went."""

    async def run(engine: RemoteEngine) -> None:
        said = await asyncio.gather(*(read(engine.submit(request())) for _ in range(4)), return_exceptions=True)
        assert [type(each) for each in said] == [EngineUnreachable] * 4

    with Scripted() as server:
        engine = engine_of(server)
    asyncio.run(run(engine))
    assert knocking() == 1


def test_a_key_that_is_no_longer_good_shows_in_ready() -> None:
    """All further questions would fail as well; the list of models says when it is good again."""
    refused = (head(401, "application/json"), b'{"error": "expired"}')
    with Scripted(refused) as server:
        engine = engine_of(server)
        server.listing = refused
        with pytest.raises(EngineUnreachable, match="expired"):
            asyncio.run(_read_one(engine))
        assert engine.ready is False
        assert "engine.key" in engine.error.message


def test_a_stopped_engine_looks_for_its_server_no_longer() -> None:
    """The thread ends by itself."""
    server = Scripted()
    engine = made(url=server.url)
    engine.load()
    assert "cannot be reached" in engine.error.message
    assert knocking() == 1
    engine.stop()
    wait_until(lambda: not knocking())


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080/v1",
        "ftp://h/v1",
        "http://",
        f"http://u:{KEY}@h/v1",
        f"https://h/v1?key={KEY}",
        "http://[::1/v1",
        "http://h/v1#a",
        " ",
    ],
)
def test_an_address_that_cannot_be_one_is_refused_without_being_shown(url: str) -> None:
    """It may hold a password. Trying again would not help, so this is raised."""
    with pytest.raises(InvalidSettings) as caught:
        made(url=url).load()
    assert "engine.url" in caught.value.message
    assert KEY not in f"{caught.value.message}{caught.value.remedy}{caught.value.__context__}"


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", "\x00"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key: str) -> None:
    """A header has neither umlauts nor lines."""
    with pytest.raises(InvalidSettings) as caught:
        made(url="http://127.0.0.1:9/v1", key=key).load()
    assert key not in f"{caught.value.message}{caught.value.remedy}"


# What it cannot do.


def test_a_grammar_goes_to_llama_server_only() -> None:
    """Others would ignore it, and the answer would have any form."""
    with Scripted(ANSWER, owner="llamacpp") as server:
        ask(server, grammar='root ::= "a"')
        assert server.asked[0].body["grammar"] == 'root ::= "a"'
    with Scripted(ANSWER, owner="vllm") as server, pytest.raises(InvalidInput, match="grammar"):
        ask(server, grammar='root ::= "a"')
    assert server.asked == []


def test_adapters_and_bare_prompts_are_refused() -> None:
    """With what to do instead; nothing is sent."""
    with Scripted(ANSWER) as server:
        engine = engine_of(server)
        assert engine.adapter(None) is engine.adapter("") is None
        with pytest.raises(UnknownAdapter, match="legal") as caught:
            engine.adapter("legal")
        assert "engine.url" in caught.value.remedy
        assert engine.prompt_of(None) == ""
        assert engine.takes_tools is False
        with pytest.raises(InvalidInput, match="without messages"):
            ask(server, turns=())
    assert server.asked == []


def test_before_it_is_loaded_it_is_not_ready() -> None:
    """As the built-in one."""
    engine = made(url="http://127.0.0.1:9/v1")
    assert (engine.ready, engine.model, engine.waiting, engine.running, engine.context_tokens) == (False, "m", 0, 0, 2048)

    async def run() -> None:
        with pytest.raises(NotReady):
            engine.submit(request())

    asyncio.run(run())


def test_the_estimate_of_a_prompt_is_no_less_than_its_tokens(engine: Engine) -> None:
    """On the guide and on what has more tokens than it, in the count of the default model, whose vocabulary is small."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "corpora" / "guide").glob("*.md"))]
    pages += [
        "Der Lesesaal ist täglich von neun bis achtzehn Uhr geöffnet; Führungen für Gruppen nach Vereinbarung.",
        "La salle de lecture est ouverte tous les jours, sauf le lundi et les jours fériés.",
        "Читальный зал открыт ежедневно с девяти до восемнадцати часов.",
        "阅览室每天九点至十八点开放，团体参观请提前预约。",
        "قاعة القراءة مفتوحة يوميا من التاسعة حتى السادسة مساء.",
        "2024-01-31;1234567.89;0.004512;77,3;12:45:01\n2024-02-29;998877.01;0.1;5,2;09:00:59",
        "for (int i = 0; i < n; ++i) { a[i] += b[i] * c; }  // add",
        "",
    ]
    there = made()
    for page in pages:
        turns = [Turn("system", "Be brief."), Turn("user", page)]
        assert len(there.render(turns)) >= len(engine.render(turns)), page[:60]
        assert there.count_tokens(page) >= engine.count_tokens(page), page[:60]
    prose = (ROOT / "corpora" / "guide" / "start.md").read_text(encoding="utf-8")
    assert there.count_tokens(prose) < 2 * engine.count_tokens(prose)


def test_tools_count_in_the_estimate() -> None:
    """They are part of the prompt."""
    engine = made()
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    assert len(engine.render(TURNS, tools)) > len(engine.render(TURNS)) > len(engine.render(TURNS[:1]))


def test_errors_are_of_the_one_tree() -> None:
    """A defect of ours becomes one of them as well, and stands in the log."""
    assert isinstance(remote._presentable(KeyError("x")), ReadingRoomError)


def test_it_has_all_that_is_called_of_the_built_in_engine() -> None:
    """What that one has and this has not is named here, and why: nothing outside of `rag` calls it."""
    built_in_only = {"piece", "refresh_adapters"}
    public = {name for name in dir(Engine) if not name.startswith("_")}
    assert public - {name for name in dir(RemoteEngine) if not name.startswith("_")} == built_in_only
