"""The priority of threads: ingest gives way to whoever waits for an answer."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 10
"""Linux then gives it a tenth of a core that an answer wants too. Not less: beside a program of the same session that keeps all
cores busy, a saved file would hardly be read at 19."""


def lower_priority() -> None:
    """Let the calling thread, and those that it starts from now on, give way to all others.

    Linux has a priority for each thread (setpriority(2)); elsewhere this does nothing, and the slices of work between two
    looks at what else waits (`Pipeline.between`) have to do.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
