"""The clients that people come with, against a real server: openai, LangChain, LlamaIndex, LiteLLM.

They take seconds to import, so each test imports its own. Wire shapes are looked at in `test_openai.py`, Ollama's client in
`test_ollama.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag.generation import Request
from rag.records import Turn
from rag.settings import Server, Settings
from server.app import ReadingRoom
from server.http import create_app
from tests.conftest import wait_until
from tests.server.conftest import Served
from tests.server.test_http import QUESTION, metric
from tests.server.test_openai import Scripted

BARE = "smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "Say hello."}]
ASKED = [{"role": "user", "content": QUESTION}]
REASON = "not installed: pip install -e '.[test]'"


@pytest.fixture(autouse=True)
def no_calls_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM fetches a list of prices when it is imported, and LangChain sends traces where it is told to."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LITELLM_TELEMETRY", "False")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def where(served: Served) -> dict[str, Any]:
    """The address and a key, which clients want even where none is needed; no second try, so that errors are seen."""
    return {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0}


# openai


def test_openai_lists_the_models(served: Served) -> None:
    """And has one by its name, though there is a slash in it."""
    openai = pytest.importorskip("openai", reason=REASON)
    with openai.OpenAI(**where(served)) as client:
        ids = [model.id for model in client.models.list()]
        assert {"readingroom", "readingroom/guide", BARE} <= set(ids)
        assert client.models.retrieve("readingroom/guide").id == "readingroom/guide"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_openai_asks_the_documents_and_reads_the_sources(served: Served) -> None:
    """Citations and what OpenAI has no field for are kept by the client, whole and in a stream."""
    openai = pytest.importorskip("openai", reason=REASON)
    with openai.OpenAI(**where(served)) as client:
        whole = client.chat.completions.create(model="readingroom/guide", messages=ASKED, max_tokens=12)
        chunks = list(client.chat.completions.create(model="readingroom/guide", messages=ASKED, max_tokens=12, stream=True))
    message = whole.choices[0].message
    assert message.content
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens_details.cached_tokens >= 0
    cited = message.annotations[0].document_citation
    assert cited["sentence"] in message.content
    assert cited["path"].startswith("guide/")
    assert whole.readingroom["refused"] is False
    assert whole.readingroom["passages"][0]["path"] == "guide/domains.md"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert chunks[-2].choices[0].delta.annotations[0]["document_citation"] == cited
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].readingroom == whole.readingroom


def test_openai_speaks_to_a_bare_model(served: Served) -> None:
    """With options, chances, and the tokens used at the end of a stream."""
    openai = pytest.importorskip("openai", reason=REASON)
    options: dict[str, Any] = {"model": BARE, "messages": HELLO, "max_completion_tokens": 8, "temperature": 0, "seed": 1, "top_p": 0.9}
    with openai.OpenAI(**where(served)) as client:
        whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2, extra_body={"top_k": 5, "repeat_penalty": 1.0})
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        text = client.completions.create(model=BARE, prompt="Say hello.", max_tokens=8)
    assert whole.choices[0].finish_reason == "length"
    assert bytes(byte for token in whole.choices[0].logprobs.content for byte in token.bytes).decode() == whole.choices[0].message.content
    assert [len(token.top_logprobs) for token in whole.choices[0].logprobs.content] == [2] * 8
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-2].choices[0].finish_reason == "length"
    assert text.choices[0].text


def test_openai_parses_a_typed_answer(served: Served) -> None:
    """`parse` sends a pydantic model's schema, strict, and reads the answer into it."""
    openai = pytest.importorskip("openai", reason=REASON)
    from typing import Literal

    class Colour(openai.BaseModel):
        colour: Literal["teal", "plum"]

    with openai.OpenAI(**where(served)) as client:
        parsed = client.chat.completions.parse(model=BARE, messages=HELLO, max_tokens=40, response_format=Colour).choices[0].message.parsed
    assert parsed.colour in {"teal", "plum"}


