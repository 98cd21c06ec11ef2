"""Models on this machine: cards, the shelf, the catalogue, and the folders of Ollama and LM Studio."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tomllib
from pathlib import Path

import pytest

from rag import catalogue, models, neighbours, shelf, tomlfile
from rag.errors import InvalidInput, InvalidSettings, ModelUnusable, StoreFull, UnknownModel
from tests.rag.tinygguf import write


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data directory."""
    return tmp_path / "data"


# Finding and checking.


def test_the_default_models_are_found_and_allow_commercial_use(data_dir: Path) -> None:
    """They come with the installation; names are compared without case."""
    model = models.locate("SmolLM2-135M-Instruct", "generator", data_dir)
    models.verify(model)
    assert (model.name, model.licence, model.bytes, model.folder) == ("smollm2-135m-instruct", "Apache-2.0", 98_362_432, None)
    assert [card.commercial for card in models.CARDS] == ["yes", "yes"]
    assert models.installed(data_dir) == [model]
    models.verify(models.locate("all-minilm-l6-v2", "embedder"))


@pytest.mark.parametrize(
    ("card", "languages"),
    [
        ("---\nlanguage: en\n---\n# A model", ("en",)),
        ("---\nlanguage:\n- multilingual\n- de\n- no\n---\n", ("multilingual", "de", "no")),
        ("---\nlicense: mit\n---\n", ()),
        ("# Only a text", ()),
        ("---\n: [\n---\n", ()),
        (None, ()),
    ],
)
def test_an_embedders_languages_are_those_of_its_own_card(tmp_path: Path, card: str | None, languages: tuple[str, ...]) -> None:
    """The YAML at the head of its README, as model hubs have it."""
    (tmp_path / "model").mkdir()
    if card is not None:
        (tmp_path / "model" / "README.md").write_text(card)
    assert models.languages_of(models.locate(str(tmp_path / "model"), "embedder")) == languages


def test_the_default_embedder_says_that_it_is_for_english() -> None:
    """So `doctor` can tell domains in other languages."""
    assert models.languages_of(models.locate("all-MiniLM-L6-v2", "embedder")) == ("en",)


def test_a_path_works_in_place_of_a_name(tmp_path: Path) -> None:
    """It has no card: nothing is promised about it."""
    path = write(tmp_path / "my.gguf")
    model = models.locate(str(path), "generator")
    assert (model.name, model.path, model.card, model.licence, model.in_place) == ("my", path, None, "unknown", True)
    models.verify(model)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path, data_dir: Path) -> None:
    """And one of the catalogue with the command that fetches it."""
    shelf.add(write(tmp_path / "mine.gguf"), data_dir)
    with pytest.raises(ModelUnusable) as caught:
        models.locate("nope", "generator", data_dir)
    assert caught.value.remedy.endswith("smollm2-135m-instruct, mine.")
    with pytest.raises(ModelUnusable, match="not on this machine") as caught:
        models.locate("qwen2.5:0.5b", "generator", data_dir)
    assert caught.value.remedy == "Fetch it: readingroom models pull qwen2.5-0.5b-instruct"


def test_an_added_file_is_used_in_place_and_survives_its_removal(tmp_path: Path, data_dir: Path) -> None:
    """Only the reference goes."""
    path = write(tmp_path / "elsewhere" / "My Model.gguf")
    added = shelf.add(path, data_dir)
    assert (added.name, added.path, added.in_place) == ("My Model", path, True)
    assert added.card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (added.card.licence, added.card.commercial, added.card.sha256_from) == ("Apache-2.0", "yes", "recorded")
    assert models.locate("my-model", "generator", data_dir) == added
    assert [model.name for model in models.installed(data_dir)] == ["smollm2-135m-instruct", "My Model"]
    assert shelf.remove("my model", data_dir) == path
    assert path.is_file()
    assert [model.name for model in models.installed(data_dir)] == ["smollm2-135m-instruct"]
    with pytest.raises(UnknownModel):
        shelf.remove("my model", data_dir)


