"""Whatever is done to the folder, and wherever the program dies of it, the index is the folder once all is quiet.

Hypothesis draws sequences of changes, hints that arrive or are lost, crashes and restarts, over real parts: ledger, Edge
store, parser process, and the hash embedder. What the index should be is read from the folder anew: `tests/ingest/truth.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from ingest.sandbox import Sandbox
from ingest.upload import place
from rag.errors import InvalidInput, OutsideCorpora, ParseFailed, Refused
from rag.settings import Ingest

from .conftest import Rig, build_rig, copy_tree
from .truth import assert_index_is_folder

# Few names, so that changes meet: the same name as file and as folder, names that differ by case, names that are left out.
FOLDERS = st.sampled_from(["a", "b", "a/sub", "a/sub/deep", "b/sub", "b/x.md", "a/drafts", "B", "a/z.zip"])
NAMES = st.sampled_from(["x.md", "X.md", "y.txt", "note.md", "sub", "w.bin", "y.txt~", ".hidden.md", "z.zip"])
PATHS = st.builds("/".join, st.tuples(FOLDERS, NAMES))
PAGE = "# Tea {0}\n\nGreen tea is steeped at eighty degrees.\n\n## Black\n\nBlack tea {0} wants boiling water.\n"
CONTENTS = st.one_of(
    # Same size with another number; paragraphs that documents share; no text; no heading; several chunks; line ends of Windows.
    st.builds(PAGE.format, st.integers(1, 3)),
    st.sampled_from(["", " \n", "plain words\n", "word " * 500, "# A\r\n\r\ntwo lines\r\n", "é" * 30 + "\n\n日本語の文書。\n"]),
).map(str.encode)
MEMBERS = st.sampled_from(["x.md", "sub/y.txt", "w.bin", ".hidden.md", "drafts/n.md"])
BAD = st.just(b"\0\1\2" * 40)
WRITES = [
    ("ledger", "queue"), ("ledger", "mark"), ("ledger", "commit"), ("ledger", "restamp"), ("ledger", "mark_deleting"), ("ledger", "delete"),
    ("ledger", "scrub"), ("store", "upsert_many"), ("store", "delete_chunks"), ("store", "delete_document"),
    ("store", "rename"), ("ledger", "rename"), ("store", "reword"),
]  # fmt: skip
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # the figures of the store's files are not the point here


class Crash(BaseException):
    """What kill -9 is to the lines of Python: no handler catches it."""


class Lent:
    """One parser process for all examples; a pipeline that closes may not close it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)