def test_openai_leaves_a_stream_early(served: Served) -> None:
    """Invariant 7 by a real client: closing the stream of the async client stops the engine."""
    openai = pytest.importorskip("openai", reason=REASON)
    running = "readingroom_generations_running"
    wait_until(lambda: metric(served, running) == 0, 120)
    before = metric(served, "readingroom_decode_tokens_total")

    async def leave() -> None:
        async with openai.AsyncOpenAI(**where(served)) as client:
            stream = await client.chat.completions.create(model=BARE, messages=HELLO, max_tokens=900, stream=True, extra_body=ENDLESS)
            texts = 0
            async for chunk in stream:
                texts += bool(chunk.choices[0].delta.content)
                if texts == 2:
                    break
            assert metric(served, running) == 1
            await stream.close()
            wait_until(lambda: metric(served, running) == 0, 120, "the engine's rest")

    asyncio.run(leave())
    assert metric(served, "readingroom_decode_tokens_total") < before + 800, "the model wrote all that it was asked for"


# A text that a grammar keeps from ending, so that there is something to leave.
ENDLESS = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "endless",
            "schema": {"type": "object", "properties": {"text": {"type": "string", "minLength": 900}}, "required": ["text"]},
        },
    }
}


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openai_embeds(served: Served, encoding: str | None) -> None:
    """The client asks for base64 by itself and unpacks it."""
    openai = pytest.importorskip("openai", reason=REASON)
    options = {"encoding_format": encoding} if encoding else {}
    with openai.OpenAI(**where(served)) as client:
        result = client.embeddings.create(model="readingroom", input=["A heron.", "Tax law."], **options)
        native = client.embeddings.create(model="all-MiniLM-L6-v2", input="A heron.", encoding_format="float")
    assert result.usage.prompt_tokens > 0
    first = result.data[0].embedding
    if encoding == "base64":
        import base64

        import numpy as np

        first = np.frombuffer(base64.b64decode(first), "<f4").tolist()
    assert len(first) == 384
    assert first == pytest.approx(native.data[0].embedding, abs=1e-6)


def test_openai_raises_its_own_errors(served: Served) -> None:
    """By status, with our sentence and remedy in them."""
    openai = pytest.importorskip("openai", reason=REASON)
    with openai.OpenAI(**where(served)) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError, match="gpt-9") as missing:
            create(model="gpt-9", messages=HELLO)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match="must be 1") as twice:
            create(model=BARE, messages=HELLO, n=2)
        assert twice.value.param == "n"
        with pytest.raises(openai.BadRequestError, match="image_url"):
            create(model=BARE, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}], stream=True)
        with pytest.raises(openai.BadRequestError, match="text"):
            client.embeddings.create(model="readingroom", input=[[1, 2, 3]])


# Calls of tools. The default model's template has no place for any, so a scripted one stands in for a model that knows them.


class Caller:
    """An engine that answers with a call of `weather`, keeps what it was given, and its own engines."""

    model = "caller"
    context_tokens = 2048
    takes_tools = True

    def __init__(self) -> None:
        self.turns: tuple[Turn, ...] = ()
        self.tools: list[str] = []
        self.request: Request | None = None

    async def find(self, _: str) -> Caller:
        return self

    def render(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None = None) -> tuple[int, ...]:
        self.turns, self.tools = tuple(turns), [tool["function"]["name"] for tool in tools or ()]
        return (1, 2, 3)

    def submit(self, request: Request) -> Scripted:
        self.request = request
        call = '{"name": "weather", "arguments": {"city": "Oslo"}}'
        # What a grammar forces has no tags around it.
        text = call if request.grammar else f"I look.\n<tool_call>\n{call}\n</tool_call>"
        return Scripted([text[n : n + 7] for n in range(0, len(text), 7)])


@pytest.fixture
def caller() -> Caller:
    """That engine."""
    return Caller()


