"""Pulling models from a registry and from addresses, over connections and disks that fail in every way that was thought of."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

from rag import download, models, pull, shelf
from rag.download import Session, Step
from rag.errors import Busy, InvalidInput, ModelUnusable, PullFailed, ReadingRoomError, StoreFull, UnknownModel
from rag.models import ModelFile
from tests.rag.registry import Registry, Served
from tests.rag.tinygguf import build

SIZE = 3_000_000
MODEL = build(body=bytes(range(256)) * (SIZE // 256))
OTHER = build(body=bytes(reversed(range(256))) * (SIZE // 256))
LICENCE = b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date"


def digest(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def registry() -> Iterator[Registry]:
    """One with the model `tiny:1b`."""
    with Registry() as registry:
        registry.blob = registry.model("library/tiny", "1b", MODEL, license=LICENCE, template=b"{{ .Prompt }}", params=b'{"stop": []}')
        yield registry


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data directory."""
    return tmp_path / "data"


class Puller:
    """Pulls without waiting between tries; keeps what was reported and how long it would have waited."""

    def __init__(self, data_dir: Path, registry: Registry) -> None:
        self.data_dir, self.registry = data_dir, registry
        self.steps: list[Step] = []
        self.pauses: list[float] = []

    def __call__(self, text: str, **options: Any) -> ModelFile:
        options = {"registry": self.registry.url, "report": self.steps.append, "pause": self.pauses.append, **options}
        return pull.pull(text, self.data_dir, **options)

    def part(self, name: str) -> Path:
        """Where a broken-off download waits."""
        return shelf.partial_folder(name, self.data_dir) / "model.gguf.part"


@pytest.fixture
def puller(data_dir: Path, registry: Registry) -> Puller:
    """Of that registry."""
    return Puller(data_dir, registry)


# What goes well.


