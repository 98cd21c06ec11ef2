"""The engine with many people at once: against a bare batched loop, and against the stock server of llama-cpp-python.

    streams    tokens/s of 1, 2, 4 and 8 answers at the same time: ours, and llama.cpp driven by a plain loop over as many sequences
    clients    time to the first token of 1 and of 8 people who ask one question after another
    turn       the second question of a conversation: tokens read, and time to the first token, against the first one's
    adapters   two answers with one adapter, and with one each: what changing adapters costs
    leaving    tokens decoded for somebody who has left, over many who leave at random moments
    stock      8 clients over HTTP: ours, and `python -m llama_cpp.server` (needs llama-cpp-python[server])

Same file (the Q8_0 copy), same threads, same sampler; ours and the other side take turns. Answers are cut before the model ends
them where a rate is measured, and a rate is taken over the time in which all streams run.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from bench import corpus
from bench.figures import Part, Row, at_least, at_most, plain, summary
from bench.lora import install
from bench.served import Served, environment
from rag._llama import BATCH, Llama, Piece
from rag.engine import Engine
from rag.generation import Generation, Request
from rag.records import Turn
from rag.settings import Engine as EngineSettings

_MANY = 8
_COUNTS = (1, 2, 4, _MANY)


def measure(*, quick: bool) -> Part:
    """3 rounds of 64 tokens, 24 questions of 8 people, 40 who leave (quick: 1 of 24, 8, 10)."""
    rounds, tokens, asked, leaving = (1, 24, 8, 10) if quick else (3, 64, 24, 40)
    part = Part()
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        for n, adapter in enumerate(("one", "two")):
            install(folder, adapter, n)
        engine = Engine(EngineSettings(sequences=_MANY, queue=64, context_tokens=2048), folder)
        engine.load()
        try:
            file = next((folder / "models").glob("*.gguf"))
            bare = Llama(file, context_tokens=2048, sequences=_MANY)
            try:
                part.figures["streams"] = _streams(engine, bare, rounds, tokens, part)
            finally:
                bare.close()
            part.figures["clients"] = asyncio.run(_clients(engine, asked, part))
            part.figures["turn"] = asyncio.run(_second_turn(engine, 2 if quick else 6, part))
            part.figures["adapters"] = asyncio.run(_adapters(engine, rounds, tokens, part))
            part.figures["leaving"] = asyncio.run(_leaving(engine, leaving, part))
        finally:
            engine.stop()
        part.figures["stock"] = _stock(folder, file, 1 if quick else 3, part)
    return part


def _prompts(engine: Engine, count: int, size: int, first: int = 0) -> list[tuple[int, ...]]:
    """So many prompts of about `size` characters, no two of which begin alike beyond the template."""
    texts = corpus.prose(size, first)
    return [engine.render([Turn("user", f"{next(texts)}\n\nWrite a long story about all this.")]) for _ in range(count)]


# Streams


def _streams(engine: Engine, bare: Llama, rounds: int, tokens: int, part: Part) -> dict[str, Any]:
    ours: dict[int, list[float]] = {n: [] for n in _COUNTS}
    plainly: dict[int, list[float]] = {n: [] for n in _COUNTS}
    for round_ in range(rounds):
        for n in _COUNTS:
            prompts = _prompts(engine, n, 900, 100 * round_)
            ours[n].append(asyncio.run(_rate(engine, prompts, tokens)))
            plainly[n].append(_bare_rate(bare, prompts, tokens))
            print(f"engine: {n} streams: {ours[n][-1]:.0f} tokens/s, bare {plainly[n][-1]:.0f}", file=sys.stderr, flush=True)
    one = statistics.median(ours[1])
    for n in _COUNTS:
        part.rows.append(plain(f"{n} streams", statistics.median(ours[n]), "tokens/s", digits=0))
    ratios = {n: statistics.median(a / b for a, b in zip(ours[n], plainly[n], strict=True)) for n in _COUNTS}
    part.rows.append(at_least(f"{_MANY} streams / one stream", statistics.median(ours[_MANY]) / one, 2.5))
    part.rows.append(at_least(f"{_MANY} streams / a bare batched loop", ratios[_MANY], 0.9))
    part.rows.append(plain("1 stream / a bare loop", ratios[1]))
    return {"ours": ours, "bare": plainly, "ratios": ratios}


async def _rate(engine: Engine, prompts: Sequence[tuple[int, ...]], tokens: int) -> float:
    """Tokens a second while all of them are being written."""
    generations = [engine.submit(Request(prompt, tokens)) for prompt in prompts]
    clocks: list[list[float]] = [[] for _ in generations]

    async def read(generation: Generation, into: list[float]) -> None:
        async for _ in generation.pieces():
            into.append(time.perf_counter())

    await asyncio.gather(*(read(generation, into) for generation, into in zip(generations, clocks, strict=True)))
    began, ended = max(each[0] for each in clocks), min(each[-1] for each in clocks)
    written = sum(began < clock <= ended for each in clocks for clock in each)
    return written / (ended - began)


def _bare_rate(llama: Llama, prompts: Sequence[tuple[int, ...]], tokens: int) -> float:
    """The same with a loop that decodes one token of each sequence at a time. The model's end of answer is not heeded."""
    samplers = [llama.sampler(temperature=0) for _ in prompts]
    try:
        last = []
        for seq, prompt in enumerate(prompts):
            llama.forget(seq)
            for i in range(0, len(prompt), BATCH):
                piece = prompt[i : i + BATCH]
                llama.decode([Piece(token, i + j, seq, i + j == len(prompt) - 1) for j, token in enumerate(piece)])
            last.append(samplers[seq].sample(len(piece) - 1))
        started = time.perf_counter()
        for step in range(tokens - 1):
            llama.decode([Piece(token, len(prompts[seq]) + step, seq, True) for seq, token in enumerate(last)])
            last = [sampler.sample(seq) for seq, sampler in enumerate(samplers)]
        return len(prompts) * (tokens - 1) / (time.perf_counter() - started)
    finally:
        for sampler in samplers:
            sampler.close()


