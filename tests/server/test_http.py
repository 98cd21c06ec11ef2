"""The contract over HTTP, against a real server."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from typing import Any

import httpx
import pytest

from tests.conftest import wait_until
from tests.server.conftest import Served, events

QUESTION = "How do I add a domain?"


def is_problem(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Checks that it is a problem document of that status; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert {"type", "title", "status", "detail", "code", "remedy"} <= set(problem)
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["remedy"]
    assert code in (None, problem["code"])
    return problem


def metric(served: Served, name: str) -> float:
    """The value of a metric, labels included in the name."""
    with served.client() as client:
        for line in client.get("/metrics").text.splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
    return 0.0


def test_health_and_ready(served: Served) -> None:
    """Alive, and ready with each part named."""
    with served.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        ready = client.get("/ready").json()
        assert ready["ready"] is True
        assert set(ready["parts"]) == {"model", "embedder", "store", "watcher"}


def test_ready_says_how_the_ingest_stands(served: Served) -> None:
    """Counts and ages; never a file's name, since the call needs no key."""
    served.save("standing/private-matter.md", "# Private\n\nNobody's business.")

    def ingest() -> dict[str, Any]:
        with served.client() as client:
            return client.get("/ready").json()["ingest"]

    settled = wait_until(lambda: (now := ingest())["waiting"] == 0 and now["reconciled_s"] is not None and now)
    assert set(settled) == {
        "done", "of", "failed", "elapsed_s", "left_s", "waiting", "waiting_s", "reconciled_s", "mode", "error", "unforgotten",
    }  # fmt: skip
    assert settled["done"] == settled["of"] >= 1
    assert settled["waiting_s"] is None
    assert settled["mode"] == "events"
    assert settled["error"] is None
    with served.client() as client:
        assert "private" not in client.get("/ready").text
        report = client.post("/rag/sync").json()
        assert report["unchanged"] >= 1
        assert (report["failed"], report["removed"], report["indexed"]) == (0, 0, 0)
        assert ingest()["reconciled_s"] < settled["reconciled_s"] + 60


def test_a_sync_answers_when_what_was_just_saved_can_be_asked(served: Served) -> None:
    """Without it one would wait for the events, which come late or never on some file systems."""
    (served.corpora / "synced").mkdir()
    (served.corpora / "synced" / "heron.md").write_text("# Heron\n\nThe heron stands in the reeds of Lake Umbra.")
    with served.client() as client:
        assert client.post("/rag/sync").status_code == 200
        found = client.post("/rag/search", json={"question": "Where does the heron stand?", "domain": "synced"}).json()["passages"]
        assert found[0]["path"] == "synced/heron.md"