def test_a_model_of_a_registry_is_fetched_checked_and_installed(puller: Puller, registry: Registry, data_dir: Path) -> None:
    """Manifest, file, licence, template; the digest is the manifest's, and the licence is recognised by its text."""
    model = puller("tiny:1b")
    assert (model.name, model.in_place, model.path.read_bytes() == MODEL) == ("tiny:1b", False, True)
    card = model.card
    assert (card.sha256, card.sha256_from, card.bytes) == (digest(MODEL), "registry", len(MODEL))
    assert card.source == f"{registry.url.removeprefix('http://')}/library/tiny:1b"
    assert registry.asked[0][1]["accept"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert models.licence_text(model) == LICENCE.decode()
    assert (model.folder / "TEMPLATE").read_text() == "{{ .Prompt }}"
    assert models.locate("tiny:1b", "generator", data_dir) == model
    assert sorted(path.name for path in (data_dir / "models").iterdir()) == [".tiny-1b.lock", "tiny-1b"]
    assert not list(model.folder.glob("*.part*"))
    assert [step.status for step in puller.steps if step.status != "pulling"] == [
        "pulling manifest", "verifying sha256", "writing card", "success",
    ]  # fmt: skip
    done = [step.done for step in puller.steps if step.status == "pulling"]
    assert done == sorted(done)
    assert puller.steps[-4].done == puller.steps[-4].total == len(MODEL)


def test_a_files_own_licence_goes_before_the_text_beside_it_and_the_catalogues_before_both(puller: Puller, registry: Registry) -> None:
    """The tiny model says apache-2.0 of itself; the catalogue knows what llama3.2:1b is."""
    assert puller("tiny:1b").licence == "Apache-2.0"
    registry.model("library/llama3.2", "1b", MODEL)
    assert puller("llama3.2:1b").card.commercial == "conditions"


def test_what_is_here_already_is_not_fetched_again(puller: Puller, registry: Registry) -> None:
    """Only the manifest is looked at."""
    first = puller("tiny:1b")
    registry.asked.clear()
    assert puller("tiny:1b") == first
    assert registry.paths() == ["/v2/library/tiny/manifests/1b"]
    assert puller.steps[-1].status == "up to date"


def test_a_tag_that_has_moved_on_is_fetched_and_replaces_the_old_model(puller: Puller, registry: Registry) -> None:
    """All at once: until then the old one is whole."""
    old = puller("tiny:1b")
    registry.model("library/tiny", "1b", OTHER)
    new = puller("tiny:1b")
    assert (new.path, new.sha256) == (old.path, digest(OTHER))
    models.verify(new, always=True)


def test_a_damaged_model_is_mended_by_pulling_it_again(puller: Puller) -> None:
    """It is not taken for up to date."""
    model = puller("tiny:1b")
    model.path.write_bytes(MODEL[:-1] + b"!")
    models.verify(puller("tiny:1b"), always=True)


def test_a_name_of_the_catalogue_is_asked_of_the_registry_by_its_name_there(puller: Puller, registry: Registry) -> None:
    """And keeps the name that it was asked for by."""
    registry.model("library/qwen2.5", "0.5b", MODEL)
    model = puller("qwen2.5-0.5b-instruct")
    assert registry.paths()[0] == "/v2/library/qwen2.5/manifests/0.5b"
    assert (model.name, model.licence) == ("qwen2.5-0.5b-instruct", "Apache-2.0")


def test_a_file_is_fetched_from_its_address(puller: Puller, registry: Registry) -> None:
    """Nobody said its sha256: that is recorded and said."""
    registry.files["/files/My%20Model.gguf"] = Served(MODEL)
    model = puller(f"{registry.url}/files/My%20Model.gguf")
    assert (model.name, model.sha256, model.card.sha256_from) == ("My Model", digest(MODEL), "recorded")
    assert model.card.source == f"{registry.url}/files/My%20Model.gguf"


def test_a_given_sha256_is_kept_to(puller: Puller, registry: Registry) -> None:
    """A right one is noted as given; with a wrong one nothing is kept."""
    registry.files["/a.gguf"] = Served(MODEL)
    model = puller(f"{registry.url}/a.gguf", sha256=f"sha256:{digest(MODEL).upper()}")
    assert model.card.sha256_from == "given"
    with pytest.raises(ModelUnusable, match="has the sha256") as caught:
        puller(f"{registry.url}/a.gguf", name="b", sha256=digest(OTHER))
    assert "thrown away" in caught.value.message
    assert not puller.part("b").exists()
    assert [model.name for model in models.installed(puller.data_dir)] == ["smollm2-135m-instruct", "a"]


def test_the_sha256_that_hugging_face_announces_is_kept_to(puller: Puller, registry: Registry) -> None:
    """It stands in the answer that sends on to the store."""
    registry.files["/store/a"] = Served(MODEL)
    registry.files["/a.gguf"] = Served(location="/store/a", headers={"X-Linked-Etag": f'"{digest(MODEL)}"'})
    assert puller(f"{registry.url}/a.gguf").card.sha256_from == "server"
    registry.files["/b.gguf"] = Served(location="/store/a", headers={"X-Linked-Etag": f'"{digest(OTHER)}"'})
    with pytest.raises(ModelUnusable, match="has the sha256"):
        puller(f"{registry.url}/b.gguf")


def test_another_host_may_serve_the_file(puller: Puller, registry: Registry) -> None:
    """As registries do; a rest is asked for there as well."""
    with Registry() as store:
        store.files["/deep/blob"] = Served(MODEL)
        store.faults["/deep/blob"].append("cut 1000000")
        registry.files[registry.blob] = Served(location=f"{store.url}/deep/blob?signature=1")
        assert puller("tiny:1b").sha256 == digest(MODEL)
        assert store.ranges("/deep/blob") == ["", "bytes=1000000-"]


def test_an_adapter_in_a_reference_is_kept_beside_the_model(puller: Puller, registry: Registry) -> None:
    """It is said, not applied: see the command."""
    registry.model("someone/tuned", "latest", MODEL, adapter=build({"general.type": "adapter"}))
    model = puller("someone/tuned")
    assert (model.name, [path.name for path in model.folder.glob("*.gguf") if path != model.path]) == ("someone/tuned", ["adapter-1.gguf"])


# What breaks off, and goes on.


def test_a_cut_connection_is_taken_up_where_it_broke(puller: Puller, registry: Registry) -> None:
    """Within one pull; each byte is sent once."""
    registry.faults[registry.blob].extend(["cut 1000000", "cut 500000"])
    assert puller("tiny:1b").sha256 == digest(MODEL)
    assert registry.ranges(registry.blob) == ["", "bytes=1000000-", "bytes=1500000-"]
    assert registry.sent[registry.blob] == len(MODEL)
    assert puller.pauses == [1.0, 1.0]


def test_a_download_that_is_given_up_goes_on_in_the_next_pull(puller: Puller, registry: Registry) -> None:
    """Without a byte in five goes it ends, with the remedy; what came is kept."""
    registry.faults[registry.blob].extend(["cut 2000000", *["cut 0"] * 4])
    with pytest.raises(PullFailed, match=r"broke off after 2\.0 MB") as caught:
        puller("tiny:1b")
    assert "same command" in caught.value.remedy
    assert puller.pauses == [1.0, 2.0, 4.0, 8.0]
    assert puller.part("tiny:1b").stat().st_size == 2_000_000
    assert (shelf.partials(puller.data_dir), models.installed(puller.data_dir)[1:]) == (["tiny-1b"], [])
    registry.asked.clear()
    assert puller("tiny:1b").sha256 == digest(MODEL)
    assert registry.ranges(registry.blob) == ["bytes=2000000-"]


def test_whoever_stops_a_pull_keeps_what_came(puller: Puller, registry: Registry) -> None:
    """Ctrl+C, or a listener who has had enough."""

    def stop(step: Step) -> None:
        if step.done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        puller("tiny:1b", report=stop)
    kept = puller.part("tiny:1b").stat().st_size
    assert 1_000_000 < kept < len(MODEL)
    assert puller("tiny:1b").sha256 == digest(MODEL)
    assert registry.ranges(registry.blob)[-1] == f"bytes={kept}-"


def test_a_server_that_ignores_ranges_sends_it_all_again(puller: Puller, registry: Registry) -> None:
    """And the result is the file, not the file twice."""
    registry.faults[registry.blob].extend(["cut 1000000", "whole"])
    assert puller("tiny:1b").path.read_bytes() == MODEL
    assert "the server begins anew" in [step.status for step in puller.steps]


@pytest.mark.parametrize("fault", ["", "blind", "whole"])
def test_a_file_that_changed_in_between_is_fetched_from_its_beginning(puller: Puller, registry: Registry, fault: str) -> None:
    """Known by its ETag, whether the server looks at it or not: halves of two files are never joined."""
    registry.files["/a.gguf"] = Served(MODEL, etag='"one"')
    registry.faults["/a.gguf"].extend(["cut 1000000", *["cut 0"] * 4])
    with pytest.raises(PullFailed):
        puller(f"{registry.url}/a.gguf")
    registry.files["/a.gguf"] = Served(OTHER, etag='"two"')
    registry.faults["/a.gguf"].append(fault)
    assert puller(f"{registry.url}/a.gguf").sha256 == digest(OTHER)


def test_a_file_that_cannot_be_known_again_is_fetched_from_its_beginning_in_the_next_pull(puller: Puller, registry: Registry) -> None:
    """Neither ETag nor date nor sha256: only within the same pull could it be the same."""
    registry.files["/a.gguf"] = Served(MODEL)
    registry.faults["/a.gguf"].extend(["cut 1000000", *["cut 0"] * 4])
    with pytest.raises(PullFailed):
        puller(f"{registry.url}/a.gguf")
    registry.asked.clear()
    assert puller(f"{registry.url}/a.gguf").sha256 == digest(MODEL)
    assert registry.ranges("/a.gguf") == [""]


def test_a_part_of_another_file_is_not_gone_on_with(puller: Puller, registry: Registry) -> None:
    """The tag has another digest now."""
    registry.faults[registry.blob].extend(["cut 1000000", *["cut 0"] * 4])
    with pytest.raises(PullFailed):
        puller("tiny:1b")
    blob = registry.model("library/tiny", "1b", OTHER)
    assert puller("tiny:1b").sha256 == digest(OTHER)
    assert registry.ranges(blob) == [""]


def test_a_part_without_its_note_is_not_trusted(puller: Puller, registry: Registry) -> None:
    """Nor one with a note that is damaged."""
    for note in (None, "{", "[]", '{"url": 1}'):
        part = puller.part("tiny:1b")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(OTHER[:1000])
        if note is not None:
            part.with_name("model.gguf.part.json").write_text(note)
        assert puller("tiny:1b").sha256 == digest(MODEL)
        shelf.remove("tiny:1b", puller.data_dir)
    assert set(registry.ranges(registry.blob)) == {""}


@pytest.mark.parametrize("etag", ['"one"', ""])
def test_a_part_that_is_whole_is_finished(puller: Puller, registry: Registry, etag: str) -> None:
    """The process died between the last byte and the name: the server has nothing more to send (416)."""
    registry.files["/a.gguf"] = Served(MODEL, etag=etag)

    def stop(step: Step) -> None:
        if step.status == "verifying sha256":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        puller(f"{registry.url}/a.gguf", report=stop)
    sent = registry.sent["/a.gguf"]
    assert puller(f"{registry.url}/a.gguf").sha256 == digest(MODEL)
    assert registry.sent["/a.gguf"] - sent == (0 if etag else len(MODEL))


def test_a_whole_part_of_a_known_sha256_needs_no_server(puller: Puller, registry: Registry) -> None:
    """Only the manifest and the texts are asked for."""

    def stop(step: Step) -> None:
        if step.status == "verifying sha256":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        puller("tiny:1b", report=stop)
    registry.asked.clear()
    assert puller("tiny:1b").sha256 == digest(MODEL)
    assert registry.blob not in registry.paths()


def test_a_server_that_denies_the_rest_is_asked_for_the_whole(puller: Puller, registry: Registry) -> None:
    """416 although there is more."""
    registry.faults[registry.blob].extend(["cut 1000000", "416"])
    assert puller("tiny:1b").path.read_bytes() == MODEL
    assert registry.ranges(registry.blob) == ["", "bytes=1000000-", ""]


def test_a_server_that_always_sends_the_wrong_range_is_given_up(puller: Puller, registry: Registry) -> None:
    """After a few beginnings; what it sent is not believed."""
    registry.faults[registry.blob].extend(["cut 1000000", "shifted"] * 4)
    with pytest.raises(PullFailed, match="as it was asked for"):
        puller("tiny:1b")
    assert models.installed(puller.data_dir)[1:] == []


def test_a_busy_server_is_asked_again(puller: Puller, registry: Registry) -> None:
    """For the manifest, the file, and the texts."""
    for path in [*registry.files]:
        registry.faults[path].extend(["status 503", "status 429"])
    assert puller("tiny:1b").sha256 == digest(MODEL)
    assert len(puller.pauses) == 2 * len(registry.files)


# What cannot go well.


@pytest.mark.parametrize(
    ("status", "error", "what"),
    [
        (404, UnknownModel, "no such file"),
        (410, UnknownModel, "no such file"),
        (401, PullFailed, "not give this file to everybody"),
        (403, PullFailed, "not give this file to everybody"),
        (418, PullFailed, "answers 418"),
        (304, PullFailed, "answers 304"),
        (503, PullFailed, "answers 503"),
    ],
)
def test_a_refusal_is_said_with_a_remedy(puller: Puller, registry: Registry, status: int, error: type[ReadingRoomError], what: str) -> None:
    """Each status by what can be done about it."""
    registry.files["/a.gguf"] = Served(MODEL)
    registry.faults["/a.gguf"].extend([f"status {status}"] * 5)
    with pytest.raises(error, match=what) as caught:
        puller(f"{registry.url}/a.gguf")
    assert caught.value.remedy


def test_a_model_that_the_registry_has_not_is_unknown(puller: Puller) -> None:
    """By name, with the registry's."""
    with pytest.raises(UnknownModel, match=r"127\.0\.0\.1:\d+ has no model 'none:1b'"):
        puller("none:1b")


def test_a_server_that_is_not_there_is_said(data_dir: Path) -> None:
    """After a few tries, and without a traceback of the library."""
    with Registry() as gone:
        pass
    pauses: list[float] = []
    with pytest.raises(PullFailed) as caught:
        pull.pull("tiny:1b", data_dir, registry=gone.url, pause=pauses.append)
    assert "connection" in caught.value.remedy
    assert len(pauses) == 4


def test_a_page_is_not_taken_for_a_model(puller: Puller, registry: Registry) -> None:
    """After its first bytes: it is neither fetched to its end nor kept."""
    registry.files["/page"] = Served(b"<!DOCTYPE html>" + bytes(50_000_000))
    with pytest.raises(ModelUnusable, match="not a GGUF file"):
        puller(f"{registry.url}/page")
    assert registry.sent["/page"] < 50_000_000
    assert not puller.part("page").exists()
    for tiny in (b"", b"GG"):
        registry.files["/tiny"] = Served(tiny)
        with pytest.raises(ModelUnusable, match="not a GGUF file"):
            puller(f"{registry.url}/tiny")


@pytest.mark.parametrize("data", [b"GGUF" + bytes(40), build({"general.type": "adapter"}), build({"general.architecture": "bert"})])
def test_a_gguf_file_that_is_no_model_is_not_installed(puller: Puller, registry: Registry, data: bytes) -> None:
    """Nor is it kept, or gone on with in the next pull."""
    registry.files["/a.gguf"] = Served(data)
    registry.model("library/a", "latest", data)
    for _ in range(2):
        for name in (f"{registry.url}/a.gguf", "a"):
            with pytest.raises(ModelUnusable):
                puller(name)
            assert [path.name for path in (puller.data_dir / "models").iterdir()] == [".a.lock"]
    assert models.installed(puller.data_dir)[1:] == []
    assert registry.sent["/a.gguf"] == 2 * len(data)


def test_a_file_of_the_wrong_sha256_is_thrown_away(puller: Puller, registry: Registry) -> None:
    """One bit is enough, and the next pull begins anew."""
    registry.files[registry.blob].data = MODEL[:-1] + b"?"
    with pytest.raises(ModelUnusable, match="thrown away"):
        puller("tiny:1b")
    assert not puller.part("tiny:1b").exists()
    assert shelf.partials(puller.data_dir) == []
    registry.files[registry.blob].data = MODEL
    assert puller("tiny:1b").sha256 == digest(MODEL)
    assert registry.ranges(registry.blob) == ["", ""]


def test_more_or_less_than_the_manifest_says_is_refused(puller: Puller, registry: Registry) -> None:
    """A server cannot fill the disk."""
    registry.files[registry.blob].data = MODEL + b"more"
    with pytest.raises(PullFailed, match="where 3,"):
        puller("tiny:1b")
    registry.files[registry.blob].data = MODEL
    registry.faults[registry.blob].append("long")
    with pytest.raises(PullFailed, match="sends more than"):
        puller("tiny:1b")


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"layers": 3}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd", "size": 3}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:' + b"a" * 64 + b'", "size": -1}]}',
        b'{"layers": []}',
        b'{"layers": [' + b"1," * 3_000_000 + b"1]}",
    ],
)
def test_a_manifest_that_is_none_is_refused(puller: Puller, registry: Registry, body: bytes) -> None:
    """Whatever it is; a digest that is a path is no digest."""
    registry.files["/v2/library/tiny/manifests/1b"] = Served(body)
    with pytest.raises(PullFailed):
        puller("tiny:1b")
    assert registry.paths() == ["/v2/library/tiny/manifests/1b"]