# Clients


async def _clients(engine: Engine, asked: int, part: Part) -> dict[str, Any]:
    found = {}
    for people in (1, _MANY):
        prompts = _prompts(engine, asked, 1800, 1000 * people)
        waits: list[float] = []

        async def person(own: Sequence[tuple[int, ...]], waits: list[float] = waits) -> None:
            for prompt in own:
                began = time.perf_counter()
                generation = engine.submit(Request(prompt, 32))
                pieces = generation.pieces()
                await anext(pieces)
                waits.append(1000 * (time.perf_counter() - began))
                async for _ in pieces:
                    pass

        await asyncio.gather(*(person(prompts[n::people]) for n in range(people)))
        found[str(people)] = summary(waits, 0)
        part.rows.append(plain(f"first token, {people} at a time, p50", found[str(people)]["p50"], "ms", digits=0))
        part.rows.append(plain(f"first token, {people} at a time, p95", found[str(people)]["p95"], "ms", digits=0))
    return found


async def _second_turn(engine: Engine, count: int, part: Part) -> dict[str, Any]:
    """The prompt of the second question begins with all of the first conversation."""
    texts = corpus.prose(2600, 5000)
    firsts, seconds, read, new = [], [], [], []
    for _ in range(count):
        turns = [Turn("system", "You are a helpful assistant."), Turn("user", f"{next(texts)}\n\nWhat is this about?")]
        first_ms, text, before = await _timed(engine, turns)
        turns += [Turn("assistant", text), Turn("user", "And what else does it say? Answer briefly.")]
        second_ms, _, usage = await _timed(engine, turns)
        firsts.append(first_ms)
        seconds.append(second_ms)
        read.append(usage.prompt_tokens - usage.cached_tokens)
        new.append(usage.prompt_tokens - before.prompt_tokens)
    part.rows.append(plain("second turn: tokens read", statistics.median(read), digits=0))
    part.rows.append(plain("second turn: tokens that are new, the answer included", statistics.median(new), digits=0))
    # Whole grains of 64 are reused and at least one is read, so up to two of them may be read once more.
    part.rows.append(
        at_most("second turn: tokens read beyond the new ones", max(a - b for a, b in zip(read, new, strict=True)), 128, digits=0)
    )
    ratio = statistics.median(b / a for a, b in zip(firsts, seconds, strict=True))
    part.rows.append(plain("second turn: first token / that of the first turn", ratio))
    return {"first_ms": summary(firsts, 0), "second_ms": summary(seconds, 0), "read": read, "new": new}


async def _timed(engine: Engine, turns: Sequence[Turn]) -> tuple[float, str, Any]:
    began = time.perf_counter()
    generation = engine.submit(Request(engine.render(turns), 40))
    pieces = generation.pieces()
    text = await anext(pieces)
    ms = 1000 * (time.perf_counter() - began)
    async for piece in pieces:
        text += piece
    return ms, text, generation.usage


async def _adapters(engine: Engine, rounds: int, tokens: int, part: Part) -> dict[str, Any]:
    """The bare model, one adapter for both of two answers, and one each."""
    rates: dict[str, list[float]] = {"none": [], "same": [], "two": []}
    changes = 0
    for round_ in range(rounds):
        for name, (first, second) in {"none": ("", ""), "same": ("one", "one"), "two": ("one", "two")}.items():
            prompts = _prompts(engine, 2, 900, 9000 + 100 * round_)
            requests = [Request(prompt, tokens) for prompt in prompts]
            requests = [replace(each, adapter=engine.adapter(a)) for each, a in zip(requests, (first, second), strict=True)]
            before, began = engine.adapter_changes, time.perf_counter()
            generations = [engine.submit(request) for request in requests]
            for generation in generations:
                async for _ in generation.pieces():
                    pass
            written = sum(generation.usage.completion_tokens for generation in generations)
            rates[name].append(written / (time.perf_counter() - began))
            if name == "two":
                changes += engine.adapter_changes - before
    part.rows.append(plain("2 answers with one adapter / without any, tokens/s, prompts included", _ratio(rates["same"], rates["none"])))
    part.rows.append(plain("2 answers with one adapter each / with the same one", _ratio(rates["two"], rates["same"])))
    return {"tokens_per_s": rates, "changes": changes}


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


