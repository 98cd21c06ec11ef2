"""Ephemeral runs: nothing is left of them, however they end, and the data directory is as it was to the byte."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag.settings import Encryption, Settings
from server import ephemeral as module
from server.ephemeral import ephemeral, in_memory, running, sweep
from server.keys import FILE, Keys
from tests.conftest import ROOT, wait_until
from tests.server.conftest import Served, events

RUN = """
import signal, sys
from pathlib import Path
from rag.settings import Settings
from server import ephemeral as module
module._bases = lambda: [Path(sys.argv[1])]
with module.ephemeral(Settings(data_dir=Path(sys.argv[2]), corpora=Path(sys.argv[3]))) as inside:
    (inside.data_dir / "conversations.db").write_text("a secret")
    print(inside.data_dir, flush=True)
    while True:
        signal.pause()
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs of this test are, and no other ones."""
    (tmp_path / "base").mkdir()
    monkeypatch.setattr(module, "_bases", lambda: [tmp_path / "base"])
    return tmp_path / "base"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a data directory with a model, an adapter, a key, and the log of a database that was not closed."""
    data_dir = tmp_path / "data"
    for path, content in {
        "models/gguf/card.toml": "name",
        "models/default-Q8_0.gguf": "weights",
        "models/.half.part/weights": "half of them",
        "adapters/mine/adapter.gguf": "weights",
        "ledger.db": "as it was",
        "store/current": "as it was",
    }.items():
        (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / path).write_text(content)
    keys = Keys(data_dir / FILE)
    keys.create("mine")
    log = (data_dir / f"{FILE}-wal").read_bytes()
    keys.close()
    (data_dir / f"{FILE}-wal").write_bytes(log)
    return Settings(data_dir=data_dir, corpora=tmp_path / "corpora", encryption=Encryption(key="a key for nothing"))


def state(folder: Path) -> dict[str, Any]:
    """Names, bytes and times of everything in a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@contextlib.contextmanager
def process(base: Path, settings: Settings) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """An ephemeral run in a process of its own, and its data directory."""
    command = [sys.executable, "-c", RUN, str(base), str(settings.data_dir), str(settings.corpora)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        try:
            yield run, Path(run.stdout.readline().strip())
        finally:
            run.kill()


def test_a_run_is_private_knows_models_and_keys_and_changes_nothing(base: Path, settings: Settings) -> None:
    """Also where it takes a model away, or replaces one: it has links of its own."""
    before = state(settings.data_dir)
    place = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with ephemeral(settings) as inside:
        folder = inside.data_dir.parent
        assert folder.parent == base
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (inside.data_dir / "models/default-Q8_0.gguf").read_text() == "weights"
        assert (inside.data_dir / "adapters/mine/adapter.gguf").read_text() == "weights"
        assert not list((inside.data_dir / "models").glob(".*"))
        keys = Keys(inside.data_dir / FILE)
        assert [key.name for key in keys.all()] == ["mine"]
        keys.create("of this run")
        keys.close()
        (inside.data_dir / "models/default-Q8_0.gguf").unlink()
        assert inside.encryption == Encryption()  # nothing of the data directory was encrypted
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent == folder / "tmp"
        assert subprocess.check_output([sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"], text=True).strip() == str(
            folder / "tmp"
        )
    assert not list(base.iterdir())
    assert state(settings.data_dir) == before
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == place


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_and_its_folder(base: Path, settings: Settings, number: signal.Signals) -> None:
    """Before the server listens, too, which has its own ways of ending."""
    with process(base, settings) as (run, data_dir):
        assert data_dir.is_dir()
        run.send_signal(number)
        assert run.wait(120) != 0
    assert not list(base.iterdir())


def test_what_a_killed_run_left_is_removed_by_the_next_one_and_what_lives_is_not(base: Path, settings: Settings) -> None:
    """Only the folders of runs that have ended, of this user, with our mark."""
    with process(base, settings) as (live, alive), process(base, settings) as (killed, dead):
        assert running(settings) in (alive, dead)
        killed.kill()
        killed.wait()
        assert dead.is_dir()
        assert running(settings) == alive
        foreign = [base / f"{module._NAME}unmarked", base / f"{module._NAME}link", base / "other"]
        foreign[0].mkdir()
        foreign[1].symlink_to(settings.data_dir.parent)
        foreign[2].mkdir()
        (foreign[2] / "run.json").write_text("{}")
        with ephemeral(settings) as inside:
            assert inside.data_dir not in (alive, dead)
            assert not dead.parent.exists()
            assert alive.is_dir()
            assert sweep(base) == 0
        live.terminate()
        live.wait()
    assert sorted(base.iterdir()) == sorted(foreign)
    assert running(settings) is None


def test_of_other_data_directories_and_other_users_a_run_is_none(
    base: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command asks no server that another one planted where everybody may write."""
    with ephemeral(settings):
        assert running(settings) is not None
        assert running(Settings(data_dir=tmp_path / "another", corpora=settings.corpora)) is None
        assert running(Settings(data_dir=settings.data_dir, corpora=tmp_path / "another")) is None
        monkeypatch.setattr(os, "getuid", lambda: 4321)
        assert running(settings) is None
        assert sweep(base) == 0
        monkeypatch.undo()