class Desk(RuleBasedStateMachine):
    """A folder that somebody works in, and the index that follows."""

    lent: Lent
    """Set by the fixture `desk`."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="desk-", dir=MEMORY))
        self.away: Path | None = None
        self.touched: list[Path] = []
        self.open()

    def open(self) -> None:
        self.rig: Rig = build_rig(self.base, batch_chunks=4)
        self.rig.pipeline._sandbox = self.lent  # type: ignore[assignment]

    def let_go(self) -> None:
        self.rig.pipeline.close()
        self.rig.ledger.close()
        self.rig.store.close()

    def teardown(self) -> None:
        try:
            self.look()
        finally:
            self.let_go()
            shutil.rmtree(self.base)

    # What people and editors do

    @initialize(domain=st.sampled_from(["a", "b"]), data=CONTENTS)
    def begin(self, domain: str, data: bytes) -> None:
        self.write(f"{domain}/x.md", data)

    @rule(path=PATHS, data=CONTENTS | BAD)
    def write(self, path: str, data: bytes) -> None:
        """Also where a file stands in the way of the folder, or a folder in that of the file."""
        file = self.clear(path)
        if file.is_symlink() and not (file.is_file() and file.resolve().is_relative_to(self.rig.corpora.resolve())):
            file.unlink()  # to a folder, to nothing, or out of the folder: through such a link the ledger itself was overwritten
        elif file.is_dir():
            shutil.rmtree(file)
        file.write_bytes(data)

    @rule(path=PATHS, data=CONTENTS | BAD)
    def save_by_renaming(self, path: str, data: bytes) -> None:
        file = self.clear(path)
        if not file.is_dir():
            temporary = file.with_name(f".{file.name}.tmp")
            temporary.write_bytes(data)
            os.replace(temporary, file)

    @rule(folder=FOLDERS, members=st.dictionaries(MEMBERS, CONTENTS | BAD, max_size=4))
    def pack(self, folder: str, members: dict[str, bytes]) -> None:
        """An archive, perhaps where a folder of that name was."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        self.write(f"{folder}/z.zip", packed.getvalue())

    @rule(path=PATHS, tail=st.sampled_from([b"more\n", b"\n# New\n\nwords\n", b"\0" * 200]))
    def append(self, path: str, tail: bytes) -> None:
        if (file := self.existing(path)) is not None:
            with open(file, "ab") as opened:
                opened.write(tail)

    @rule(path=PATHS)
    def empty(self, path: str) -> None:
        if (file := self.existing(path)) is not None:
            os.truncate(file, 0)

    @rule(path=PATHS, data=CONTENTS)
    def edit_and_put_the_time_back(self, path: str, data: bytes) -> None:
        if (file := self.existing(path)) is not None:
            before = file.stat()
            file.write_bytes(data.ljust(before.st_size)[: before.st_size] if data.isascii() else data)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    @rule(path=PATHS, seconds=st.sampled_from([0, 1, 4_000_000_000]))
    def touch(self, path: str, seconds: int) -> None:
        if (file := self.existing(path)) is not None:
            os.utime(file, (seconds, seconds))

    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o444, 0o755]))
    def chmod(self, path: str, mode: int) -> None:
        if (file := self.existing(path)) is not None:
            os.chmod(file, mode)

    @rule(path=PATHS, other=PATHS)
    def rename(self, path: str, other: str) -> None:
        if (file := self.existing(path)) is not None and path != other and (target := self.aside(other, file)) is not None:
            os.replace(file, target)

    @rule(path=PATHS, other=PATHS)
    def copy(self, path: str, other: str) -> None:
        if (file := self.existing(path)) is not None and path != other and (target := self.aside(other, file)) is not None:
            shutil.copy2(file, target)

    @rule(path=PATHS)
    def change_case(self, path: str) -> None:
        if (file := self.existing(path)) is not None:
            self.rename(path, f"{path.rpartition('/')[0]}/{file.name.swapcase()}")

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        if (file := self.existing(path)) is not None:
            file.unlink()

    @rule(path=PATHS, to=PATHS, hard=st.booleans())
    def link(self, path: str, to: str, hard: bool) -> None:
        file = self.clear(path)
        if not os.path.lexists(file):
            if not hard:
                file.symlink_to(self.rig.corpora / to)  # perhaps to a folder, to itself or to nothing
            elif (there := self.existing(to)) is not None and not there.is_symlink():
                os.link(there, file)

    @rule(path=PATHS, place=st.sampled_from(["secret.txt", "", "data/ledger.db"]))
    def link_out(self, path: str, place: str) -> None:
        (self.base / "secret.txt").write_text("not for the index\n")
        file = self.clear(path)
        if not os.path.lexists(file):
            file.symlink_to(self.base / place)

    @rule(folder=FOLDERS, other=FOLDERS)
    def move_folder(self, folder: str, other: str) -> None:
        source, target = self.rig.corpora / folder, self.rig.corpora / other
        if source.is_dir() and not os.path.lexists(target) and not target.is_relative_to(source):
            self.clear(other)
            os.rename(source, target)
            self.touched += [source, target]

    @rule(folder=FOLDERS)
    def remove_folder(self, folder: str) -> None:
        if (at := self.rig.corpora / folder).is_dir():
            at.unlink() if at.is_symlink() else shutil.rmtree(at)
            self.touched.append(at)

    @precondition(lambda self: self.away is None)
    @rule(folder=FOLDERS)
    def take_folder_out(self, folder: str) -> None:
        if (source := self.rig.corpora / folder).is_dir():
            os.rename(source, self.base / "away")
            self.away = source
            self.touched.append(source)

    @precondition(lambda self: self.away is not None)
    @rule()
    def put_folder_back(self) -> None:
        assert self.away is not None
        if not os.path.lexists(self.away):
            self.clear(self.away.relative_to(self.rig.corpora).as_posix())
            os.rename(self.base / "away", self.away)
            self.away = None

    @rule(
        domain=st.sampled_from(["a", "b"]),
        text=st.sampled_from(['ignore = ["drafts"]', 'ignore = ["*.txt"]', 'ignore = ["sub/*"]', "[", ""]),
    )
    def set_domain(self, domain: str, text: str) -> None:
        self.write(f"{domain}/domain.toml", text.encode())

    # What the program does

    @rule(path=PATHS, data=CONTENTS)
    def upload(self, path: str, data: bytes) -> None:
        domain, name = path.split("/")[0], path.rpartition("/")[2]
        if (self.rig.corpora / domain).is_dir():
            # An ignored name, a folder of that name, a link, a kind of file that is not read.
            with contextlib.suppress(InvalidInput, OutsideCorpora, ParseFailed):
                self.rig.pipeline.sync([place(self.rig.corpora, domain, name, [data])])

    @rule(data=st.data())
    def delete_by_command(self, data: st.DataObject) -> None:
        documents = self.rig.ledger.documents(limit=1000)[0]
        if documents:
            document = data.draw(st.sampled_from(documents), label="document")
            with contextlib.suppress(Refused):  # a folder of that name, or a link on the way
                assert self.rig.pipeline.remove(document.id).remaining == 0
                assert self.rig.ledger.document(document.id) is None
                assert not os.path.lexists(self.rig.corpora / document.path)

    @rule(data=st.data())
    def hear_of_some(self, data: st.DataObject) -> None:
        """Events are hints: they come late, twice, in any order, or not at all."""
        if self.touched:
            self.rig.pipeline.sync(data.draw(st.lists(st.sampled_from(self.touched), min_size=1, max_size=6), label="events"))
            self.rig.check()

    @rule()
    def look(self) -> None:
        """A quiet point."""
        self.rig.pipeline.sync(None)
        assert_index_is_folder(self.rig)
        again = self.rig.pipeline.sync(None)
        assert (again.indexed, again.removed) == (0, 0)
        self.touched.clear()

    @rule()
    def stop_and_start(self) -> None:
        self.let_go()
        self.open()
        self.look()

    @rule(
        deaths=st.lists(st.tuples(st.sampled_from(WRITES), st.sampled_from(["before", "after"]), st.integers(1, 3)), min_size=1, max_size=3)
    )
    def die_and_start(self, deaths: list[tuple[tuple[str, str], str, int]]) -> None:
        """In the middle of a sync, perhaps again in that which mends it, at a write of each kind."""
        for (part, method), when, nth in deaths:
            with DyingAt(getattr(self.rig, part), method, when, nth), contextlib.suppress(Crash):
                self.rig.pipeline.sync(None)
            self.crash()
        self.look()

    @rule()
    def pull_the_plug(self) -> None:
        """Between two writes, with everything open."""
        self.crash()
        self.look()

    @rule(
        what=st.sampled_from(["ledger.db", "ledger.db-wal", "store", "ledger.db damaged", "store damaged"]),
    )
    def lose(self, what: str) -> None:
        """A disk that loses a file, or a file that is not what was written."""
        self.crash(reopen=False)
        name, _, damaged = what.partition(" ")
        path = self.base / "data" / name
        if damaged and path.is_dir():
            for file in path.rglob("*.json"):
                file.write_bytes(b"not what was written")
        elif damaged:
            path.write_bytes(b"not a database, " * 512)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self.open()
        self.look()

    def crash(self, *, reopen: bool = True) -> None:
        """Keep the files as they are at this moment, and go on from those; nothing that closing would write is in them."""
        self.rig.pipeline.close()  # the reading thread dies in the same moment
        data, kept = self.base / "data", self.base / "kept"
        with self.rig.store._rewriting:  # which takes files away while they are copied; deaths in it: tests/rag/test_forgetting.py
            copy_tree(data, kept)
        self.rig.ledger.close()
        self.rig.store.close()
        shutil.rmtree(data)
        kept.rename(data)
        if reopen:
            # Without its mark that a process was here the store does not examine its files, which takes a second each time;
            # that it does is shown with real deaths in test_faults.py, and below with real damage.
            (data / "store" / "open").unlink(missing_ok=True)
            self.open()

    # Finding one's way

    def clear(self, path: str) -> Path:
        """The place of a file that may be made now: files and links in the way of its folders are gone."""
        file = self.rig.corpora / path
        for parent in reversed(file.relative_to(self.rig.corpora).parents[:-1]):
            if (at := self.rig.corpora / parent).is_symlink() or at.is_file():
                at.unlink()
                self.touched.append(at)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.touched.append(file)
        return file

    def aside(self, path: str, source: Path) -> Path | None:
        """The place `path` if it may be written without the loss of `source`."""
        if source.is_relative_to(target := self.rig.corpora / path) or target.is_relative_to(source) or target.is_dir():
            return None
        file = self.clear(path)
        if file.is_symlink() and not file.is_file():
            file.unlink()  # to nothing, or round in a circle
        return file if os.path.lexists(source) and not (file.exists() and file.samefile(source)) else None

    def existing(self, path: str) -> Path | None:
        file = self.rig.corpora / path
        if not file.is_file() or not file.resolve().is_relative_to(self.rig.corpora.resolve()):
            return None
        self.touched.append(file)
        return file