def test_a_copied_file_is_ours(tmp_path: Path, data_dir: Path) -> None:
    """The original may go, and the copy goes with the model."""
    path = write(tmp_path / "a.gguf")
    model = shelf.add(path, data_dir, name="copied", copy=True)
    path.unlink()
    assert (model.path, model.in_place) == (data_dir / "models" / "copied" / "model.gguf", False)
    models.verify(model, always=True)
    assert shelf.remove("copied", data_dir) is None
    assert not model.path.exists()
    assert [path.name for path in (data_dir / "models").iterdir()] == []


def test_a_file_that_is_as_it_was_is_not_hashed_again(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its size, time or inode changes; `always` hashes in any case."""
    path = write(tmp_path / "a.gguf")
    model = shelf.add(path, data_dir)
    hashed = []
    real = models.sha256
    monkeypatch.setattr(models, "sha256", lambda file, progress=None: hashed.append(file) or real(file, progress))
    models.verify(model)
    assert hashed == []
    models.verify(model, always=True)
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    models.verify(model)
    models.verify(model)
    assert len(hashed) == 2
    shutil.copy2(path, tmp_path / "b")
    (tmp_path / "b").replace(path)  # same size, same time, another inode
    models.verify(model)
    assert len(hashed) == 3


def test_a_changed_byte_is_noticed_at_the_next_start(tmp_path: Path, data_dir: Path) -> None:
    """And stays noticed until the file is right again."""
    path = write(tmp_path / "a.gguf", body=b"0123456789")
    model = shelf.add(path, data_dir)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(ModelUnusable, match="damaged"):
            models.verify(model)
    path.write_bytes(data)
    models.verify(model)


def test_damage_that_does_not_show_stays_known_once_it_was_found(tmp_path: Path, data_dir: Path) -> None:
    """A disk that forgets a bit changes neither size nor time: a check finds it, and from then on each start does."""
    path = write(tmp_path / "a.gguf", body=b"1")
    model = shelf.add(path, data_dir)
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"2")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    models.verify(model)
    with pytest.raises(ModelUnusable, match="damaged"):
        models.verify(model, always=True)
    with pytest.raises(ModelUnusable, match="damaged"):
        models.verify(model)


def test_models_that_cannot_be_used_are_left_out_and_named(tmp_path: Path, data_dir: Path) -> None:
    """A file that is gone, and a card that is broken; each with what to do."""
    path = write(tmp_path / "gone.gguf")
    shelf.add(path, data_dir)
    path.unlink()
    for name, card in (("broken", "= ="), ("short", 'name = "short"'), ("odd", 'name = "odd"\nkind = "generator"\nlicence = 3')):
        folder = data_dir / "models" / name
        folder.mkdir()
        (folder / "card.toml").write_text(card)
    assert [model.name for model in models.installed(data_dir)] == ["smollm2-135m-instruct"]
    faulty = dict(models.faulty(data_dir))
    assert sorted(faulty) == ["broken", "gone", "odd", "short"]
    assert all("readingroom models remove" in error.remedy for error in faulty.values())
    with pytest.raises(ModelUnusable, match="not there"):
        models.verify(models.locate("gone", "generator", data_dir))
    shelf.remove("broken", data_dir)
    assert "broken" not in dict(models.faulty(data_dir))


def test_removing_takes_along_what_was_requantized(tmp_path: Path, data_dir: Path) -> None:
    """And nothing of other models."""
    model = shelf.add(write(tmp_path / "a.gguf"), data_dir)
    made, other = models.requantized(model, data_dir), data_dir / "models" / "b-0123456789abcdef-Q8_0.gguf"
    for file in (made, other):
        file.write_bytes(b"GGUF")
    shelf.remove("a", data_dir)
    assert (made.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("name", ["..", "///", " ", "smollm2-135m-instruct", "SmolLM2-135M-Instruct:latest"])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, data_dir: Path, name: str) -> None:
    """Those of which nothing is left, and that of the default model."""
    with pytest.raises(InvalidInput):
        shelf.add(write(tmp_path / "a.gguf"), data_dir, name=name)
    assert not data_dir.exists()


def test_names_stay_below_the_shelf(tmp_path: Path, data_dir: Path) -> None:
    """Whatever stands in them."""
    path = write(tmp_path / "a.gguf")
    for name in ("../../evil", "/etc/evil", "host/space/name:tag", ".hidden", "a\0b"):
        model = shelf.add(path, data_dir, name=name)
        assert model.folder.parent == data_dir / "models"
        assert not model.folder.name.startswith(".")
        assert models.locate(name, "generator", data_dir) == model


def test_a_taken_name_is_refused_and_the_model_stays(tmp_path: Path, data_dir: Path) -> None:
    """`Qwen:0.5B` and `qwen-0.5b` are the same name."""
    first = shelf.add(write(tmp_path / "a.gguf"), data_dir, name="Qwen:0.5B")
    with pytest.raises(InvalidInput, match="already"):
        shelf.add(write(tmp_path / "b.gguf", body=b"b"), data_dir, name="qwen-0.5b")
    assert models.locate("qwen:0.5b", "generator", data_dir) == first


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"general__type": "adapter"}, "LoRA adapter"),
        ({"general__type": "mmproj", "general__architecture": "clip"}, "sees"),
        ({"general__architecture": "bert"}, "vectors"),
        ({"split__count": 2}, "2 parts"),
    ],
)
def test_what_writes_no_text_is_not_added(tmp_path: Path, data_dir: Path, changes: dict[str, object], why: str) -> None:
    """With the word for what it is."""
    with pytest.raises(ModelUnusable, match=why):
        shelf.add(write(tmp_path / "a.gguf", **changes), data_dir)
    assert models.faulty(data_dir) == []


def test_a_copy_that_does_not_fit_is_refused_before_it_is_begun(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one for which the disk fills up on the way leaves nothing behind."""
    path = write(tmp_path / "a.gguf")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shelf.shutil, "disk_usage", lambda _: usage._replace(free=10))
        with pytest.raises(StoreFull, match="are free"):
            shelf.add(path, data_dir, copy=True)

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf, "_copy", full)
    with pytest.raises(ModelUnusable, match="No space left"):
        shelf.add(path, data_dir, copy=True)
    assert list((data_dir / "models").iterdir()) == []


