"""`readingroom adapters train`: from a domain's documents to an installed adapter, or a word why not.

Over a small model with random weights, whose answers are worth nothing, so that what is shown is the way there.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.ledger import Ledger, Stamp
from rag import adapters
from rag.adapters import MANIFEST, WEIGHTS
from rag.models import ModelFile
from rag.settings import load
from rag.train import convert
from rag.train.questions import passages
from server.audit import FILE, Audit
from server.cli import main
from server.commands import train as command
from tests.conftest import ROOT, document
from tests.rag.train.test_domain import documents
from tests.rag.train.tiny import HEADS, HEADS_KV, random_lora, write
from tests.server.conftest import Served

pytest.importorskip("gguf", reason="the extra `train` is not installed")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model."""
    return write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def run(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `adapters train ...` over an index of 26 documents in `ham` and one in `few`; gives the exit status, stdout and stderr."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # of a tiny model two threads only wait for each other, for minutes on a busy machine
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("READINGROOM_ENGINE__MODEL", str(tiny))
    monkeypatch.setenv("READINGROOM_ENGINE__THREADS", "1")
    corpora, ledger = tmp_path / "corpora", Ledger(tmp_path / ".readingroom" / "ledger.db")
    texts = {f"ham/{path}": text for path, (text,) in documents(26).items()} | {"few/a.md": "The tower is high."}
    for path, text in texts.items():
        (corpora / path).parent.mkdir(parents=True, exist_ok=True)
        (corpora / path).write_text(text)
        stamp = Stamp.of((corpora / path).stat())
        ledger.queue([(document(path), stamp)])
        ledger.commit(document(path), stamp, sha256=None, own_title=None, fingerprint="f", text=text, chunks=[])
    ledger.close()
    (corpora / "empty").mkdir()

    def call(*args: str) -> tuple[int, str, str]:
        status = main(["adapters", "train", "--licence", "CC0-1.0", "--minutes", "0.02", "--questions", "10", *args])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine is."""
    from rag.train import domain

    usual = domain.recipe
    monkeypatch.setattr(domain, "recipe", lambda device, seconds: replace(usual(device, 1e9), steps=1))


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, times: int = 1) -> None:
    """Ctrl-C, so many times, when the training has got there."""

    def show(self: object, progress: Any) -> None:
        if progress.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command._Shown, "show", show)


@pytest.mark.nightly
@pytest.mark.usefixtures("one_step")
def test_an_adapter_that_did_not_help_is_said_so_and_not_installed(run: Run, tmp_path: Path) -> None:
    """One that knows only random letters answers nothing: it is kept beside, with its card, and can be installed all the same."""
    status, out, err = run("--domain", "ham")
    assert status == 0, err
    assert "tiny" in err.splitlines()[0]
    assert out.startswith("26 documents, ")
    assert "It did not surely help" in out
    assert f"readingroom adapters add {Path('.readingroom/training/ham')}" in out
    kept = tmp_path / ".readingroom" / "training" / "ham"
    assert sorted(path.name for path in kept.iterdir()) == ["README.md", WEIGHTS, MANIFEST]
    assert [path.name for path in kept.parent.iterdir()] == ["ham"]
    assert "ham" not in adapters.installed(tmp_path / ".readingroom")[0]
    assert main(["adapters", "add", str(kept)]) == 0
    package = adapters.find(tmp_path / ".readingroom", "ham")
    assert package.evaluation["helped"] is False
    assert package.rank == 16


@pytest.mark.usefixtures("one_step")
def test_one_is_installed_and_told_to_programs(run: Run, tmp_path: Path, tiny: Path) -> None:
    """Begun from an installed one; figures of the base, of that one and of what was made; nothing is left beside it."""
    data_dir = tmp_path / ".readingroom"
    weights = convert.write(random_lora(4), tmp_path / "first.gguf", alpha=8.0, heads=HEADS, kv_heads=HEADS_KV)
    adapters.add(weights, data_dir, ModelFile("tiny", tiny, None), licence="MIT")
    args = ("--domain", "ham", "--begin", "first", "--name", "second", "--install", "--json")
    status, out, err = run(*args)
    assert status == 0, err
    told = json.loads(out)
    assert (told["name"], told["installed"], told["documents"]) == ("second", True, 26)
    assert all(told["evaluation"]["domain"][who]["right"] >= 0 for who in ("base", "began", "made"))
    assert told["training"]["recipe"]["rank"] == 4
    package = adapters.find(data_dir, "second")
    assert (package.licence, package.description[:25]) == ("CC0-1.0", "Taught further from first")
    assert (package.folder / "README.md").read_text().startswith("# second: the domain ham")
    assert list((data_dir / "training").iterdir()) == []
    log = Audit(data_dir / FILE)
    assert [(one["act"], one["target"]) for one in log.entries()] == [("adapter.add", "second")]
    log.close()
    status, _, err = run(*args)
    assert status == 1
    assert "--force" in err


def test_ctrl_c_keeps_what_was_learnt(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not judged, not installed, and said where it is; the folder is whole."""
    at_step(monkeypatch, 1)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("rag.train.domain.evaluate", None)
    status, _, err = run("--domain", "ham", "--minutes", "60")
    assert status == 130
    kept = tmp_path / ".readingroom" / "training" / "ham"
    assert f"readingroom adapters add {Path('.readingroom/training/ham')}" in err
    assert adapters.read(kept).evaluation.keys() == {"date"}
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("step", "times"), [(0, 1), (1, 2)])
def test_ctrl_c_at_once_or_twice_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, times: int) -> None:
    """No half-written adapter; what an earlier training left stays."""
    earlier = tmp_path / ".readingroom" / "training" / "ham"
    earlier.mkdir(parents=True)
    (earlier / "note").touch()
    at_step(monkeypatch, step, times)
    status, _, err = run("--domain", "ham", "--minutes", "60")
    assert status == 130
    assert "Traceback" not in err
    assert [path.name for path in earlier.parent.iterdir()] == ["ham"]
    assert [path.name for path in earlier.iterdir()] == ["note"]


