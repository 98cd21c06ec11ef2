"""Whoever is refused again and again waits for it: calls without a valid key, of one client address.

A few in a second are answered at once, as a person or a program with a mistake wants it. The others are answered a second later, and what
comes on their connections meanwhile is not read. So to try keys takes long, and a flood costs the answers of others next to nothing: 1,000
such calls a second took a quarter of a core and, since both cores write an answer in step, half of its speed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

AT_ONCE = 20
"""Refused calls of an address that are answered at once in a second."""

WAIT_S = 1.0


class Patience:
    """For one server, on its event loop. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._refused: Counter[str] = Counter()

    def wait_s(self, address: str) -> float:
        """Count one more refused call of that address; how long its answer is to wait, in seconds."""
        second = int(self._clock())
        if second != self._second:  # so it holds the addresses of a second, not of all times
            self._second = second
            self._refused.clear()
        self._refused[address] += 1
        return WAIT_S if self._refused[address] > AT_ONCE else 0.0