class DyingAt:
    """Within, the `nth` call of `target.method` raises `Crash`, before or after it did its work."""

    def __init__(self, target: object, method: str, when: str, nth: int) -> None:
        self.target, self.method, self.when, self.nth, self.calls = target, method, when, nth, 0
        self.real: Callable[..., Any] = getattr(target, method)

    def __enter__(self) -> None:
        setattr(self.target, self.method, self.call)

    def __exit__(self, *error: object) -> None:
        delattr(self.target, self.method)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.nth and self.when == "before":
            raise Crash
        result = self.real(*args, **kwargs)
        if self.calls == self.nth:
            raise Crash
        return result


@pytest.fixture(scope="module")
def desk() -> Iterator[type[Desk]]:
    """The machine, with one parser process for all its examples."""
    sandbox = Sandbox(Ingest())
    Desk.lent = Lent(sandbox)
    yield Desk
    sandbox.close()


QUICK = settings(
    max_examples=20,
    stateful_step_count=15,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, max_examples=500, stateful_step_count=50, derandomize=False, print_blob=True, phases=set(Phase) - {Phase.explain})


def test_after_any_sequence_of_changes_crashes_and_restarts_the_index_is_the_folder(desk):
    """The same 20 sequences each time; `make nightly` draws others."""
    run_state_machine_as_test(desk, settings=QUICK)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_after_any_of_500_longer_sequences_the_index_is_the_folder(desk):
    """Drawn anew each night; a failure prints the steps that lead to it, and the blob that repeats it."""
    run_state_machine_as_test(desk, settings=LONG)
