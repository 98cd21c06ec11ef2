"""The OpenAPI document: what Litestar reads off the handlers, and what it cannot know of them.

That is: errors have the shape of whoever reads them (`server/errors.py`) and not Litestar's; answers come at once or as a stream; files
have the type that they have. `tests/server/test_schema.py` holds the calls to it. Read next: the wire structs beside each handler.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from rag.records import Done
from server.errors import PROBLEM_JSON, OpenAIError, Problem
from server.routes import ollama_models, ollama_wire, openai_wire

Json = dict[str, Any]

_EVENTS, _LINES, _JSON = "text/event-stream", "application/x-ndjson", "application/json"


class OllamaProblem(msgspec.Struct):
    """What went wrong, as Ollama's clients read it."""

    error: str


class OpenAIProblem(msgspec.Struct):
    """What went wrong, as OpenAI's clients read it."""

    error: OpenAIError


# What handlers answer that say no more than `Response`, by the name that it has in the document.
_SAID: Mapping[str, type] = {
    "Problem": Problem,
    "OpenAIProblem": OpenAIProblem,
    "OllamaProblem": OllamaProblem,
    "Answer": Done,
    "ChatCompletion": openai_wire.ChatCompletion,
    "Completion": openai_wire.Completion,
    "ChatReply": ollama_wire.ChatReply,
    "GenerateReply": ollama_wire.GenerateReply,
    "Progress": ollama_models.Progress,
}

_TEXT: Json = {"type": "string"}
_EVENT: Json = {
    "type": "object",
    "description": "One event. `data` is a JSON object; in OpenAI's dialect, whose events have no name, the last one is `[DONE]`.",
    "properties": {"event": _TEXT, "data": _TEXT},
    "required": ["data"],
}
_BYTES: Json = {"type": "string", "format": "binary"}
_ANY: Json = {}


def _said(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


# Of these calls the answer has other types than the one that Litestar supposes; of None it has no body.
_CONTENT: Mapping[str, Mapping[str, Json] | None] = {
    "POST /rag/ask": {_JSON: _said("Answer"), _EVENTS: _EVENT},
    "GET /rag/events": {_EVENTS: _EVENT},
    "GET /rag/documents/{document_id}/file": {"*/*": _BYTES},
    "GET /rag/conversations/export": {_JSON: {"type": "object"}, "application/jsonl": _TEXT},
    "GET /rag/conversations/{conversation_id}/export": {_JSON: {"type": "object"}, "text/markdown": _TEXT},
    "GET /metrics": {"text/plain": _TEXT},
    "POST /v1/chat/completions": {_JSON: _said("ChatCompletion"), _EVENTS: _EVENT},
    "POST /v1/completions": {_JSON: _said("Completion"), _EVENTS: _EVENT},
    "POST /v1/embeddings": {_JSON: _said("EmbeddingList")},
    "POST /api/chat": {_JSON: _said("ChatReply"), _LINES: _TEXT},
    "POST /api/generate": {_JSON: _said("GenerateReply"), _LINES: _TEXT},
    "POST /api/create": {_JSON: _said("Progress"), _LINES: _TEXT},
    "POST /api/pull": {_JSON: _said("Progress"), _LINES: _TEXT},
    "POST /api/copy": None,
    "DELETE /api/delete": None,
}

_METHODS = ("get", "post", "put", "patch", "delete", "head")

_REFUSED = "It cannot be done: what was sent, who sent it, or what there is. The body says why, and what helps."
_BROKEN = "It cannot be done now: still starting, too much to do, or a part that is broken. The body says which; `Retry-After`, when."


class Described(JsonRenderPlugin):
    """Litestar's plugin for the document as JSON, with what it cannot know."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document's bytes."""
        return super().render(request, described(openapi_schema))


def described(document: Json) -> Json:
    """A copy of the document in which each call's answers and errors are as they come."""
    document = copy.deepcopy(document)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(_schemas())
    for path, item in document["paths"].items():
        for method in _METHODS:
            if (call := item.get(method)) is not None:
                _describe(call, f"{method.upper()} {path}", path)
    return document


def _describe(call: Json, name: str, path: str) -> None:
    responses: Json = call["responses"]
    responses.pop("400", None)
    if name in _CONTENT:
        (good,) = responses.values()
        content = _CONTENT[name]
        if content is None:
            good.pop("content", None)
        else:
            good["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    if path == "/ready":
        responses["503"] = {**responses["200"], "description": "A part is still starting, or has failed."}
    wrong = {kind: {"schema": _said(shape)} for kind, shape in (_error_of(path),)}
    responses["4XX"] = {"description": _REFUSED, "content": wrong}
    responses["5XX"] = {"description": _BROKEN, "content": wrong}


def _error_of(path: str) -> tuple[str, str]:
    """Media type and shape of an error of the call of a path: as `server.errors.answered` writes it."""
    if path.startswith("/v1/"):
        return _JSON, "OpenAIProblem"
    if path.startswith("/api/"):
        return _JSON, "OllamaProblem"
    return PROBLEM_JSON, "Problem"


def _schemas() -> Json:
    """Of `_SAID`, by name, and what they refer to under names that Litestar gives to nothing."""
    tops, parts = msgspec.json.schema_components(list(_SAID.values()), ref_template="#/components/schemas/answered_{name}")
    return {**{f"answered_{name}": schema for name, schema in parts.items()}, **dict(zip(_SAID, tops, strict=True))}
