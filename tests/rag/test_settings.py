"""Settings: defaults, file, environment and flags, in that order; mistakes name the key and the value."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from rag import settings as module
from rag.errors import InvalidSettings
from rag.settings import Settings, load


def test_later_sources_win(tmp_path: Path) -> None:
    """A flag beats the environment, which beats the file, which beats the default."""
    toml = tmp_path / "room.toml"
    toml.write_text('corpora = "docs"\n[server]\nport = 1\nhost = "::1"\n[engine]\ntemperature = 1\n')
    loaded = load(toml, {"READINGROOM_SERVER__PORT": "2", "READINGROOM_SERVER__HOST": "localhost"}, {"server.port": 3})
    assert (loaded.server.port, loaded.server.host, loaded.corpora, loaded.engine.temperature) == (3, "localhost", Path("docs"), 1.0)
    assert loaded.ingest == Settings().ingest


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    """None means: not given."""
    assert load(None, {}, {"server.port": None}) == Settings()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.prot", "1"),
        ("sever.port", "1"),
        ("server", "1"),
        ("server.port", "eighty"),
        ("server.port", "70000"),
        ("server.port", True),
        ("engine.max_tokens", 1.5),
        ("ingest.polling", "maybe"),
        ("retrieve.abstain_below", "2"),
        ("corpora", ""),
        ("store.url", "127.0.0.1:6333"),
        ("store.url", "ftp://127.0.0.1"),
        ("store.url", "http://key@127.0.0.1:6333"),
        ("store.url", "http://127.0.0.1:99999"),
        ("store.timeout_s", 0),
    ],
)
def test_a_mistake_names_the_key_and_the_remedy(key: str, value: object) -> None:
    """No setting is silently ignored, and none is taken with a value that cannot be meant."""
    with pytest.raises(InvalidSettings) as caught:
        load(None, {}, {key: value})
    assert key in caught.value.message
    assert caught.value.remedy


def test_the_collection_and_the_key_of_a_server_are_looked_at_where_there_is_one() -> None:
    """Where there is none they are of no use, and no mistake. No message has what may be a secret."""
    for key, value in (("store.collection", "../other"), ("store.api_key", "geheim\u00fcber"), ("store.url", "http://key@127.0.0.1")):
        with pytest.raises(InvalidSettings) as caught:
            load(None, {}, {"store.url": "http://127.0.0.1:6333", key: value})
        assert key in caught.value.message
        assert "key@" not in caught.value.message
        assert "geheim" not in caught.value.message
    settings = load(None, {"READINGROOM_STORE__URL": "https://qdrant.example:443/x", "READINGROOM_STORE__API_KEY": "k"}, {})
    assert (settings.store.url, settings.store.api_key, settings.store.collection) == ("https://qdrant.example:443/x", "k", "readingroom")
    assert "'k'" not in repr(settings)


def test_a_settings_file_that_was_named_must_be_there_and_be_toml(tmp_path: Path) -> None:
    """A typing error in --config is said, not passed over."""
    with pytest.raises(InvalidSettings, match="no settings file"):
        load(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("port = = 1")
    with pytest.raises(InvalidSettings, match="not valid TOML"):
        load(tmp_path / "bad.toml", {})


def test_every_setting_has_a_docstring() -> None:
    """The sentence under each field is what people read."""
    for owner in (module.Server, module.Ingest, module.Embed, module.Store, module.Retrieve, module.Cite, module.Engine, Settings):
        source = inspect.getsource(owner)
        for field in dataclasses.fields(owner):
            if owner is Settings and dataclasses.is_dataclass(field.default_factory):
                continue
            assert re.search(rf'^    {field.name}: .*\n    """\w', source, re.MULTILINE), (
                f"{owner.__name__}.{field.name} says nothing of itself"
            )


def test_every_number_has_a_range() -> None:
    """A number without bounds is a crash that waits for somebody's typing error."""
    for section in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(section.default_factory):
            for field in dataclasses.fields(section.default_factory):
                if field.type in ("int", "float"):
                    assert f"{section.name}.{field.name}" in module._RANGES