@pytest.mark.parametrize(
    ("args", "said", "remedy"),
    [
        (("--domain", "nowhere"), "nowhere", "ham"),
        (("--domain", "empty"), "indexed", "readingroom ingest"),
        (("--domain", "few"), "60 are the least", "more text"),
        (("--domain", "ham", "--device", "nonsense"), "nonsense", "cpu"),
        (("--domain", "ham", "--name", "Not A Name"), "names no adapter", "name"),
        (("--domain", "ham", "--name", "a@2"), "a@2", "--name"),
        (("--domain", "ham", "--name", "none"), "none", "--name"),
        (("--domain", "ham", "--begin", "nobody"), "nobody", "adapters add"),
        (("--domain", "ham", "--licence", ""), "licence", "--licence"),
        (("--domain", "ham", "--pool", "corpora/few/a.md"), "no pool", "training.md"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is(run: Run, tmp_path: Path, args: tuple[str, ...], said: str, remedy: str) -> None:
    """In a sentence, with what to do."""
    status, _, err = run(*args)
    assert status == 1
    message, told = err.strip().splitlines()[-2:]
    assert said in message
    assert remedy in told
    assert not (tmp_path / ".readingroom" / "training").exists()


def test_a_remote_engine_is_not_trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is on another machine."""
    monkeypatch.setenv("READINGROOM_ENGINE__URL", "http://127.0.0.1:9/v1")
    status, _, err = run("--domain", "ham")
    assert status == 1
    assert "http://127.0.0.1:9/v1" in err
    assert "engine.url" in err


def test_without_the_extra_it_says_how_to_install_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it reads a document."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    status, _, err = run("--domain", "ham", "--json")
    assert status == 1
    assert "gguf" in err
    assert ".[train]" in err


def test_a_running_server_gives_the_same_texts(served: Served) -> None:
    """It holds the index, and goes on answering."""
    settings = load(env={}, flags={"data_dir": served.data_dir, "corpora": served.corpora})
    texts = command._texts("guide", settings)
    guide = {f"guide/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "corpora" / "guide").glob("*.md")}
    assert texts.keys() >= guide.keys()
    for path, text in guide.items():
        assert "".join("".join(texts[path]).split()) == "".join("".join(passages(text)).split())
