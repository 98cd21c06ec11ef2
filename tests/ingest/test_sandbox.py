"""The parser process: bad files end as `failed` in bounded time and memory, and never take the next file with them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ingest.sandbox import Interrupted, Sandbox
from rag.errors import Broken, ParseFailed
from rag.settings import Ingest
from tests.conftest import wait_until

GOOD = "# Good\n\nStill here.\n"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    opened = Sandbox(Ingest())
    yield opened
    opened.close()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def code_of(sandbox: Sandbox, path: Path) -> str:
    with pytest.raises(ParseFailed) as caught:
        sandbox.parse(path)
    assert caught.value.message
    assert caught.value.remedy
    return caught.value.code


def test_one_warm_child_reads_file_after_file(sandbox, tmp_path):
    for i in range(3):
        parsed, _ = sandbox.parse(write(tmp_path / f"{i}.md", GOOD + str(i)))
        assert parsed.text == GOOD + str(i)
        assert parsed.title == "Good"
    pid = sandbox.pid
    sandbox.parse(write(tmp_path / "n.md", GOOD))
    assert sandbox.pid == pid
    assert sandbox.restarts == 0


@pytest.mark.parametrize("error", [BlockingIOError(errno.EAGAIN, "no process"), FileNotFoundError(errno.ENOENT, "no Python")])
def test_no_file_is_to_blame_when_no_process_can_be_started(sandbox, tmp_path, monkeypatch, error):
    """As an `OSError` it would be taken for the file's: a good document would fail, or seem gone."""

    def refuse(*args, **kwargs):
        raise error

    file = write(tmp_path / "a.md", GOOD)
    with monkeypatch.context() as short:
        short.setattr(subprocess, "Popen", refuse)
        with pytest.raises(Broken):
            sandbox.parse(file)
    assert sandbox.parse(file)[0].text == GOOD


def test_a_child_that_reads_text_does_not_load_unstructured(sandbox, tmp_path):
    sandbox.parse(write(tmp_path / "a.md", GOOD))
    maps = Path(f"/proc/{sandbox.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert "numpy" not in maps.read_text()
    assert "lxml" not in maps.read_text()


def test_a_file_that_takes_too_long_is_stopped_and_the_next_is_read(tmp_path):
    sandbox = Sandbox(Ingest(parse_timeout_s=0.05))  # importing the HTML reader alone takes longer
    try:
        started = time.monotonic()
        assert code_of(sandbox, write(tmp_path / "a.html", "<p>x</p>" * 100_000)) == "timed_out"
        assert time.monotonic() - started < 30  # not the default's 45
        sandbox._settings = Ingest()
        assert sandbox.parse(write(tmp_path / "a.md", GOOD))[0].text == GOOD
    finally:
        sandbox.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_a_file_that_takes_too_much_memory_is_said_so_and_the_next_is_read(tmp_path):
    sandbox = Sandbox(Ingest(parse_memory_mb=512))
    try:
        assert code_of(sandbox, write(tmp_path / "a.txt", b"some words\n\n" * 2_500_000)) == "out_of_memory"
        assert sandbox.parse(write(tmp_path / "a.md", GOOD))[0].text == GOOD
    finally:
        sandbox.close()


def test_a_killed_child_costs_nothing_but_a_restart(sandbox, tmp_path):
    file = write(tmp_path / "a.md", GOOD)
    sandbox.parse(file)
    os.kill(sandbox.pid, signal.SIGKILL)
    assert sandbox.parse(file)[0].text == GOOD


def test_closing_in_the_middle_of_a_file_interrupts_it(tmp_path):
    sandbox = Sandbox(Ingest())
    sandbox.warm()
    outcome: list[BaseException] = []

    def read() -> None:
        try:
            sandbox.parse(write(tmp_path / "a.html", "<div><p>word</p>" * 200_000))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: sandbox._last is not None and sandbox._last.files)
    started = time.monotonic()
    sandbox.close()
    thread.join(60)
    assert isinstance(outcome[0], Interrupted)
    assert time.monotonic() - started < 30


