"""OpenAI's dialect: its translators on their own, then its calls against a real server. Real clients are in `test_clients.py`."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from litestar.exceptions import ValidationException

from rag import grammar
from rag.errors import InvalidInput, ModelUnusable, QueueFull, UnknownModel
from rag.generation import Request, TokenChances
from rag.metrics import Metrics
from rag.records import Citation, Done, Passage, PassagesFound, Scores, Timings, Token, Turn, Unsupported, Usage, Withdrawn
from rag.settings import Server
from server.auth import Guard
from server.errors import answered, problem_of
from server.routes import openai
from server.routes import openai_wire as wire
from server.routes.assistants import Target
from server.routes.dialect import Documents, End, Said, Sampling, from_documents, from_model, question_of, seed_of
from server.routes.tools import ToolCall, ToolCalls
from tests.conftest import golden, wait_until
from tests.server.conftest import Served
from tests.server.test_http import QUESTION, metric

BARE = "smollm2-135m-instruct"

PASSAGE = Passage(
    "c-1", "d-1", "guide", "guide/domains.md", "Domains", ("Domains",), None, 3, 12, "A domain.", 0.75, Scores(dense=0.5, bm25=4.25)
)
CITATION = Citation('A "domain".', "A domain.", "d-1", "guide/domains.md", None, 3, 12, 0.9)
HEAD = openai.Head("chatcmpl-1", 1700000000, "readingroom")

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
}


def chat(**fields: Any) -> wire.ChatBody:
    """A body with one question."""
    body = {"model": "readingroom", "messages": [{"role": "user", "content": "Why?"}], **fields}
    return msgspec.convert(body, wire.ChatBody)


async def script(*items: Any) -> AsyncGenerator[Any, None]:
    """Those items; an exception is raised."""
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


def run(source: AsyncGenerator[Any, None]) -> list[Any]:
    """All that comes."""

    async def collect() -> list[Any]:
        return [item async for item in source]

    return asyncio.run(collect())


class Scripted:
    """A generation that says those pieces, each of one token, and knows the chances of each where asked for."""

    def __init__(self, pieces: Sequence[str], *, reason: str = "stop", logprobs: bool = False) -> None:
        self.usage = Usage(7, 0, 3)
        self.finish_reason = reason
        self.chances: list[TokenChances] = []
        self.cancelled = False
        self._script = pieces
        self._logprobs = logprobs

    async def pieces(self) -> AsyncGenerator[str, None]:
        for n, piece in enumerate(self._script, 1):
            self.usage = Usage(7, n, 3)
            if self._logprobs:
                self.chances.append(TokenChances(piece.encode(), -0.5, ((piece.encode(), -0.5), (b"?", -1.5))))
            if piece:
                yield piece

    def cancel(self) -> None:
        self.cancelled = True


def generated(generation: Scripted, calls: ToolCalls | None = None) -> AsyncGenerator[Said | End, None]:
    """The pieces of a scripted generation."""
    return from_model(lambda: generation, Metrics(), calls)  # type: ignore[arg-type, return-value]


# From the wire.


def test_messages_become_turns() -> None:
    """Developers are the system; parts are joined; a call and its result stand in the form in which models write and read them."""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Is it"}, {"type": "text", "text": "warm in Oslo?"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "-4"},
        {"role": "assistant", "content": "No."},
    ]  # fmt: skip
    assert openai.turns_of(chat(messages=messages).messages) == (
        Turn("system", "Be brief."),
        Turn("system", "Be kind."),
        Turn("user", "Is it\nwarm in Oslo?"),
        Turn("assistant", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
        Turn("user", "<tool_response>\n-4\n</tool_response>"),
        Turn("assistant", "No."),
    )


def wrong_field(caught: pytest.ExceptionInfo[ValidationException]) -> str:
    """The field that the error names."""
    return caught.value.extra[0]["key"]


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]}, "image_url"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "input_audio"),
        ({"role": "user", "content": None}, "missing"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]}, "'f'"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}, "'f'"),
    ],
)
def test_what_is_not_text_is_refused_with_its_place(message: dict[str, Any], word: str) -> None:
    """No picture is dropped in silence."""
    messages = chat(messages=[{"role": "user", "content": "Look."}, message]).messages
    with pytest.raises(ValidationException, match=word) as caught:
        openai.turns_of(messages)
    assert wrong_field(caught).startswith("messages.1.")


def test_the_question_is_the_last_of_the_user_and_the_rest_is_its_history() -> None:
    """Without the client's system message: how documents are answered from is the domain's to say."""
    turns = [Turn("system", "Pirate!"), Turn("user", "A?"), Turn("assistant", "B."), Turn("user", "C?"), Turn("assistant", "Well,")]
    assert question_of(turns) == ("C?", (Turn("user", "A?"), Turn("assistant", "B.")))
    with pytest.raises(ValidationException) as caught:
        question_of(turns[:1])
    assert wrong_field(caught) == "messages"


def test_of_a_long_conversation_the_newest_is_kept() -> None:
    """Whole turns, the user's first: what fits no prompt would be rendered again and again to find that out."""
    hours = [Turn("user" if n % 2 == 0 else "assistant", f"Turn {n}.") for n in range(1001)]
    assert question_of(hours) == ("Turn 1000.", tuple(hours[968:1000]))
    chatty = [Turn(turn.role, turn.content.ljust(3000)) for turn in hours]
    assert question_of(chatty)[1] == tuple(chatty[990:1000])
    greeted = [Turn("assistant", "Hello!"), Turn("user", "A?"), Turn("assistant", "B."), Turn("user", "C?")]
    assert question_of(greeted)[1] == tuple(greeted[:3])


