"""What a real server counts and writes down of real calls, and that dashboard, alerts and guide ask for nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

from rag.engine import Engine
from rag.engines import Engines, _Loaded
from rag.generation import Generation, Request
from rag.metrics import ENDS, PARSE_CODES, REFUSALS, Metrics
from rag.records import Turn
from rag.settings import Engine as EngineSettings
from rag.settings import Limits, Server, Settings
from server.app import ReadingRoom
from server.http import create_app
from server.routes.ops import document_readings
from tests import promql
from tests.conftest import ROOT, wait_until
from tests.server.conftest import Served

OPS = ROOT / "ops"
NAMES = re.compile(r"`(readingroom_\w+)`")


def scraped(served: Served) -> str:
    """All metrics."""
    with served.client() as client:
        return client.get("/metrics").text


def value(text: str, name: str) -> float:
    """Of one series, by its name with its labels; 0 where it is not there."""
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.rpartition(" ")[0] == name), 0.0)


def lines_of(served: Served, id: str) -> list[str]:
    """The lines of the log with that request id."""
    return [line for line in served.log.read_text().splitlines() if f"request_id={id}" in line]


def test_every_stage_of_an_answer_is_counted(served: Served) -> None:
    """Search, second look, gate, wait, prompt, tokens, support, and the call itself: one more of each."""
    before = scraped(served)
    with served.client() as client:
        body = {"question": "How do I add a domain?", "domain": "guide", "stream": False, "max_tokens": 40}
        done = client.post("/rag/ask", json=body).json()
    assert done["refused"] is False
    after = scraped(served)
    stages = ("retrieve", "rerank", "gate", "queue", "prefill", "decode", "token", "first_token", "answer")
    for stage in (*(f"{stage}_seconds" for stage in stages), "evidence_probability"):
        name = f"readingroom_{stage}_count"
        assert value(after, name) == value(before, name) + 1, name
    for name in ("readingroom_cite_seconds_count", 'readingroom_embed_seconds_count{kind="query"}'):
        assert value(after, name) > value(before, name), name
    grown = {
        'readingroom_answers_total{outcome="answered"}': 1,
        'readingroom_http_requests_total{method="POST",route="/rag/ask",status="200"}': 1,
        'readingroom_http_request_seconds_count{route="/rag/ask"}': 1,
        'readingroom_citations_total{outcome="supported"}': len(done["citations"]),
        "readingroom_completion_tokens_total": done["usage"]["completion_tokens"],
    }
    for name, by in grown.items():
        assert value(after, name) == value(before, name) + by, name
    ends = [value(after, f'readingroom_generations_total{{reason="{end}"}}') for end in ENDS]
    assert sum(ends) == sum(value(before, f'readingroom_generations_total{{reason="{end}"}}') for end in ENDS) + 1
    # Half a second of a prompt is not a second of it: the parts of the time to the first word are not more than the whole.
    parts = sum(
        value(after, f"readingroom_{part}_seconds_sum") - value(before, f"readingroom_{part}_seconds_sum") for part in ("queue", "prefill")
    )
    whole = value(after, "readingroom_first_token_seconds_sum") - value(before, "readingroom_first_token_seconds_sum")
    assert 0 < parts <= whole


def test_a_refusal_is_counted_with_its_reason(served: Served) -> None:
    """And nothing is generated for it."""
    before = scraped(served)
    with served.client() as client:
        asked = {"question": "Who won the football world cup in 2018?", "domain": "guide", "stream": False}
        assert client.post("/rag/ask", json=asked).json()["refused"] is True
    after = scraped(served)
    reasons = {reason: f'readingroom_refusals_total{{reason="{reason}"}}' for reason in REFUSALS}
    grown = Counter({reason: value(after, name) - value(before, name) for reason, name in reasons.items()})
    assert grown.total() == 1
    assert value(after, 'readingroom_answers_total{outcome="refused"}') == value(before, 'readingroom_answers_total{outcome="refused"}') + 1


def test_a_call_can_be_followed_through_the_log(served: Served) -> None:
    """The call, its generation, and nothing of what was asked and answered."""
    with served.client() as client:
        body = {"question": "How do I add a domain?", "domain": "guide", "stream": False, "max_tokens": 12}
        response = client.post("/rag/ask?key=hidden-in-the-query", json=body, headers={"X-Request-ID": "follow-me"})
    assert response.headers["x-request-id"] == "follow-me"
    lines = wait_until(lambda: len(found := lines_of(served, "follow-me")) >= 2 and found)
    generated, call = lines
    assert "rag.generation: generated [" in generated
    assert re.search(r"finish_reason=(stop|length|cancelled) prompt_tokens=[1-9]\d* ", generated)
    assert "server.access: POST /rag/ask [" in call
    assert "status=200" in call
    assert "caller=local" in call
    written = served.log.read_text()
    for secret in ("add a domain", "hidden-in-the-query", response.json()["answer"][:30]):
        assert secret not in written


def test_the_lines_of_an_upload_carry_its_id(served: Served) -> None:
    """The reading happens on another thread, after the answer was sent. In a new domain the watcher may see the folder first."""
    served.save("ops/word.md", "# Word\n\nSo that there is a domain.")
    with served.client() as client:
        sent = client.post(
            "/rag/documents",
            data={"domain": "ops"},
            files={"file": ("broken.pdf", b"%PDF-1.7\nnothing", "application/pdf")},
            headers={"X-Request-ID": "upload-7"},
        )
    assert sent.status_code == 202, sent.text
    lines = wait_until(lambda: [line for line in lines_of(served, "upload-7") if "ingest" in line])
    assert "ingest.pipeline: ops/broken.pdf: " in lines[0]


def test_dashboard_and_alerts_ask_for_what_is_exported(served: Served) -> None:
    """Every query is Prometheus' language, and each metric and label in it, and in what is written around it, is one of the server's."""
    served.save("ops/word.md", "# Word\n\nSo that something was indexed.")
    wait_until(lambda: "readingroom_ingest_reconciled_seconds" in scraped(served))
    with served.client() as client:
        client.get("/nowhere")
    known = promql.exported(scraped(served))
    if not sys.platform.startswith("linux"):
        known |= {
            name: set() for name in ("process_cpu_seconds_total", "process_virtual_memory_bytes", "process_open_fds", "process_max_fds")
        }
    queries = {f"{rule['alert']}": (rule["expr"], json.dumps(rule["annotations"])) for rule in rules()}
    for panel in json.loads((OPS / "grafana/dashboards/readingroom.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            queries[f"{panel['title']} {target['refId']}"] = target["expr"], target["legendFormat"]
    assert len(queries) > 60
    wrong = {title: found for title, (query, _) in queries.items() if (found := promql.missing(query, known))}
    assert wrong == {}
    for title, (query, template) in queries.items():
        asked = set().union(*promql.named(query).values())
        carried = asked if promql.groups(query) else set().union(*(known.get(name, set()) for name in promql.named(query)))
        assert promql.mentioned(template) <= carried | promql.ADDED, title


def test_labels_have_only_values_that_there_are(served: Served) -> None:
    """A value in a query that no series has would be a panel that is always empty."""
    text = scraped(served)
    for title, query in everything():
        for name, label, wanted in promql.values(query):
            found = set(re.findall(rf'^{name}{{[^}}]*\b{label}="([^"]*)"', text, re.MULTILINE))
            if name == "up" or label in promql.ADDED or (name == "readingroom_http_requests_total"):
                continue
            assert wanted <= found, (title, name, label)


def test_the_guide_names_metrics_that_there_are(served: Served) -> None:
    """And every metric of ours that a query asks for stands in it."""
    page = (ROOT / "corpora/guide/monitoring.md").read_text()
    named = set(NAMES.findall(page))
    known = set(promql.exported(scraped(served)))
    assert {name for name in named if not {name, f"{name}_bucket"} & known} == set()
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for _, query in everything() for name in promql.named(query)}
    ours = {name for name in asked if name.startswith("readingroom_")}
    assert ours - named - {"readingroom_embedded_texts_total", "readingroom_models_limit_bytes", "readingroom_models_loaded"} <= UNTOLD


UNTOLD = {"readingroom_searches_total", "readingroom_unforgotten_chunks"}
"""Asked for by the dashboard and plain enough without a word."""


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in yaml.safe_load((OPS / "prometheus/rules.yml").read_text())["groups"] for rule in group["rules"]]


def everything() -> list[tuple[str, str]]:
    """All queries, with whose they are."""
    panels = json.loads((OPS / "grafana/dashboards/readingroom.json").read_text())["panels"]
    return [
        *((rule["alert"], rule["expr"]) for rule in rules()),
        *((panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())),
    ]


# Parts, without a server


def talk(settings: Settings, *calls: tuple[str, str, dict[str, str]]) -> tuple[list[httpx.Response], Metrics]:
    """Calls of an application whose room has no models."""
    room = ReadingRoom(settings)
    room.start(index=False, engine=False)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(room))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return [await client.request(method, path, headers=headers) for method, path, headers in calls]

    try:
        return asyncio.run(run()), room.metrics
    finally:
        room.stop()


def test_calls_over_a_limit_and_without_a_key_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By limit and code; what the guard refuses never came to a route. The line says whose address it was."""
    caplog.set_level("INFO", "server.access")
    settings = Settings(
        data_dir=tmp_path / "data", corpora=tmp_path / "corpora", server=Server(key="open sesame"), limits=Limits(requests_per_minute=1)
    )
    good = {"Authorization": "Bearer open sesame"}
    calls = [("GET", "/rag/conversations", good)] * 2 + [("GET", "/rag/conversations/secret-id", {}), ("GET", "/rag/nowhere/at/all", good)]
    responses, metrics = talk(settings, *calls)
    assert [response.status_code for response in responses] == [200, 429, 401, 429]
    read = metrics.registry.get_sample_value
    assert read("readingroom_over_quota_total", {"limit": "address-requests"}) == 2
    assert read("readingroom_http_problems_total", {"code": "over_quota"}) == 2
    assert read("readingroom_http_problems_total", {"code": "unauthorized"}) == 1
    for status, n in (("429", 2), ("401", 1)):
        assert read("readingroom_http_requests_total", {"method": "GET", "route": "guard", "status": status}) == n
    found = {"method": "GET", "route": "/rag/conversations", "status": "200"}
    assert read("readingroom_http_requests_total", found) == 1
    refused = [record for record in caplog.records if record.name == "server.access" and record.status != 200]
    assert [record.client for record in refused] == ["127.0.0.1"] * 3
    assert "sesame" not in caplog.text


