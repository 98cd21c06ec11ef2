"""`readingroom serve`: a room, its HTTP application, and uvicorn around both, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys

import uvicorn

from rag.errors import CannotListen
from rag.settings import Settings
from server.app import ReadingRoom
from server.audit import set_by_hand
from server.auth import check_binding
from server.http import app_version, create_app
from server.keys import any_keys
from server.scopes import COMMAND

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status. Raises `UnsafeBinding`, `CannotListen`, `StoreLocked` before it listens."""
    check_binding(settings.server, keys=any_keys(settings.data_dir))
    listener = _listen(settings.server.host, settings.server.port)
    room = ReadingRoom(settings)
    room.start()
    try:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        assert room.access is not None
        room.note(COMMAND, "server.start", f"http://{shown}:{port}", version=app_version(), settings=set_by_hand(settings))
        room.lock.announce(f"http://{shown}:{port}", room.access.command)
        print(f"Reading Room is at http://{shown}:{port}  (watching {settings.corpora}/, Ctrl+C ends it)", file=sys.stderr, flush=True)
        # uvicorn ends gracefully on these and then raises them again for whoever was there before; that is us, and we go on
        # to stop the room.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        asyncio.run(_run(room, listener))
    finally:
        room.stop()
    return 0


async def _run(room: ReadingRoom, listener: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(room),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whose `X-Forwarded-For` is believed is a setting: `server/calls.py`
        timeout_graceful_shutdown=10,
    )
    server = _Server(config, room)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, but a stop ends the endless event streams first; answers get the graceful time-out to end."""

    def __init__(self, config: uvicorn.Config, room: ReadingRoom) -> None:
        super().__init__(config)
        self._room = room

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._room.broadcast.close()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is said before models load. Raises `CannotListen`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY only then, and without it the end of each answer on a connection that is kept
    # waits 40 ms for the client's delayed acknowledgement (44 ms for /health, 2 ms with it).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)  # now, so that whoever reads the address may connect: the calls wait until uvicorn takes them
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.", "Stop what uses that port, or choose another with --port."
        ) from error
    return listener