def test_an_answer_streams_its_events_in_order(served: Served) -> None:
    """passages, then tokens with citations between them, then done; what is streamed is what done says."""
    with served.client() as client, client.stream("POST", "/rag/ask", json={"question": QUESTION}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        got = list(events(response))
    names = [name for name, _ in got]
    assert names[0] == "passages"
    assert names[-1] == "done"
    assert set(names[1:-1]) <= {"token", "citation"}
    passages, done = got[0][1], got[-1][1]
    assert passages["searched_for"] == QUESTION
    assert passages["passages"][0]["path"] == "guide/domains.md"
    assert {"chunk_id", "document_id", "domain", "path", "title", "heading", "page", "start", "end", "text", "score", "scores"} <= set(
        passages["passages"][0]
    )
    assert "".join(data["text"] for name, data in got if name == "token") == done["answer"]
    assert [data for name, data in got if name == "citation"] == done["citations"]
    assert done["refused"] is False
    assert done["usage"]["prompt_tokens"] > 50
    assert done["usage"]["completion_tokens"] > 0
    assert 0 < done["timings"]["retrieve_ms"] < done["timings"]["ttft_ms"] < done["timings"]["total_ms"]
    assert {"rerank_ms"} <= set(done["timings"])
    assert done["model"] == "smollm2-135m-instruct"
    assert {"adapter", "conversation_id"} <= set(done)


def test_every_citation_stands_in_its_document(served: Served) -> None:
    """Invariant 3 over HTTP: /text[start:end] is the quote, for every passage and citation of several answers."""
    cited = 0
    with served.client() as client:
        for question in (QUESTION, "How do I delete a document?", "What is a citation?", "Which models are used by default?"):
            with client.stream("POST", "/rag/ask", json={"question": question}) as response:
                got = list(events(response))
            done = got[-1][1]
            for citation in done["citations"]:
                text = client.get(f"/rag/documents/{citation['document_id']}/text").json()["text"]
                assert text[citation["start"] : citation["end"]] == citation["quote"]
                assert citation["sentence"] in done["answer"]
                cited += 1
            for passage in got[0][1]["passages"]:
                text = client.get(f"/rag/documents/{passage['document_id']}/text").json()["text"]
                assert text[passage["start"] : passage["end"]] == passage["text"]
    assert cited >= 3


def test_without_streaming_the_done_object_is_the_answer(served: Served) -> None:
    """The same object, as JSON."""
    with served.client() as client:
        with client.stream("POST", "/rag/ask", json={"question": QUESTION}) as response:
            streamed = list(events(response))[-1][1]
        plain = client.post("/rag/ask", json={"question": QUESTION, "stream": False}).json()
    for key in ("answer", "refused", "citations", "model", "finish_reason"):
        assert plain[key] == streamed[key]


def test_what_the_documents_do_not_hold_is_refused(served: Served) -> None:
    """No token is generated; the nearest passages are shown."""
    question = {"question": "Who won the football world cup in 2018?"}
    with served.client() as client, client.stream("POST", "/rag/ask", json=question) as response:
        got = list(events(response))
    done = got[-1][1]
    assert done["refused"] is True
    assert done["citations"] == []
    assert done["usage"]["completion_tokens"] == 0
    assert got[0][1]["passages"]


def test_search_finds_passages_best_first(served: Served) -> None:
    """Without an answer."""
    with served.client() as client:
        found = client.post("/rag/search", json={"question": QUESTION, "limit": 3, "domain": "guide"}).json()["passages"]
    assert len(found) == 3
    assert found[0]["path"] == "guide/domains.md"
    assert [p["score"] for p in found] == sorted((p["score"] for p in found), reverse=True)


def test_filters_choose_the_documents_that_are_searched(served: Served) -> None:
    """By path, by type and by date, for passages and for answers; where no document fits, nothing is found."""
    with served.client() as client:

        def paths(filters: dict[str, Any]) -> set[str]:
            body = {"question": QUESTION, "domain": "guide", "limit": 20, "filters": filters}
            return {passage["path"] for passage in client.post("/rag/search", json=body).json()["passages"]}

        assert paths({"path": "guide/s"}) == {"guide/start.md"}
        assert paths({"path": "*/http.m?", "type": "text/markdown"}) == {"guide/http.md"}
        assert "guide/domains.md" in paths({"type": ["md", "pdf"], "after": "2000-01-01"})
        assert paths({"before": "2000-01-01"}) == paths({"type": "pdf"}) == set()
        body = {"question": QUESTION, "domain": "guide", "stream": False, "max_tokens": 4, "filters": {"before": "2000-01-01"}}
        assert client.post("/rag/ask", json=body).json()["refused"] is True
        described = client.get("/schema/openapi.json").json()["components"]["schemas"]
    assert [name for name in described if name.endswith("Body") and "filters" in described[name]["properties"]] == ["AskBody", "SearchBody"]


@pytest.mark.parametrize("path", ["/rag/search", "/rag/ask"])
@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"question": ""}, 422, "8000"),
        ({"question": " \n "}, 422, "8000"),
        ({"question": "x" * 100_000}, 422, "8000"),
        ({"question": "bad \x00 byte"}, 422, "8000"),
        ({"question": 5}, 422, "question"),
        ({}, 422, "question"),
        ({"question": "why?", "limit": 0}, 422, "limit"),
        ({"question": "why?", "colour": 1}, 422, "colour"),
        ({"question": "why?", "filters": {"colour": "red"}}, 400, "colour"),
        ({"question": "why?", "filters": {"after": "yesterday"}}, 400, "2026-"),
        ({"question": "why?", "filters": "pdf"}, 422, "filters"),
        ({"question": "why?", "domain": "nowhere"}, 404, "nowhere"),
        ({"question": "why?", "domain": "../guide"}, 404, "guide"),
        ([], 422, ""),
    ],
)
def test_a_bad_question_is_a_problem_with_the_reason(served: Served, path: str, body: object, status: int, word: str) -> None:
    """The limit, or the field, is in the document."""
    with served.client() as client:
        response = client.post(path, json=body)
    is_problem(response, status)
    assert word in response.text


