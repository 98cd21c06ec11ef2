"""Encryption from end to end: a server with a key, what its files and its log say, and the commands around it."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rag import seal
from rag.conversations import Conversations
from rag.seal import unlock
from rag.settings import Encryption, Settings
from server.audit import set_by_hand
from server.cli import main
from server.keys import FILE, Keys, any_keys
from server.lock import DataDirLock
from tests.conftest import wait_until
from tests.server.conftest import Served, events

KEY, NEW = "correct horse battery staple", "quite another long key"
SECRETS = {
    "text": "zebraquagga",
    "deleted": "dikdikkudu",
    "heading": "ibexlynx",
    "path": "okapitapir",
    "question": "elandsable",
    "reason": "gerenukgaur",
    "title": "bongobushbuck",
}
ZOO = """# Ibexlynx rules

The zebraquagga house opens at nine in the morning, on every day of the week. It closes at five in the afternoon.
"""


def said_in(folder: Path) -> dict[str, set[str]]:
    """Which of the secrets stand in which files, letter case aside: as they are, in UTF-16, or in something that zlib unpacks."""
    wanted = re.compile(b"|".join(word.encode(code) for word in SECRETS.values() for code in ("utf-8", "utf-16-le")), re.IGNORECASE)
    names = {word: name for name, word in SECRETS.items()}
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_relative_to(folder / "models"):
            for piece in pieces(path):
                for hit in wanted.findall(piece):
                    found.setdefault(names[hit.replace(b"\0", b"").decode().lower()], set()).add(path.relative_to(folder).parts[0])
    return found


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        content = b"".join(block for block in iter(lambda: file.read(1 << 16), b"") if block.count(0) < len(block))
    yield content
    for head in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", content):
        try:
            yield zlib.decompressobj().decompress(content[head.start() :], 1 << 20)
        except zlib.error:
            continue


def test_with_a_key_no_file_and_no_log_says_a_word_of_documents_questions_and_answers(tmp_path: Path) -> None:
    """While it runs, after a delete, and after the stop; with other keys nothing opens; in clear again the same search finds them all."""
    served = Served(tmp_path, ENCRYPTION__KEY=KEY)
    (served.corpora / "zoo").mkdir()
    for suffix in ("json", "toml", "yaml", "csv", "xml", "ipynb", "eml", "docx"):  # why these fail or not, their text is no part of it
        (served.corpora / "zoo" / f"broken.{suffix}").write_bytes(b'{"zebraquagga: [<\xff\xfe "zebraquagga"')
    try:
        served.start()
        served.save("zoo/okapitapir.md", ZOO)
        gone = served.save("zoo/gone.txt", "The dikdikkudu house is closed for ever.")
        with served.client() as client:
            asked = {"question": "When does the zebraquagga house of elandsable open?", "conversation_id": "new", "max_tokens": 24}
            with client.stream("POST", "/rag/ask", json=asked) as response:
                done = dict(events(response))["done"]
            place = f"/rag/conversations/{done['conversation_id']}"
            assert client.post(f"{place}/turns/1/feedback", json={"thumb": "up", "reason": "gerenukgaur"}).is_success
            assert client.post(place, json={"title": "bongobushbuck"}).is_success
            assert said_in(served.data_dir) == {}
            assert client.delete(f"/rag/documents/{gone['id']}").json()["remaining"] == 0
            wait_until(lambda: client.get("/ready").json()["ingest"]["unforgotten"] == 0, 60, "the rewriting")
            assert said_in(served.data_dir) == {}
            found = client.post("/rag/search", json={"question": "zebraquagga", "limit": 20}).json()["passages"]
            assert any("opens at nine" in passage["text"] for passage in found if passage["path"] == "zoo/okapitapir.md")
        assert served.stop() == 0
    finally:
        if served.process is not None:
            served.stop(kill=True)
    assert said_in(served.data_dir) == {}
    log = served.log.read_text().lower()
    assert "broken.docx" in log
    assert not [word for word in (*SECRETS.values(), KEY) if word in log]

    def command(key: str, *words: str) -> tuple[int, str]:
        served._settings["ENCRYPTION__KEY"] = key
        ran = served.run("privacy", *words)
        return ran.returncode, ran.stdout + ran.stderr

    for key, told in (("", "no key is given"), (NEW, "not the one")):
        served._settings["ENCRYPTION__KEY"] = key
        refused = served.run("serve", "--port", "0")
        assert (refused.returncode, told in refused.stderr, "READINGROOM_ENCRYPTION__KEY" in refused.stderr) == (1, True, True)
    file = tmp_path / "new-key"
    file.touch(0o600)
    file.write_text(NEW)
    assert command(KEY, "rekey", "--new-key-file", str(file), "--json")[0] == 0
    assert command(KEY, "export")[0] == 1
    status, exported = command(NEW, "export")
    assert status == 0 and json.loads(exported)["conversations"][0]["title"] == "bongobushbuck"
    assert said_in(served.data_dir) == {}
    assert command(NEW, "decrypt", "--json")[0] == 0
    everywhere = said_in(served.data_dir)
    assert everywhere.keys() == SECRETS.keys() - {"deleted"}
    assert everywhere["text"] == {"ledger.db", "conversations.db", "store"}
    assert everywhere["question"] == {"conversations.db"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """With one conversation, in clear."""
    conversations = Conversations(tmp_path / "data" / "conversations.db")
    conversations.create("", "Where is elandsable?")
    conversations.close()
    return tmp_path / "data"


def shown(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["privacy", "show", "--json", "--data-dir", str(data_dir)]) == 0
    return json.loads(capsys.readouterr().out)


def test_show_says_what_is_there_and_whether_it_is_encrypted(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By looking: before, after, and without the key, which whose conversations there are needs."""
    assert shown(data_dir, capsys)["encrypted"] is False
    assert [(one["name"], one["encrypted"]) for one in shown(data_dir, capsys)["files"]] == [("conversations.db", False)]
    monkeypatch.setenv("READINGROOM_ENCRYPTION__KEY", KEY)
    assert main(["privacy", "show", "--data-dir", str(data_dir)]) == 1  # a key, and nothing that it opens
    assert "privacy encrypt" in capsys.readouterr().err
    assert main(["privacy", "encrypt", "--data-dir", str(data_dir)]) == 0
    assert "Keep the key" in capsys.readouterr().out
    found = shown(data_dir, capsys)
    assert (found["encrypted"], found["items"][0]["conversations"]) == (True, 1)
    assert [(one["name"], one["encrypted"]) for one in found["files"]] == [("conversations.db", True)]
    assert main(["privacy", "show", "--data-dir", str(data_dir)]) == 0
    assert "encrypted  questions, answers" in capsys.readouterr().out
    monkeypatch.delenv("READINGROOM_ENCRYPTION__KEY")
    assert shown(data_dir, capsys)["items"] is None
    assert main(["privacy", "show", "--data-dir", str(data_dir)]) == 0
    assert "cannot be read" in capsys.readouterr().out


