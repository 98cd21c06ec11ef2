"""`readingroom models ...` as people and programs call it, without a server and beside one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rag import models
from rag.settings import load
from server.cli import main
from server.commands import models as command
from tests.conftest import wait_until
from tests.rag.registry import Registry, Served
from tests.rag.test_models import ollama
from tests.rag.tinygguf import build, write
from tests.server.conftest import Served as Server

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `models ...` over an empty data directory, in a folder of its own; gives the exit status, stdout and stderr."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("READINGROOM_DATA_DIR", str(tmp_path / "data"))

    def call(*args: str) -> tuple[int, str, str]:
        status = main(["models", *map(str, args)])
        return status, *capsys.readouterr()

    return call


def ok(result: tuple[int, str, str]) -> str:
    """What it printed, if it went well."""
    assert result[0] == 0, result
    return result[1]


def fields(result: tuple[int, str, str]) -> Any:
    """The JSON it printed."""
    return json.loads(ok(result))


def test_the_list_says_licence_size_and_which_one_answers(run: Run, tmp_path: Path) -> None:
    """And what cannot be used, and what is only here in part."""
    ok(run("add", write(tmp_path / "mine.gguf", general__license="gemma")))
    write(tmp_path / "gone.gguf")
    ok(run("add", tmp_path / "gone.gguf"))
    (tmp_path / "gone.gguf").unlink()
    (tmp_path / "data" / "models" / ".half.part").mkdir()
    lines = ok(run("list")).splitlines()
    assert lines[1].split() == ["*", "smollm2-135m-instruct", "98", "MB", "Q4_1", "8,192", "Apache-2.0", "yes"]
    assert lines[2].split() == ["mine", "1", "kB", "Q8_0", "512", "Gemma", "Terms", "of", "Use", "conditions", "in", "place"]
    text = "\n".join(lines[3:])
    assert "gone: The file of the model gone is not there" in text
    assert "half: fetched in part" in text
    listed = fields(run("list", "--json"))
    assert [item["name"] for item in listed["items"]] == ["smollm2-135m-instruct", "mine"]
    assert [item["default"] for item in listed["items"]] == [True, False]
    assert ([item["name"] for item in listed["faulty"]], listed["partial"]) == (["gone"], ["half"])


def test_flags_may_stand_before_the_action_or_behind_it(run: Run, tmp_path: Path) -> None:
    """One that is left out behind it does not undo one before it."""
    other = tmp_path / "other"
    ok(run("--data-dir", other, "add", write(tmp_path / "a.gguf")))
    for args in (("--data-dir", other, "--json", "list"), ("list", "--json", "--data-dir", other), ("--json", "list", "--data-dir", other)):
        assert [item["name"] for item in fields(run(*args))["items"]] == ["smollm2-135m-instruct", "a"]


def test_the_catalogue_says_what_could_be_fetched_and_what_that_allows(run: Run) -> None:
    """Sizes are marked as about so much."""
    lines = ok(run("list", "--catalogue")).splitlines()
    (line,) = [line for line in lines if line.startswith("qwen2.5-3b-instruct")]
    assert "about 1.9 GB" in line
    assert "Qwen Research License" in line
    assert {item["commercial"] for item in fields(run("list", "--catalogue", "--json"))["items"]} == {"yes", "no", "conditions"}


def test_show_tells_all_that_is_known(run: Run) -> None:
    """Card, metadata, chat template, and whether it fits."""
    shown = fields(run("show", "smollm2-135m-instruct", "--json"))
    assert (shown["chat_template"], shown["fits"], shown["layers"], shown["metadata"]["llama.vocab_size"]) == (True, True, 30, 49152)
    assert shown["memory_bytes"] < shown["memory_budget_bytes"]
    text = ok(run("show", "smollm2-135m-instruct"))
    assert "chat template    yes" in text
    assert "general.organization = HuggingFaceTB" in text


def test_show_knows_the_catalogue_and_says_what_it_does_not_know(run: Run) -> None:
    """With the command that fetches it."""
    assert "readingroom models pull llama-3.2-1b-instruct" in ok(run("show", "llama3.2:1b"))
    assert fields(run("show", "llama3.2:1b", "--json"))["installed"] is False
    status, out, err = run("show", "nope")
    assert (status, out) == (1, "")
    assert "smollm2-135m-instruct" in err


def test_nothing_that_a_file_says_reaches_the_terminal_as_a_command(run: Run, tmp_path: Path) -> None:
    """A header, a licence and a name may hold control characters: shown are question marks."""
    text = ok(run("add", write(tmp_path / "a\x1b[2Jb.gguf", general__organization="evil\x1b]0;title\x07", general__license="x\x1b[31m")))
    (tmp_path / "data" / "models" / "a-2jb" / "LICENSE").write_text("one\ntwo\x1b[8m\n")
    text += ok(run("list")) + ok(run("show", "a\x1b[2jb")) + ok(run("add", tmp_path, "--dry-run"))
    assert "evil?]0;title?" in text
    assert "\none\ntwo?[8m\n" in text
    assert not [c for c in text if not c.isprintable() and c != "\n"]


def test_a_file_is_added_in_place_or_copied(run: Run, tmp_path: Path) -> None:
    """What is said of it: format, licence, the sha256 that nobody vouched for."""
    path = write(tmp_path / "a.gguf")
    text = ok(run("add", path))
    assert "Licence: Apache-2.0. Commercial use: allowed." in text
    assert "Nobody said beforehand" in text
    (copied,) = fields(run("add", path, "--copy", "--name", "b", "--json"))["added"]
    assert (copied["name"], copied["in_place"]) == ("b", False)
    without = write(tmp_path / "base.gguf", tokenizer__chat_template=None)
    assert "no chat template" in ok(run("add", without))


@pytest.mark.parametrize("args", [(), ("a.gguf", "--from-ollama"), ("nope.gguf",), (".", "--name", "x")])
def test_add_says_what_it_needs(run: Run, args: tuple[str, ...]) -> None:
    """One thing, that is there."""
    status, _, err = run("add", *args)
    assert status == 1
    assert err.startswith("readingroom: ")


def test_the_models_of_a_neighbour_are_added_in_place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All, or those that are named; a second time they are there already; nothing is copied."""
    folder = tmp_path / "ollama"
    blob = build()
    for name in ("one", "two"):
        ollama(folder, name, "latest", blob + name.encode())
    ollama(folder, "embed", "latest", build({"general.architecture": "bert"}))
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    assert [item["name"] for item in fields(run("add", "--from-ollama", "--dry-run", "--json"))["found"]] == ["one", "two"]
    assert len(fields(run("list", "--json"))["items"]) == 1
    assert [item["name"] for item in fields(run("add", "--from-ollama", "--only", "two", "--json"))["added"]] == ["two"]
    text = ok(run("add", folder))
    assert [line.split(maxsplit=1) for line in text.splitlines()] == [
        ["embed", "left out: makes vectors, not text"],
        ["one", "added"],
        ["two", "left out: There is a model 'two' already."],
    ]
    assert run("add", folder, "--only", "embed")[0] == 1
    assert "has no model nope" in run("add", folder, "--only", "nope")[2]
    assert not list((tmp_path / "data").rglob("*.gguf"))
    studio = tmp_path / "studio" / "publisher" / "repo" / "chat.gguf"
    write(studio)
    assert [item["path"] for item in fields(run("add", "--from-lmstudio", tmp_path / "studio", "--json"))["added"]] == [str(studio)]


