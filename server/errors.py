"""Errors as HTTP problem documents (RFC 9457): every error of `rag/errors.py`, and those that Litestar raises itself.

`type, title, status, detail`, and our own `code` (stable, for programs) and `remedy` (for people). Clients of OpenAI and Ollama
read other shapes: `answered` gives each its own, by the path that was called.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from rag.errors import Busy, OverQuota, ReadingRoomError

log = logging.getLogger(__name__)

noted: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)
"""What went wrong with the call of this context, for its line in the log and the counts: `code`, and `limit` where one was reached."""

PROBLEM_JSON = "application/problem+json"

# What Litestar raises, by status: our code, title and remedy.
_KNOWN = {
    400: ("malformed_request", "Malformed request", "Send valid JSON of the shape that /docs shows."),
    401: ("unauthorized", "A key is needed", "Send the key as `Authorization: Bearer ...`."),
    403: ("forbidden", "Forbidden", "Open the page at the address that the server printed."),
    404: ("not_found", "Not found", "See /docs for the calls there are."),
    405: ("method_not_allowed", "Method not allowed", "See /docs for the methods of this call."),
    413: ("too_large", "Too large", "Send less, or raise server.max_upload_mb."),
    415: ("unsupported_media_type", "Unsupported media type", "Send JSON as application/json; files as multipart/form-data."),
    422: ("invalid_input", "Invalid input", "Correct the field that the detail names."),
}


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457's members and our own: `code`, `remedy`, and `limit` where a limit was passed."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    remedy: str
    limit: int | None = None


def problem_of(error: Exception) -> Problem:
    """The problem document of any exception. What is not ours is a 500 that says nothing of its inside."""
    problem = _problem_of(error)
    _note(problem)
    if isinstance(error, OverQuota) and (notes := noted.get()) is not None:
        notes["limit"] = error.policy
    return problem


def _note(problem: Problem) -> None:
    if (notes := noted.get()) is not None:
        notes["code"] = problem.code


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, ReadingRoomError):
        return Problem(f"urn:readingroom:{error.code}", error.title, error.status, error.message, error.code, error.remedy, error.limit)
    if isinstance(error, HTTPException):
        status = error.status_code
        detail = error.detail
        if isinstance(error, ValidationException):
            # Litestar calls both broken JSON and a wrong field 400; only the latter names the field.
            extra = error.extra if isinstance(error.extra, list) else []
            status = 422
            detail = "; ".join(f"{item.get('key', 'body')}: {item.get('message', '')}" for item in extra) or detail
        code, title, remedy = _KNOWN.get(status, ("error", detail or "Error", "See /docs."))
        return Problem(f"urn:readingroom:{code}", title, status, detail or title, code, remedy)
    return Problem(
        "urn:readingroom:internal",
        "Something went wrong",
        500,
        "The server made a mistake. What it was stands in its log.",
        "internal",
        "Try again; if it stays, report it with the log.",
    )


class OpenAIError(msgspec.Struct):
    """What went wrong, as OpenAI's clients read it; `param` is the field that is to blame, where one is."""

    message: str
    type: str
    param: str | None
    code: str | None


# Our codes that OpenAI's clients know by another name.
_OPENAI_CODES = {"unknown_model": "model_not_found", "unauthorized": "invalid_api_key", "over_quota": "rate_limit_exceeded"}
_OPENAI_PARAMS = {"unknown_model": "model", "unknown_adapter": "adapter"}


def openai_error(problem: Problem, param: str | None = None) -> dict[str, OpenAIError]:
    """A problem in OpenAI's shape. The remedy goes into the message, which is all that its clients show."""
    kind = "server_error" if problem.status >= 500 else "rate_limit_error" if problem.status == 429 else "invalid_request_error"
    code = _OPENAI_CODES.get(problem.code, problem.code)
    return {"error": OpenAIError(f"{problem.detail} {problem.remedy}", kind, _OPENAI_PARAMS.get(problem.code, param), code)}


def ollama_error(problem: Problem) -> dict[str, str]:
    """A problem in Ollama's shape."""
    return {"error": f"{problem.detail} {problem.remedy}"}


def mcp_error(problem: Problem) -> dict[str, Any]:
    """A problem that has kept a message from being read, in JSON-RPC's shape: nobody's answer, so without an id."""
    return {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": f"{problem.detail} {problem.remedy}", "data": problem}}


def answered(problem: Problem, path: str, param: str | None = None) -> tuple[int, bytes, str]:
    """Status, body and media type of a problem for who called `path`. Both dialects say 400 where we say 422."""
    _note(problem)
    if path.rstrip("/") == "/mcp":
        return problem.status, msgspec.json.encode(mcp_error(problem)), "application/json"
    if not path.startswith(("/v1/", "/api/")):
        return problem.status, msgspec.json.encode(problem), PROBLEM_JSON
    shaped = openai_error(problem, param) if path.startswith("/v1/") else ollama_error(problem)
    return 400 if problem.status == 422 else problem.status, msgspec.json.encode(shaped), "application/json"


def param_of(error: Exception) -> str | None:
    """The field that a validation error names first."""
    extra = error.extra if isinstance(error, ValidationException) else None
    return str(extra[0].get("key") or "") or None if isinstance(extra, list) and extra else None


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's handler of all exceptions."""
    problem = problem_of(error)
    if problem.status >= 500 and not isinstance(error, ReadingRoomError):
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy | OverQuota) else {}
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    status, body, media_type = answered(problem, request.scope["path"], param_of(error))
    return Response(body, status_code=status, media_type=media_type, headers=headers)


HANDLERS: dict[Any, Any] = {Exception: handle, HTTPException: handle, ReadingRoomError: handle}