def test_show_goes_on_while_a_server_writes_its_index_anew(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that it has just seen goes."""
    for name in ("shard-old", "shard-new"):
        (data_dir / "store" / name / "deep").mkdir(parents=True)
        (data_dir / "store" / name / "points").write_text("x")
    scandir, gone = os.scandir, list[Path]()

    def rewritten(path: Any = ".") -> Any:
        if isinstance(path, str | Path) and Path(path).name == "shard-old" and not gone:
            gone.append(Path(path))
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", rewritten)
    assert [one["name"] for one in shown(data_dir, capsys)["files"]] == ["conversations.db", "store"]
    assert gone


@pytest.mark.parametrize("action", [["encrypt"], ["decrypt"], ["rekey", "--new-key-file", "nowhere"]])
def test_without_a_key_nothing_is_written_anew(data_dir: Path, action: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And the settings that take it are named."""
    before = (data_dir / "conversations.db").read_bytes()
    assert main(["privacy", *action, "--data-dir", str(data_dir)]) == 1
    assert "READINGROOM_ENCRYPTION__KEY" in capsys.readouterr().err
    assert (data_dir / "conversations.db").read_bytes() == before


def test_another_key_that_is_in_the_settings_already_ends_what_was_cut_short(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who put it there when the command was killed can go on all the same; without a change that was begun it is a mistake."""
    rekey = ["privacy", "rekey", "--new-key-file", str(tmp_path / "new"), "--data-dir", str(data_dir)]
    (tmp_path / "new").touch(0o600)
    (tmp_path / "new").write_text(NEW)
    monkeypatch.setenv("READINGROOM_ENCRYPTION__KEY", KEY)
    assert main(["privacy", "encrypt", "--data-dir", str(data_dir)]) == 0
    seal.write(data_dir, NEW, seal.Ring((*seal.read(data_dir, KEY).keys, seal.new_key()), "rekey"))
    monkeypatch.setenv("READINGROOM_ENCRYPTION__KEY", NEW)
    assert main(rekey) == 0, capsys.readouterr().err
    assert shown(data_dir, capsys)["unfinished"] == ""
    assert main(rekey) == 1
    assert "is the old one" in capsys.readouterr().err


def test_a_data_directory_in_use_is_not_written_anew(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server would go on with files that are no longer there."""
    monkeypatch.setenv("READINGROOM_ENCRYPTION__KEY", KEY)
    lock = DataDirLock(data_dir)
    lock.acquire()
    try:
        assert main(["privacy", "encrypt", "--data-dir", str(data_dir)]) == 1
    finally:
        lock.release()
    assert "in use" in capsys.readouterr().err
    assert not (data_dir / "encryption.json").exists()


def test_a_setting_of_both_kinds_of_key_is_refused(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them was meant is not to be guessed where the wrong one may encrypt everything."""
    monkeypatch.setenv("READINGROOM_ENCRYPTION__KEY", KEY)
    monkeypatch.setenv("READINGROOM_ENCRYPTION__KEY_FILE", "key")
    assert main(["privacy", "encrypt", "--data-dir", str(data_dir)]) == 1
    assert "both set" in capsys.readouterr().err


def test_the_key_is_in_no_line_of_the_audit_log(tmp_path: Path) -> None:
    """Which tells of each start by which settings it was."""
    assert set_by_hand(Settings(encryption=Encryption(key=KEY)))["encryption.key"] == "set"


def test_a_key_that_a_command_makes_in_an_encrypted_file_lets_in_at_once(tmp_path: Path) -> None:
    """As in one in clear: the server sees what others write."""
    settings = Settings(data_dir=tmp_path / "data", encryption=Encryption(key=KEY))
    server, command = (Keys(settings.data_dir / FILE, seal=unlock(settings)) for _ in range(2))
    _, token = command.create("for a program")
    assert server.find(token) is not None
    command.revoke("for a program")
    assert server.find(token) is None
    assert b"for a program" not in (settings.data_dir / f"{FILE}-wal").read_bytes()
    server.close()
    command.close()
    assert any_keys(settings.data_dir, unlock(settings)) is False