def test_no_call_is_logged_where_nobody_wants_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`log.access = false`."""
    from rag.settings import Log

    caplog.set_level("INFO", "server.access")
    settings = Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora", log=Log(access=False))
    (response,), _ = talk(settings, ("GET", "/rag/conversations", {}))
    assert response.headers["x-request-id"]
    assert [record for record in caplog.records if record.name == "server.access"] == []


def test_very_many_domains_are_not_very_many_series() -> None:
    """The fifty largest have their own, all others one; nothing is lost of the sum."""
    counted = {f"domain-{n:04}": {"indexed": n, "failed": 1} for n in range(1000)}
    samples = document_readings(counted).samples
    assert len({sample.labels["domain"] for sample in samples}) == 51
    assert sum(sample.value for sample in samples) == sum(range(1000)) + 1000
    largest = {(sample.labels["domain"], sample.labels["status"]): sample.value for sample in samples}
    assert largest["domain-0999", "indexed"] == 999
    assert largest[".others", "failed"] == 950
    assert largest["domain-0999", "queued"] == 0


def test_series_that_will_be_counted_are_there_from_the_start() -> None:
    """The step from nothing to 1 is lost to `rate()`, the step from 0 to 1 is not."""
    read = Metrics().registry.get_sample_value
    for end in ENDS:
        assert read("readingroom_generations_total", {"reason": end}) == 0
    for code in PARSE_CODES:
        assert read("readingroom_parse_failures_total", {"code": code}) == 0


@pytest.mark.parametrize("leave", ["at the end", "in the prompt", "in the queue"])
def test_every_end_of_a_generation_is_counted_once(engine: Engine, leave: str) -> None:
    """Whoever leaves, and when: each has its wait; only who saw a token has a time to it."""
    metrics = Metrics()
    read = metrics.registry.get_sample_value
    engine.over, before = metrics.generated, engine.over

    async def run() -> None:
        prompt = engine.render([Turn("user", "Tell me of Paris. " * (60 if leave == "in the prompt" else 1))])
        blocking = []
        if leave == "in the queue":
            blocking = [engine.submit(Request(prompt, 400)) for _ in range(engine.sequences)]
        generation: Generation = engine.submit(Request(prompt, 5))
        if leave != "at the end":
            generation.cancel()
        async for _ in generation.pieces():
            pass
        for each in blocking:
            each.cancel()
            async for _ in each.pieces():
                pass

    try:
        asyncio.run(run())
        wait_until(lambda: engine.running == 0)
    finally:
        engine.over = before
    others = engine.sequences if leave == "in the queue" else 0
    assert sum(read("readingroom_generations_total", {"reason": end}) or 0 for end in ENDS) == 1 + others
    assert read("readingroom_queue_seconds_count") == 1 + others
    if leave == "at the end":
        assert read("readingroom_generations_total", {"reason": "length"}) == 1
        assert read("readingroom_prefill_seconds_count") == read("readingroom_token_seconds_count") == 1
        assert sum(read("readingroom_prefix_cache_total", {"result": result}) or 0 for result in ("hit", "miss")) == 1
    else:
        assert read("readingroom_generations_total", {"reason": "cancelled"}) == 1 + others


def test_a_generation_that_the_engine_fails_is_a_failure() -> None:
    """Not an end of its own kind: its error stands in place of one. Told once, even if it is ended twice."""
    from rag.errors import NotReady

    told: list[bool] = []

    def over(generation: Generation, *, failed: bool) -> None:
        told.append(failed)

    async def run() -> None:
        generation = Generation(Request((1, 2), 3), lambda: None, over=over)
        generation.put(NotReady("Over.", "Later."))
        generation.put(None)

    asyncio.run(run())
    assert told == [True]


@pytest.mark.parametrize("query", ["sum by (route) (readingroom_searches_total)", 'readingroom_documents{path="x"}', "no_such_metric"])
def test_a_query_for_what_is_not_there_is_seen(query: str, served: Served) -> None:
    """So that the tests above can fail."""
    assert promql.missing(query, promql.exported(scraped(served)))


@pytest.mark.parametrize("query", ["rate(readingroom_answers_total)", "x ++", "sum(up[5m])", "up{$host}"])
def test_what_is_no_query_is_seen(query: str) -> None:
    """Functions and types are checked, too."""
    with pytest.raises(ValueError):
        promql.parse(query)


def test_tokens_of_a_model_that_left_stay_counted(tmp_path: Path) -> None:
    """A counter that goes back would be a restart to Prometheus."""

    def engine(model: str, read: int, decoded: int) -> Any:
        return SimpleNamespace(model=model, prefill_tokens=read, decode_tokens=decoded, running=0, waiting=0, stop=lambda: None)

    engines = Engines(EngineSettings(), tmp_path, make=lambda settings, _: engine(settings.model, 5, 7))
    engines._others["other"] = _Loaded(engine("other", 10, 20))
    assert engines.tokens() == (15, 27)
    assert asyncio.run(engines.unload("other")) is True
    assert len(engines.loaded()) == 1
    assert engines.tokens() == (15, 27)
