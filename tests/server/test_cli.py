"""The commands: their help, their exit codes, their JSON; beside a running server and without one."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rag.settings import load
from server import doctor
from server.cli import build_parser, main
from tests.conftest import ROOT, golden, wait_until
from tests.server.conftest import Served


def test_help_is_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: every command and flag that people see. (Argparse words it differently from one Python to the next.)"""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the golden help is that of Python 3.11")
    monkeypatch.setenv("COLUMNS", "100")
    parser = build_parser()
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    text = "\n".join([parser.format_help(), *(command.format_help() for command in commands.choices.values())])
    golden("help.txt", text)


def test_help_imports_nothing_heavy() -> None:
    """It must answer in well under half a second, so no model library, web framework or numpy is touched."""
    code = "import sys, server.cli; server.cli.build_parser().format_help(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "numpy", "litestar", "uvicorn", "qdrant_edge", "llama_cpp", "sentence_transformers", "httpx", "msgspec"}


@pytest.mark.parametrize("args", [[], ["fly"], ["ask"], ["serve", "--port", "http"], ["documents", "--status", "lost"]])
def test_wrong_usage_ends_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And says what is wrong on stderr."""
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert "usage: readingroom" in capsys.readouterr().err


def test_a_failure_ends_with_1_and_the_remedy_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback; with --json the same for programs on stdout."""
    missing = str(tmp_path / "none.toml")
    assert main(["domains", "--config", missing]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "none.toml" in captured.err
    assert "--config" in captured.err
    assert main(["domains", "--json", "--config", missing]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid_settings"


def test_serve_refuses_other_addresses_without_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded or opened."""
    assert main(["serve", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "d"), "--corpora", str(tmp_path / "c")]) == 1
    assert "READINGROOM_SERVER__KEY" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_commands_ask_the_server_that_holds_the_data_directory(served: Served) -> None:
    """Each of them, in both output forms."""
    found = served.run("search", "How do I add a domain?", "--domain", "guide", "--limit", "2")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("1. guide/domains.md (")
    passages = json.loads(served.run("search", "--json", "add a domain").stdout)["passages"]
    assert len(passages) == 5
    filtered = served.run("search", "--json", "add a domain", "--path", "guide/h", "--type", "md", "--after", "2000-01-01")
    assert {passage["path"] for passage in json.loads(filtered.stdout)["passages"]} == {"guide/http.md"}
    refused = served.run("search", "add a domain", "--before", "soon")
    assert refused.returncode == 1
    assert "2026-" in refused.stderr
    listed = json.loads(served.run("documents", "--json", "--domain", "guide").stdout)["items"]
    assert {item["status"] for item in listed} == {"indexed"}
    assert "guide/start.md" in served.run("documents").stdout
    assert "guide" in served.run("domains").stdout
    assert json.loads(served.run("ingest", "--json").stdout)["documents"]["guide"]["indexed"] == len(listed)
    answer = served.run("ask", "How do I add a domain?", "--max-tokens", "60")
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.split()) > 5
    done = json.loads(served.run("ask", "--json", "-", input="Who won the football world cup in 2018?").stdout)
    assert done["refused"] is True


def test_errors_of_the_server_reach_the_command(served: Served) -> None:
    """With exit 1, the sentence and the remedy."""
    for args in (("search", "x", "--domain", "nowhere"), ("ask", "x", "--domain", "nowhere"), ("documents", "--domain", "nowhere")):
        ran = served.run(*args)
        assert ran.returncode == 1, args
        assert "nowhere" in ran.stderr
        assert "guide" in ran.stderr
        assert "Traceback" not in ran.stderr
    assert served.run("ask", " ").returncode == 1


def test_a_second_server_on_the_same_data_directory_is_refused(served: Served) -> None:
    """It says which one holds it."""
    ran = served.run("serve", "--port", "0")
    assert ran.returncode == 1
    assert served.url in ran.stderr


def test_a_taken_port_is_said(served: Served, tmp_path: Path) -> None:
    """With what to do."""
    ran = served.run("serve", "--port", served.url.rpartition(":")[2], "--data-dir", str(tmp_path / "other"))
    assert ran.returncode == 1
    assert "--port" in ran.stderr


def test_without_a_server_the_commands_do_the_work_themselves(tmp_path: Path) -> None:
    """Ingest, list, search and ask over a fresh folder; a failed file is listed with its reason."""
    room = Served(tmp_path)
    (room.corpora / "notes").mkdir()
    (room.corpora / "notes" / "tea.md").write_text("# Tea\n\nThe tea is kept in the blue tin on the top shelf.\n")
    (room.corpora / "notes" / "bad.bin.txt").write_bytes(bytes(range(256)))
    ran = room.run("ingest", "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["indexed"], report["failed"]) == (1, 1)
    assert json.loads(room.run("ingest", "--json").stdout)["indexed"] == 0
    assert report["failures"] == {"binary_file": 1}
    ran = room.run("ingest")
    assert ran.stdout.startswith("1 documents indexed (0 new or changed, 0 removed), 1 failed, in ")
    assert "1 binary_file: " in ran.stdout
    assert "    notes/bad.bin.txt\n" in ran.stdout
    listed = room.run("documents", "--status", "failed").stdout
    assert "bad.bin.txt" in listed
    assert "1 indexed" in room.run("domains").stdout
    ran = room.run("ask", "Where is the tea kept?", "--json")
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert done["refused"] is False
    assert done["answer"]
    assert not room.network_log.exists()


def test_ctrl_c_ends_an_ingest_cleanly_and_the_next_one_does_the_rest(tmp_path: Path) -> None:
    """Exit 130 and a sentence, no traceback; nothing is failed for having been interrupted."""
    room = Served(tmp_path, INGEST__BATCH_CHUNKS="8")
    (room.corpora / "notes").mkdir()
    for n in range(200):
        (room.corpora / "notes" / f"{n}.md").write_text(f"# Note {n}\n\nThe number of this note is {n}.\n")
    argv = [sys.executable, "-m", "server.cli", "ingest"]
    with subprocess.Popen(argv, env=room.env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: indexed_in(room) or running.poll() is not None, 120, "the first indexed note")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("Stopped.")
    assert "Traceback" not in err
    before = indexed_in(room)
    assert 0 < before < 200
    report = json.loads(room.run("ingest", "--json").stdout)
    assert report["documents"] == {"notes": {"indexed": 200}}
    assert report["indexed"] <= 200 - before


def indexed_in(room: Served) -> int:
    """Documents that the ledger of a room has as indexed, whoever has it open."""
    try:
        with closing(sqlite3.connect(f"file:{room.data_dir / 'ledger.db'}?mode=ro", uri=True, timeout=10)) as db:
            return int(db.execute("SELECT count(*) FROM documents WHERE status = 'indexed'").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def test_members_are_listed_under_their_mail_with_stage_share_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Indented by depth, with the container's name; the reason and the remedy below; control characters kept off the terminal."""
    plain = {"chunks": 0, "error": None, "container": None, "progress": None}
    error = {"code": "encrypted", "message": "It has a password.", "remedy": "Save it without."}
    items = [
        {**plain, "status": "indexed", "chunks": 4, "path": "post/a.eml"},
        {**plain, "status": "embedding", "path": "post/a.eml/b.zip", "container": "post/a.eml", "progress": 0.437},
        {**plain, "status": "failed", "path": "post/a.eml/b.zip/c.pdf", "container": "post/a.eml/b.zip", "error": error},
        {**plain, "status": "queued", "path": "post/evil\x1b[2J.md"},
    ]
    monkeypatch.setattr("server.client.LocalRoom.documents", lambda self, **_: items)
    assert main(["documents", "--data-dir", str(tmp_path / "d"), "--corpora", str(tmp_path / "c")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "indexed             4  post/a.eml",
        "embedding  44%      0    post/a.eml/b.zip  (in a.eml)",
        "failed              0      post/a.eml/b.zip/c.pdf  (in b.zip)",
        "                       It has a password.",
        "                       Save it without.",
        "queued              0  post/evil?[2J.md",
    ]


def test_doctor_finds_this_installation_well(tmp_path: Path) -> None:
    """Exit 0, every check named; JSON for programs."""
    ran = Served(tmp_path).run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    assert ran.returncode == 0, ran.stdout
    assert {"Python", "torch", "llama-cpp-python", "generator model", "embedder model", "generation", "data directory"} <= set(checks)


def test_doctor_names_a_missing_program_what_it_costs_and_how_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tesseract and LibreOffice everything else works, so the exit is not touched by it."""
    programs = [
        doctor.Program("tesseract", None, "text in pictures", "apt-get install tesseract-ocr"),
        doctor.Program("libreoffice", "/usr/bin/soffice", "old Office files", "apt-get install libreoffice-writer-nogui"),
    ]
    for slow in ("_models", "_generator"):
        monkeypatch.setattr(doctor, slow, lambda settings: iter(()))
    checks = {check.name: check for check in doctor.examine(load(flags={"data_dir": tmp_path, "corpora": tmp_path}), programs)}
    assert (checks["tesseract"].state, checks["libreoffice"].state) == ("missing", "ok")
    assert "text in pictures" in checks["tesseract"].detail
    assert "apt-get install tesseract-ocr" in checks["tesseract"].remedy
    assert checks["libreoffice"].detail == "/usr/bin/soffice"


def test_doctor_says_when_file_events_will_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred folders, and a system that has a hundred watches for all programs of the user."""
    limit = tmp_path / "max_user_watches"
    monkeypatch.setattr(doctor, "_WATCHES", limit)
    for n in range(100):
        (tmp_path / "corpora" / "d" / str(n)).mkdir(parents=True)
    settings = load(flags={"data_dir": tmp_path / "data", "corpora": tmp_path / "corpora"})
    limit.write_text("100\n")
    (check,) = doctor._watching(settings)
    assert check.state == "slow"
    assert "polled" in check.detail
    assert "max_user_watches=524288" in check.remedy
    limit.write_text("65536\n")
    (check,) = doctor._watching(settings)
    assert (check.state, check.detail) == ("ok", "102 folders, 65,536 watches a user")


def test_doctor_names_what_is_broken_and_the_remedy(tmp_path: Path) -> None:
    """A missing model, a broken domain.toml, an unsafe address."""
    room = Served(tmp_path, ENGINE__MODEL=str(tmp_path / "none.gguf"), SERVER__HOST="0.0.0.0")
    (room.corpora / "d").mkdir()
    (room.corpora / "d" / "domain.toml").write_text("colour = 1")
    ran = room.run("doctor")
    assert ran.returncode == 1
    for word in ("none.gguf", "engine.model", "colour", "READINGROOM_SERVER__KEY"):
        assert word in ran.stdout, word
    assert os.listdir(tmp_path / "corpora") == ["d"]
