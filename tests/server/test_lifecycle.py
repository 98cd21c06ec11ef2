"""Starting, stopping, crashing and coming back, with real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.server.conftest import Served


@pytest.fixture
def make_room(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Makes rooms that are stopped at the end of the test, however it ends."""
    made: list[Served] = []

    def make(**settings: str) -> Served:
        made.append(Served(tmp_path / f"room{len(made)}", **settings))
        return made[-1]

    yield make
    for room in made:
        if room.process is not None:
            room.stop(kill=True)


def paths(room: Served) -> set[str]:
    """What is indexed."""
    return {record["path"] for record in room.records() if record["status"] == "indexed"}


def test_after_a_crash_and_a_restart_the_index_equals_the_folder(make_room: Callable[..., Served]) -> None:
    """Invariant 1: killed in the middle of an ingest, the folder changed meanwhile, then started again."""
    room = make_room()
    folder = room.corpora / "notes"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n}.md").write_text(f"# Note {n}\n\nThe number of this note is {n * 37}.\n")
    room.start()
    wait_until(lambda: paths(room), 60)
    room.stop(kill=True)

    (folder / "0.md").unlink()
    (folder / "1.md").rename(folder / "moved.md")
    (folder / "2.md").write_text("# Note 2\n\nThis note speaks of marmalade now.\n")
    (room.corpora / "more").mkdir()
    (room.corpora / "more" / "new.txt").write_text("A new file about liquorice.")
    room.start()
    expected = {f"notes/{n}.md" for n in range(2, 30)} | {"notes/moved.md", "more/new.txt"}
    wait_until(lambda: paths(room) == expected, 60, "the index to equal the folder")
    with room.client() as client:
        for question, path in (
            ("marmalade", "notes/2.md"),
            ("liquorice", "more/new.txt"),
            ("Note 1: what is its number?", "notes/moved.md"),
        ):
            found = client.post("/rag/search", json={"question": question, "limit": 3}).json()["passages"]
            assert path in [passage["path"] for passage in found], question
        all_found = client.post("/rag/search", json={"question": "the number of this note", "limit": 50}).json()["passages"]
        assert {passage["path"] for passage in all_found} <= expected
        ids = [passage["chunk_id"] for passage in all_found]
        assert len(ids) == len(set(ids))
    assert room.stop() == 0


def test_a_stop_ends_open_event_streams_and_gives_the_directory_back(make_room: Callable[..., Served]) -> None:
    """SIGTERM with a listener on /rag/events: exit 0 soon, nothing locked."""
    room = make_room()
    room.start()
    with room.client() as client, client.stream("GET", "/rag/events") as response:
        lines = response.iter_lines()
        assert next(lines) == "event: state"
        assert room.stop() == 0
    assert not (room.data_dir / "server.json").exists()
    assert "Traceback" not in room.log.read_text()
    ran = room.run("documents")
    assert ran.returncode == 0, ran.stderr


def test_a_broken_model_is_said_by_ready_and_search_goes_on(make_room: Callable[..., Served], tmp_path: Path) -> None:
    """503 with the part, the reason and the remedy; asking says the same; what does not need the model works."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(200))
    room = make_room(ENGINE__MODEL=str(bad))
    room.start(ready=False)
    room.save("notes/tea.md", "# Tea\n\nThe tea is kept in the blue tin.")
    with room.client() as client:
        response = client.get("/ready")
        assert response.status_code == 503
        model = response.json()["parts"]["model"]
        assert model["state"] == "failed"
        assert "bad.gguf" in model["detail"]
        assert model["remedy"]
        assert client.get("/health").status_code == 200
        assert client.post("/rag/search", json={"question": "Where is the tea?"}).json()["passages"]
        asked = client.post("/rag/ask", json={"question": "Where is the tea kept?"})
        assert asked.status_code == 503
        assert asked.json()["code"] == "model_unusable"
    assert room.stop() == 0
