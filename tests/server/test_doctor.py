"""What doctor says of domains whose language the embedding model was not made for."""

from __future__ import annotations

from pathlib import Path

from rag.settings import load
from server import doctor


def test_a_language_that_the_embedder_was_not_made_for_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Not for English, not where the model is multilingual, and not where its card says nothing."""
    corpora = tmp_path / "corpora"
    for name, toml in (("german", 'languages = ["de", "en"]'), ("english", ""), ("broken", "languages = ")):
        (corpora / name).mkdir(parents=True)
        (corpora / name / "domain.toml").write_text(toml)

    def told(model: str) -> dict[str, doctor.Check]:
        settings = load(flags={"data_dir": tmp_path / "data", "corpora": corpora, "embed.model": model})
        return {check.name: check for check in doctor._folders(settings) if check.state == "slow" and check.name.startswith("domain ")}

    found = told("all-MiniLM-L6-v2")
    assert list(found) == ["domain german"]
    assert "German" in found["domain german"].detail
    assert "English" not in found["domain german"].detail
    assert "models.md" in found["domain german"].remedy
    for card in ("---\nlanguage: multilingual\n---\n", "---\nlanguage: [de, en]\n---\n", "no card"):
        model = tmp_path / "model"
        model.mkdir(exist_ok=True)
        (model / "README.md").write_text(card)
        assert told(str(model)) == {}
