"""Ollama's dialect: its translators on their own, then its calls by the real `ollama` client against a real server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import struct
import textwrap
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import ollama
import pytest
from litestar.exceptions import ValidationException

from bench.lora import install
from rag import grammar, models, shelf
from rag.errors import InvalidInput, ModelUnusable
from rag.generation import TokenChances
from rag.modelfile import Modelfile
from rag.records import Citation, Done, Passage, Scores, Timings, Turn, Usage
from server.routes import ollama_wire as wire
from server.routes.assistants import Target
from server.routes.dialect import Documents, End, Said, Sampling
from server.routes.ollama_models import CreateBody, file_of
from server.routes.tools import ToolCall
from server.stream import ndjson, with_pings
from tests.conftest import ROOT, wait_until
from tests.server.conftest import Served
from tests.server.test_http import QUESTION, metric

BARE = "smollm2-135m-instruct"
EMBEDDER = "all-MiniLM-L6-v2"
HELLO = [{"role": "user", "content": "Say hello."}]
FEW = {"num_predict": 6, "temperature": 0}

# A text that a grammar keeps from ending, so that there is something to leave.
ENDLESS = {"type": "object", "properties": {"text": {"type": "string", "minLength": 900}}, "required": ["text"]}

PASSAGE = Passage(
    "c-1", "d-1", "guide", "guide/domains.md", "Domains", ("Domains",), None, 3, 12, "A domain.", 0.75, Scores(dense=0.5, bm25=4.25)
)
CITATION = Citation('A "domain".', "A domain.", "d-1", "guide/domains.md", None, 3, 12, 0.9)


def chat(**fields: Any) -> wire.ChatBody:
    """A body of `chat`."""
    return msgspec.convert({"model": "m", **fields}, wire.ChatBody)


def generate(**fields: Any) -> wire.GenerateBody:
    """A body of `generate`."""
    return msgspec.convert({"model": "m", **fields}, wire.GenerateBody)


def create(**fields: Any) -> CreateBody:
    """A body of `create`."""
    return msgspec.convert({"model": "m", **fields}, CreateBody)


# Translators.


def test_messages_become_turns() -> None:
    """A call and its result stand in the form in which models write and read them; a missing content is none."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it warm in Oslo?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "tool", "content": "-4", "tool_name": "weather"},
        {"role": "assistant"},
    ]
    assert wire.turns_of(chat(messages=messages).messages or ()) == (
        Turn("system", "Be brief."),
        Turn("user", "Is it warm in Oslo?"),
        Turn("assistant", 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
        Turn("user", "<tool_response>\n-4\n</tool_response>"),
        Turn("assistant", ""),
    )


def test_options_become_sampling() -> None:
    """Those that the engine has; what is not given stays as the settings say."""
    options = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repeat_penalty": 1.2, "frequency_penalty": 0.3,
        "presence_penalty": 0.4, "seed": 7, "num_predict": 12, "stop": ("\n",),
    }  # fmt: skip
    assert wire.sampling_of(options, "root ::= x", 3) == Sampling(
        max_tokens=12, temperature=0.5, seed=7, top_p=0.9, top_k=20, min_p=0.1, repeat_penalty=1.2, frequency_penalty=0.3,
        presence_penalty=0.4, stop=("\n",), grammar="root ::= x", logprobs=3,
    )  # fmt: skip
    assert wire.sampling_of({}) == Sampling()
    assert wire.sampling_of({"seed": -1}) == Sampling()


@pytest.mark.parametrize("num_predict", [-1, -2, 0])
def test_without_a_number_an_answer_goes_as_far_as_the_context(num_predict: int) -> None:
    """Ollama's -1 and -2; the engine ends at its context."""
    assert (wire.sampling_of({"num_predict": num_predict}).max_tokens or 0) > 1_000_000


@pytest.mark.parametrize(
    ("keep_alive", "unloads"),
    [(None, False), (0, True), (0.0, True), ("0", True), ("0s", True), ("0m0s", True), (5, False), (-1, False), ("5m", False),
     ("-1", False), ("1h30m", False), ("0.5s", False), ("10ms", False)],
)  # fmt: skip
def test_only_zero_unloads(keep_alive: str | float | None, unloads: bool) -> None:
    """As a number, and as a duration of Go."""
    assert wire.unloads(keep_alive) is unloads


@pytest.mark.parametrize("keep_alive", ["", "soon", "5 minutes", "m5"])
def test_a_keep_alive_that_is_no_time_is_refused(keep_alive: str) -> None:
    """400, with the field's name."""
    with pytest.raises(ValidationException, match="duration"):
        wire.unloads(keep_alive)


def test_a_format_becomes_a_grammar() -> None:
    """ "json", a schema, and nothing."""
    assert wire.rules_of("json") == grammar.JSON
    assert wire.rules_of({"type": "boolean"}) == grammar.of_schema({"type": "boolean"})
    assert wire.rules_of("") == wire.rules_of(None) == wire.rules_of({}) == ""
    with pytest.raises(ValidationException):
        wire.rules_of("xml")
    with pytest.raises(InvalidInput):
        wire.rules_of({"$ref": "https://example.org/schema"})


