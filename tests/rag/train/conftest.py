"""One thread for torch: the models are tiny, and two threads that wait for each other at every step crawl on a busy machine."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> None:
    """For all tests of this folder."""
    import torch

    torch.set_num_threads(1)
