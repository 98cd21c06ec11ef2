"""The ASGI application around a `ReadingRoom`: routes, pages, error shapes, the guard. No logic of its own."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Litestar, MediaType, Request, Response, get
from litestar.config.compression import CompressionConfig
from litestar.di import Provide
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import License
from litestar.types import Scope

from server.app import ReadingRoom, app_version
from server.auth import App, Guard, caller_of
from server.description import Described
from server.errors import HANDLERS
from server.policy import new_nonce, page_policy, with_nonce
from server.requests import Requests, unless_stopping
from server.routes.adapters import AdaptersController
from server.routes.conversations import ConversationsController
from server.routes.library import LibraryController
from server.routes.mcp import McpController, Sessions
from server.routes.models import ModelsController
from server.routes.native import NativeController
from server.routes.ollama import OllamaController
from server.routes.ollama_models import OllamaModels, knock
from server.routes.openai import OpenAIController
from server.routes.ops import Readings, health, metrics, ready
from server.routes.usage import UsageController
from server.scopes import Caller
from server.widget import widget

WEB = Path(__file__).parent / "web"

_PAGES = {"/": "chat.html", "/library": "library.html", "/docs": "docs.html"}

# Multipart boundaries and field headers around an upload.
_FORM_OVERHEAD = 1 << 20


def create_app(room: ReadingRoom) -> Requests:
    """The application for a room that somebody else starts; it is stopped when the server shuts down."""

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None, None]:
        room.metrics.registry.register(Readings(room))
        yield

    async def provide_room() -> ReadingRoom:
        return room

    async def provide_caller(scope: Scope) -> Caller:
        return caller_of(scope)

    sessions = Sessions()

    async def provide_sessions() -> Sessions:
        return sessions

    litestar = Litestar(
        route_handlers=[
            NativeController,
            LibraryController,
            ConversationsController,
            ModelsController,
            AdaptersController,
            OpenAIController,
            OllamaController,
            OllamaModels,
            McpController,
            UsageController,
            knock,
            health,
            ready,
            metrics,
            static,
            widget,
            *(_page(path, name) for path, name in _PAGES.items()),
        ],
        dependencies={"room": Provide(provide_room), "caller": Provide(provide_caller), "sessions": Provide(provide_sessions)},
        exception_handlers=HANDLERS,
        lifespan=[lifespan],
        middleware=[unless_stopping(lambda: room.draining)],
        # Answers stream: only whole bodies may be compressed, and those that gain by it.
        compression_config=CompressionConfig(
            backend="gzip", minimum_size=2048, exclude=["/rag/ask", "/rag/events", "^/v1/", "^/api/", "^/mcp"]
        ),
        request_max_body_size=room.settings.server.max_upload_mb * (1 << 20) + _FORM_OVERHEAD,
        openapi_config=OpenAPIConfig(
            title="Reading Room",
            version=app_version(),
            description="A local knowledge assistant: answers from your documents, with sources, or an honest no.",
            license=License(name="Apache-2.0", identifier="Apache-2.0"),
            path="/schema",
            render_plugins=[Described()],
            use_handler_docstrings=True,
        ),
        signature_types=[ReadingRoom, Caller, Sessions],
        logging_config=None,
    )
    app: App = litestar  # type: ignore[assignment]
    access = room.access
    if access is None:
        guard = Guard(app, room.settings.server)
    else:
        guard = Guard(app, room.settings.server, keys=access.keys, meter=access.meter, command=access.command)
    return Requests(guard, room.metrics, access=room.settings.log.access)


def _page(path: str, name: str) -> Any:
    @get(path, media_type=MediaType.HTML, include_in_schema=False, name=name)
    async def page() -> Response[bytes]:
        nonce = new_nonce()
        body = with_nonce((WEB / name).read_bytes(), nonce)
        # `no-store`: the number in it is good for this answer only.
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": page_policy(nonce, markup=name == "docs.html")}
        return Response(body, media_type=MediaType.HTML, headers=headers)

    return page


@get("/static/{file_path:path}", include_in_schema=False)
async def static(request: Request[Any, Any, Any], file_path: Path) -> Response[bytes]:
    """The pages' own files."""
    relative = str(file_path).lstrip("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", relative) or ".." in relative:
        raise NotFoundException()
    path = WEB / "static" / relative
    if not path.is_file():
        raise NotFoundException()
    stat = path.stat()
    tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    headers = {"Cache-Control": "no-cache", "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(b"", status_code=304, headers=headers)
    kind = {".js": "text/javascript", ".svg": "image/svg+xml; charset=utf-8"}.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    # Litestar adds the charset to every kind of text.
    return Response(path.read_bytes(), media_type=kind or "application/octet-stream", headers=headers)
