"""A program that is killed at every write, and started again: `python -m tests.ingest.faults FOLDER SCENARIO SAMPLE [MOMENTS]`.

One warm process forks all others, each of which opens the real ledger and store for itself. The first prepares an index
in FOLDER, the second runs the scenario and counts its fault points, then SAMPLE of them (0: all) are died at with
SIGKILL, each on a fresh copy. MOMENTS more deaths come from outside, at times spread over the run, so that some hit the
inside of a write. After each death one more process starts as the service does and compares the index with the folder.
A line of JSON each: the point, whether it was reached, and what is wrong afterwards, if anything. Used by `test_faults.py`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qdrant_edge

from ingest.ledger import Ledger
from ingest.upload import place
from rag.records import document_id

from .conftest import Rig, build_rig, close_rig, copy_tree
from .truth import assert_index_is_folder

PAGE = "# Page {0}\n\nThe words of page {0} are few.\n\n## More of {0}\n\nAnd some more words of page {0}.\n"
SECRET = "Xylophone-Quartz-7733"
BYSTANDERS = [f"guide/still {i}.md" for i in range(3)]
"""No scenario touches these, so nothing of them may be lost or embedded again."""


# What happens before the program starts, and what it then does


def prepare(rig: Rig) -> None:
    """The index that all scenarios but the first begin with."""
    write_files(rig)
    rig.pipeline.sync(None)


def write_files(rig: Rig) -> None:
    """A folder with good and bad files."""
    for path in [*BYSTANDERS, "guide/edited.md", "guide/renamed.md", "guide/deleted.md", "guide/copied.md", "guide/sub/moved.md"]:
        rig.write(path, PAGE.format(path))
    rig.write("guide/removed.md", f"# Secret\n\nThe word is {SECRET}.\n")
    rig.write("guide/bad.md", b"\0\1" * 50)
    rig.write("guide/worse.md", "good as yet\n")


def change_files(rig: Rig) -> None:
    """One change of each kind."""
    guide = rig.corpora / "guide"
    rig.write("guide/new.md", PAGE.format("new"))
    rig.write("guide/edited.md", PAGE.format("guide/edited.md") + "\nA paragraph that is new.\n")
    os.rename(guide / "renamed.md", guide / "Renamed.md")
    os.rename(guide / "sub", rig.corpora / "other")
    shutil.copy(guide / "copied.md", rig.corpora / "other/copy.md")
    (guide / "deleted.md").unlink()
    rig.write("guide/bad.md", "good at last\n")
    rig.write("guide/worse.md", b"\0\1" * 50)


def rename_files(rig: Rig) -> None:
    """Renames of each kind, and no change of a byte: of a file, a folder, an archive, onto another file, one of two equal ones."""
    guide = rig.corpora / "guide"
    for n in range(2):
        rig.write(f"guide/twin {n}.md", PAGE.format("twins"))
    with zipfile.ZipFile(guide / "packed.zip", "w") as archive:
        for n in range(3):
            archive.writestr(f"member {n}.md", PAGE.format(f"packed {n}"))
    rig.pipeline.sync(None)
    os.rename(guide / "renamed.md", guide / "renamed again.md")
    os.rename(guide / "sub", rig.corpora / "other")
    os.rename(guide / "packed.zip", rig.corpora / "other/packed.zip")
    os.replace(guide / "edited.md", guide / "copied.md")
    os.rename(guide / "twin 1.md", guide / "twin.md")


def keep_house(rig: Rig) -> None:
    """What the service does when all is quiet, and when it stops."""
    rig.store.optimize()
    rig.store.flush()
    rig.ledger.scrub()


def start_anew(rig: Rig) -> None:
    rig.pipeline.sync(None)
    keep_house(rig)


def upload(rig: Rig) -> None:
    for name in ("uploaded.md", "edited.md"):
        rig.pipeline.sync([place(rig.corpora, "guide", name, [b"# Up", b"loaded\n\nAnew.\n"])])


def remove(rig: Rig) -> None:
    rig.pipeline.remove(document_id("guide", "removed.md"))
    keep_house(rig)


SCENARIOS: dict[str, tuple[bool, Callable[[Rig], None], Callable[[Rig], None]]] = {
    # whether there is an index; what changes while nobody looks; what the program does
    "first": (False, write_files, start_anew),
    "change": (True, change_files, start_anew),
    "rename": (True, rename_files, start_anew),
    "upload": (True, lambda rig: None, upload),
    "remove": (True, lambda rig: None, remove),
}


# Fault points


class Faults:
    """Counts the fault points of this process, and kills it at the `fatal`-th (1 is the first, 0 is never)."""

    def __init__(self, fatal: int = 0) -> None:
        self.fatal = fatal
        self.passed: list[str] = []

    def point(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            if "dir_fd" in kwargs:
                return real(*args, **kwargs)  # one of the hundred files of a folder that `shutil.rmtree` takes away
            self.point(f"before {name}")
            result = real(*args, **kwargs)
            self.point(f"after {name}")
            return result

        return call

    def install(self) -> None:
        """Put a point before and after each write of the ledger, the store and the file system."""
        write = Ledger.write

        @contextlib.contextmanager
        def in_transaction(ledger: Ledger) -> Iterator[Any]:
            with write(ledger) as db:
                yield db
                self.point("before ledger commit")
            self.point("after ledger commit")

        Ledger.write = in_transaction  # type: ignore[method-assign]
        for name in ("_open", "scrub", "close"):
            setattr(Ledger, name, self.around(f"ledger {name}", getattr(Ledger, name)))
        connect = Ledger._connect

        def traced(ledger: Ledger) -> Any:
            connection = connect(ledger)
            # The schema is made by a script, whose statements only SQLite itself sees one by one.
            connection.set_trace_callback(lambda sql: self.point("before " + sql.strip()[:30]) if "CREATE" in sql else None)
            return connection

        Ledger._connect = traced  # type: ignore[method-assign]
        faults, edge = self, qdrant_edge.EdgeShard

        class Shard:
            """The store's engine, whose writes are fault points."""

            def __init__(self, real: Any) -> None:
                self._real = real

            def __getattr__(self, name: str) -> Any:
                found = getattr(self._real, name)
                return faults.around(f"store {name}", found) if name in ("update", "flush", "optimize", "close") else found

            @classmethod
            def load(cls, *args: Any) -> Shard:
                return cls(faults.around("store load", edge.load)(*args))

            @classmethod
            def create(cls, *args: Any) -> Shard:
                return cls(faults.around("store create", edge.create)(*args))

        qdrant_edge.EdgeShard = Shard  # type: ignore[misc,assignment]
        for name in ("replace", "rename", "unlink", "fsync"):
            setattr(os, name, self.around(f"os.{name}", getattr(os, name)))
        Path.write_text = self.around("write_text", Path.write_text)  # type: ignore[method-assign]


