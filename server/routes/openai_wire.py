"""OpenAI's dialect on the wire: what its clients send and read, as structs. What is made of them is in `openai.py`.

https://platform.openai.com/docs/api-reference, as far as a local service has it. Fields that are not named here are ignored, as
llama.cpp's server does. What may be left out may be null as well, since clients send that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rag.records import Citation, Passage

# What comes in.


class Part(msgspec.Struct):
    """A part of a message. Only text can be read here."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct):
    """`arguments` is JSON in a text."""

    name: str
    arguments: str = "{}"


class Call(msgspec.Struct):
    """A call that the model made; `index` is told in streams only."""

    id: str
    function: FunctionCall
    type: str = "function"
    index: int | UnsetType = UNSET


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None


class StreamOptions(msgspec.Struct):
    """`include_usage`: one more chunk at the end, with the tokens used."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct):
    """A schema that the answer must follow."""

    schema: dict[str, Any]
    name: str | None = None


class ResponseFormat(msgspec.Struct):
    """`schema` is llama.cpp's way to give one with `json_object`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class Sampled(msgspec.Struct, kw_only=True):
    """What chat completions and completions have in common; `adapter`, `top_k`, `min_p` and `repeat_penalty` are not OpenAI's."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=5)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0)] | None = None
    adapter: str | None = None


class ChatBody(Sampled, kw_only=True):
    """`max_completion_tokens` is the newer name of `max_tokens`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None


class CompletionBody(Sampled, kw_only=True):
    """`prompt` is one text; the model reads it as a message of the user, in its own template."""

    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingBody(msgspec.Struct):
    """`input`: one text or up to 2048."""

    input: str | list[Any]
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


# What goes out.


class Model(msgspec.Struct):
    """`created` is not known."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "readingroom"


class ModelList(msgspec.Struct):
    """The documents first, then the domains, then the language models."""

    data: list[Model]
    object: str = "list"


class PromptDetails(msgspec.Struct):
    """`cached_tokens` were not read again."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """In the tokens of the model that answered."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Likely(msgspec.Struct):
    """A token that could have been: `bytes` are its own where `token` is not whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class Chosen(msgspec.Struct):
    """A token of the answer, and the likeliest at its place, best first."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Likely]


class Logprobs(msgspec.Struct):
    """One for each token."""

    content: list[Chosen]


class Annotation(msgspec.Struct):
    """A sentence of the answer and the quote that supports it, as `/rag/ask` cites."""

    document_citation: Citation
    type: str = "document_citation"


class FromDocuments(msgspec.Struct):
    """What OpenAI's shape has no place for: whether it is a refusal, the passages found, and which model wrote it."""

    refused: bool
    passages: tuple[Passage, ...]
    model: str
    adapter: str | None


class Reply(msgspec.Struct):
    """The message that answers; in a stream a part of it. A citation is in `annotations`."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    annotations: list[Annotation] | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class Choice(msgspec.Struct):
    """The only one; `message` in a whole answer, `delta` in a stream."""

    index: int
    message: Reply | UnsetType = UNSET
    delta: Reply | UnsetType = UNSET
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class ChatCompletion(msgspec.Struct):
    """A whole answer, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    readingroom: FromDocuments | UnsetType = UNSET


class TextChoice(msgspec.Struct):
    """The only one."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class Completion(msgspec.Struct):
    """A whole text, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    readingroom: FromDocuments | UnsetType = UNSET


class Embedding(msgspec.Struct):
    """Of unit length: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct):
    """In the embedder's tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    """In the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"
