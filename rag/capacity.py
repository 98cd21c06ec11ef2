"""What this machine has room for: memory for language models, and answers that are written at the same time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rag.settings import Engine

_A_CORE = 2
"""Answers at the same time for each core. More would share the same speed: 8 of them on 2 cores are 2.6 times as fast as one, 4 twice."""

_FEWEST, _MOST = 2, 16

REMOTE = 4
"""Answers that are asked for at the same time at `engine.url`, whose machine is not known."""


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_budget(settings: Engine) -> int:
    """What all loaded models may take together, in bytes: as set, or half of the machine's (or the container's) memory."""
    if settings.memory_mb:
        return settings.memory_mb << 20
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroups here, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total // 2


def sequences(settings: Engine, kv_bytes: int = 0) -> int:
    """Answers at the same time: as set, else by the cores, as long as their context takes no more than a quarter of the memory budget.

    `kv_bytes`: of keys and values, for each token of context (`gguf.Header.kv_bytes`); 0 where that is not known.
    """
    if settings.sequences:
        return settings.sequences
    if settings.url:
        return REMOTE
    wanted = min(max(_A_CORE * cores(), _FEWEST), _MOST)
    a_sequence = settings.context_tokens * kv_bytes
    return max(1, min(wanted, memory_budget(settings) // 4 // a_sequence)) if a_sequence else wanted