def test_a_model_in_several_files_is_refused(puller: Puller, registry: Registry) -> None:
    """Before any of them is fetched."""
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{n * 64}", "size": 9} for n in "ab"]
    registry.manifest("library/split", "latest", layers)
    with pytest.raises(PullFailed, match="split over 2 files"):
        puller("split")


def test_a_circle_of_redirects_ends(puller: Puller, registry: Registry) -> None:
    """And one to something that is no web address."""
    registry.files["/a.gguf"] = Served(location="/a.gguf")
    with pytest.raises(PullFailed, match="circles"):
        puller(f"{registry.url}/a.gguf")
    registry.files["/b.gguf"] = Served(location="file:///etc/passwd")
    with pytest.raises(ReadingRoomError):
        puller(f"{registry.url}/b.gguf")


def test_https_is_not_left_for_http(data_dir: Path) -> None:
    """A redirect could otherwise take the encryption away."""
    session = Session("https://example.test", lambda _: None, lambda _: None)
    there = httpx.MockTransport(lambda request: httpx.Response(302, headers={"Location": "http://example.test/a"}))
    session._client = httpx.Client(transport=there)
    with pytest.raises(PullFailed, match="without encryption"), session.open("https://example.test/a", {}):
        pass


def test_a_password_does_not_travel_to_another_host_nor_into_the_card(puller: Puller, registry: Registry) -> None:
    """Nor do signatures of addresses stay on the disk."""
    with Registry() as store:
        store.files["/blob"] = Served(MODEL)
        registry.files["/a.gguf"] = Served(location=store.url.replace("127.0.0.1", "localhost") + "/blob")
        host = registry.url.removeprefix("http://")
        model = puller(f"http://me:secret@{host}/a.gguf?token=hidden")
        assert "authorization" in registry.asked[0][1]
        assert "authorization" not in store.asked[0][1]
    for file in model.folder.iterdir():
        assert b"secret" not in file.read_bytes()[:10_000]
        assert b"hidden" not in file.read_bytes()[:10_000]