def test_the_child_has_no_network_no_files_to_write_and_none_of_our_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("READINGROOM_SERVER__KEY", "secret")
    program = """
import os, socket, sys, tempfile, subprocess
from ingest import child
child._limit(2048)
sys.addaudithook(child._guard)
def refused(what):
    try:
        what()
    except OSError:
        return True
    return False
assert refused(lambda: socket.create_connection(("127.0.0.1", 9)))
assert refused(lambda: socket.getaddrinfo("example.org", 80))
assert refused(lambda: subprocess.run(["true"]))
written = os.path.join(sys.argv[1], "x")
assert refused(lambda: open(written, "w").write("x" * 10)) or os.path.getsize(written) == 0
from ingest import programs
with programs.scratch() as folder:
    (folder / "page.png").write_bytes(b"x" * 10)
    assert (folder / "page.png").read_bytes() == b"x" * 10
assert not folder.exists()
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    sandbox = Sandbox(Ingest())
    try:
        sandbox.warm()
        environ = Path(f"/proc/{sandbox.pid}/environ")
        if environ.exists():
            assert b"READINGROOM" not in environ.read_bytes()
    finally:
        sandbox.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has network namespaces")
def test_the_child_and_what_it_starts_are_in_a_network_of_their_own(sandbox):
    """Not by Python's own means, which a program in C would not ask."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode and subprocess.run(["unshare", "-rn", "true"]).returncode:
        pytest.skip("this system lets us make no network namespace")
    sandbox.warm()
    assert os.readlink(f"/proc/{sandbox.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def test_a_file_saved_while_a_long_one_is_read_does_not_wait_for_it(sandbox, tmp_path):
    """Each read has a process for itself; one that is given up in the middle is not used again."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(3):
            file.writestr(f"{i}.md", GOOD)
    long = sandbox.read(archive)
    assert next(long).path == ""
    busy = sandbox.pid
    assert sandbox.parse(write(tmp_path / "b.md", GOOD))[0].text == GOOD
    assert sandbox.pid != busy
    assert [entry.path for entry in long] == ["0.md", "1.md", "2.md"]
    given_up = sandbox.read(archive)
    next(given_up)
    busy = sandbox.pid
    given_up.close()
    assert busy not in [child.pid for child in sandbox._children]


def test_a_spare_stands_by_and_takes_over(tmp_path):
    sandbox = Sandbox(Ingest(), tmp_path / "scratch", spare=True)
    try:
        file = write(tmp_path / "a.md", GOOD)
        sandbox.parse(file)
        first = sandbox.pid
        wait_until(lambda: len(sandbox._idle) == 2)
        os.kill(first, signal.SIGKILL)
        sandbox.parse(file)
        assert sandbox.pid != first
        wait_until(lambda: len(sandbox._idle) == 2)
    finally:
        sandbox.close()
    assert not (tmp_path / "scratch").exists()


def test_what_a_killed_reader_started_is_killed_with_it(tmp_path, monkeypatch):
    """A program that hangs is stopped with its children, by the time limit of the parser."""
    bin = tmp_path / "bin"
    bin.mkdir()
    script = write(bin / "tesseract", f"#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/pid; wait\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    sandbox = Sandbox(Ingest(parse_timeout_s=2))
    try:
        picture = io.BytesIO()
        Image.new("RGB", (200, 80), "white").save(picture, "PNG")
        assert code_of(sandbox, write(tmp_path / "a.png", picture.getvalue())) == "timed_out"
        pid = int((tmp_path / "pid").read_text())
        wait_until(lambda: _gone(pid), 5)
        assert sandbox.parse(write(tmp_path / "a.md", GOOD))[0].text == GOOD
    finally:
        sandbox.close()


def test_the_child_dies_with_its_parent():
    program = "import os; from ingest.sandbox import Sandbox; from rag.settings import Ingest\n"
    program += "s = Sandbox(Ingest()); s.warm(); print(s.pid, flush=True); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    wait_until(lambda: _gone(pid), 5)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_link_put_in_place_of_the_file_is_not_followed(sandbox, tmp_path):
    secret = write(tmp_path / "secret.txt", "secret")
    link = tmp_path / "a.txt"
    link.symlink_to(secret)
    assert code_of(sandbox, link) == "unreadable"


def test_hostile_files_end_in_bounded_time_and_the_sandbox_goes_on(sandbox, shared, tmp_path):
    # Every eighth of the fuzzed and malformed PDFs, and all XML attacks, also under the suffix of a parsed format.
    pdfs = sorted((shared / "bad").rglob("*.pdf"))[::8]
    attacks = sorted((shared / "bad/xml").iterdir())
    disguised = [write(tmp_path / f"{path.stem}.html", path.read_bytes()) for path in attacks]
    slowest = 0.0
    for path in [*pdfs, *attacks, *disguised]:
        started = time.monotonic()
        with contextlib.suppress(ParseFailed):  # some of them can be read after all
            assert len(sandbox.parse(path)[0].text) < 10_000_000
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 60  # a parser that gets no further is stopped after 45
    assert sandbox.parse(write(tmp_path / "a.md", GOOD))[0].text == GOOD