def test_sampling_is_taken_over_and_null_is_as_if_it_were_not_there() -> None:
    """Clients send null for what nobody set. `max_completion_tokens` is the name that holds."""
    assert openai.sampling_of(chat(n=None, stop=None, temperature=None, tools=None, response_format=None)) == Sampling()
    body = chat(
        n=1, max_tokens=9, max_completion_tokens=5, temperature=0.5, top_p=0.9, seed=2**40, stop="END", frequency_penalty=0.1,
        presence_penalty=-0.2, top_k=3, min_p=0.05, repeat_penalty=1.2, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    wanted = Sampling(
        max_tokens=5, temperature=0.5, top_p=0.9, seed=seed_of(2**40), stop=("END",), frequency_penalty=0.1, presence_penalty=-0.2,
        top_k=3, min_p=0.05, repeat_penalty=1.2, logprobs=2,
    )  # fmt: skip
    assert openai.sampling_of(body) == wanted
    assert openai.sampling_of(chat(logprobs=True)).logprobs == 0


def test_a_seed_is_the_same_each_time_and_fits_the_engine() -> None:
    """32 bits; below 0 is random, as with llama.cpp."""
    assert [seed_of(seed) for seed in (None, -1, 0, 7)] == [None, None, 0, 7]
    assert 0 <= (seed_of(2**63 + 5) or 0) < 2**32 - 1
    assert seed_of(2**40) != seed_of(2**40 + 1)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools.0"),
        ({"tools": [WEATHER, {"type": "function", "function": {}}]}, "tools.1"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": ["weather"]}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_what_cannot_be_done_is_said_and_not_left_out(fields: dict[str, Any], field: str) -> None:
    """Each error names its field."""
    with pytest.raises(ValidationException) as caught:
        openai.sampling_of(chat(**fields))
    assert wrong_field(caught) == field


@pytest.mark.parametrize(
    ("fields", "named", "forced"),
    [
        ({}, ["weather", "time"], False),
        ({"tool_choice": "auto"}, ["weather", "time"], False),
        ({"tool_choice": "none"}, [], False),
        ({"tool_choice": "required"}, ["weather", "time"], True),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, ["time"], True),
    ],
)
def test_the_choice_of_tools_is_kept(fields: dict[str, Any], named: list[str], forced: bool) -> None:
    """None are shown that may not be called; one that must be is forced by a grammar."""
    body = chat(tools=[WEATHER, {"type": "function", "function": {"name": "time"}}], **fields)
    assert [tool["function"]["name"] for tool in openai.tools_of(body)] == named
    assert openai.must_call(body) is forced
    rules = openai.grammar_of(body)
    assert bool(rules) is forced
    assert all(name in rules for name in named if forced)


def test_a_schema_becomes_a_grammar() -> None:
    """OpenAI's ways and llama.cpp's; for any object the general one."""
    schema = {"type": "object", "properties": {"colour": {"enum": ["teal", "plum"]}}, "required": ["colour"]}
    wanted = grammar.of_schema(schema)
    assert "teal" in wanted
    assert openai.grammar_of(chat(response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}})) == wanted
    assert openai.grammar_of(chat(response_format={"type": "json_object", "schema": schema})) == wanted
    assert openai.grammar_of(chat(response_format={"type": "json_object"})) == grammar.JSON
    assert openai.grammar_of(chat(response_format={"type": "text"})) == ""
    with pytest.raises(InvalidInput):
        openai.grammar_of(chat(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "https://example.org/s"}}}))


def test_what_a_tools_schema_refers_to_is_found() -> None:
    """Pydantic writes models as references below `$defs`; two tools may use one name for different things."""

    def paint(name: str, colour: str) -> dict[str, Any]:
        parameters = {
            "type": "object",
            "properties": {"colour": {"$ref": "#/$defs/Colour"}},
            "required": ["colour"],
            "$defs": {"Colour": {"enum": [colour]}},
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    rules = openai.grammar_of(chat(tools=[paint("wall", "teal"), paint("door", "plum")], tool_choice="required"))
    for word in ("wall", "teal", "door", "plum"):
        assert word in rules


def test_documents_answer_in_prose_and_say_so() -> None:
    """What would change the shape of the answer is refused; how a text is sampled is no matter of principle."""
    turns = (Turn("user", "Why?"),)
    question = openai.question_for(
        chat(max_tokens=5, temperature=0, seed=3, top_p=0.5, frequency_penalty=0.2), turns, Target(Documents("guide"))
    )
    assert (question.text, question.domain, question.max_tokens, question.temperature, question.seed) == ("Why?", "guide", 5, 0, 3)
    for fields in (
        {"stop": "."},
        {"tools": [WEATHER]},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
    ):
        with pytest.raises(ValidationException) as caught:
            openai.question_for(chat(**fields), turns, Target(Documents(None)))
        assert wrong_field(caught) == next(iter(fields))
    assert openai.question_for(chat(tools=[WEATHER], tool_choice="none"), turns, Target(Documents(None))).text == "Why?"


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1]], []])
def test_a_completion_has_one_prompt_of_text(prompt: Any) -> None:
    """A list of one is one."""
    assert openai.prompt_of(wire.CompletionBody(model="m", prompt=["a"])) == "a"
    with pytest.raises(ValidationException) as caught:
        openai.prompt_of(wire.CompletionBody(model="m", prompt=prompt))
    assert wrong_field(caught) == "prompt"


