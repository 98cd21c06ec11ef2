"""A domain's languages reach the words of its passages, at once, without the parser and the embedder."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ingest.conftest import Rig


def found(rig: Rig, question: str) -> list[str]:
    """Paths of the passages that have a word of the question."""
    vector = np.ones(rig.embedder.dimension, np.float32) / 4
    return [p.path for p in rig.store.search(vector, question, domain="buch", weights=(0.0, 1.0)) if p.scores.bm25]


def test_a_change_of_languages_needs_neither_parser_nor_embedder(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next look at `domain.toml`; back again as well. One that is broken changes nothing."""
    rig.write("buch/a.md", "# Bäume\n\nDie Äpfel sind reif.\n")
    rig.write("buch/b.md", "# Tiere\n\nDie Katze schläft.\n")
    rig.pipeline.sync()
    assert found(rig, "Apfel") == []
    rig.embedder.embedded.clear()
    monkeypatch.setattr(rig.sandbox, "read", lambda *_, **__: pytest.fail("a file was parsed"))
    toml = rig.write("buch/domain.toml", 'languages = ["de"]')
    rig.pipeline.sync([toml])
    assert found(rig, "Apfel") == ["buch/a.md"]
    rig.write("buch/domain.toml", "languages = ")
    rig.pipeline.sync([toml])
    assert found(rig, "Apfel") == ["buch/a.md"]
    toml.unlink()
    rig.pipeline.sync([toml])
    assert found(rig, "Apfel") == []
    assert rig.embedder.embedded == []
    rig.check()


def test_what_is_new_and_what_moves_in_is_in_the_domains_languages(rig: Rig) -> None:
    """From the first sync on."""
    rig.write("buch/domain.toml", 'languages = ["de"]')
    rig.write("buch/a.md", "Die Äpfel sind reif.\n")
    rig.write("other/b.md", "Die Gärten sind groß.\n")
    rig.pipeline.sync()
    assert found(rig, "Apfel") == ["buch/a.md"]
    (rig.corpora / "other/b.md").rename(rig.corpora / "buch/b.md")
    rig.pipeline.sync()
    assert found(rig, "Garten") == ["buch/b.md"]


def test_a_long_change_lets_others_in(rig: Rig) -> None:
    """What waits is served between the parts of it."""
    rig.write("buch/a.md", "\n".join(f"# {n}\n\nDer Satz {n}.\n" for n in range(1100)))
    rig.pipeline.sync()
    called: list[int] = []
    rig.pipeline.between = lambda: called.append(1) or False
    rig.write("buch/domain.toml", 'languages = ["de"]')
    rig.pipeline.sync([rig.corpora / "buch/domain.toml"])
    assert called
    assert found(rig, "Sätze")
