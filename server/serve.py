"""`readingroom serve`: a room, its HTTP application, and uvicorn around both, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from rag.errors import CannotListen
from rag.seal import unlock
from rag.settings import Settings
from server.app import ReadingRoom, app_version
from server.audit import set_by_hand
from server.auth import check_binding
from server.http import create_app
from server.keys import any_keys
from server.requests import Requests
from server.scopes import COMMAND

log = logging.getLogger(__name__)

_LAST_S = 5
"""What is left after the time for answers, for their last bytes and for files that are being fetched."""


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status. Raises `UnsafeBinding`, `CannotListen`, `StoreLocked` before it listens."""
    check_binding(settings.server, keys=any_keys(settings.data_dir, unlock(settings)))
    listener = _listen(settings.server.host, settings.server.port)
    room = ReadingRoom(settings)
    room.start()
    try:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        assert room.access is not None
        room.note(COMMAND, "server.start", f"http://{shown}:{port}", version=app_version(), settings=set_by_hand(settings))
        room.lock.announce(f"http://{shown}:{port}", room.access.command)
        if settings.log.format == "console":
            print(f"Reading Room is at http://{shown}:{port}  (watching {settings.corpora}/, Ctrl+C ends it)", file=sys.stderr, flush=True)
        else:
            log.info("Reading Room is at http://%s:%d", shown, port, extra={"version": app_version(), "corpora": str(settings.corpora)})
        # uvicorn ends gracefully on these and then raises them again for whoever was there before; that is us, and we go on
        # to stop the room.
        told: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: told.append(number))
        asyncio.run(_run(room, listener, told))
    finally:
        room.stop()
    return 0


async def _run(room: ReadingRoom, listener: socket.socket, told: Sequence[int]) -> None:
    """Serve until a signal; not at all if one was `told` while the application was made, before uvicorn listens to them."""
    app = create_app(room)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whose `X-Forwarded-For` is believed is a setting: `server/calls.py`
        timeout_graceful_shutdown=_LAST_S,
    )
    server = _Server(config, room, app)
    if not told:
        await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, with a stop that people who are reading an answer do not notice.

    On the first signal `/ready` says no, new questions are told 503, event streams end, and what is under way has `server.stop_s` to
    end; answers that take longer are ended with an error that says why. Only then the port is closed. A second signal waits for nobody.
    """

    def __init__(self, config: uvicorn.Config, room: ReadingRoom, app: Requests) -> None:
        super().__init__(config)
        self._room = room
        self._requests = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of either kind of signal: uvicorn itself takes only SIGINT for impatience."""
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is under way end, then close."""
        room = self._room
        room.draining = True
        room.broadcast.close()
        if self._requests.working:
            log.info("stopping, as soon as %d calls have ended", self._requests.working, extra={"longest_s": room.settings.server.stop_s})
        deadline = time.monotonic() + room.settings.server.stop_s
        while self._requests.working and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self._requests.working and not self.force_exit:
            log.warning("%d calls are not waited for any longer", self._requests.working)
            await asyncio.to_thread(room.engines.stop)  # the streams of answers end with its error
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