def test_logprobs_are_asked_for_by_either_field() -> None:
    """And at most 20 others are told."""
    assert wire.logprobs_of(chat()) is None
    assert wire.logprobs_of(chat(logprobs=True)) == 0
    assert wire.logprobs_of(chat(top_logprobs=3)) == 3
    with pytest.raises(ValidationException):
        wire.logprobs_of(chat(logprobs=True, top_logprobs=21))


def test_tools_are_passed_on_as_templates_know_them() -> None:
    """The type may be missing; a tool without a name is none."""
    function = {"name": "weather", "parameters": {"type": "object"}}
    assert wire.tools_of([{"function": function}]) == [{"type": "function", "function": function}]
    assert wire.tools_of([]) == wire.tools_of(None) == []
    for bad in ({}, {"type": "function"}, {"function": {}}, {"type": "web", "function": function}):
        with pytest.raises(ValidationException):
            wire.tools_of([bad])


@pytest.mark.parametrize(
    ("body", "documents", "word"),
    [
        (chat(think=True), False, "think"),
        (chat(think="high"), False, "think"),
        (generate(images=["aGk="]), False, "images"),
        (generate(suffix="}"), False, "insert"),
        (generate(context=[1]), False, "/api/chat"),
        (generate(raw=True), True, "documents"),
        (generate(template="T"), False, "chat template"),
        (chat(format="json"), True, "documents"),
        (chat(tools=[{}]), True, "documents"),
        (chat(logprobs=True), True, "documents"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(body: wire.ChatBody | wire.GenerateBody, documents: bool, word: str) -> None:
    """Rather than left out in silence."""
    with pytest.raises(ValidationException) as caught:
        wire.check(body, documents=documents)
    assert word in str(caught.value.extra)


def test_what_changes_nothing_is_taken() -> None:
    """Clients send empty lists and the defaults along."""
    wire.check(chat(think=False, tools=[], format="", logprobs=False), documents=True)
    wire.check(generate(think=False, images=[], suffix="", context=[], raw=False, template=""), documents=True)


def test_pictures_are_refused() -> None:
    """In a message, too."""
    with pytest.raises(ValidationException, match="read"):
        wire.turns_of([wire.Message("user", "What is this?", images=["aGk="])])


def lines(*replies: Any) -> list[dict[str, Any]]:
    """As they go out, without the time of their making, of which only the form is known."""
    found = [json.loads(msgspec.json.encode(reply)) for reply in replies]
    for line in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", line.pop("created_at"))
    return found


def test_a_stream_of_chat_is_as_ollama_writes_it() -> None:
    """Pieces with `done` false, then the counts; a call of a tool is nested as its clients expect."""
    calls = Said("", (ToolCall("weather", {"city": "Oslo"}),))
    end = wire.last_reply(wire.ChatReply, "m", End("tool_calls", Usage(7, 2, 3)), wire.Spent(4.0, 0.5, 1.0, 2.0))
    assert lines(wire.reply(wire.ChatReply, "m", Said("Hel")), wire.reply(wire.ChatReply, "m", calls), end) == [
        {"model": "m", "done": False, "message": {"role": "assistant", "content": "Hel"}},
        {"model": "m", "done": False, "message": {
            "role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        }},
        {"model": "m", "done": True, "done_reason": "stop", "message": {"role": "assistant", "content": ""},
         "total_duration": 4_000_000_000, "load_duration": 500_000_000, "prompt_eval_count": 7, "prompt_eval_duration": 1_000_000_000,
         "eval_count": 2, "eval_duration": 2_000_000_000},
    ]  # fmt: skip


def test_a_whole_answer_from_the_documents_brings_its_sources() -> None:
    """In one object, `readingroom`, in the shapes of /rag/ask."""
    done = Done("A.", False, (CITATION,), Usage(7, 2, 0), Timings(10.0, 0.0, 30.0, 90.0), "m")
    end = End("length", done.usage, done, (PASSAGE,))
    spent = wire.spent_of(end, None, 1.0, 0.25, 2.0)
    [line] = lines(wire.last_reply(wire.GenerateReply, "readingroom", end, spent, [Said(), Said("A"), Said(".")]))
    assert line == {
        "model": "readingroom", "done": True, "done_reason": "length", "response": "A.", "total_duration": 1_000_000_000,
        "load_duration": 250_000_000, "prompt_eval_count": 7, "prompt_eval_duration": 20_000_000, "eval_count": 2,
        "eval_duration": 60_000_000, "readingroom": {
            "refused": False, "citations": [msgspec.to_builtins(CITATION)],
            "passages": [json.loads(msgspec.json.encode(PASSAGE))],
        },
    }  # fmt: skip


def test_a_model_that_was_only_loaded_has_no_counts() -> None:
    """And says so."""
    [line] = lines(wire.last_reply(wire.ChatReply, "m", "load", wire.Spent(1.0, 1.0)))
    assert line == {
        "model": "m", "done": True, "done_reason": "load", "message": {"role": "assistant", "content": ""},
        "total_duration": 1_000_000_000, "load_duration": 1_000_000_000,
    }  # fmt: skip


def test_chances_go_along_with_their_piece() -> None:
    """Half a character is shown as such, and its bytes are told; JSON has no infinity."""
    said = Said("é", (), (TokenChances(b"\xc3", -0.5, ((b"\xc3", -0.5), (b"e", float("-inf")))),))
    [line] = lines(wire.reply(wire.GenerateReply, "m", said))
    assert line["logprobs"] == [
        {"token": "\ufffd", "logprob": -0.5, "bytes": [195], "top_logprobs": [
            {"token": "\ufffd", "logprob": -0.5, "bytes": [195]}, {"token": "e", "logprob": -9999.0, "bytes": [101]},
        ]},
    ]  # fmt: skip


def test_an_assistant_opens_a_conversation() -> None:
    """With its SYSTEM, which gives way to one of the call, and its MESSAGEs; its parameters give way one by one."""
    file = Modelfile("m", system="Own.", parameters={"temperature": 0.5, "seed": 1}, messages=(Turn("user", "a"), Turn("assistant", "b")))
    target = Target(Documents(None), file)
    asked = (Turn("user", "c"),)
    assert target.opened(asked) == (Turn("system", "Own."), *file.messages, *asked)
    assert target.opened(asked, "Given.") == (Turn("system", "Given."), *file.messages, *asked)
    assert target.opened((Turn("system", "Sent."), *asked)) == (Turn("system", "Sent."), *file.messages, *asked)
    assert target.parameters({"seed": 2, "num_ctx": 4096}) == {"temperature": 0.5, "seed": 2}
    assert Target(Documents(None)).opened(asked) == asked


def test_a_question_to_the_documents_takes_what_they_can_have() -> None:
    """The history and an assistant's beginning; of the sampling, temperature, seed and length; its adapter."""
    file = Modelfile("readingroom/guide", system="Be kind.", adapter="legal@0.5", messages=(Turn("user", "a"), Turn("assistant", "b")))
    turns = (Turn("user", "c"), Turn("assistant", "d"), Turn("user", "e"))
    target = Target(Documents("guide"), file)
    question = target.question(turns, wire.sampling_of({"temperature": 0.5, "seed": 3, "num_predict": 9, "top_k": 2}))
    assert (question.text, question.domain, question.adapter) == ("e", "guide", "legal@0.5")
    assert (question.temperature, question.seed, question.max_tokens) == (0.5, 3, 9)
    assert question.history == (*file.messages, *turns[:2])
    assert question.rules == "Be kind."
    assert target.question(turns, Sampling(), "brief").adapter == "brief"


def test_create_takes_fields_or_a_modelfile() -> None:
    """They say the same; `:latest` is no part of a name."""
    fields = {
        "from": "readingroom/guide:latest", "system": "S", "parameters": {"temperature": 0.5, "stop": ["x"], "seed": None},
        "adapters": {"legal": ""}, "messages": [{"role": "user", "content": "a"}], "license": "MIT",
    }  # fmt: skip
    text = (
        "FROM readingroom/guide:latest\nSYSTEM S\nPARAMETER temperature 0.5\nPARAMETER stop x\nADAPTER legal\nMESSAGE user a\nLICENSE MIT"
    )
    assert file_of(create(**fields)) == file_of(create(modelfile=text))
    assert file_of(create(**fields)).base == "readingroom/guide"
    assert file_of(create(**{"from": "m"}, adapters=["legal@0.5", "brief"])).adapter == "legal@0.5+brief"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"modelfile": "SYSTEM nothing"},
        {"from": "m", "files": {"a.gguf": "sha256:00"}},
        {"from": "m", "adapters": {"a.gguf": "sha256:00"}},
        {"from": "m", "quantize": "q4_0"},
        {"from": "m", "parameters": {"colour": 1}},
        {"from": "m", "messages": [{"role": "user", "content": "a", "images": ["aGk="]}]},
    ],
)
def test_create_refuses_what_it_cannot_do(fields: dict[str, Any]) -> None:
    """Uploads, requantizing, unknown parameters, pictures."""
    with pytest.raises((ValidationException, InvalidInput)):
        file_of(create(**fields))


def test_the_guides_modelfile_is_one() -> None:
    """Whoever copies it from there gets what it says."""
    [block] = re.findall(r"(?:^    .+\n)*^    FROM .+\n(?:^    .+\n)+", (ROOT / "corpora/guide/clients.md").read_text(), re.MULTILINE)
    file = file_of(create(modelfile=textwrap.dedent(block)))
    assert file.base == "readingroom/handbook"
    assert file.parameters == {"temperature": 0.2}
    assert [turn.role for turn in file.messages] == ["user", "assistant"]


def test_what_breaks_in_a_stream_of_lines_is_its_last_line() -> None:
    """As {"error": ...}, and for what is not ours one that says nothing of its inside; a ping is a line as well."""

    async def script(*items: Any) -> AsyncGenerator[Any, None]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item

    async def collect(source: AsyncGenerator[bytes, None]) -> list[Any]:
        return [json.loads(line) for line in b"".join([item async for item in source]).splitlines()]

    ours = asyncio.run(collect(ndjson(script({"a": 1}, ModelUnusable("It broke.", "Mend it.")))))
    assert ours == [{"a": 1}, {"error": "It broke. Mend it."}]
    other = asyncio.run(collect(ndjson(script({"a": 1}, RuntimeError("secret path")))))
    assert other[0] == {"a": 1}
    assert set(other[1]) == {"error"}
    assert "secret" not in other[1]["error"]

    async def silent_for_a_while() -> list[Any]:
        go = asyncio.Event()

        async def slow() -> AsyncGenerator[Any, None]:
            await go.wait()
            yield {"b": 2}

        found = []
        async for item in with_pings(ndjson(slow()), every=0.01, ping=b'{"ping":1}\n'):
            found.append(json.loads(item))
            go.set()
        return found

    assert asyncio.run(silent_for_a_while()) == [{"ping": 1}, {"b": 2}]


# The real client.


@pytest.fixture
def client(served: Served) -> ollama.Client:
    """Ollama's own client."""
    return ollama.Client(served.url, trust_env=False)


def patient(served: Served) -> httpx.Client:
    """For calls that write: on a busy machine they take their time."""
    return httpx.Client(base_url=served.url, timeout=None, trust_env=False)


@contextmanager
def refused(status: int, *words: str) -> Iterator[None]:
    """The client's error has that status and these words."""
    with pytest.raises(ollama.ResponseError) as caught:
        yield
    assert caught.value.status_code == status
    for word in words:
        assert word in caught.value.error


def names(client: ollama.Client) -> list[str]:
    """The names that the server lists."""
    return [str(model.model) for model in client.list().models]


def test_the_list_has_the_documents_the_models_and_what_they_are(client: ollama.Client) -> None:
    """The documents first; each with its size, digest and details."""
    listed = {str(model.model): model for model in client.list().models}
    assert next(iter(listed)) == "readingroom"
    assert {"readingroom", "readingroom/guide", BARE, EMBEDDER} <= set(listed)
    bare = listed[BARE]
    assert bare.size == 98_362_432
    assert re.fullmatch("[0-9a-f]{64}", bare.digest or "")
    assert bare.details is not None
    assert (bare.details.format, bare.details.family, bare.details.parameter_size) == ("gguf", "llama", "135M")
    assert bare.details.quantization_level == "Q4_1"
    assert listed["readingroom/guide"].details is not None
    assert listed["readingroom/guide"].details.parent_model == BARE
    assert len({model.digest for model in listed.values()}) == len(listed)


def test_the_default_model_is_in_memory(client: ollama.Client) -> None:
    """And does not expire."""
    assert BARE in [model.model for model in client.ps().models]
    assert all(model.expires_at and model.expires_at.year > 9000 for model in client.ps().models)


def test_the_server_answers_who_knocks(served: Served) -> None:
    """Ollama's command asks for these before anything else."""
    with served.client() as client:
        assert client.head("/").status_code == 200
        assert client.head("/api/tags").status_code == 200
        assert re.fullmatch(r"\d+\.\d+\.\d+", client.get("/api/version").json()["version"])


def test_show_says_what_a_model_is(served: Served, client: ollama.Client) -> None:
    """Template, licence, the header's keys without the vocabulary, and what it can do."""
    shown = client.show(f"{BARE}:latest")
    assert shown.template is not None
    assert "<|im_start|>" in shown.template
    assert shown.license == "Apache-2.0"
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert "tokenizer.ggml.tokens" not in shown.modelinfo
    assert shown.capabilities == ["completion"]
    assert client.show(EMBEDDER).capabilities == ["embedding"]
    with served.client() as plain:
        documents = plain.post("/api/show", json={"model": "readingroom/guide"}).json()
    assert "passages" in documents["system"]
    assert documents["modelfile"].splitlines()[-1] == "FROM readingroom/guide"


def test_a_chat_with_the_documents_is_the_answer_of_the_room(served: Served, client: ollama.Client) -> None:
    """Streamed by the client and whole the same as /rag/ask, with its sources on the last object."""
    asked = [{"role": "user", "content": QUESTION}]
    streamed = list(client.chat("readingroom/guide:latest", asked, options={"num_predict": 12}, stream=True))
    with patient(served) as plain:
        done = plain.post("/rag/ask", json={"question": QUESTION, "domain": "guide", "stream": False, "max_tokens": 12}).json()
        body = {"model": "readingroom/guide", "messages": asked, "options": {"num_predict": 12}, "stream": False}
        whole = plain.post("/api/chat", json=body).json()
    last = streamed[-1]
    assert "".join(part.message.content or "" for part in streamed) == done["answer"] == whole["message"]["content"]
    assert [part.done for part in streamed] == [False] * (len(streamed) - 1) + [True]
    assert last.done_reason == whole["done_reason"] == done["finish_reason"]
    assert last.prompt_eval_count == whole["prompt_eval_count"] == done["usage"]["prompt_tokens"]
    assert last.eval_count == whole["eval_count"] == done["usage"]["completion_tokens"]
    assert 0 < (last.prompt_eval_duration or 0) < (last.total_duration or 0)
    assert whole["readingroom"]["refused"] is False
    assert whole["readingroom"]["citations"] == done["citations"]
    assert whole["readingroom"]["passages"][0]["path"] == "guide/domains.md"


def test_what_the_documents_do_not_hold_is_refused_here_too(served: Served) -> None:
    """By the evidence, with no token written."""
    with patient(served) as client:
        body = {"model": "readingroom", "prompt": "Who won the football world cup in 2018?", "stream": False}
        answered = client.post("/api/generate", json=body).json()
    assert answered["readingroom"]["refused"] is True
    assert answered["eval_count"] == 0
    assert answered["response"]


def test_a_bare_model_is_spoken_to_by_its_name(client: ollama.Client) -> None:
    """Whole and streamed the same, in its own template; no more tokens than asked for."""
    whole = client.chat(BARE, HELLO, options=FEW)
    streamed = list(client.chat(BARE, HELLO, options=FEW, stream=True))
    assert whole.message.content
    assert whole.message.content == "".join(part.message.content or "" for part in streamed)
    assert (whole.done_reason, whole.eval_count) == ("length", 6)
    assert client.generate(BARE, "Say hello.", options=FEW).response == whole.message.content
    system = client.generate(BARE, "Say hello.", system="Answer in French.", options=FEW)
    messages = [{"role": "system", "content": "Answer in French."}, *HELLO]
    assert system.prompt_eval_count == client.chat(BARE, messages, options=FEW).prompt_eval_count
    assert system.prompt_eval_count != whole.prompt_eval_count


def test_a_raw_prompt_is_read_as_it_is(client: ollama.Client) -> None:
    """What the template would make of a prompt, written out, is the same prompt."""
    templated = client.generate(BARE, "Say hello.", system="Be kind.", options=FEW)
    written = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    raw = client.generate(BARE, written, raw=True, options=FEW)
    assert (raw.prompt_eval_count, raw.response) == (templated.prompt_eval_count, templated.response)


def test_options_reach_the_engine(client: ollama.Client) -> None:
    """A stop string ends the text before it; a seed makes chance repeat itself."""
    plain = client.generate(BARE, "Say hello.", options=FEW).response or ""
    word = plain.split()[2]
    stopped = client.generate(BARE, "Say hello.", options={**FEW, "stop": [word]})
    assert stopped.response == plain[: plain.index(word)]
    assert stopped.done_reason == "stop"
    warm = {"num_predict": 4, "temperature": 1.5, "top_k": 100, "top_p": 1.0}
    by_seed = [client.generate(BARE, "Say hello.", options={**warm, "seed": seed}).response for seed in (5, 5, 6, 7)]
    assert by_seed[0] == by_seed[1]
    assert len(set(by_seed)) > 1


def test_a_format_is_kept_to(client: ollama.Client) -> None:
    """A schema by `generate`, any object by `chat`."""
    schema = {"type": "object", "properties": {"colour": {"enum": ["teal", "plum"]}}, "required": ["colour"]}
    parsed = json.loads(client.generate(BARE, "A colour.", format=schema, options={"num_predict": 24}).response or "")
    assert parsed["colour"] in {"teal", "plum"}
    begun = client.chat(BARE, [{"role": "user", "content": "A colour, as JSON."}], format="json", options={"num_predict": 4})
    assert (begun.message.content or "").lstrip().startswith("{")


def test_chances_are_told_where_asked_for(client: ollama.Client) -> None:
    """One for each token, best first."""
    answered = client.generate(BARE, "Say hello.", options={**FEW, "num_predict": 3, "repeat_penalty": 1.0}, logprobs=True, top_logprobs=2)
    assert answered.logprobs is not None
    assert len(answered.logprobs) == 3
    assert "".join(each.token for each in answered.logprobs) == answered.response
    for each in answered.logprobs:
        assert each.top_logprobs is not None
        assert each.top_logprobs[0].logprob >= each.top_logprobs[1].logprob


def test_without_a_prompt_a_model_is_loaded(client: ollama.Client) -> None:
    """The default one stays when it is to be unloaded: the documents are answered with it."""
    assert client.generate(BARE).done_reason == "load"
    assert client.chat("readingroom", []).done_reason == "load"
    assert client.chat(BARE, [], keep_alive=0).done_reason == "load"
    assert BARE in [model.model for model in client.ps().models]


def test_texts_become_vectors(client: ollama.Client, embedder: Any) -> None:
    """As passages are indexed, of unit length, by any of the names; cut to fewer dimensions they are made unit length again."""
    rows = np.array(client.embed(EMBEDDER, ["A heron.", "A boat."]).embeddings)
    assert rows.shape == (2, 384)
    assert np.allclose(rows, embedder.embed_passages(["A heron.", "A boat."]), atol=1e-5)
    assert np.allclose(client.embed("readingroom:latest", "A heron.").embeddings, rows[:1], atol=1e-5)
    assert np.allclose(client.embeddings(EMBEDDER.lower(), "A boat.").embedding, rows[1], atol=1e-5)
    short = np.array(client.embed(EMBEDDER, "A heron.", dimensions=8).embeddings)
    assert short.shape == (1, 8)
    assert np.linalg.norm(short) == pytest.approx(1.0, abs=1e-5)
    assert client.embed(EMBEDDER, []).embeddings == []
    with refused(404, f"model '{BARE}' not found", EMBEDDER):
        client.embed(BARE, "A heron.")
    with refused(400, "dimensions"):
        client.embed(EMBEDDER, "A heron.", dimensions=385)


def test_a_text_that_is_too_long_is_cut_or_refused(client: ollama.Client) -> None:
    """As `truncate` says; it is true if left out."""
    long = "heron " * 400
    assert client.embed(EMBEDDER, long).prompt_eval_count == 254
    with refused(400, "context length", "254"):
        client.embed(EMBEDDER, long, truncate=False)


def test_an_assistant_is_made_of_fields_and_answers(served: Served, client: ollama.Client) -> None:
    """It is listed, shown and asked by its name; it reads what the same messages would make a bare model read."""
    opening = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Mario!"}]
    try:
        made = client.create("mario", from_=BARE, system="You are Mario.", parameters=FEW, messages=opening, license="MIT")
        assert made.status == "success"
        assert "mario" in names(client)
        shown = client.show("mario")
        assert shown.license == "MIT"
        assert shown.details is not None
        assert shown.details.parent_model == BARE
        assert re.search(r"^num_predict +6$", shown.parameters or "", re.MULTILINE)
        answered = client.chat("mario:latest", HELLO)
        spelt = client.chat(BARE, [{"role": "system", "content": "You are Mario."}, *opening, *HELLO], options=FEW)
        assert answered.message.content == spelt.message.content
        assert answered.prompt_eval_count == spelt.prompt_eval_count
        assert answered.eval_count == 6
        with patient(served) as plain:  # under OpenAI's address it is the same one, and what the call says goes first
            assert "mario" in [model["id"] for model in plain.get("/v1/models").json()["data"]]
            said = plain.post("/v1/chat/completions", json={"model": "mario", "messages": HELLO}).json()
            assert said["model"] == "mario"
            assert said["choices"][0]["message"]["content"] == answered.message.content
            assert said["usage"]["completion_tokens"] == 6
            short = plain.post("/v1/chat/completions", json={"model": "mario", "messages": HELLO, "max_tokens": 2}).json()
            assert short["usage"]["completion_tokens"] == 2
    finally:
        client.delete("mario")
    assert "mario" not in names(client)
    with refused(404, "model 'mario' not found"):
        client.chat("mario", HELLO)


def test_an_assistant_is_made_of_a_modelfile_on_top_of_the_documents(served: Served, client: ollama.Client) -> None:
    """It answers from them, with sources; one made from it keeps what it does not say itself, and outlives it."""
    text = '# Ours.\nfrom readingroom/guide\nSYSTEM """You are a librarian."""\nPARAMETER num_predict 8\nPARAMETER temperature 0\n'
    with patient(served) as plain:
        try:
            response = plain.post("/api/create", json={"model": "team/librarian:v1", "modelfile": text})
            assert [json.loads(line)["status"] for line in response.text.splitlines()][-1] == "success"
            body = {"model": "team/librarian:v1", "messages": [{"role": "user", "content": QUESTION}], "stream": False}
            answered = plain.post("/api/chat", json=body).json()
            assert answered["readingroom"]["passages"][0]["path"] == "guide/domains.md"
            assert answered["eval_count"] <= 8
            spelt = plain.post("/v1/chat/completions", json={**body, "model": "team/librarian:v1"}).json()
            assert spelt["choices"][0]["message"]["content"] == answered["message"]["content"]
            assert spelt["readingroom"]["passages"][0]["path"] == "guide/domains.md"
            assert client.create("colleague", from_="team/librarian:v1", parameters={"seed": 4}).status == "success"
            client.delete("team/librarian:v1")
            shown = plain.post("/api/show", json={"name": "colleague"}).json()
            assert shown["system"] == "You are a librarian."
            assert shown["details"]["parent_model"] == "readingroom/guide"
            assert shown["parameters"].split() == ["num_predict", "8", "temperature", "0.0", "seed", "4"]
            again = plain.post("/api/create", json={"model": "third", "modelfile": shown["modelfile"], "stream": False})
            assert again.json() == {"status": "success"}
            third = plain.post("/api/show", json={"model": "third"}).json()
            assert third["parameters"] == shown["parameters"]
            assert third["system"] == shown["system"]
        finally:
            for name in set(names(client)) & {"team/librarian:v1", "colleague", "third"}:
                client.delete(name)


def test_an_assistants_adapter_is_applied_and_leaves_no_trace(served: Served, client: ollama.Client) -> None:
    """One that was installed while the server runs; the bare model answers the same before and after."""
    folder = install(served.data_dir, "odd", 7)
    try:
        with patient(served) as plain:
            body = {"model": "odd-one", "modelfile": f"FROM {BARE}\nADAPTER odd@1.5", "stream": False}
            assert plain.post("/api/create", json=body).json() == {"status": "success"}
        before = client.chat(BARE, HELLO, options=FEW).message.content
        assert client.chat("odd-one", HELLO, options=FEW).message.content != before
        assert client.chat(BARE, HELLO, options=FEW).message.content == before
    finally:
        client.delete("odd-one")
        shutil.rmtree(folder)


def test_another_model_is_loaded_by_its_name_unloaded_and_deleted(served: Served, client: ollama.Client) -> None:
    """`keep_alive` 0 frees its memory, at once or after the answer; a file that is used in place stays."""
    weights = models.locate(BARE, "generator").path
    shelf.add(weights, served.data_dir, name="second")

    def in_memory() -> bool:
        return "second" in [model.model for model in client.ps().models]

    try:
        assert client.generate("second:latest").done_reason == "load"
        assert in_memory()
        assert client.generate("second", "Say hello.", options=FEW).response
        assert client.chat("second", [], keep_alive=0).done_reason == "unload"
        assert not in_memory()
        assert client.chat("second", HELLO, options=FEW, keep_alive="0s").message.content
        wait_until(lambda: not in_memory(), what="the model's leaving")
    finally:
        client.delete("second")
    assert "second" not in names(client)
    assert weights.is_file()


def test_copies_are_names(client: ollama.Client) -> None:
    """Of a model, of the documents, of an assistant; equal digests for equal contents."""
    try:
        assert client.copy(BARE, "small").status == "success"
        assert client.copy("small", "tiny:v2").status == "success"
        digests = {str(model.model): model.digest for model in client.list().models}
        assert digests["small"] == digests["tiny:v2"]
        assert client.generate("tiny:v2", "Say hello.", options=FEW).response == client.generate(BARE, "Say hello.", options=FEW).response
    finally:
        for name in set(names(client)) & {"small", "tiny:v2"}:
            client.delete(name)
    with refused(404, "model 'nothing' not found"):
        client.copy("nothing", "something")
    with refused(400, "readingroom/mine"):
        client.copy(BARE, "readingroom/mine")


@pytest.mark.parametrize(
    ("name", "fields", "status", "word"),
    [
        ("../mario", {"from": BARE}, 400, "../mario"),
        ("/etc/mario", {"from": BARE}, 400, "invalid"),
        ("readingroom", {"from": BARE}, 400, "readingroom"),
        ("readingroom/mine", {"from": BARE}, 400, "readingroom/mine"),
        (BARE.upper(), {"from": BARE}, 400, BARE.upper()),
        ("mario", {"from": "nothing"}, 404, "model 'nothing' not found"),
        ("mario", {"from": "readingroom/nowhere"}, 404, "model 'readingroom/nowhere' not found"),
        ("mario", {"from": "/etc/passwd"}, 404, "/etc/passwd"),
        ("mario", {"from": EMBEDDER}, 400, "vectors"),
        ("mario", {"from": BARE, "template": "{{ .Prompt }}"}, 400, "template"),
        ("mario", {"from": BARE, "adapters": ["nothing"]}, 404, "nothing"),
        ("mario", {"from": BARE, "parameters": {"temperature": "hot"}}, 400, "hot"),
        ("mario", {"modelfile": "FROM x\nSYSTEM"}, 400, "Line 2"),
        ("", {"from": BARE}, 400, "model"),
    ],
)
def test_a_mistake_in_create_is_named(
    served: Served, client: ollama.Client, name: str, fields: dict[str, Any], status: int, word: str
) -> None:
    """In Ollama's shape, and nothing is kept."""
    before = names(client)
    with served.client() as plain:
        response = plain.post("/api/create", json={"model": name, **fields})
    assert (response.status_code, word in response.json()["error"]) == (status, True), response.text
    assert names(client) == before


def test_a_template_that_is_the_models_own_is_taken(client: ollama.Client) -> None:
    """What `show` gives can be sent back."""
    try:
        assert client.create("own", from_=BARE, template=client.show(BARE).template).status == "success"
    finally:
        client.delete("own")


def test_errors_are_as_the_client_knows_them(client: ollama.Client) -> None:
    """Its own exception, with the status and a sentence."""
    with refused(404, "model 'nothing' not found"):
        client.chat("nothing", HELLO)
    with refused(404, "model 'nothing' not found"):
        list(client.generate("nothing", "Hello", stream=True))
    with refused(404, "model 'readingroom/nowhere' not found"):
        client.chat("readingroom/nowhere", HELLO)
    with refused(404, "model 'nothing' not found"):
        client.show("nothing")
    with refused(404, "model 'nothing' not found"):
        client.delete("nothing")
    with refused(400, "readingroom"):
        client.delete("readingroom/guide")
    with refused(400, BARE):
        client.delete(BARE)
    with refused(400, "temperature", "hot"):
        client.chat(BARE, HELLO, options={"temperature": "hot"})
    with refused(400, "tools"):
        client.chat(BARE, HELLO, tools=[{"type": "function", "function": {"name": "weather"}}])
    with refused(400, "tokens"):
        client.chat(BARE, [{"role": "user", "content": "word " * 5000}])
    with refused(400, "images"):
        client.chat(BARE, [{"role": "user", "content": "What is this?", "images": [b"\x89PNG"]}])
    with refused(400, "models add"):
        client.create_blob(__file__)
    with refused(400, "leaves this machine"):
        client.push("mario")


def test_broken_requests_are_errors_in_ollamas_shape(served: Served) -> None:
    """Broken JSON, a wrong field, no model, no such call; JSON is taken under any content type, as curl sends it."""
    with patient(served) as client:
        for body in (b"{", b"[]", b'{"model": 5}', b'{"messages": []}', b'{"model": "", "messages": []}', b"\xff"):
            response = client.post("/api/chat", content=body)
            assert (response.status_code, set(response.json())) == (400, {"error"}), response.text
        assert set(client.get("/api/nothing").json()) == {"error"}
        assert client.get("/api/nothing").status_code == 404
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        response = client.post("/api/generate", content=json.dumps({"model": BARE, "prompt": "Hi", "options": FEW}), headers=form)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        assert [json.loads(line)["done"] for line in response.text.splitlines()][-2:] == [False, True]


def test_full_is_said_in_ollamas_shape(served: Served) -> None:
    """Invariant 8: 503 with Retry-After for those who find no place, an answer for the others."""

    def ask(n: int) -> httpx.Response:
        body = {"model": BARE, "prompt": f"Say hello. ({n})", "options": {"num_predict": 4}, "stream": False}
        with patient(served) as client:
            return client.post("/api/generate", json=body)

    with ThreadPoolExecutor(10) as pool:
        responses = list(pool.map(ask, range(10)))
    assert {response.status_code for response in responses} == {200, 503}
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) > 0
            assert response.json()["error"]
        else:
            assert response.json()["response"]


def test_the_async_client_streams_and_leaves_early(served: Served) -> None:
    """Invariant 7 by a real client: closing the stream stops the engine."""
    running = "readingroom_generations_running"
    wait_until(lambda: metric(served, running) == 0)

    async def leave() -> list[str]:
        client = ollama.AsyncClient(served.url, trust_env=False)
        stream = await client.chat(BARE, HELLO, stream=True, format=ENDLESS, options={"num_predict": -1})
        found: list[str] = []
        async for part in stream:
            found.append(part.message.content or "")
            if len(found) == 3:
                break
        assert metric(served, running) == 1
        await stream.aclose()
        return found

    assert any(asyncio.run(leave()))
    wait_until(lambda: metric(served, running) == 0, 10, "the engine's rest")
    assert metric(served, "readingroom_generations_waiting") == 0


def test_leaving_before_a_whole_answer_stops_the_work(served: Served) -> None:
    """With `stream` false as well."""
    running = "readingroom_generations_running"
    wait_until(lambda: metric(served, running) == 0)
    impatient = ollama.Client(served.url, trust_env=False, timeout=3)
    with pytest.raises(httpx.ReadTimeout):
        impatient.generate(BARE, "Say hello.", format=ENDLESS, options={"num_predict": -1})
    wait_until(lambda: metric(served, running) == 0, 10, "the engine's rest")


# Pulling, from a registry on this machine.


def gguf() -> bytes:
    """The smallest file that says it is a language model: a header with two keys and no tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = {"general.architecture": "llama", "general.type": "model"}
    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in keys.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + body


@contextmanager
def registry() -> Iterator[str]:
    """A registry of one model, `library/small`; yields its host and port."""
    weights = gguf()
    digest = hashlib.sha256(weights).hexdigest()
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(weights)}
    files = {
        "/v2/library/small/manifests/latest": json.dumps({"schemaVersion": 2, "layers": [layer]}).encode(),
        f"/v2/library/small/blobs/sha256:{digest}": weights,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path)
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: Any) -> None:
            """Not into the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_model_is_pulled_with_progress_listed_and_deleted(served: Served, client: ollama.Client) -> None:
    """Its steps end in success, once and again; deleting takes its file away."""
    with registry() as host:
        name = f"{host}/library/small"
        steps = [step.status for step in client.pull(name, insecure=True, stream=True)]
        assert steps[0] == "pulling manifest"
        assert steps[-1] == "success"
        assert client.pull(name, insecure=True).status == "success"
        [listed] = [model for model in names(client) if "small" in model]
        assert client.show(listed).details is not None
        weights = gguf()
        assert any(path.read_bytes() == weights for path in Path(served.data_dir / "models").rglob("*") if path.is_file())
        client.delete(listed)
        assert listed not in names(client)
        assert not any(path.read_bytes() == weights for path in Path(served.data_dir / "models").rglob("*") if path.is_file())
        with refused(404, "nothing"):
            client.pull(f"{host}/library/nothing", insecure=True)
    with refused(400, "address"):
        client.pull("https://example.org/model.gguf")