# Calls of tools.

CALL = ToolCall("weather", {"city": "Oslo"})
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (CALLED, "", [CALL]),
        (f"Let me see.\n\n{CALLED}\n", "Let me see.", [CALL]),
        (f"{CALLED}\n{CALLED}", "", [CALL, CALL]),
        (f" \n{CALLED} Done.", " Done.", [CALL]),
        (CALLED.removesuffix("</tool_call>"), "", [CALL]),
        ("No call at all.  ", "No call at all.  ", []),
        ("A < b, and <tool is no tag.", "A < b, and <tool is no tag.", []),
        ("<tool_call>not json</tool_call> so what", "<tool_call>not json</tool_call> so what", []),
        ('It is: <tool_call>{"arguments": {}}</tool_call>', 'It is: <tool_call>{"arguments": {}}</tool_call>', []),
        ('<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum', []),
        ("ends with <tool_ca", "ends with <tool_ca", []),
        ('<tool_call>{"name": "f"}</tool_call>', "", [ToolCall("f", {})]),
    ],
)
def test_calls_are_found_however_the_text_is_cut(text: str, said: str, calls: list[ToolCall]) -> None:
    """In pieces of any length; what is no call is told to the letter."""
    for size in range(1, len(text) + 1):
        finder = ToolCalls()
        found = [item for start in range(0, len(text), size) for item in finder.feed(text[start : start + size])] + finder.flush()
        assert "".join(item for item in found if isinstance(item, str)) == said, size
        assert [item for item in found if isinstance(item, ToolCall)] == calls, size


def test_text_does_not_wait_for_a_call_that_may_come() -> None:
    """Only what could be the beginning of a tag is held back."""
    finder = ToolCalls()
    assert finder.feed("Hello") == ["Hello"]
    assert finder.feed(" there") == [" there"]
    assert finder.feed(" <") == []
    assert finder.feed("b>") == [" <b>"]


def test_a_forced_call_needs_no_tags() -> None:
    """And one that was cut off is text."""
    finder = ToolCalls(at_once=True)
    assert finder.feed('{"name": "weather", ') == []
    assert finder.feed('"arguments": {"city": "Oslo"}}') == []
    assert finder.flush() == [CALL]
    cut = ToolCalls(at_once=True)
    cut.feed('{"name": "wea')
    assert cut.flush() == ['{"name": "wea']


# Pieces.


def test_the_pieces_of_an_answer_from_documents() -> None:
    """An empty one when nothing can be wrong any more, the text, the end; a refusal is a stop. Of what is withheld a stream says so,
    and a whole answer is the refusal.
    """
    done = Done("A.", False, (CITATION,), Usage(10, 5, 0), Timings(), BARE, finish_reason="length")
    events = script(PassagesFound((PASSAGE,), "What?"), Token("A"), CITATION, Token("."), done)
    assert run(from_documents(events)) == [Said(), Said("A"), Said("."), End("length", done.usage, done, (PASSAGE,))]
    withheld = Done("No.", True, (), Usage(), Timings(), BARE, finish_reason="refused", withheld=True)
    told = (PassagesFound((), "What?"), Token("A."), Unsupported("A."), Withdrawn("Not so."), withheld)
    assert run(from_documents(script(*told)))[1:] == [Said("A."), Said("\n\nNot so."), End("stop", Usage(), withheld, ())]
    assert asyncio.run(openai.whole(from_documents(script(*told)), HEAD)).choices[0].message.content == "No."
    refused = Done("No.", True, (), Usage(), Timings(), BARE, finish_reason="refused")
    assert run(from_documents(script(PassagesFound((), "What?"), Token("No."), refused)))[-1] == End("stop", Usage(), refused, ())


def test_every_token_has_its_chances_whatever_piece_it_came_with() -> None:
    """A token without text of its own goes with the next one, the last ones with the end."""
    pieces = run(generated(Scripted(["A", "", "B", ""], logprobs=True)))
    assert [piece.text for piece in pieces[:-1]] == ["", "A", "B", ""]
    assert [[chance.text for chance in piece.chances] for piece in pieces[:-1]] == [[], [b"A"], [b"", b"B"], [b""]]
    assert pieces[-1] == End("stop", Usage(7, 4, 3))


