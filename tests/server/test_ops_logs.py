"""The log: its two forms, what never stands in it, and the id that ties a call's lines together."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag import trace
from rag.errors import ModelUnusable, QueueFull
from rag.metrics import Metrics
from rag.settings import Log
from server import cli, logs
from server.requests import Requests

TOKEN = "rrs_abcdefgh_" + "x" * 43
SECRET = 'a "quoted" secret'


class Logged:
    """What is written while a test runs, in the form it asks for."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def configure(self, **settings: Any) -> None:
        logs.configure(Log(**settings), SECRET, "", stream=self.stream)
        # Pytest keeps what is logged, and a worker of xdist cannot send on what is not valid text.
        root = logging.getLogger()
        root.handlers[:] = [handler for handler in root.handlers if not type(handler).__module__.startswith("_pytest")]

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def logged() -> Iterator[Logged]:
    """Everything as it was, afterwards."""
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in (*logs.OURS, *logs.CHATTY))]
    levels, handlers, hook = [logger.level for logger in loggers], root.handlers[:], threading.excepthook
    try:
        yield Logged()
    finally:
        logging.captureWarnings(False)
        threading.excepthook = hook
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def test_a_json_line_is_an_object_with_its_fields(logged: Logged) -> None:
    """Time in UTC, level, logger, message, and what was given besides; names that are not valid text as well."""
    logged.configure(format="json")
    logging.getLogger("server.test").warning("%s of %d: \udcff", "one", 2, extra={"ms": 1.5, "nothing": None})
    (line,) = logged.objects
    assert line.pop("time").endswith("Z")
    assert line == {"level": "warning", "logger": "server.test", "message": "one of 2: \udcff", "ms": 1.5}


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_belongs_to_its_line(logged: Logged, form: str) -> None:
    """JSON: a field. Console: indented, so that the text of an exception cannot pass for a line."""
    logged.configure(format=form)
    try:
        raise ValueError("first\n2026-01-01 INFO server.keys: forged")
    except ValueError:
        logging.getLogger("server.test").exception("failed")
    if form == "json":
        (line,) = logged.objects
        assert "forged" in line["exception"]
    else:
        assert sum(not line.startswith("  ") for line in logged.lines) == 1
        assert any("forged" in line for line in logged.lines)


def test_nobody_writes_a_line_of_his_own(logged: Logged) -> None:
    """Line ends and the terminal's control characters in a name are shown, not obeyed."""
    logged.configure(format="console")
    logging.getLogger("ingest.test").warning("%s: broken", "a\nb\r\x1b[31m\u2028.pdf", extra={"path": "c\nd"})
    (line,) = logged.lines
    assert line.endswith(r"ingest.test: a\nb\r\x1b[31m\u2028.pdf: broken [path=c\nd]")


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_key_is_written(logged: Logged, form: str) -> None:
    """In the message, a field, or a traceback; the id that a key begins with stays."""
    logged.configure(format=form)
    log = logging.getLogger("server.test")
    log.info("with %s and %s", TOKEN, SECRET, extra={"header": f"Bearer {TOKEN}", "other": SECRET})
    try:
        raise RuntimeError(f"{TOKEN} {SECRET}")
    except RuntimeError:
        log.exception("broken")
    written = logged.stream.getvalue()
    assert "x" * 43 not in written
    assert SECRET not in written
    assert json.dumps(SECRET)[1:-1] not in written
    assert "rrs_abcdefgh_***" in written


def test_all_lines_go_one_way(logged: Logged, tmp_path: Path) -> None:
    """uvicorn's, llama.cpp's, Python's warnings, and the end of a thread."""
    from rag import _llama

    logged.configure(format="json")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7, extra={"color_message": "\x1b[36mStarted"})
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelUnusable):
        _llama.Llama(broken, context_tokens=64, sequences=1, threads=1, gpu_layers=0)
    warnings.warn("careful", stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0, name="doomed")
    thread.start()
    thread.join()
    written = {line["logger"]: line for line in logged.objects}
    assert written["uvicorn.error"]["message"] == "Started server process [7]"
    assert "color_message" not in written["uvicorn.error"]
    assert written["rag._llama"]["message"].startswith("llama.cpp: ")
    assert "careful" in written["py.warnings"]["message"]
    assert written["server.logs"]["message"] == "the thread doomed ended"
    assert "ZeroDivisionError" in written["server.logs"]["exception"]


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["server debug", "server info", "uvicorn info", "server warning", "httpx warning", "server error"]),
        ("info", ["server info", "uvicorn info", "server warning", "httpx warning", "server error"]),
        ("warning", ["server warning", "httpx warning", "server error"]),
        ("error", ["server error"]),
    ],
)
def test_the_level_is_ours_and_libraries_say_less(logged: Logged, level: str, written: list[str]) -> None:
    """At `debug` a library might write down what was asked: it says no more than at `info`."""
    logged.configure(format="json", level=level)
    for name, kind in (
        ("server", "debug"), ("uvicorn", "debug"), ("server", "info"), ("uvicorn", "info"), ("httpx", "info"),
        ("server", "warning"), ("httpx", "warning"), ("server", "error"),
    ):  # fmt: skip
        getattr(logging.getLogger(name), kind)("%s %s", name, kind)
    assert [line["message"] for line in logged.objects] == written


# A call and its id

Asgi = Callable[[MutableMapping[str, Any], Any, Any], Any]