# Licences and the catalogue.


def test_every_model_of_the_catalogue_says_its_licence_and_where_it_is() -> None:
    """Names are unique, also as the registry's; nobody invented a sha256."""
    entries = catalogue.entries()
    assert len(entries) >= 15
    names = [name for entry in entries for name in {catalogue.key(entry.name), catalogue.key(entry.ollama)} - {""}]
    assert len(names) == len(set(names))
    for entry in entries:
        assert entry.ollama or entry.huggingface.count("/") == 2
        assert entry.licence.commercial in ("yes", "no", "conditions")
        assert entry.licence.conditions.endswith(".")
        assert entry.context_tokens >= 4096
        assert entry.about_mb > 0
        assert entry.quantization
        assert catalogue.find(entry.name.upper()) is entry
        assert not entry.sha256 or len(entry.sha256) == 64
    assert {entry.name for entry in entries if entry.licence.commercial == "no"} == {"qwen2.5-3b-instruct"}


@pytest.mark.parametrize(
    ("text", "name", "commercial"),
    [
        ("                                 Apache License\n                           Version 2.0, January 2004", "Apache-2.0", "yes"),
        ("MIT License\n\nCopyright (c) Microsoft Corporation.\n\nPermission is hereby granted, free of charge, to any", "MIT", "yes"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date", "Llama 3.2 Community License", "conditions"),
        ("Gemma Terms of Use \n\nLast modified: February 21, 2024", "Gemma Terms of Use", "conditions"),
        ("Qwen RESEARCH LICENSE AGREEMENT\n\nQwen RESEARCH LICENSE AGREEMENT Release Date", "Qwen Research License", "no"),
        ("Do what you like.", "unknown", "unknown"),
        ("", "unknown", "unknown"),
    ],
)
def test_a_licence_is_recognised_by_its_text(text: str, name: str, commercial: str) -> None:
    """By its head; one that is not known is not guessed."""
    found = catalogue.recognise(text)
    assert (found.name, found.commercial) == (name, commercial)


def test_a_cards_licence_is_the_files_own_then_its_texts(tmp_path: Path, data_dir: Path) -> None:
    """`other` with a name counts by the name; an unknown one is passed on as it is called."""
    research = shelf.add(write(tmp_path / "a.gguf", general__license="other", general__license__name="qwen-research"), data_dir)
    assert (research.licence, research.card.commercial) == ("Qwen Research License", "no")
    silent = write(tmp_path / "b.gguf", general__license=None)
    by_text = shelf.add(silent, data_dir, licence_text="MIT License\n\nCopyright")
    assert (by_text.licence, by_text.card.commercial) == ("MIT", "yes")
    assert models.licence_text(by_text) == "MIT License\n\nCopyright"
    nothing = shelf.add(silent, data_dir, name="c")
    assert (nothing.licence, nothing.card.commercial) == ("unknown", "unknown")
    strange = shelf.add(write(tmp_path / "d.gguf", general__license="house-rules"), data_dir)
    assert (strange.licence, strange.card.commercial) == ("house-rules", "unknown")


# The neighbours' folders.


def ollama(folder: Path, name: str, tag: str, blob: bytes, *layers: tuple[str, bytes], host: str = "registry.ollama.ai/library") -> str:
    """Put a model into a folder of Ollama's; returns the digest of its file."""
    listed = []
    for kind, data in (("model", blob), *layers):
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / f"sha256-{digest}").write_bytes(data)
        listed.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)})
    manifest = folder / "manifests" / host / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))
    return hashlib.sha256(blob).hexdigest()