def test_broken_requests_have_their_own_statuses(served: Served) -> None:
    """400, 404, 405, 413 and 415, each a problem document."""
    json_type = {"Content-Type": "application/json"}
    with served.client() as client:
        is_problem(client.post("/rag/ask", content=b"{not json", headers=json_type), 400)
        is_problem(client.post("/rag/ask", content=b"\xff\xfe", headers=json_type), 400)
        is_problem(client.post("/rag/ask", content=b"question=why", headers={"Content-Type": "text/plain"}), 415)
        is_problem(client.post("/rag/ask", content=b"{}"), 415)
        is_problem(client.post("/rag/ask", json={"question": "x" * 3_000_000}), 413)
        is_problem(client.get("/rag/nothing"), 404)
        is_problem(client.get("/static/../../pyproject.toml"), 404)
        is_problem(client.get("/static/%2e%2e/%2e%2e/pyproject.toml"), 404)
        is_problem(client.get("/rag/ask"), 405)
        is_problem(client.delete("/rag/documents"), 405)
        is_problem(client.post("/rag/documents", json={"domain": "guide"}), 415)
        is_problem(client.get("/rag/documents", params={"limit": "many"}), 422)
        is_problem(client.get("/rag/documents", params={"status": "lost"}), 422)
        is_problem(client.get("/rag/documents", params={"cursor": "x"}), 422)
        is_problem(client.get("/rag/documents", params={"domain": "nowhere"}), 404)
        for part in ("", "/text", "/file"):
            is_problem(client.get(f"/rag/documents/00000000-0000-0000-0000-000000000000{part}"), 404, "unknown_document")
        is_problem(client.delete("/rag/documents/nonsense"), 404, "unknown_document")
        is_problem(client.post("/rag/ask", json={"question": "why?", "model": "gpt-9"}), 404, "unknown_model")
        is_problem(client.post("/rag/ask", json={"question": "why?", "adapter": "legal"}), 404, "unknown_adapter")