@pytest.mark.parametrize(("reason", "said"), [("stop", "stop"), ("length", "length"), ("deadline", "length"), ("cancelled", "stop")])
def test_how_a_generation_ends_is_said_in_openais_words(reason: str, said: str) -> None:
    """Time that ran out is a length, too."""
    assert run(generated(Scripted(["A"], reason=reason)))[-1].finish_reason == said


def test_who_leaves_stops_the_generation_and_its_tokens_count() -> None:
    """Before the first piece of text as well as after it."""

    async def leave(after: int) -> tuple[Scripted, float]:
        generation, metrics = Scripted(["A", "B"]), Metrics()
        pieces = from_model(lambda: generation, metrics)  # type: ignore[arg-type, return-value]
        for _ in range(after):
            await anext(pieces)
        await pieces.aclose()
        return generation, metrics.prompt_tokens.labels("no")._value.get()

    for after in (1, 2):
        generation, read = asyncio.run(leave(after))
        assert generation.cancelled
        assert read == 4


# To the wire.


def test_the_transcript_of_a_stream_is_as_written() -> None:
    """Golden: an answer from documents with the tokens it used, and a bare one without, are what clients rely on."""
    done = Done('A "domain".\nÜber alles.', False, (CITATION,), Usage(10, 5, 4), Timings(), BARE)
    pieces = (Said(), Said('A "domain".'), Said("\nÜber alles."), End("stop", done.usage, done, (PASSAGE,)))
    documents = run(openai.lines(openai.chunks(script(*pieces), HEAD, include_usage=True)))
    bare = run(openai.lines(openai.chunks(script(Said(), Said("Hi"), End("length", Usage(3, 1))), HEAD, include_usage=False)))
    golden("openai.sse", b"".join([*documents, *bare]).decode())


def test_the_whole_answer_is_as_written() -> None:
    """Golden: with citations and sources, and with a call."""
    done = Done("A.", False, (CITATION,), Usage(10, 5, 4), Timings(), BARE, "legal")
    pieces = script(Said(), Said("A."), End("stop", done.usage, done, (PASSAGE,)))
    documents = asyncio.run(openai.whole(pieces, HEAD))
    called = asyncio.run(openai.whole(script(Said(calls=(CALL,)), End("tool_calls", Usage(3, 9))), HEAD))
    call = called.choices[0].message.tool_calls[0]
    assert call.id.startswith("call_")
    call.id = "call_1"
    text = [msgspec.json.format(msgspec.json.encode(each), indent=1).decode() for each in (documents, called)]
    golden("openai.json", "\n".join(text) + "\n")


def test_calls_stream_with_their_numbers() -> None:
    """Two calls, then the reason; no content that would be empty."""
    pieces = script(Said(calls=(CALL,)), Said(calls=(ToolCall("time", {}),)), End("tool_calls", Usage(3, 9)))
    got = [msgspec.to_builtins(chunk)["choices"][0] for chunk in run(openai.chunks(pieces, HEAD, include_usage=False))]
    assert [choice["delta"].get("content") for choice in got] == ["", None, None, None]
    calls = [call for choice in got for call in choice["delta"].get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        (0, "weather", {"city": "Oslo"}),
        (1, "time", {}),
    ]
    assert len({call["id"] for call in calls}) == 2
    assert got[-1]["finish_reason"] == "tool_calls"


def test_chances_are_json_numbers_and_bytes_whole() -> None:
    """Half a character has its bytes, and what is impossible a number."""
    half = "é".encode()[:1]
    got = openai.logprobs_of([TokenChances(half, -0.25, ((half, -0.25), (b"x", float("-inf"))))])
    assert json.loads(msgspec.json.encode(got)) == {
        "content": [
            {
                "token": "\ufffd", "logprob": -0.25, "bytes": [195],
                "top_logprobs": [
                    {"token": "\ufffd", "logprob": -0.25, "bytes": [195]}, {"token": "x", "logprob": -9999.0, "bytes": [120]},
                ],
            }
        ]
    }  # fmt: skip
    assert openai.logprobs_of(()) is None


def test_what_breaks_in_mid_answer_is_said_and_the_stream_ends() -> None:
    """With no [DONE], and nothing of the inside of what is not ours."""
    for error, code, word in (
        (ModelUnusable("It broke.", "Mend it."), "model_unusable", "It broke. Mend it."),
        (RuntimeError("secret path"), "internal", "log"),
    ):
        got = b"".join(run(openai.lines(openai.chunks(script(Said("A"), error), HEAD, include_usage=False)))).decode()
        last = json.loads(got.rstrip().rpartition("data: ")[2])
        assert (last["error"]["code"], last["error"]["type"]) == (code, "server_error")
        assert word in last["error"]["message"]
        assert "secret" not in got
        assert "[DONE]" not in got


def test_a_vector_is_the_same_in_base64() -> None:
    """Little-endian float32, four bytes a number."""
    row = np.array([0.5, -0.25, 1e-7], np.float32)
    assert openai.embedded(row, None) == openai.embedded(row, "float") == row.tolist()
    assert np.frombuffer(base64.b64decode(openai.embedded(row, "base64")), "<f4").tolist() == row.tolist()


