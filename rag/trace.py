"""Which request a piece of work is done for: an id that goes with it across threads, and into its lines of the log.

Set where a request comes in (`server/requests.py`), taken along where work changes the thread, read where a line is written
(`server/logs.py`). Work that nobody asked for, such as the reading of a file that was changed, has none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

request: ContextVar[str] = ContextVar("request", default="")
"""The id of the request of this context; empty for none."""


def carried(call: Callable[P, T]) -> Callable[P, T]:
    """`call`, to be run on another thread, for the request that is being answered here. It alone goes along, not the whole context."""
    id = request.get()
    if not id:
        return call

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        token = request.set(id)
        try:
            return call(*args, **kwargs)
        finally:
            request.reset(token)

    return run
