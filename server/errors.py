"""Errors as HTTP problem documents (RFC 9457): every error of `rag/errors.py`, and those that Litestar raises itself.

`type, title, status, detail`, and our own `code` (stable, for programs) and `remedy` (for people).
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from rag.errors import Busy, ReadingRoomError

log = logging.getLogger(__name__)

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


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    """The response that carries a problem."""
    return Response(msgspec.json.encode(problem), status_code=problem.status, media_type=PROBLEM_JSON, headers=headers)


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's handler of all exceptions."""
    problem = problem_of(error)
    if problem.status >= 500 and not isinstance(error, ReadingRoomError):
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy) else {}
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    return problem_response(problem, headers)


HANDLERS: dict[Any, Any] = {Exception: handle, HTTPException: handle, ReadingRoomError: handle}