@pytest.fixture
def in_process(caller: Caller, tmp_path: Path) -> dict[str, Any]:
    """A transport to the whole application around that engine, without a socket."""
    room = ReadingRoom(Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora"))
    room.engines = caller  # type: ignore[assignment]
    return {"transport": httpx.ASGITransport(create_app(room))}  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_openai_calls_a_tool(caller: Caller, in_process: dict[str, Any], stream: bool) -> None:
    """The call comes parsed into the tool's own type; its result goes back as a message."""
    openai = pytest.importorskip("openai", reason=REASON)

    class Weather(openai.BaseModel):
        city: str

    messages: list[dict[str, Any]] = [{"role": "user", "content": "Is it warm in Oslo?"}]
    options: dict[str, Any] = {"model": "caller", "tools": [openai.pydantic_function_tool(Weather, name="weather")]}

    async def ask() -> Any:
        async with openai.AsyncOpenAI(
            base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=httpx.AsyncClient(**in_process)
        ) as client:
            if not stream:
                return await client.chat.completions.parse(messages=messages, **options)
            async with client.chat.completions.stream(messages=messages, **options) as events:
                return await events.get_final_completion()

    choice = asyncio.run(ask()).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    (call,) = choice.message.tool_calls
    assert call.function.parsed_arguments == Weather(city="Oslo")
    assert caller.tools == ["weather"]
    messages += [
        choice.message.model_dump(include={"role", "content", "tool_calls"}),
        {"role": "tool", "tool_call_id": call.id, "content": "-4"},
    ]
    asyncio.run(ask())
    assert caller.turns == (
        Turn("user", "Is it warm in Oslo?"),
        Turn("assistant", 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
        Turn("user", "<tool_response>\n-4\n</tool_response>"),
    )


def test_openai_needs_the_key_where_there_is_one(caller: Caller, tmp_path: Path) -> None:
    """The client's `api_key` is the server's `server.key`; a wrong one is its own error."""
    openai = pytest.importorskip("openai", reason=REASON)
    room = ReadingRoom(Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora", server=Server(key="a-long-secret")))
    room.engines = caller  # type: ignore[assignment]
    transport = httpx.ASGITransport(create_app(room))  # type: ignore[arg-type]

    async def ask(key: str) -> Any:
        async with httpx.AsyncClient(transport=transport) as inside:
            client = openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key=key, max_retries=0, http_client=inside)
            return await client.chat.completions.create(model="caller", messages=HELLO)

    with pytest.raises(openai.AuthenticationError, match="wants a key") as caught:
        asyncio.run(ask("wrong"))
    assert caught.value.code == "invalid_api_key"
    assert asyncio.run(ask("a-long-secret")).choices[0].message.content.startswith("I look.")


@pytest.mark.parametrize(("choice", "forced"), [("auto", False), ("any", True), ("weather", True)])
def test_langchain_binds_tools(caller: Caller, in_process: dict[str, Any], choice: str, forced: bool) -> None:
    """`any` and a name force the call by a grammar, which takes the place of the tags."""
    langchain = pytest.importorskip("langchain_openai", reason=REASON)

    def weather(city: str) -> str:
        """How warm it is in a city."""
        raise AssertionError("nobody calls it here")

    async def ask() -> tuple[Any, Any]:
        async with httpx.AsyncClient(**in_process) as client:
            chat = langchain.ChatOpenAI(
                model="caller", base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_async_client=client
            ).bind_tools([weather], tool_choice=choice)
            whole, pieces = await chat.ainvoke("Is it warm in Oslo?"), None
            async for piece in chat.astream("Is it warm in Oslo?"):
                pieces = piece if pieces is None else pieces + piece
            return whole, pieces

    for message in asyncio.run(ask()):
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [("weather", {"city": "Oslo"})]
        assert message.content == ("" if forced else "I look.")
    assert caller.request is not None
    assert bool(caller.request.grammar) is forced


# LangChain


def test_langchain_chats_and_streams(served: Served) -> None:
    """From the documents and with a bare model; the sources are in the message's metadata or not at all, the text is the same."""
    langchain = pytest.importorskip("langchain_openai", reason=REASON)
    chat = langchain.ChatOpenAI(model="readingroom/guide", max_tokens=12, **where(served))
    answer = chat.invoke([("system", "Be brief."), ("human", QUESTION)])
    assert answer.content
    assert answer.usage_metadata["input_tokens"] > 50
    pieces = list(chat.stream(QUESTION))
    assert "".join(piece.text for piece in pieces) == answer.text
    bare = langchain.ChatOpenAI(model=BARE, max_tokens=8, temperature=0, **where(served)).invoke("Say hello.")
    assert bare.content
    assert bare.response_metadata["finish_reason"] == "length"
    assert bare.usage_metadata["output_tokens"] == 8


def test_langchain_embeds(served: Served) -> None:
    """With the check of lengths off, which would send another model's tokens; with it on, the error says so."""
    langchain = pytest.importorskip("langchain_openai", reason=REASON)
    embeddings = langchain.OpenAIEmbeddings(model="readingroom", check_embedding_ctx_length=False, **where(served))
    one, two = embeddings.embed_documents(["A heron.", "Tax law."])
    assert embeddings.embed_query("A heron.") == pytest.approx(one, abs=1e-6)
    assert sum(a * b for a, b in zip(one, two, strict=True)) < 0.9


# LlamaIndex


def test_llama_index_completes_chats_and_streams(served: Served) -> None:
    """Its `complete` uses the old completions, unless it is told that the model chats."""
    library = pytest.importorskip("llama_index.llms.openai_like", reason=REASON)
    from llama_index.core.llms import ChatMessage

    address = {
        "api_base": f"{served.url}/v1",
        "api_key": "none",
        "max_retries": 0,
        "timeout": 600.0,
        "context_window": 2048,
        "temperature": 0,
    }
    old = library.OpenAILike(model=BARE, max_tokens=8, **address)
    text = old.complete("Say hello.").text
    assert text
    assert "".join(piece.delta for piece in old.stream_complete("Say hello.")) == text
    documents = library.OpenAILike(model="readingroom/guide", is_chat_model=True, max_tokens=12, **address)
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=QUESTION)]
    whole = documents.chat(messages).message.content
    assert whole
    assert "".join(piece.delta or "" for piece in documents.stream_chat(messages)) == whole
    assert documents.complete(QUESTION).text == whole


