"""The audit log: what is in it, that it cannot be changed, that it has no secrets, and when it ends."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from rag.settings import load
from server.audit import FILE, Audit, set_by_hand
from server.scopes import Caller

WHO = Caller("abcdefgh", "Ada", frozenset({"admin"}), address="198.51.100.1")
DAY = 86_400


def test_an_act_is_kept_with_who_when_and_from_where(tmp_path: Path) -> None:
    """Newest first, in pages, also in another process and after a restart."""
    audit = Audit(tmp_path / FILE)
    for n in range(3):
        audit.note(WHO, "document.delete", f"a/{n}.md", document_id=str(n))
    audit.note(WHO, "model.use", "big", before="small")
    audit.close()
    again = Audit(tmp_path / FILE)
    first, second = again.entries(limit=2)
    assert (first["act"], first["target"], first["details"]) == ("model.use", "big", {"before": "small"})
    assert (first["actor"], first["actor_name"], first["address"]) == ("abcdefgh", "Ada", "198.51.100.1")
    assert abs(first["at"] - time.time()) < 60
    assert [entry["target"] for entry in again.entries(before=second["id"])] == ["a/1.md", "a/0.md"]
    assert len(again.entries(act="document.delete")) == 3
    again.close()


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "DELETE FROM audit WHERE id = 1"])
def test_nothing_that_was_noted_can_be_changed_or_taken_away(tmp_path: Path, statement: str) -> None:
    """The database refuses it, whoever asks."""
    audit = Audit(tmp_path / FILE)
    audit.note(WHO, "key.create", "x")
    database = sqlite3.connect(tmp_path / FILE)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute(statement)
    database.close()
    assert len(audit.entries()) == 1
    audit.close()


def test_entries_go_when_they_are_old(tmp_path: Path) -> None:
    """With the next act; numbers are not given again."""
    now = time.time()
    audit = Audit(tmp_path / FILE, keep_days=30, clock=lambda: now)
    for age in (40, 31, 29, 0):
        audit._clock = lambda age=age: now - age * DAY  # type: ignore[misc]
        audit.note(WHO, "key.create", str(age))
    assert [(entry["target"], entry["id"]) for entry in audit.entries()] == [("0", 4), ("29", 3)]
    audit.close()


def test_an_act_that_nobody_has_named_is_a_mistake(tmp_path: Path) -> None:
    """Whoever reads the log filters by these names."""
    audit = Audit(tmp_path / FILE)
    with pytest.raises(ValueError, match=r"key\.make"):
        audit.note(WHO, "key.make")
    audit.close()


def test_the_settings_are_noted_without_their_secrets() -> None:
    """Only those that differ from what comes with the program."""
    flags = {"server.key": "hidden", "engine.key": "hidden too", "server.port": 9000, "plans.free.streams": 1, "data_dir": "/elsewhere"}
    noted = set_by_hand(load(None, {}, flags))
    assert noted == {
        "data_dir": "/elsewhere",
        "engine.key": "set",
        "plans.free.requests_per_minute": 0,
        "plans.free.streams": 1,
        "plans.free.tokens_per_day": 0,
        "plans.free.upload_mb_per_day": 0,
        "server.key": "set",
        "server.port": 9000,
    }
    assert "hidden" not in str(noted)