# Processes


def run(base: Path, scenario: str, fatal: int) -> list[str]:
    """The scenario's program. Returns the fault points it passed."""
    faults = Faults(fatal)
    faults.install()
    rig = build_rig(base, batch_chunks=4)
    SCENARIOS[scenario][2](rig)
    close_rig(rig)
    return faults.passed


def recover(base: Path, scenario: str) -> None:
    """Start as the service does. Raises `AssertionError` for what the death has spoilt."""
    rig = build_rig(base, batch_chunks=4)
    if SCENARIOS[scenario][0]:
        for path in BYSTANDERS:
            document = rig.document(path)
            assert document is not None and document.status == "indexed", f"{path} is lost"
            assert rig.store.count(document_id=document.id) == document.chunks == 2, f"{path} is lost in the store"
    rig.pipeline.sync(None)
    assert_index_is_folder(rig)
    assert rig.store.count() == rig.ledger.chunk_count()
    if SCENARIOS[scenario][0]:
        assert not [text for text in rig.embedder.embedded if "still" in text], "what did not change was embedded again"
    if scenario == "rename":
        assert not rig.embedder.embedded, "what was renamed was embedded again"
    assert rig.store.reword("guide", ()) == 0, "words were left behind"
    again = rig.pipeline.sync(None)
    assert (again.indexed, again.failed, again.removed) == (0, 0, 0)
    close_rig(rig)
    aside = [path.name for path in (base / "data").rglob("*") if "damaged" in path.name or "broken" in path.name]
    assert not aside, f"a crash was taken for damage: {aside}"
    if not (base / "corpora/guide/removed.md").exists():
        files = [path for path in (base / "data").glob("ledger.db*") if SECRET.encode() in path.read_bytes()]
        assert not files, f"what was deleted is still in {files}"


def forked(function: Callable[..., Any], *args: Any, kill_after: float | None = None) -> tuple[int, Any]:
    """Call it in a process of its own: the process's end (negative: the signal), and its result or the error's text."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(inlet)
            result = function(*args)
            code = 0
        except BaseException:
            result = traceback.format_exc()
        with contextlib.suppress(BaseException), open(outlet, "w") as file:
            json.dump(result, file)
        os._exit(code)
    os.close(outlet)
    if kill_after is not None:
        time.sleep(kill_after)  # the moment is the point
        os.kill(pid, signal.SIGKILL)
    with open(inlet) as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(said) if said else None


def prepared(base: Path, scenario: str) -> None:
    """In a process of its own: the index and the folder as the scenario's program finds them."""
    rig = build_rig(base, batch_chunks=4)
    if SCENARIOS[scenario][0]:
        prepare(rig)
    SCENARIOS[scenario][1](rig)
    close_rig(rig)
    if not SCENARIOS[scenario][0]:
        shutil.rmtree(base / "data")


def main(folder: str, scenario: str, sample: str, moments: str = "0") -> None:
    base, copy = Path(folder, "base"), Path(folder, "copy")

    def afresh() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        copy_tree(base, copy)

    code, said = forked(prepared, base, scenario)
    assert code == 0, said
    afresh()
    started = time.monotonic()
    code, points = forked(run, copy, scenario, 0)
    took = time.monotonic() - started
    assert code == 0, points
    chosen = range(1, len(points) + 1)
    if int(sample):
        # Spread over the run, first and last among them.
        chosen = sorted({1 + round(i * (len(points) - 1) / (int(sample) - 1)) for i in range(int(sample))})
    deaths = [(f"{n} of {len(points)}: {points[n - 1]}", n, None) for n in chosen]
    deaths += [(f"after {took * i / int(moments):.3f} s", 0, took * i / int(moments)) for i in range(int(moments))]
    for name, fatal, moment in deaths:
        afresh()
        code, said = forked(run, copy, scenario, fatal, kill_after=moment)
        reached = code == -signal.SIGKILL
        wrong = said if code not in (0, -signal.SIGKILL) else None
        if wrong is None:
            code, said = forked(recover, copy, scenario)
            wrong = None if code == 0 else said or f"the restart ended with {code}"
        sys.stdout.write(json.dumps({"point": name, "reached": reached, "wrong": wrong}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