# LiteLLM

# Its types of other services have a mark that pydantic warns of.
QUIETLY = pytest.mark.filterwarnings("ignore:Items? :UserWarning")


@QUIETLY
def test_litellm_completes_streams_and_embeds(served: Served) -> None:
    """As an OpenAI-compatible server: `openai/` before the model's name."""
    litellm = pytest.importorskip("litellm", reason=REASON)
    litellm.telemetry = False
    address = {"api_base": f"{served.url}/v1", "api_key": "none", "num_retries": 0}
    whole = litellm.completion(model="openai/readingroom/guide", messages=ASKED, max_tokens=12, **address)
    assert whole.choices[0].message.content
    assert whole.usage.prompt_tokens > 50
    pieces = litellm.completion(model="openai/readingroom/guide", messages=ASKED, max_tokens=12, stream=True, **address)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    bare = litellm.completion(model=f"openai/{BARE}", messages=HELLO, max_tokens=8, **address)
    assert bare.choices[0].finish_reason == "length"
    rows = litellm.embedding(model="openai/readingroom", input=["A heron.", "Tax law."], **address)
    assert [len(item["embedding"]) for item in rows.data] == [384, 384]


@QUIETLY
def test_litellm_raises_its_own_errors(served: Served) -> None:
    """By status."""
    litellm = pytest.importorskip("litellm", reason=REASON)
    litellm.telemetry = False
    address = {"api_base": f"{served.url}/v1", "api_key": "none", "num_retries": 0, "max_retries": 0}
    with pytest.raises(litellm.NotFoundError, match="gpt-9"):
        litellm.completion(model="openai/gpt-9", messages=HELLO, **address)
    with pytest.raises(litellm.BadRequestError, match="must be 1"):
        litellm.completion(model=f"openai/{BARE}", messages=HELLO, n=2, **address)