def test_ollamas_models_are_found_where_they_are(tmp_path: Path, data_dir: Path) -> None:
    """By the names that Ollama has for them, with their digests and licences; what is no model is left out with the reason."""
    folder = tmp_path / "ollama" / "models"
    model = write(tmp_path / "m.gguf", general__license=None).read_bytes()
    licence = ("license", b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    digest = ollama(folder, "llama3.2", "1b", model, licence)
    ollama(folder, "mine", "latest", model + b"x", host="registry.ollama.ai/someone")
    ollama(folder, "nomic-embed-text", "latest", write(tmp_path / "e.gguf", general__architecture="nomic-bert").read_bytes())
    ollama(folder, "tuned", "latest", model, ("adapter", b"GGUF"))
    (folder / "manifests" / "registry.ollama.ai" / "library" / "bad").mkdir()
    (folder / "manifests" / "registry.ollama.ai" / "library" / "bad" / "latest").write_text("{")
    missing = ollama(folder, "lost", "latest", model + b"lost")
    (folder / "blobs" / f"sha256-{missing}").unlink()

    found = {one.name: one for one in neighbours.look(tmp_path / "ollama")}
    assert list(found) == ["bad", "llama3.2:1b", "lost", "nomic-embed-text", "someone/mine", "tuned"]
    assert [name for name, one in found.items() if not one.problem] == ["llama3.2:1b", "someone/mine"]
    assert "vectors" in found["nomic-embed-text"].problem
    assert "adapter" in found["tuned"].problem
    one = found["llama3.2:1b"]
    assert (one.sha256, one.entry.name) == (digest, "llama-3.2-1b-instruct")

    added = shelf.add(one.path, data_dir, name=one.name, source=one.source, sha256_said=one.sha256, licence_text=one.licence_text)
    assert (added.name, added.card.sha256_from, added.card.commercial) == ("llama3.2:1b", "registry", "conditions")
    models.verify(added)
    assert models.locate("llama3.2:1b", "generator", data_dir) == added
    shelf.remove("llama3.2:1b", data_dir)
    assert one.path.is_file()


def test_a_blob_that_is_not_what_ollama_says_is_noticed_before_it_is_loaded(tmp_path: Path, data_dir: Path) -> None:
    """Its digest comes from the manifest, so a damaged file cannot vouch for itself."""
    folder = tmp_path / "models"
    digest = ollama(folder, "a", "latest", write(tmp_path / "m.gguf", body=b"1").read_bytes())
    blob = folder / "blobs" / f"sha256-{digest}"
    blob.write_bytes(blob.read_bytes()[:-1] + b"2")
    (one,) = neighbours.look(folder)
    added = shelf.add(one.path, data_dir, name=one.name, sha256_said=one.sha256)
    with pytest.raises(ModelUnusable, match="damaged"):
        models.verify(added)
    with pytest.raises(ModelUnusable, match="The sha256 of"):
        shelf.add(one.path, data_dir, name="b", sha256_said=one.sha256, copy=True)


def test_lm_studios_models_are_found_where_they_are(tmp_path: Path) -> None:
    """publisher/repository/file.gguf; two of one name are told apart; a vision projector is left out."""
    folder = tmp_path / "models"
    write(folder / "one" / "repo-a" / "chat-q4.gguf")
    write(folder / "two" / "repo-b" / "chat-q4.gguf")
    write(folder / "one" / "repo-a" / "mmproj-f16.gguf", general__type="mmproj")
    (folder / "one" / "repo-a" / "notes.txt").write_text("no model")
    found = neighbours.look(folder)
    assert len({one.name for one in found}) == 3
    assert found[0].name == "chat-q4"
    assert [one.name for one in found if one.problem] == ["mmproj-f16"]
    with pytest.raises(UnknownModel, match="no models in"):
        neighbours.look(tmp_path / "nothing")


def test_the_usual_folders_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama's variable goes before its usual place."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    assert tmp_path / ".ollama" / "models" in neighbours.ollama_folders()
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "mine"))
    assert neighbours.ollama_folders()[0] == tmp_path / "mine"
    with pytest.raises(UnknownModel, match=r"\.lmstudio"):
        neighbours.first(neighbours.lmstudio_folders(), "LM Studio")
    (tmp_path / ".cache" / "lm-studio" / "models").mkdir(parents=True)
    assert neighbours.first(neighbours.lmstudio_folders(), "LM Studio") == tmp_path / ".cache" / "lm-studio" / "models"