def test_a_disk_without_room_is_said_before_the_download(puller: Puller, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is known from the manifest."""
    usage = shelf.shutil.disk_usage(puller.data_dir.parent)
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: usage._replace(free=SIZE // 2))
    with pytest.raises(StoreFull, match="are free"):
        puller("tiny:1b")


def test_a_disk_that_fills_up_keeps_what_it_has(puller: Puller, registry: Registry) -> None:
    """The system's limit on a file's size stands for the disk; when there is room again the download goes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(StoreFull) as caught:
            puller("tiny:1b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "goes on from there" in caught.value.remedy
    kept = puller.part("tiny:1b").stat().st_size
    assert 0 < kept <= 1_000_000
    assert puller("tiny:1b").path.read_bytes() == MODEL
    assert registry.ranges(registry.blob)[-1] == f"bytes={kept}-"


def test_two_do_not_fetch_the_same_model_at_once(puller: Puller, data_dir: Path) -> None:
    """The second is told; another name is free."""
    (data_dir / "models").mkdir(parents=True)
    with FileLock(str(data_dir / "models" / ".tiny-1b.lock")), pytest.raises(Busy, match="already"):
        puller("tiny:1b")
    assert puller("tiny:1b").name == "tiny:1b"


def test_a_name_that_another_model_has_is_refused(puller: Puller, registry: Registry) -> None:
    """Before the file is fetched; and the default model's at once."""
    puller("tiny:1b", name="mine")
    registry.model("library/else", "latest", OTHER)
    registry.asked.clear()
    with pytest.raises(InvalidInput, match="already"):
        puller("else", name="Mine")
    assert registry.paths() == ["/v2/library/else/manifests/latest"]
    with pytest.raises(InvalidInput):
        puller("else", name="smollm2-135m-instruct")


def test_a_sha256_that_is_none_or_not_the_registrys_is_refused_before_the_download(puller: Puller, registry: Registry) -> None:
    """A typing error must not cost gigabytes."""
    with pytest.raises(InvalidInput, match="is no sha256"):
        puller("tiny:1b", sha256="abc")
    with pytest.raises(InvalidInput, match="The registry's file"):
        puller("tiny:1b", sha256=digest(OTHER))
    assert registry.blob not in registry.paths()


# References.


@pytest.mark.parametrize(
    ("text", "address", "short"),
    [
        ("qwen2.5", "https://registry.ollama.ai/v2/library/qwen2.5/manifests/latest", "qwen2.5"),
        ("qwen2.5:0.5b", "https://registry.ollama.ai/v2/library/qwen2.5/manifests/0.5b", "qwen2.5:0.5b"),
        ("me/mine:v1", "https://registry.ollama.ai/v2/me/mine/manifests/v1", "me/mine:v1"),
        ("hf.co/o/Model-GGUF:Q4_K_M", "https://hf.co/v2/o/Model-GGUF/manifests/Q4_K_M", "hf.co/o/Model-GGUF:Q4_K_M"),
        ("localhost:5000/me/mine", "https://localhost:5000/v2/me/mine/manifests/latest", "localhost:5000/me/mine"),
        ("registry.ollama.ai/library/a:b", "https://registry.ollama.ai/v2/library/a/manifests/b", "a:b"),
    ],
)
def test_a_reference_is_read_as_ollama_reads_it(text: str, address: str, short: str) -> None:
    """Registry, namespace, name and tag, each with its default."""
    found = pull.parse(text)
    assert f"{found.base}/v2/{found.namespace}/{found.name}/manifests/{found.tag}" == address
    assert found.short == short


@pytest.mark.parametrize("text", ["", "a b", "a/b/c/d", "../x", "a/../b", "a:", ":b", "a:b:c", "ho st/a/b", "ä", "-a", "a\n"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    """With how one is written. `a:` is read as `a`."""
    if text == "a:":
        assert pull.parse(text).tag == "latest"
        return
    with pytest.raises(InvalidInput, match=r"names no model|is no host"):
        pull.parse(text)


@pytest.mark.parametrize("text", ["https://", "http:///a.gguf", "https://host:port/a.gguf"])
def test_what_is_no_address_is_refused(data_dir: Path, text: str) -> None:
    """Before anything is asked for."""
    with pytest.raises(InvalidInput, match="is no address"):
        pull.pull(text, data_dir)


def test_the_page_of_a_file_on_hugging_face_stands_for_the_file() -> None:
    """People copy the address of the page."""
    wanted = pull._wanted("https://huggingface.co/o/r/blob/main/a.gguf", pull.REGISTRY, "", False)
    assert wanted.url == "https://huggingface.co/o/r/resolve/main/a.gguf"
    known = pull._wanted("qwen2.5-coder-0.5b-instruct", pull.REGISTRY, "", False)
    assert known.url.endswith("/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    assert (known.sha256_from, known.sha256[:8]) == ("catalogue", "1d961463")
    assert pull._wanted("qwen2.5-0.5b-instruct", pull.REGISTRY, "", True).url.startswith(pull.HUGGINGFACE)


def test_the_environments_proxies_are_for_the_outside_only(data_dir: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry on this machine is asked directly."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert pull.pull("tiny:1b", data_dir, registry=registry.url).sha256 == digest(MODEL)
    assert [download._is_here(url) for url in ("http://localhost:1/", "http://[::1]/", "https://hf.co", "http://10.0.0.1")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_a_note_says_what_is_waited_for(puller: Puller, registry: Registry) -> None:
    """Beside the part, for the next process: address, digest, size."""
    registry.faults[registry.blob].extend(["cut 1000", *["cut 0"] * 4])
    with pytest.raises(PullFailed):
        puller("tiny:1b")
    note = json.loads(puller.part("tiny:1b").with_name("model.gguf.part.json").read_text())
    assert (note["sha256"], note["total"]) == (digest(MODEL), len(MODEL))
    assert note["url"] == registry.url + registry.blob