def test_memory_is_told_from_disk(tmp_path: Path) -> None:
    """By the mounts: what is said of where a run lies has to be true."""
    if not Path("/proc/self/mounts").exists():
        pytest.skip("the mounts are not to be read here")
    kinds = {line.split()[1]: line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    assert not in_memory(Path("/proc"))
    if kinds.get("/dev/shm") == "tmpfs":
        assert in_memory(Path("/dev/shm"))
        assert in_memory(Path("/dev/shm/not/there/yet"))


def test_without_room_in_memory_a_run_is_on_disk(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's /dev/shm has 64 MB; an index that fills it would end the answers."""
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "_bases", lambda: [tmp_path / "memory", tmp_path / "disk"])
    monkeypatch.setattr(module, "_ROOM", 1)
    with ephemeral(settings) as inside:
        assert inside.data_dir.is_relative_to(tmp_path / "memory")
    monkeypatch.setattr(module, "_ROOM", 1 << 60)
    with ephemeral(settings) as inside:
        assert inside.data_dir.is_relative_to(tmp_path / "disk")


def test_a_server_that_is_ephemeral_answers_and_leaves_nothing(tmp_path: Path) -> None:
    """Asked, with its conversation, by HTTP and by a command beside it; stopped, there is no trace of it."""
    served = Served(tmp_path / "room", EPHEMERAL="true")
    (served.corpora / "zoo").mkdir()
    (served.corpora / "zoo" / "hours.txt").write_text("The zebraquagga house opens at nine in the morning, on every day of the week.")
    served.data_dir.mkdir()
    (served.data_dir / "conversations.db").write_bytes(b"as it was")
    before = state(served.folder / "data"), state(served.corpora)
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0"]
    with served.log.open("wb") as log, subprocess.Popen(command, env=served.env, cwd=served.folder, stderr=log, stdout=log) as process:
        try:
            found = wait_until(lambda: re.search(r"is at (http://\S+)", served.log.read_text()) or process.poll() is not None, 60)
            assert process.poll() is None, served.log.read_text()
            run = running(Settings(data_dir=served.data_dir, corpora=served.corpora))
            assert run is not None
            assert f"{run.parent} ({'memory' if in_memory(run) else 'on disk'}" in served.log.read_text()
            with httpx.Client(base_url=found[1], timeout=120, trust_env=False) as client:
                wait_until(lambda: client.get("/ready").status_code == 200, 90, served.log.read_text())
                asked = {"question": "When does the zebraquagga house open?", "conversation_id": "new", "max_tokens": 24}
                wait_until(lambda: client.get("/rag/domains").json()["items"][0]["documents"].get("indexed") == 1, 60)
                with client.stream("POST", "/rag/ask", json=asked) as response:
                    done = dict(events(response))["done"]
                assert done["conversation_id"]
                assert client.get("/rag/conversations").json()["items"]
            beside = served.run("search", "zebraquagga", "--json")
            assert [passage["path"] for passage in json.loads(beside.stdout)["passages"]] == ["zoo/hours.txt"]
            assert any(b"zebraquagga" in path.read_bytes() for path in run.rglob("*") if path.is_file())
            process.terminate()
            assert process.wait(120) == 0
        finally:
            process.kill()
    assert not run.parent.exists()
    assert (state(served.folder / "data"), state(served.corpora)) == before
    assert sorted(path.name for path in served.folder.iterdir()) == ["corpora", "data", "server.log"]
    assert "zebraquagga" not in served.log.read_text()