def test_a_model_is_pulled_and_its_licence_is_said_first(run: Run) -> None:
    """On stderr before the download, on stdout with the result."""
    with Registry() as registry:
        registry.model("library/llama3.2", "1b", build())
        status, out, err = run("pull", "llama3.2:1b", "--registry", registry.url)
        assert status == 0
        assert "Commercial use: on conditions. Allowed below 700 million" in err
        assert out.startswith("llama3.2:1b is here: 1 kB, Q8_0, 512 tokens of context.")
        assert out.endswith("Answer with it: readingroom models use llama3.2:1b\n")
        assert fields(run("pull", "llama3.2:1b", "--registry", registry.url, "--json"))["sha256_from"] == "registry"
        registry.files["/a.gguf"] = Served(build())
        assert "Nobody said beforehand" in ok(run("pull", f"{registry.url}/a.gguf"))


def test_a_pull_that_fails_ends_with_1_and_the_remedy(run: Run) -> None:
    """For people and for programs."""
    with Registry() as registry:
        status, out, err = run("pull", "none", "--registry", registry.url)
        assert (status, out) == (1, "")
        assert "has no model 'none'" in err
        assert json.loads(run("pull", "none", "--registry", registry.url, "--json")[1])["error"]["code"] == "unknown_model"


def test_a_model_is_removed_but_not_the_one_that_answers(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its own place stays, and its path is said."""
    path = write(tmp_path / "a.gguf")
    ok(run("add", path))
    monkeypatch.setenv("READINGROOM_ENGINE__MODEL", "a")
    assert "engine.model" in run("remove", "a")[2]
    assert "package" in run("remove", "smollm2-135m-instruct")[2]
    monkeypatch.delenv("READINGROOM_ENGINE__MODEL")
    assert str(path) in ok(run("remove", "a"))
    assert path.is_file()
    assert run("remove", "a")[0] == 1


def test_use_writes_the_settings_and_keeps_the_rest_of_them(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In readingroom.toml, or in the file that --config names; a variable that goes before it is said."""
    ok(run("add", write(tmp_path / "a.gguf"), "--name", "Mine:1b"))
    toml = Path("readingroom.toml")
    toml.write_text('# my settings\n[engine]\nmodel = "smollm2-135m-instruct"  # small\nqueue = 7\n')
    ok(run("use", "mine-1b"))
    assert toml.read_text() == '# my settings\n[engine]\nmodel = "Mine:1b"  # small\nqueue = 7\n'
    assert load(env={}).engine.model == "Mine:1b"
    other = tmp_path / "other.toml"
    other.write_text("")
    monkeypatch.setenv("READINGROOM_ENGINE__MODEL", "smollm2-135m-instruct")
    assert "READINGROOM_ENGINE__MODEL is set" in ok(run("use", "Mine:1b", "--config", other))
    assert load(other, env={}).engine.model == "Mine:1b"


def test_use_of_what_is_not_there_or_damaged_changes_nothing(run: Run, tmp_path: Path) -> None:
    """It is checked before it is written down."""
    path = write(tmp_path / "a.gguf", body=b"1")
    ok(run("add", path))
    path.write_bytes(path.read_bytes()[:-1] + b"2")
    assert run("use", "nope")[0] == run("use", "a")[0] == 1
    assert not Path("readingroom.toml").exists()


def test_verify_hashes_always_and_names_the_damaged(run: Run, tmp_path: Path) -> None:
    """Exit 1 if one of them is."""
    good, bad = write(tmp_path / "good.gguf"), write(tmp_path / "bad.gguf", body=b"1")
    for path in (good, bad):
        ok(run("add", path))
    assert [check["ok"] for check in fields(run("verify", "--json"))["checks"]] == [True] * 3
    stat = bad.stat()
    bad.write_bytes(bad.read_bytes()[:-1] + b"2")
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # so that it looks as it was
    status, out, _ = run("verify")
    assert status == 1
    assert "bad.gguf of bad is damaged" in out
    ok(run("verify", "good"))
    assert run("verify", "bad")[0] == 1


@pytest.mark.timeout(900)  # it loads the model four times and measures: four minutes on two cores with a load of 18
def test_requantize_makes_a_copy_once_and_says_what_it_brings(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model's Q4_1 becomes Q8_0, where the engine looks for it; a format that is read fast is left."""
    monkeypatch.setattr(command, "_ROUNDS", 1)
    monkeypatch.setattr(command, "_SECONDS", 0.001)  # one reading each
    first = fields(run("requantize", "smollm2-135m-instruct", "--json"))
    made = Path(first["path"])
    default = models.locate("smollm2-135m-instruct", "generator")
    assert made == models.requantized(default, tmp_path / "data")
    assert models.details(made).quantization == "Q8_0"
    assert first["prefill_before"] > 0
    assert first["prefill_after"] > 0
    before = made.stat().st_mtime_ns
    again = ok(run("requantize", "smollm2-135m-instruct"))
    assert "was there already" in again
    assert "times as fast here" in again
    assert made.stat().st_mtime_ns == before
    ok(run("add", made, "--name", "eight"))
    assert "Q8_0 is read fast as it is" in ok(run("requantize", "eight"))


# Beside a running server.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of our own, since its model changes."""
    server = Server(tmp_path_factory.mktemp("models-served"), ENGINE__SEQUENCES="2", ENGINE__CONTEXT_TOKENS="1024")
    (server.corpora / "tea").mkdir()
    (server.corpora / "tea" / "tea.md").write_text("# Tea\n\nGreen tea is brewed at eighty degrees.\n")
    try:
        server.start()
        wait_until(lambda: server.record("tea/tea.md"), 90)
        yield server
        assert server.stop() == 0
    finally:
        if server.process is not None:
            server.stop(kill=True)
    assert not server.network_log.exists(), server.network_log.read_text()


def test_a_running_server_changes_over_and_says_so(server: Server) -> None:
    """Without a restart: the next answer comes from the new model, also while answers of the old one are read."""
    file = models.locate("smollm2-135m-instruct", "generator").path
    done = server.run("models", "add", str(file), "--name", "second")
    assert done.returncode == 0, done.stderr
    question = {"question": "At how many degrees is green tea brewed?", "max_tokens": 8}
    with server.client() as client:
        listed = client.get("/rag/models").json()
        assert [(item["name"], item["default"], item["loaded"]) for item in listed["items"]] == [
            ("smollm2-135m-instruct", True, True),
            ("second", False, False),
        ]
        with client.stream("POST", "/rag/ask", json={**question, "max_tokens": 200}) as running:
            lines = running.iter_lines()
            next(lines)
            done = server.run("models", "use", "second", "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["server"] == server.url
            assert '"model":"smollm2-135m-instruct"' in [line for line in lines if '"answer"' in line][-1].replace('": "', '":"')
        assert client.post("/rag/ask", json={**question, "stream": False}).json()["model"] == "second"
        named = client.post("/rag/ask", json={**question, "stream": False, "model": "smollm2-135m-instruct"}).json()
        assert named["model"] == "smollm2-135m-instruct"
        listed = client.get("/rag/models").json()
        assert [(item["name"], item["default"]) for item in listed["items"]] == [("second", True), ("smollm2-135m-instruct", False)]
        assert client.get("/ready").json()["model"] == "second"
    assert (server.folder / "readingroom.toml").read_text() == '[engine]\nmodel = "second"\n'


def test_what_the_server_cannot_load_is_not_written_down(server: Server, tmp_path: Path) -> None:
    """Neither there nor in the settings: the old model goes on answering."""
    before = server.folder / "readingroom.toml"
    text = before.read_text() if before.exists() else None
    done = server.run("models", "add", str(write(tmp_path / "no-model.gguf")))
    assert done.returncode == 0, done.stderr
    done = server.run("models", "use", "no-model")
    assert done.returncode == 1
    assert "Nothing was changed" in done.stderr
    assert (before.read_text() if before.exists() else None) == text
    with server.client() as client:
        assert client.get("/ready").status_code == 200
        unknown = client.post("/rag/models/use", json={"name": "nope"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")
    shutil.rmtree(server.data_dir / "models" / "no-model")
