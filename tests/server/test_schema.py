"""The OpenAPI document against the service: schemathesis makes calls from it, good and bad ones, and compares what comes with what it says.

The service is a real one in this process, on 127.0.0.1, with real documents; the language model is a server that speaks by script, since
thousands of answers would take hours. A short run is in `make test`, a long one in `make nightly`.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode

from rag.settings import load
from server.app import ReadingRoom
from server.description import _CONTENT, described
from server.http import create_app
from server.scopes import RULES
from tests.conftest import wait_until
from tests.scripted import ANSWER, Scripted, Step

load_all_checks()

CHECKED = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
"""Of schemathesis' checks. Not those that want each wrong call refused: unknown fields are taken in both dialects, and an empty `domain`
is none."""

ENDLESS = "GET /rag/events"
"""Its stream ends only with the service: it is read by itself below."""


class Always(deque[Any]):
    """The same script for every call."""

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> tuple[Step, ...]:
        """The script."""
        return ANSWER


class Listening(uvicorn.Server):
    """uvicorn in a thread."""

    def install_signal_handlers(self) -> None:
        """They are the main thread's."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the service is, with two documents and one that failed."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "corpora" / "house").mkdir(parents=True)
    (folder / "corpora" / "house" / "hours.md").write_text("# Hours\n\nThe reading room opens at nine. On Sundays it is closed.\n")
    (folder / "corpora" / "house" / "tea.txt").write_text("Tea is served at four.")
    (folder / "corpora" / "house" / "film.mp4").write_bytes(b"\x00\x01")
    patch = pytest.MonkeyPatch()
    patch.setattr("rag.pull.pull", _pulled)
    with Scripted() as model:
        model.scripts = Always()
        flags = {"data_dir": folder / "data", "corpora": folder / "corpora", "engine.url": model.url, "engine.model": "m"}
        room = ReadingRoom(load(None, {}, flags))
        room.start()
        room.wait()
        server = Listening(uvicorn.Config(create_app(room), port=0, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_until(lambda: server.started, 60, "the server")
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        wait_until(lambda: _statuses(address) == ["failed", "indexed", "indexed"], 120, "the documents")
        yield address
        room.broadcast.close()
        server.should_exit = True
        thread.join(60)
        room.stop()
    patch.undo()
    assert not thread.is_alive()


def _pulled(name: str, data_dir: Any, *, report: Any, **_: Any) -> None:
    """Nothing is fetched from elsewhere by a test."""
    from rag.download import Step as Fetched

    report(Fetched("success"))


def _statuses(url: str) -> list[str]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        return sorted(item["status"] for item in client.get("/rag/documents").json()["items"])


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    """As programs get it."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        return dict(client.get("/schema/openapi.json").json())


class Trial:
    """Calls made from the document, other ones each time with `anew`, and what is wrong with their answers, counted by class (`2xx`)."""

    def __init__(self, document: dict[str, Any], url: str, examples: int, *, anew: bool = False) -> None:
        self._schema = schemathesis.openapi.from_dict(document)
        self._url, self._examples, self._anew = url, examples, anew
        self._checks = CHECKS.get_by_names(CHECKED)
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            ids = [item["id"] for item in client.get("/rag/documents").json()["items"]]
            conversation = client.post("/rag/conversations", json={"title": "kept"}).json()["id"]
        # Made-up ids find nothing: half of the good calls are about what there is.
        self._there = {"document_id": ids, "conversation_id": [conversation], "name": ["house"], "number": [1], "model_id": ["readingroom"]}
        self._meant = {"conversation_id": [conversation], "domain": ["house"], "model": ["readingroom", "m"], "history": [[]]}
        self._meant["messages"] = [[{"role": "user", "content": "When does the reading room open?"}]]
        self.statuses: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self) -> None:
        """So many good and bad calls of each kind."""
        for found in self._schema.get_all_operations():
            operation = found.ok()
            if f"{operation.method.upper()} {operation.path}" == ENDLESS:
                continue
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    self._try(operation, mode)
                except (Unsatisfiable, SkipTest):  # nothing of such a call can be wrong
                    continue
                except (Exception, FailureGroup) as error:
                    self.problems.append(f"{operation.method.upper()} {operation.path} ({mode.value}): {error}")

    def _try(self, operation: Any, mode: GenerationMode) -> None:
        keeps = mode is GenerationMode.POSITIVE and operation.method != "delete"

        @settings(
            max_examples=self._examples,
            deadline=None,
            database=None,
            derandomize=not self._anew,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
        def run(case: Any, data: Any) -> None:
            for parameter, values in self._there.items() if keeps else ():
                if parameter in case.path_parameters and data.draw(st.booleans()):
                    case.path_parameters[parameter] = data.draw(st.sampled_from(values))
            for field, values in self._meant.items() if keeps and isinstance(case.body, dict) else ():
                if field in case.body and data.draw(st.booleans()):
                    case.body[field] = data.draw(st.sampled_from(values))
            response = case.call(base_url=self._url)
            self.statuses[f"{response.status_code // 100}xx"] += 1
            case.validate_response(response, checks=self._checks)

        run()


def tried(document: dict[str, Any], url: str, examples: int, *, anew: bool = False) -> Counter[str]:
    """The classes of the statuses of so many calls of each kind. Fails with all that was wrong."""
    trial = Trial(document, url, examples, anew=anew)
    trial.run()
    assert not trial.problems, "\n\n".join(trial.problems)
    return trial.statuses


def test_what_the_document_says_is_what_comes(document: dict[str, Any], url: str) -> None:
    """Good and bad calls of every kind: no 5xx, each answer of a status, a type and a shape that the document names."""
    statuses = tried(document, url, 2)
    assert statuses["2xx"] > 30
    assert statuses["4xx"] > 30
    assert statuses.keys() <= {"2xx", "4xx"}


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_it_stays_so_for_many(document: dict[str, Any], url: str) -> None:
    """The same at length, with other calls every night."""
    assert tried(document, url, 150, anew=True).keys() <= {"2xx", "4xx"}


@pytest.mark.parametrize("part", ["status", "type", "shape"])
def test_the_trial_is_not_blind(document: dict[str, Any], url: str, part: str) -> None:
    """An answer that the document does not name is found: of another status, another type, another shape."""
    wrong = copy.deepcopy(document)
    wrong["paths"] = {path: wrong["paths"][path] for path in ("/rag/domains", "/rag/documents/{document_id}/text")}
    domains, text = (next(iter(item.values()))["responses"] for item in wrong["paths"].values())
    if part == "status":
        del text["4XX"]
    elif part == "type":
        domains["200"]["content"] = {"text/csv": {"schema": {"type": "string"}}}
    else:
        domains["200"]["content"]["application/json"]["schema"] = {"type": "object", "required": ["nothing"]}
    trial = Trial(wrong, url, 2)
    trial.run()
    assert trial.problems


def test_the_stream_of_events_is_as_described(document: dict[str, Any], url: str) -> None:
    """The one call that is not made up: it does not end by itself."""
    (kind,) = document["paths"]["/rag/events"]["get"]["responses"]["200"]["content"]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client, client.stream("GET", "/rag/events") as stream:
        assert stream.headers["content-type"].partition(";")[0] == kind
        assert next(stream.iter_lines()) == "event: state"


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    """And nothing of Litestar's own errors is left in it."""
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend(value for key, value in node.items() if key == "$ref")
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert len(found) > 100
    for reference in set(found):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference
    assert "Validation Exception" not in str(document)


def test_what_is_said_of_answers_is_said_of_calls_that_there_are() -> None:
    """A call that is gone takes its entry with it."""
    assert _CONTENT.keys() - RULES.keys() == set()


def test_the_description_leaves_the_document_that_it_is_given(document: dict[str, Any]) -> None:
    """Litestar keeps it and gives it again."""
    plain = {"paths": {"/rag/ask": {"post": {"responses": {"200": {"content": {}}, "400": {}}}}}}
    made = described(plain)
    assert plain == {"paths": {"/rag/ask": {"post": {"responses": {"200": {"content": {}}, "400": {}}}}}}
    assert set(made["paths"]["/rag/ask"]["post"]["responses"]) == {"200", "4XX", "5XX"}