# Files of settings.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[engine]\nmodel = "new"\n'),
        ("# mine\n[server]\nport = 1", '# mine\n[server]\nport = 1\n\n[engine]\nmodel = "new"\n'),
        ('[engine]\nmodel = "old"  # why\nqueue = 3\n', '[engine]\nmodel = "new"  # why\nqueue = 3\n'),
        ("[engine]\nmodel='old'\n", '[engine]\nmodel="new"\n'),
        ('[engine]\r\nmodel = "a#b"\r\n', '[engine]\r\nmodel = "new"\r\n'),
        (
            '[engine] # e\n# model = "x"\nqueue = 3\n\n[embed]\nmodel = "keep"\n',
            '[engine] # e\n# model = "x"\nqueue = 3\nmodel = "new"\n\n[embed]\nmodel = "keep"\n',
        ),
        ('[embed]\nmodel = "keep"\n[engine]', '[embed]\nmodel = "keep"\n[engine]\nmodel = "new"\n'),
    ],
)
def test_a_setting_is_changed_and_every_other_line_stays(tmp_path: Path, before: str, after: str) -> None:
    """Comments, order, line ends and all."""
    path = tmp_path / "readingroom.toml"
    path.write_bytes(before.encode())
    tomlfile.set_value(path, "engine", "model", "new")
    assert path.read_bytes().decode() == after
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "before", ["engine = 3\n", 'engine.model = "a"\n', 'engine = { model = "a" }\n', "[engine\n", '[engine]\nmodel = """\nx\n"""\n']
)
def test_a_file_that_a_program_cannot_change_safely_is_left_alone(tmp_path: Path, before: str) -> None:
    """And the person is told which line to write."""
    path = tmp_path / "readingroom.toml"
    path.write_text(before)
    with pytest.raises(InvalidSettings):
        tomlfile.set_value(path, "engine", "model", "new")
    assert path.read_text() == before


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Texts with everything in them, numbers, truths; a file keeps its mode, and a link stays a link."""
    values = {"text": 'a"b\\c\nd\té\x01', "n": -3, "x": 0.5, "yes": True, "odd key!": "z"}
    assert tomllib.loads(tomlfile.dumps(values)) == values
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text("a = 1\n")
    real.chmod(0o640)
    link.symlink_to(real)
    tomlfile.set_value(link, "engine", "model", "m")
    assert link.is_symlink()
    assert (real.stat().st_mode & 0o777, tomllib.loads(real.read_text())) == (0o640, {"a": 1, "engine": {"model": "m"}})