def call(app: Asgi, *paths: str, metrics: Metrics | None = None, **options: Any) -> list[httpx.Response]:
    """GET of each path, of `app` with `Requests` around it."""
    around, method = Requests(app, metrics or Metrics()), options.pop("method", "GET")

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(around, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path, **options) for path in paths]

    return asyncio.run(run())


async def fine(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """An application that logs on its way, here and on another thread."""
    log = logging.getLogger("rag.test")
    log.info("in the loop")
    with ThreadPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, trace.carried(log.info), "on a thread")
        await asyncio.get_running_loop().run_in_executor(pool, log.info, "on a thread, for nobody")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"1234", "more_body": True})
    await send({"type": "http.response.body", "body": b"56"})


def test_every_line_of_a_call_has_its_id(logged: Logged) -> None:
    """In the event loop, on a thread that was given work, in the line of the call; not in what the thread does for others."""
    logged.configure(format="json")
    (response,) = call(fine, "/some/path?question=secret&key=hidden", headers={"X-Request-ID": "trace-1"})
    assert response.headers["x-request-id"] == "trace-1"
    assert [(line["message"], line.get("request_id")) for line in logged.objects] == [
        ("in the loop", "trace-1"),
        ("on a thread", "trace-1"),
        ("on a thread, for nobody", None),
        ("GET /some/path", "trace-1"),
    ]
    last = logged.objects[-1]
    assert (last["logger"], last["status"], last["bytes"]) == ("server.access", 200, 6)
    assert last["ms"] >= 0
    assert "secret" not in logged.stream.getvalue()
    assert "hidden" not in logged.stream.getvalue()
    assert trace.request.get() == ""


@pytest.mark.parametrize("given", ["", "a b", "ä", "x" * 65, "-leading", 'quo"te', "semi;colon", "../path"])
def test_an_id_that_is_not_well_formed_is_replaced(logged: Logged, given: str) -> None:
    """It would be written into headers and logs."""
    logged.configure(format="json")
    first, second = call(fine, "/", "/", headers={"X-Request-ID": given.encode()})
    assert first.headers["x-request-id"] != given
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert {line["request_id"] for line in logged.objects if "request_id" in line} == {
        response.headers["x-request-id"] for response in (first, second)
    }


def test_probes_that_go_well_are_not_said(logged: Logged) -> None:
    """They come every few seconds; at `debug` they are there."""
    logged.configure(format="json")
    call(fine, "/health", "/ready", "/metrics", "/other")
    assert [line["message"] for line in logged.objects if line["logger"] == "server.access"] == ["GET /other"]


def test_a_call_that_breaks_is_a_500_and_one_that_gets_no_answer_a_499(logged: Logged) -> None:
    """Both are counted, and neither leaves a call under way."""
    logged.configure(format="json")
    metrics = Metrics()

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("inside")

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"

    call(broken, "/", metrics=metrics)
    around = Requests(silent, metrics)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": ("10.0.0.1", 5)}

    async def receive() -> dict[str, Any]:
        assert around.working == 1
        return {"type": "http.request"}

    async def send(message: MutableMapping[str, Any]) -> None:
        raise AssertionError(message)

    asyncio.run(around(scope, receive, send))
    assert around.working == 0
    assert [(line["status"], line["level"]) for line in logged.objects] == [(500, "warning"), (499, "info")]
    values = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "readingroom_http_requests_total"
    }
    assert values == {("GET", "guard", "500"): 1, ("POST", "guard", "499"): 1}
    assert metrics.registry.get_sample_value("readingroom_http_requests_running") == 0


def test_labels_are_few_whatever_is_called(logged: Logged) -> None:
    """A made-up method and made-up paths are one series."""
    metrics = Metrics()
    for method in ("BREW", "FROB"):
        call(fine, *(f"/made/up/{n}" for n in range(5)), metrics=metrics, method=method)
    samples = [
        sample.labels
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "readingroom_http_requests_total"
    ]
    assert samples == [{"method": "other", "route": "guard", "status": "200"}]


def test_what_went_wrong_is_in_the_line(logged: Logged) -> None:
    """The error's code, also of a stream whose status was sent long ago."""
    from server.errors import problem_of

    logged.configure(format="json")
    metrics = Metrics()

    async def full(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        problem_of(QueueFull("Too many.", "Come back."))
        await send({"type": "http.response.body", "body": b""})

    call(full, "/", metrics=metrics)
    assert logged.objects[-1]["code"] == "queue_full"
    assert metrics.registry.get_sample_value("readingroom_http_problems_total", {"code": "queue_full"}) == 1


@pytest.mark.parametrize("command", ["serve", "domains"])
def test_no_secret_of_the_settings_is_logged(
    logged: Logged, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever it is, by a server or by a command, and whoever logs it."""
    secrets = {name: f"open-sesame-{name}" for name in ("SERVER__KEY", "ENGINE__KEY", "ENCRYPTION__KEY", "STORE__API_KEY")}
    for name, secret in secrets.items():
        monkeypatch.setenv(f"READINGROOM_{name}", secret)

    def says_all(*_: Any) -> int:
        logging.getLogger("server.test").error("among them %s", " ".join(secrets.values()))
        return 0

    logging.getLogger().addHandler(logging.StreamHandler(logged.stream))
    monkeypatch.setattr("server.serve.serve", says_all)
    monkeypatch.setitem(cli._COMMANDS, "domains", says_all)
    monkeypatch.chdir(tmp_path)
    assert cli.main([command]) == 0
    written = logged.stream.getvalue() + capsys.readouterr().err
    assert "among them ***" in written
    assert "sesame" not in written