# Errors.


def test_an_error_is_told_in_the_words_of_who_asks() -> None:
    """By path: OpenAI's shape, Ollama's, or the problem document; 422 is 400 in both dialects."""
    missing = problem_of(UnknownModel("There is no model 'x'.", "Choose another."))
    status, body, media_type = answered(missing, "/v1/chat/completions")
    assert (status, media_type) == (404, "application/json")
    said = "There is no model 'x'. Choose another."
    assert json.loads(body) == {"error": {"message": said, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}
    assert answered(missing, "/api/chat") == (404, json.dumps({"error": said}, separators=(",", ":")).encode(), "application/json")
    status, body, media_type = answered(missing, "/rag/ask")
    assert (status, json.loads(body)["code"], media_type) == (404, "unknown_model", "application/problem+json")
    invalid = problem_of(InvalidInput("No.", "Yes."))
    assert [answered(invalid, path)[0] for path in ("/v1/embeddings", "/api/embed", "/rag/ask")] == [400, 400, 422]
    full = json.loads(answered(problem_of(QueueFull("Full.", "Wait.")), "/v1/chat/completions")[1])["error"]
    assert (full["type"], full["code"], full["param"]) == ("server_error", "queue_full", None)


@pytest.mark.parametrize(("path", "inner"), [("/v1/models", "error.code"), ("/api/tags", "error"), ("/rag/domains", "code")])
def test_a_missing_key_is_told_in_the_same_words(path: str, inner: str) -> None:
    """The guard stands before the application, and its refusal still has the dialect's shape."""

    async def nothing(*_: Any) -> None:
        raise AssertionError("let in without a key")

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Guard(nothing, Server(key="k" * 16)))) as client:
            return await client.get(f"http://127.0.0.1{path}")

    response = asyncio.run(call())
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    said = response.json()
    for part in inner.split("."):
        said = said[part]
    assert said in {"invalid_api_key", "unauthorized"} or "Bearer" in said


# The calls.


def post(served: Served, path: str, body: object) -> httpx.Response:
    """One call."""
    with served.client() as client:
        return client.post(path, json=body)


