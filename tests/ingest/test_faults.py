"""kill -9 before and after every write of ledger, store and folder: the next start makes the index equal to the folder.

The deaths are real ones, of real processes: `tests/ingest/faults.py`. Here it is run, and what it found is judged.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

from .faults import SCENARIOS


def die_and_recover(folder: Path, scenario: str, sample: int, moments: int = 0) -> list[dict[str, Any]]:
    """A record of each death. Fails where one left something wrong behind."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.ingest.faults", str(folder), scenario, str(sample), str(moments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    deaths = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [f"killed {death['point']}:\n{death['wrong']}" for death in deaths if death["wrong"]] == []
    return deaths


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_a_write_the_next_start_mends_it(tmp_path, scenario):
    """Three points of each scenario, its first write and its last among them; all of them at night."""
    deaths = die_and_recover(tmp_path, scenario, 3)
    assert len(deaths) == 3
    # Two threads write, so a run may be a few points shorter than the one that was counted.
    assert sum(death["reached"] for death in deaths) >= 2


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_any_write_and_at_any_moment_the_next_start_mends_it(tmp_path, scenario):
    """Every fault point, and forty moments that fall where they fall, also into the middle of a write."""
    deaths = die_and_recover(tmp_path, scenario, 0, moments=40)
    at_points = deaths[:-40]
    assert len(at_points) > 20
    assert sum(death["reached"] for death in at_points) >= 0.9 * len(at_points)