def test_documents_are_listed_filtered_and_paged(served: Served) -> None:
    """By path; the cursor continues where the page ended."""
    with served.client() as client:
        everything = client.get("/rag/documents", params={"domain": "guide"}).json()["items"]
        paths = [item["path"] for item in everything]
        assert paths == sorted(paths)
        assert set(everything[0]) == {
            "id", "domain", "path", "title", "media_type", "bytes", "status", "chunks", "error", "modified_at", "indexed_at",
            "container", "progress",
        }  # fmt: skip
        assert {(item["container"], item["progress"]) for item in everything} == {(None, None)}
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = client.get("/rag/documents", params={"domain": "guide", "limit": 2, **({"cursor": cursor} if cursor else {})}).json()
            seen += [item["path"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == paths
        assert [i["path"] for i in client.get("/rag/documents", params={"q": "privacy"}).json()["items"]] == ["guide/privacy.md"]
        domains = client.get("/rag/domains").json()["items"]
        guide = next(domain for domain in domains if domain["name"] == "guide")
        assert guide["documents"]["indexed"] == len(paths)
        assert guide["chunks"] == sum(item["chunks"] for item in everything)


def test_a_document_lives_from_upload_to_receipt(served: Served) -> None:
    """Uploaded into the folder, answerable, replaced, deleted with a receipt, and gone from everywhere."""
    (served.corpora / "life").mkdir(exist_ok=True)
    text = "# Lighthouse\n\nThe lighthouse keeper of Quarrelsome Island is called Zebulon Thwaite.\n"
    with served.client() as client:
        response = client.post("/rag/documents", data={"domain": "life"}, files={"file": ("light house é.md", text.encode())})
        assert response.status_code == 202, response.text
        record = response.json()
        assert record["path"] == "life/light house é.md"
        assert (served.corpora / "life" / "light house é.md").read_text() == text
        assert client.get(f"/rag/documents/{record['id']}").status_code == 200
        wait_until(lambda: client.get(f"/rag/documents/{record['id']}").json()["status"] == "indexed", 30)
        found = client.post("/rag/search", json={"question": "Who keeps the lighthouse of Quarrelsome Island?"}).json()["passages"]
        assert found[0]["document_id"] == record["id"]
        assert client.get(f"/rag/documents/{record['id']}/text").json()["text"] == text
        original = client.get(f"/rag/documents/{record['id']}/file")
        assert original.content == text.encode()
        assert original.headers["x-content-type-options"] == "nosniff"
        assert original.headers["content-type"] == "text/plain; charset=utf-8"

        again = client.post(
            "/rag/documents", data={"domain": "life"}, files={"file": ("light house é.md", b"The keeper is called Ann Bellweather.")}
        )
        assert again.json()["id"] == record["id"]
        wait_until(lambda: "Bellweather" in client.get(f"/rag/documents/{record['id']}/text").json().get("text", ""), 30)

        receipt = client.delete(f"/rag/documents/{record['id']}").json()
        assert receipt["remaining"] == 0
        assert receipt["vectors"] >= 1
        assert receipt["text"] > 0
        assert receipt["path"] == record["path"]
        assert not (served.corpora / "life" / "light house é.md").exists()
        is_problem(client.get(f"/rag/documents/{record['id']}"), 404)
        found = client.post("/rag/search", json={"question": "Ann Bellweather Zebulon Thwaite"}).json()["passages"]
        assert all(passage["document_id"] != record["id"] for passage in found)


@pytest.mark.parametrize("name", ["../evil.md", "..", "a/b.md", "/etc/evil.md", ".hidden.md", "x\n.md", "~$x.docx", "domain.toml"])
def test_an_upload_cannot_leave_its_domain_or_take_a_reserved_name(served: Served, name: str) -> None:
    """Refused with the reason, nothing written."""
    before = sorted(served.corpora.rglob("*"))
    with served.client() as client:
        response = client.post("/rag/documents", data={"domain": "guide"}, files={"file": (name, b"x")})
    assert response.status_code in {403, 422}, response.text
    is_problem(response, response.status_code)
    assert sorted(served.corpora.rglob("*")) == before


def test_an_upload_into_an_unknown_domain_makes_it_only_when_asked(served: Served) -> None:
    """404, or with `create` a new folder; never one outside."""
    with served.client() as client:
        is_problem(client.post("/rag/documents", data={"domain": "novel"}, files={"file": ("a.md", b"x")}), 404, "unknown_domain")
        assert not (served.corpora / "novel").exists()
        made = client.post("/rag/documents", data={"domain": "novel", "create": "true"}, files={"file": ("a.md", b"# Hi\n\nThere.")})
        assert made.status_code == 202
        assert (served.corpora / "novel" / "a.md").exists()
        for bad in ("../out", ".git", "a/b", ""):
            response = client.post("/rag/documents", data={"domain": bad, "create": "true"}, files={"file": ("a.md", b"x")})
            assert response.status_code in {403, 404, 422}, bad
        is_problem(client.post("/rag/documents", data={"domain": "guide"}, files={"file": ("big.txt", b"x" * 4_000_000)}), 413)


def test_bad_files_fail_with_a_reason_and_the_rest_goes_on(served: Served) -> None:
    """Empty is indexed empty; binary, unknown and broken files are `failed` with code, message and remedy."""
    assert served.save("bad/empty.md", "")["status"] == "indexed"
    for name, content in (
        ("binary.txt", bytes(range(256)) * 8),
        ("photo.xyz", b"\x89PNG"),
        ("broken.pdf", b"%PDF-1.4 nonsense"),
        ("fake.docx", b"PK\x03\x04no"),
    ):
        record = served.save(f"bad/{name}", content)
        assert record["status"] == "failed", name
        assert record["error"]["code"]
        assert record["error"]["message"]
        assert record["error"]["remedy"]
    assert served.save("bad/good.md", "# Good\n\nA good file among bad ones.")["status"] == "indexed"
    with served.client() as client:
        assert client.get("/ready").status_code == 200


def test_nothing_outside_the_folder_is_read(served: Served) -> None:
    """A link that points out of the corpora is not followed, and a file that becomes one is not served."""
    secret = served.folder / "secret.txt"
    secret.write_text("The secret word is xyzzyplugh.")
    (served.corpora / "guide" / "link.txt").symlink_to(secret)
    (served.corpora / "outside").symlink_to(served.folder)
    try:
        record = served.save("guide/inside.txt", "The inside word is plover.")
        file = served.corpora / "guide" / "inside.txt"
        file.unlink()
        file.symlink_to(secret)
        with served.client() as client:
            response = client.get(f"/rag/documents/{record['id']}/file")
            assert response.status_code == 404
            found = client.post("/rag/search", json={"question": "xyzzyplugh"}).json()["passages"]
            assert not any("xyzzyplugh" in passage["text"] for passage in found)
            assert "outside" not in [domain["name"] for domain in client.get("/rag/domains").json()["items"]]
        assert not any("link" in item["path"] for item in served.records())
    finally:
        for path in ("guide/link.txt", "outside", "guide/inside.txt"):
            os.unlink(served.corpora / path)


def test_progress_is_told_as_it_happens(served: Served) -> None:
    """/rag/events: state first, then the document's stages up to indexed, then its removal."""
    got: list[tuple[str, dict[str, Any]]] = []
    listening = threading.Event()

    def listen() -> None:
        with served.client() as client, client.stream("GET", "/rag/events") as response:
            for event in events(response):
                got.append(event)
                listening.set()
                if event[0] == "removed" and event[1]["path"] == "live/news.md":
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert listening.wait(10)
    assert got[0][0] == "state"
    served.save("live/news.md", "# News\n\nNothing new.")
    (served.corpora / "live" / "news.md").unlink()
    thread.join(30)
    assert not thread.is_alive()
    stages = [data["status"] for name, data in got if name == "document" and data["path"] == "live/news.md"]
    assert stages == sorted(stages, key=["queued", "parsing", "embedding", "indexed"].index)
    assert stages[-1] == "indexed"
    assert stages[0] in {"queued", "parsing"}
    state = got[0][1]
    assert state["documents"]["guide"]["indexed"] > 1
    assert state["max_upload_mb"] == 2
    assert {"done", "of", "failed", "left_s"} <= set(state["ingest"])
    assert [data for name, data in got if name == "ingest"][-1]["done"] >= 1


def test_a_long_upload_tells_its_share_and_so_does_its_record(served: Served) -> None:
    """Created with its domain, followed through its stages with a share that only grows, replaced, deleted: all by events."""
    got: list[dict[str, Any]] = []
    listening = threading.Event()

    def listen() -> None:
        with served.client() as client, client.stream("GET", "/rag/events") as response:
            for name, data in events(response):
                listening.set()
                if name in ("document", "removed") and data["path"] == "long/tome.md":
                    got.append({"status": "removed", "bytes": 0, **data})
                    if name == "removed":
                        return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert listening.wait(10)

    def send(sections: int) -> dict[str, Any]:
        tome = "".join(f"# Section {n}\n\nParagraph {n} of {sections} tells what the number {n * 7919} means.\n\n" for n in range(sections))
        with served.client() as client:
            response = client.post("/rag/documents", data={"domain": "long", "create": "true"}, files={"file": ("tome.md", tome.encode())})
        assert response.status_code == 202, response.text
        size = len(tome.encode())
        sizes.append(size)
        seen: list[float] = []

        def done() -> bool:
            with served.client() as client:
                now = client.get(f"/rag/documents/{response.json()['id']}").json()
            seen.extend([now["progress"]] if now["progress"] is not None else [])
            heard = any((item["bytes"], item["status"]) == (size, "indexed") for item in got)  # else the next upload may overtake it
            return now["status"] == "indexed" and now["bytes"] == size and heard

        wait_until(done, 120, "the tome's index")
        assert seen == sorted(seen)
        return response.json()

    sizes: list[int] = []
    record = send(300)
    assert send(200)["id"] == record["id"]
    with served.client() as client:
        assert client.delete(f"/rag/documents/{record['id']}").json()["remaining"] == 0
    thread.join(30)
    assert not thread.is_alive()
    assert got[-1]["status"] == "removed"
    for size in sizes:
        told = [item for item in got if item["bytes"] == size]
        stages = list(dict.fromkeys(item["status"] for item in told))  # each at its first time: the watcher may ask for a second look
        assert [stage for stage in stages if stage != "queued"] == ["parsing", "embedding", "indexed"]
        looks: list[list[float]] = [[]]
        for item in told:
            if item["progress"] is None:
                looks.append([])  # another stage, or a second look, which begins anew
            elif item["status"] == "embedding":
                looks[-1].append(item["progress"])
        assert all(shares == sorted(shares) for shares in looks), looks
        shares = [share for look in looks for share in look]
        assert any(0 < share < 1 for share in shares)
        assert (told[-1]["status"], told[-1]["progress"]) == ("indexed", None)


def test_an_attachment_is_served_from_its_mail_and_goes_with_it(served: Served) -> None:
    """Its own bytes with the headers of any file; deleting it alone is refused with the way to do it."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "ann@example.org", "bob@example.org", "The plans"
    mail.set_content("Dear Bob, here are the plans of the boat house.")
    plans = b"The boat house is eleven ells long.\n"
    mail.add_attachment(plans, maintype="text", subtype="plain", filename="pläne.txt")
    page = b"<script>alert(1)</script><p>The door is green.</p>"
    mail.add_attachment(page, maintype="text", subtype="html", filename="door.html")
    letter = served.save("mails/letter.eml", mail.as_bytes())
    inside = {r["path"]: r for r in served.records() if r["container"] == "mails/letter.eml"}
    assert set(inside) == {"mails/letter.eml/pläne.txt", "mails/letter.eml/door.html"}
    with served.client() as client:
        member = inside["mails/letter.eml/pläne.txt"]
        file = client.get(f"/rag/documents/{member['id']}/file")
        assert file.content == plans
        assert file.headers["content-type"] == "text/plain; charset=utf-8"
        assert file.headers["content-disposition"] == "inline; filename*=utf-8''pl%C3%A4ne.txt"
        assert file.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert file.headers["x-content-type-options"] == "nosniff"
        door = client.get(f"/rag/documents/{inside['mails/letter.eml/door.html']['id']}/file")
        assert door.content == page
        assert door.headers["content-disposition"].startswith("attachment;")
        is_problem(client.delete(f"/rag/documents/{member['id']}"), 403, "refused")
        assert client.delete(f"/rag/documents/{letter['id']}").json()["remaining"] == 0
        is_problem(client.get(f"/rag/documents/{member['id']}/file"), 404)


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_stops_the_work(served: Served, stream: bool) -> None:
    """Invariant 7 over HTTP: after the connection is closed the engine decodes nothing more."""
    body = json.dumps({"question": "How do I add a domain and what else can I do with it?", "stream": stream, "max_tokens": 900}).encode()
    host, _, port = served.url.removeprefix("http://").partition(":")
    idle = "readingroom_generations_running"
    wait_until(lambda: metric(served, idle) == 0)
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /rag/ask HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_until(lambda: metric(served, idle) == 1)
    wait_until(lambda: metric(served, idle) == 0, 5, "the engine's rest")
    left = 'readingroom_answers_total{outcome="left"}'
    wait_until(lambda: metric(served, left) >= 1, 5, "the count of those who left")
    before = metric(served, "readingroom_decode_tokens_total")
    assert metric(served, "readingroom_decode_tokens_total") == before


def test_full_is_said_and_the_others_are_answered(served: Served) -> None:
    """Invariant 8: two sequences, a queue of two; of ten at once some are told 503 with Retry-After, the rest get answers."""

    def ask(n: int) -> httpx.Response:
        with served.client() as client:
            return client.post("/rag/ask", json={"question": f"How do I add a domain? ({n})", "stream": False, "max_tokens": 60})

    with ThreadPoolExecutor(10) as pool:
        responses = list(pool.map(ask, range(10)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    for response in responses:
        if response.status_code == 503:
            is_problem(response, 503, "queue_full")
            assert int(response.headers["retry-after"]) > 0
        else:
            assert response.json()["answer"]


@pytest.mark.parametrize("path", ["/", "/library", "/docs", "/static/chat.js", "/static/chat.css", "/static/icons.svg", "/metrics"])
def test_a_charset_is_said_once(served: Served, path: str) -> None:
    """The framework adds it to every kind of text, and to no picture."""
    with served.client() as client:
        assert client.get(path).headers["content-type"].count("charset=utf-8") == 1


def test_metrics_are_prometheus_text(served: Served) -> None:
    """Each stage counts; ids in paths do not make labels."""
    failures = 'readingroom_parse_failures_total{code="unsupported_format"}'
    before = metric(served, failures), metric(served, "readingroom_answerable_seconds_count")
    assert served.save("counted/picture.xyz", b"\x89")["status"] == "failed"
    word = served.save("counted/word.md", "# Word\n\nCounted.")
    assert word["status"] == "indexed"
    assert metric(served, failures) == before[0] + 1
    assert metric(served, "readingroom_answerable_seconds_count") > before[1]
    with served.client() as client:
        assert client.get(f"/rag/documents/{word['id']}").status_code == 200
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for name in (
        "readingroom_answers_total", "readingroom_searches_total", "readingroom_first_token_seconds_bucket", "readingroom_documents",
        "readingroom_chunks", "readingroom_citations_total", "readingroom_resident_bytes", "readingroom_files_total",
        "readingroom_ingest_seconds_total", 'readingroom_part_up{part="watcher"} 1.0', 'route="/rag/documents/{document_id}"',
        "readingroom_answerable_seconds_bucket", "readingroom_ingest_waiting", "readingroom_ingest_oldest_seconds",
        "readingroom_ingest_reconciled_seconds", "readingroom_ingest_failing 0.0", 'readingroom_watcher_mode{mode="events"} 1.0',
        'readingroom_watcher_mode{mode="polling"} 0.0', "readingroom_parser_restarts_total", "readingroom_unforgotten_chunks",
        'readingroom_documents{domain="guide",status="indexed"}',
    ):  # fmt: skip
        assert name in response.text, name


def test_the_api_is_described(served: Served) -> None:
    """OpenAPI for programs and a page for people, with every call of the contract."""
    with served.client() as client:
        schema = client.get("/schema/openapi.json").json()
        assert "rapi-doc" in client.get("/docs").text
    calls = {(method, path) for path, item in schema["paths"].items() for method in item}
    for call in (
        ("get", "/health"), ("get", "/ready"), ("get", "/rag/domains"), ("get", "/rag/documents"), ("post", "/rag/documents"),
        ("get", "/rag/documents/{document_id}"), ("get", "/rag/documents/{document_id}/text"), ("get", "/rag/documents/{document_id}/file"),
        ("delete", "/rag/documents/{document_id}"), ("post", "/rag/sync"),
        ("post", "/rag/search"), ("post", "/rag/ask"), ("get", "/rag/events"),
        ("get", "/metrics"),
    ):  # fmt: skip
        assert call in calls, call


def test_pages_load_nothing_from_elsewhere(served: Served) -> None:
    """Every address in the pages and their own files is local, and the policy says so to the browser."""
    with served.client() as client:
        for path in ("/", "/library", "/docs"):
            response = client.get(path)
            assert response.status_code == 200
            assert "default-src 'self'" in response.headers["content-security-policy"]
            assert "://" not in response.text.replace("http://127.0.0.1", "").replace("http://www.w3.org", "")


def test_a_foreign_host_or_origin_is_refused(served: Served) -> None:
    """DNS rebinding and cross-site requests do not reach a server without a key."""
    with served.client() as client:
        is_problem(client.get("/rag/documents", headers={"Host": "evil.example:80"}), 403, "foreign_host")
        is_problem(client.post("/rag/search", json={"question": "x"}, headers={"Origin": "http://evil.example"}), 403, "foreign_origin")
        assert client.post("/rag/search", json={"question": "domain"}, headers={"Origin": served.url}).status_code == 200
