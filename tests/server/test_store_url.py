"""A server whose passages are in a Qdrant server (`store.url`): while that is gone, it says so, and goes on by itself when it is back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rag.settings import Engine, Ingest, Settings, Store
from server.elsewhere import of_engine, of_store
from server.measured import placed
from tests.conftest import wait_until
from tests.rag.qdrant import Qdrant
from tests.server.conftest import Served
from tests.server.test_http import is_problem


@pytest.mark.nightly
def test_an_index_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    """Questions are answered 503 with the remedy, `/ready` names the part, and what was saved meanwhile is indexed afterwards.

    A restart finds everything in place; a delete's receipt counts what is left there.
    """
    qdrant = Qdrant()
    served = Served(tmp_path, STORE__URL=qdrant.url, STORE__COLLECTION="test", STORE__API_KEY="a-secret-key", ENGINE__ADAPTER="none")
    question = {"question": "When is the reading room open?"}
    try:
        served.start()
        served.save("handbook/hours.md", "# Hours\n\nThe reading room is open from nine to five.\n")
        assert qdrant.client.count("test").count == 1
        assert not (served.data_dir / "store").exists()
        with served.client() as client:
            assert client.post("/rag/search", json=question).json()["passages"][0]["path"] == "handbook/hours.md"
            qdrant.stop()
            response = client.post("/rag/search", json=question)
            assert "tried again" in is_problem(response, 503, "store_unreachable")["remedy"]
            assert int(response.headers["retry-after"]) > 0
            is_problem(client.post("/rag/ask", json=question), 503, "store_unreachable")
            ready = client.get("/ready")
            assert (ready.status_code, ready.json()["parts"]["store"]["state"]) == (503, "failed")
            assert "store.url" in ready.json()["parts"]["store"]["remedy"]
            (served.corpora / "handbook" / "cellar.md").write_text("# Cellar\n\nThe wine is kept in the cellar.\n")
            wait_until(lambda: client.get("/ready").json()["ingest"]["error"], what="the ingest's word that it waits")
            qdrant.start()
            wait_until(lambda: client.get("/ready").status_code == 200, what="readiness")
            wait_until(lambda: served.record("handbook/cellar.md"), what="the file that was saved meanwhile")
            assert qdrant.client.count("test").count == 2
            made = len(qdrant.calls)
        served.stop()
        served.start()
        with served.client() as client:
            id = served.records()[0]["id"]
            receipt = client.delete(f"/rag/documents/{id}").json()
            assert (receipt["vectors"], receipt["remaining"]) == (1, 0)
            assert qdrant.client.count("test").count == 1
        assert not any(method == "PUT" and path.endswith("/points") for method, path, _ in qdrant.calls[made:])
        assert served.stop() == 0
        shown = served.run("privacy", "show")
        assert "collection test of the Qdrant server at" in shown.stdout
        assert "a-secret-key" not in served.log.read_text() + shown.stdout
    finally:
        if served.process is not None:
            served.stop(kill=True)
        qdrant.stop()
    assert not served.network_log.exists(), served.network_log.read_text()


def test_an_index_for_measuring_is_in_a_folder(tmp_path: Path) -> None:
    """The collection is of one data directory, and what is measured with other settings has another one."""
    usual = Settings(data_dir=tmp_path, store=Store(url="http://127.0.0.1:6333"))
    assert placed(usual, None, usual).store == usual.store
    tried = Settings(data_dir=tmp_path, store=usual.store, ingest=Ingest(chunk_tokens=100))
    assert placed(tried, None, usual).store == Store()


@pytest.mark.parametrize(
    ("url", "leaves", "in_clear"),
    [
        ("http://127.0.0.1:6333", False, False),
        (" http://[::1]:6333", False, False),
        ("HTTP://localhost:6333", False, False),
        ("http://localhost.example:6333", True, True),
        ("HTTP://10.0.0.7:6333", True, True),
        ("https://qdrant.example", True, False),
        ("http://[no address", True, True),
    ],
)
def test_what_leaves_this_machine_is_told(url: str, leaves: bool, in_clear: bool) -> None:
    """Of both servers that settings can name, however the address is written; an ephemeral run has no passages at a server."""
    settings = Settings(store=Store(url=url), engine=Engine(url=url))
    for told in (of_store(settings), of_engine(settings)):
        assert (bool(told), told.endswith(", unencrypted")) == (leaves, in_clear)
    assert of_store(replace(settings, ephemeral=True)) == ""
    assert of_engine(Settings()) == of_store(Settings()) == ""