async def _leaving(engine: Engine, count: int, part: Part) -> dict[str, Any]:
    """Every other one leaves while the prompt is read, the others in the middle of their answer, while the rest goes on."""
    rng = random.Random(3)
    prompts = _prompts(engine, count, 2400, 20_000)
    after = []

    async def person(prompt: tuple[int, ...], writing: bool) -> None:
        generation = engine.submit(Request(prompt, 64))
        while writing and generation.first_token_at is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.random() * 2)
        generation.cancel()
        async for _ in generation.pieces():
            pass
        after.append((generation.decoded_after_cancel, generation.first_token_at is not None))

    for i in range(0, count, _MANY):
        await asyncio.gather(*(person(prompt, n % 2 == 0) for n, prompt in enumerate(prompts[i : i + _MANY])))
    decoded = [n for n, writing in after if writing]
    read = [n for n, writing in after if not writing]
    if decoded:
        part.rows.append(at_most("tokens decoded for who has left, most", max(decoded), 1, digits=0))
    if read:
        part.rows.append(plain("tokens of a prompt read for who has left, most", max(read), digits=0))
    return {"left_while_writing": len(decoded), "left_while_reading": len(read), "decoded": decoded, "read": read}


# The stock server


def _stock(folder: Path, file: Path, each: int, part: Part) -> dict[str, Any]:
    """8 clients, `each` questions one after another, 48 tokens."""
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("starlette_context") is None:
        part.rows.append(Row("stock server: skipped, see below", "", "", None))
        part.notes.append('the stock server was not measured: python -m pip install "llama-cpp-python[server]"')
        return {"skipped": "llama-cpp-python[server] is not installed"}
    (folder / "served").mkdir()
    with Served(folder / "served") as served:
        name = next(model for model in _models(str(served.client.base_url)) if not model.startswith("readingroom"))
        ours = asyncio.run(_ask_all(str(served.client.base_url), name, each))
    with _stock_server(file) as url:
        theirs = asyncio.run(_ask_all(url, _models(url)[0], each))
    part.rows.append(plain("8 clients over HTTP: ours", ours["tokens_per_s"], "tokens/s", digits=0))
    part.rows.append(plain("8 clients over HTTP: the stock server", theirs["tokens_per_s"], "tokens/s", digits=0))
    part.rows.append(plain("ours / the stock server's", ours["tokens_per_s"] / theirs["tokens_per_s"]))
    part.rows.append(plain("answers that failed: ours", ours["failed"], digits=0))
    part.rows.append(plain("answers that failed: the stock server's", theirs["failed"], digits=0))
    part.rows.append(plain("first token: ours, p95", ours["first_ms"]["p95"], "ms", digits=0))
    part.rows.append(plain("first token: the stock server's, p95", theirs["first_ms"]["p95"], "ms", digits=0))
    return {"ours": ours, "stock": theirs}


def _models(url: str) -> list[str]:
    return [model["id"] for model in httpx.get(f"{url}/v1/models", trust_env=False, timeout=30).json()["data"]]


@contextmanager
def _stock_server(file: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(file),
        "--n_ctx",
        "2048",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/v1/models", trust_env=False, timeout=2)
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the stock server does not start") from None
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


async def _ask_all(url: str, model: str, each: int) -> dict[str, Any]:
    """Tokens a second over all clients, times to the first token, and how many failed."""
    firsts: list[float] = []
    tokens = failed = 0

    async def person(n: int, client: httpx.AsyncClient) -> None:
        nonlocal tokens, failed
        texts = corpus.prose(1500, 30_000 + 100 * n)
        for _ in range(each):
            message = {"role": "user", "content": f"{next(texts)}\n\nWrite a long story about all this."}
            body = {"model": model, "messages": [message], "stream": True, "max_tokens": 48, "temperature": 0}
            began, got = time.perf_counter(), 0
            try:
                async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                    response.raise_for_status()
                    async for line in response.aiter_lines():
                        if line.startswith("data: {") and '"content"' in line:
                            if not got:
                                firsts.append(1000 * (time.perf_counter() - began))
                            got += 1
            except httpx.HTTPError:
                failed += 1
            tokens += got

    async with httpx.AsyncClient(trust_env=False, timeout=300, limits=httpx.Limits(max_connections=_MANY)) as client:
        started = time.perf_counter()
        await asyncio.gather(*(person(n, client) for n in range(_MANY)))
        took = time.perf_counter() - started
    return {"tokens_per_s": tokens / took, "tokens": tokens, "failed": failed, "first_ms": summary(firsts or [0.0], 0), "seconds": took}