def ask(served: Served, text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """A whole chat completion."""
    response = post(served, "/v1/chat/completions", {"model": "readingroom", "messages": [{"role": "user", "content": text}], **fields})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(served: Served, path: str = "/v1/chat/completions", **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    with served.client() as client, client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def is_error(response: httpx.Response, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Checks that it is OpenAI's error of that status; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert code in (None, error["code"])
    assert param in (None, error["param"])
    return error


def test_the_models_are_the_documents_the_domains_and_the_language_models(served: Served) -> None:
    """Each can be asked for by its name, slash and all."""
    with served.client() as client:
        listed = client.get("/v1/models").json()
        ids = [model["id"] for model in listed["data"]]
        assert listed["object"] == "list"
        assert ids[0] == "readingroom"
        assert {"readingroom/guide", BARE} <= set(ids)
        for model in listed["data"]:
            assert client.get(f"/v1/models/{model['id']}").json() == model
            assert (model["object"], model["owned_by"]) == ("model", "readingroom")
        assert client.get("/v1/models/readingroom%2Fguide").json()["id"] == "readingroom/guide"
        is_error(client.get("/v1/models/gpt-9"), 404, "model_not_found", "model")


def test_an_answer_from_the_documents_is_that_of_the_native_call(served: Served) -> None:
    """The same text, sources and tokens; each quote stands in its document."""
    native = post(served, "/rag/ask", {"question": QUESTION, "domain": "guide", "stream": False, "max_tokens": 16}).json()
    answer = ask(served, model="readingroom/guide", max_tokens=16)
    message = answer["choices"][0]["message"]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "readingroom/guide"
    assert (message["role"], message["content"]) == ("assistant", native["answer"])
    assert [annotation["document_citation"] for annotation in message["annotations"]] == native["citations"]
    assert {annotation["type"] for annotation in message["annotations"]} == {"document_citation"}
    assert answer["choices"][0]["finish_reason"] == native["finish_reason"] == "length"
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (native["usage"]["prompt_tokens"], native["usage"]["completion_tokens"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": native["usage"]["cached_tokens"]}
    assert answer["readingroom"]["refused"] is False
    assert answer["readingroom"]["model"] == BARE
    assert answer["readingroom"]["passages"][0]["path"] == "guide/domains.md"
    with served.client() as client:
        for annotation in message["annotations"]:
            cited = annotation["document_citation"]
            text = client.get(f"/rag/documents/{cited['document_id']}/text").json()["text"]
            assert text[cited["start"] : cited["end"]] == cited["quote"]


def test_a_stream_says_what_the_whole_answer_says(served: Served) -> None:
    """Role first; citations in the last but one of the chunks; with the tokens used in one more, if asked for."""
    whole = ask(served, max_tokens=12)
    body = {"model": "readingroom", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    plain = streamed(served, **body)
    used = streamed(served, **body, stream_options={"include_usage": True})
    for got in (plain, used[:-1]):
        deltas = [chunk["choices"][0]["delta"] for chunk in got]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
        assert deltas[-2] == {"annotations": whole["choices"][0]["message"]["annotations"]}
        assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None] * (len(got) - 1) + ["length"]
        assert got[-1]["readingroom"] == whole["readingroom"]
        assert len({(chunk["id"], chunk["created"]) for chunk in got}) == 1
        assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in plain)
    assert {chunk["usage"] for chunk in used[:-1]} == {None}
    assert used[-1]["choices"] == []
    assert used[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_what_the_documents_do_not_hold_is_refused_and_stops(served: Served) -> None:
    """Nothing is generated; the nearest passages are there."""
    answer = ask(served, "Who won the football world cup in 2018?", model="readingroom/guide")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["annotations"] == []
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["readingroom"]["refused"] is True
    assert answer["readingroom"]["passages"]


def test_earlier_turns_are_read_and_system_messages_are_not(served: Served) -> None:
    """The prompt grows by the history alone."""
    question = {"role": "user", "content": QUESTION}
    history = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Good day. What may I find for you?"}]

    def read(messages: list[dict[str, str]]) -> int:
        return ask(served, messages=messages, max_tokens=4)["usage"]["prompt_tokens"]

    alone = read([question])
    assert read([{"role": "system", "content": "Talk like a pirate, always."}, question]) == alone
    assert read([*history, question]) > alone + 10


def test_a_bare_model_answers_for_itself(served: Served) -> None:
    """In its own template, under its own name, greedy by the settings; ends by length where told to."""
    first, second = (ask(served, "Say hello.", model=BARE, max_tokens=12) for _ in range(2))
    assert first["model"] == BARE
    assert "readingroom" not in first
    choice = first["choices"][0]
    assert choice["message"]["content"] == second["choices"][0]["message"]["content"] != ""
    assert choice["finish_reason"] == "length"
    assert first["usage"]["completion_tokens"] == 12
    assert "tool_calls" not in choice["message"]
    messages = [{"role": "user", "content": "Say hello."}]
    got = streamed(served, model=BARE, max_tokens=12, messages=messages)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got) == choice["message"]["content"]
    assert got[-1]["choices"][0]["finish_reason"] == "length"


def test_what_was_read_before_is_told(served: Served) -> None:
    """Of the same prompt the most is in the cache the second time."""
    first, second = (ask(served, "Say it again. " * 60, model=BARE, max_tokens=2)["usage"] for _ in range(2))
    assert first["prompt_tokens"] == second["prompt_tokens"] > 200
    assert second["prompt_tokens_details"]["cached_tokens"] > second["prompt_tokens"] / 2


def test_a_bare_models_system_message_counts(served: Served) -> None:
    """It is the client's own conversation; the prompt has it."""
    user = {"role": "user", "content": "Say hello."}
    short, long = (
        ask(served, model=BARE, max_tokens=2, messages=[{"role": role, "content": text}, user])["usage"]["prompt_tokens"]
        for role, text in (("system", "Hm."), ("developer", "You answer in one short sentence, always, whatever is asked."))
    )
    assert long > short + 5


def test_a_text_ends_before_a_stop_string(served: Served) -> None:
    """Also where the string lies across tokens; the reason is `stop`."""
    text = ask(served, "Say hello.", model=BARE, max_tokens=16)["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = ask(served, "Say hello.", model=BARE, max_tokens=16, stop=["never said", stop])["choices"][0]
    assert cut["message"]["content"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_a_seed_repeats_what_chance_would_change(served: Served) -> None:
    """At a temperature at which two seeds say different things."""

    def said(seed: int) -> str:
        return ask(served, "Tell me a story.", model=BARE, max_tokens=12, temperature=2, seed=seed)["choices"][0]["message"]["content"]

    assert said(1) == said(1)
    assert len({said(1), said(2), said(3)}) > 1


def test_chances_of_tokens_are_told(served: Served) -> None:
    """One for each token, best first, and the tokens' bytes are the text; whole and in a stream."""
    body = {"model": BARE, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    choice = ask(served, "Say hello.", **body)["choices"][0]
    content = choice["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == choice["message"]["content"]
    assert len(content) == 6
    for token in content:
        top = [likely["logprob"] for likely in token["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert token["logprob"] <= 0
    got = streamed(served, messages=[{"role": "user", "content": "Say hello."}], **body)
    in_stream = [token for chunk in got if chunk["choices"][0]["logprobs"] for token in chunk["choices"][0]["logprobs"]["content"]]
    assert [token["token"] for token in in_stream] == [token["token"] for token in content]


def test_an_answer_follows_a_schema(served: Served) -> None:
    """Whatever the model would like to say."""
    schema = {"type": "object", "properties": {"colour": {"enum": ["teal", "plum"]}}, "required": ["colour"], "additionalProperties": False}
    for format in (
        {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema, "strict": True}},
        {"type": "json_object", "schema": schema},
    ):
        choice = ask(served, "Which colour?", model=BARE, max_tokens=40, response_format=format)["choices"][0]
        assert json.loads(choice["message"]["content"])["colour"] in {"teal", "plum"}
        assert choice["finish_reason"] == "stop"
    loose = ask(served, "A colour as JSON.", model=BARE, max_tokens=8, response_format={"type": "json_object"})
    assert loose["choices"][0]["message"]["content"].lstrip().startswith("{")


def test_a_model_without_a_place_for_tools_says_so(served: Served) -> None:
    """And answers if it may not call any."""
    body = {"model": BARE, "messages": [{"role": "user", "content": "Is it warm in Oslo?"}], "tools": [WEATHER], "max_tokens": 2}
    error = is_error(post(served, "/v1/chat/completions", body), 400, "invalid_input", "tools")
    assert BARE in error["message"]
    assert error["type"] == "invalid_request_error"
    assert post(served, "/v1/chat/completions", {**body, "tool_choice": "none"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "status", "code", "param"),
    [
        ("chat/completions", {"model": "gpt-9"}, 404, "model_not_found", "model"),
        ("chat/completions", {"model": "readingroom/nowhere"}, 404, "model_not_found", "model"),
        ("chat/completions", {"model": "readingroom/../guide"}, 404, "model_not_found", "model"),
        ("chat/completions", {"model": ""}, 400, "invalid_input", "model"),
        ("chat/completions", {"model": 5}, 400, "invalid_input", "model"),
        ("chat/completions", {"messages": []}, 400, "invalid_input", "messages"),
        ("chat/completions", {"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_input", "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "invalid_question", None),
        ("chat/completions", {"model": BARE, "messages": [{"role": "user", "content": "x " * 9000}]}, 400, "invalid_input", None),
        ("chat/completions", {"model": BARE, "messages": [{"role": "user", "content": "x" * 900_000}]}, 400, "invalid_input", None),
        ("chat/completions", {"model": BARE, "n": 3}, 400, "invalid_input", "n"),
        ("chat/completions", {"model": BARE, "temperature": -1}, 400, "invalid_input", "temperature"),
        ("chat/completions", {"model": BARE, "max_tokens": 0}, 400, "invalid_input", "max_tokens"),
        ("chat/completions", {"model": BARE, "adapter": "nosuch"}, 404, "unknown_adapter", "adapter"),
        ("completions", {"prompt": ["a", "b"]}, 400, "invalid_input", "prompt"),
        ("completions", {"prompt": "a", "echo": True}, 400, "invalid_input", "echo"),
        ("embeddings", {"input": [], "model": "readingroom"}, 400, "invalid_input", "input"),
        ("embeddings", {"input": ["a"] * 2049, "model": "readingroom"}, 400, "invalid_input", "input"),
        ("embeddings", {"input": [[1, 2]], "model": "readingroom"}, 400, "invalid_input", "input"),
        ("embeddings", {"input": "word " * 300, "model": "readingroom"}, 400, "invalid_input", "input"),
        ("embeddings", {"input": "a", "dimensions": 100}, 400, "invalid_input", "dimensions"),
        ("embeddings", {"input": "a", "encoding_format": "int8"}, 400, "invalid_input", "encoding_format"),
        ("embeddings", {"input": "a", "model": BARE}, 404, "model_not_found", "model"),
        ("nothing", {}, 404, "not_found", None),
    ],
)
def test_what_is_wrong_with_a_call_is_told_in_openais_shape(
    served: Served, path: str, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    """The status, and the field that is to blame; streams too, since nothing is sent before it is known."""
    body = {"model": "readingroom", "messages": [{"role": "user", "content": "Why?"}], **fields}
    is_error(post(served, f"/v1/{path}", body), status, code, param)
    if path == "chat/completions":
        is_error(post(served, f"/v1/{path}", {**body, "stream": True}), status, code, param)


def test_broken_requests_have_their_own_statuses(served: Served) -> None:
    """400, 405 and 415, in the dialect's shape."""
    with served.client() as client:
        is_error(client.post("/v1/chat/completions", content=b"{not json", headers={"Content-Type": "application/json"}), 400)
        is_error(client.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
        is_error(client.get("/v1/chat/completions"), 405)


def test_the_old_completions_work(served: Served) -> None:
    """By a bare model and from the documents, whole and in a stream."""
    body = {"model": BARE, "prompt": "Say hello.", "max_tokens": 8}
    whole = post(served, "/v1/completions", body).json()
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == ask(served, "Say hello.", model=BARE, max_tokens=8)["choices"][0]["message"]["content"]
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 8
    got = streamed(served, "/v1/completions", **body, stream_options={"include_usage": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in got[:-1]) == whole["choices"][0]["text"]
    assert got[-1]["usage"] == {**whole["usage"], "prompt_tokens_details": got[-1]["usage"]["prompt_tokens_details"]}
    documents = post(served, "/v1/completions", {"model": "readingroom/guide", "prompt": QUESTION, "max_tokens": 16}).json()
    assert documents["readingroom"]["passages"][0]["path"] == "guide/domains.md"


def test_embeddings_are_those_of_the_index(served: Served) -> None:
    """Unit rows in the order of the inputs, in both encodings, whatever they are batched with; tokens are counted."""
    texts = ["A heron stands in the reeds.", "Tax law.", *(f"Number {n}." for n in range(70))]
    body = {"model": "readingroom", "input": texts}
    whole = post(served, "/v1/embeddings", body).json()
    packed = post(served, "/v1/embeddings", {**body, "encoding_format": "base64", "dimensions": 384}).json()
    rows = np.array([item["embedding"] for item in whole["data"]], np.float32)
    assert rows.shape == (72, 384)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert [item["index"] for item in whole["data"]] == list(range(72))
    unpacked = np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed["data"]])
    assert (unpacked == rows).all()
    alone = post(served, "/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": texts[1]}).json()
    assert np.array(alone["data"][0]["embedding"]) == pytest.approx(rows[1], abs=1e-6)
    assert alone["model"] == whole["model"] == "all-MiniLM-L6-v2"
    assert alone["usage"]["prompt_tokens"] == alone["usage"]["total_tokens"] == 3
    assert whole["usage"]["prompt_tokens"] > 72


@pytest.mark.parametrize("model", ["readingroom", BARE])
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_stops_the_work(served: Served, model: str, stream: bool) -> None:
    """Invariant 7 in this dialect: after the connection is closed the engine decodes nothing more."""
    question = "How do I add a domain and what else can I do with it?"
    # A pattern that has no end: else the model may be through before anybody has left.
    endless = {} if model == "readingroom" else {"response_format": {"type": "json_schema", "json_schema": {"schema": {
        "type": "object", "properties": {"text": {"type": "string", "minLength": 900}}, "required": ["text"]}}}}  # fmt: skip
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": stream, "max_tokens": 900, **endless}
    data = json.dumps(body).encode()
    host, _, port = served.url.removeprefix("http://").partition(":")
    running, decoded, left = (
        "readingroom_generations_running",
        "readingroom_decode_tokens_total",
        'readingroom_answers_total{outcome="left"}',
    )
    wait_until(lambda: metric(served, running) == 0, 120)
    before, left_before = metric(served, decoded), metric(served, left)
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        wait_until(lambda: metric(served, running) == 1, 120)
    wait_until(lambda: metric(served, running) == 0, 120, "the engine's rest")
    at_rest = metric(served, decoded)
    assert at_rest < before + 800, "the model wrote all that it was asked for"
    assert metric(served, decoded) == at_rest
    if model == "readingroom":
        wait_until(lambda: metric(served, left) == left_before + 1, 120, "the count of those who left")


def test_full_is_said_with_the_time_to_wait(served: Served) -> None:
    """Invariant 8: of ten at once some are told 503 with Retry-After, in a stream too; the rest are answered."""

    def one(n: int) -> httpx.Response:
        body = {"model": BARE, "messages": [{"role": "user", "content": f"Count to one hundred ({n})."}], "max_tokens": 40}
        return post(served, "/v1/chat/completions", {**body, "stream": n % 2 == 0})

    with ThreadPoolExecutor(10) as pool:
        responses = list(pool.map(one, range(10)))
    assert {response.status_code for response in responses} == {200, 503}
    assert sum(response.status_code == 200 for response in responses) >= 4
    for response in responses:
        if response.status_code == 503:
            is_error(response, 503, "queue_full")
            assert int(response.headers["retry-after"]) > 0


def test_the_tokens_of_bare_answers_are_counted(served: Served) -> None:
    """`/metrics` knows them as it knows those of answers from documents."""
    name = "readingroom_completion_tokens_total"
    before = metric(served, name)
    ask(served, "Say hello.", model=BARE, max_tokens=5)
    assert metric(served, name) == before + 5


def test_the_calls_are_described(served: Served) -> None:
    """OpenAPI has them for programs and /docs."""
    with served.client() as client:
        paths = client.get("/schema/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/models/{model_id}", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"} <= set(paths)


def test_the_engines_request_is_what_was_asked_for() -> None:
    """What is left out is as the settings say; what is said, holds."""
    from rag.settings import Engine as EngineSettings

    settings = EngineSettings(max_tokens=99, temperature=0.3, deadline_s=50)
    turns = (Turn("user", "Hi"),)
    assert Sampling().request((1, 2), settings, turns, None) == Request((1, 2), 99, 0.3, turns=turns, deadline_s=50)
    wanted = Sampling(max_tokens=5, temperature=0.0, top_k=0, stop=("x",), logprobs=0).request((1,), settings, turns, None)
    assert wanted == Request((1,), 5, 0.0, top_k=0, stop=("x",), logprobs=0, turns=turns, deadline_s=50)


@pytest.mark.parametrize(
    "question",
    [
        "Can I use the OpenAI client?",
        "How do I get embeddings?",
        "Where do I find the citations with the openai library?",
        "Does LangChain work?",
    ],
)
def test_the_guide_answers_who_comes_with_a_client(served: Served, question: str) -> None:
    """Its page is found first, with enough evidence to answer from."""
    answer = ask(served, question, model="readingroom/guide", max_tokens=4)["readingroom"]
    assert answer["passages"][0]["path"] == "guide/clients.md"
    assert answer["refused"] is False
