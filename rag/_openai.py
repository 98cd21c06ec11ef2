"""OpenAI's chat dialect as its client speaks it: the body of a request, the events of a streamed answer. Pure translators.

Made for what servers really send, which is not always what the specification says: see `Stream`. The connection and the
errors that people see are `rag/_upstream.py`'s business.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from rag.generation import Request, TokenChances
from rag.records import Turn, Usage

LONGEST = 1 << 20
"""Bytes of one event, or of a body that is read whole. An event is a token with its log probabilities: some kilobytes."""

# How many tokens a text has in a vocabulary that is not known: what SmolLM2's needs, which is small and mostly English, so that
# others need fewer. Measured: English prose has 3.3 to 4.2 letters a token, German 2.6; Chinese, Arabic and Cyrillic have 1.6 to
# 2.3 bytes; digits and most signs are tokens of their own. A prompt that is counted too long leaves out a passage; one that is
# counted too short is refused by the server.
_LETTERS_A_TOKEN = 2.5
_OTHER_BYTES_A_TOKEN = 1.5

# What a chat template puts around a message, and at the end: ChatML, a common one, has 5.
_AROUND_A_TURN = 8

_ASCII = bytes(range(128))
_NO_SIGNS = bytes(byte for byte in range(256) if byte >= 128 or chr(byte).isalpha() or chr(byte).isspace())
_LINE_END = re.compile(rb"\r\n|\r|\n")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Garbled(Exception):
    """What came is not of this dialect; the text says what is wrong."""


class Complaint(Exception):
    """The server says in the midst of its answer that it failed; the text is what it says."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to an answer. `finish` is the server's own reason, None while it goes on."""

    text: str = ""
    finish: str | None = None
    usage: Usage | None = None
    chances: tuple[TokenChances, ...] = ()


def body(request: Request, model: str) -> dict[str, Any]:
    """The body of `POST /chat/completions`. `top_k`, `min_p` and `repeat_penalty` are no part of the dialect and not sent."""
    fields: dict[str, Any] = {
        "model": model,
        "messages": [{"role": turn.role, "content": _clean(turn.content)} for turn in request.turns],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    if request.seed is not None:
        fields["seed"] = request.seed
    if request.stop:
        fields["stop"] = [_clean(each) for each in request.stop]
    if request.frequency_penalty:
        fields["frequency_penalty"] = request.frequency_penalty
    if request.presence_penalty:
        fields["presence_penalty"] = request.presence_penalty
    if request.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.grammar:
        fields["grammar"] = request.grammar  # llama-server's own field
    return fields


def estimate(text: str) -> int:
    """Tokens of a text in the count of a model that is not here: rather too many than too few."""
    data = text.encode("utf-8", "surrogatepass")
    signs, others = len(data.translate(None, _NO_SIGNS)), len(data.translate(None, _ASCII))
    return math.ceil((len(data) - signs - others) / _LETTERS_A_TOKEN + signs + others / _OTHER_BYTES_A_TOKEN)


def estimate_turns(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None = None) -> int:
    """The same of a conversation, with what the template adds to it."""
    around = _AROUND_A_TURN * (len(turns) + 1)
    return around + sum(estimate(turn.content) for turn in turns) + (estimate(json.dumps(list(tools))) if tools else 0)


class Stream:
    """Server-sent events, from bytes cut anywhere to JSON objects.

    Takes comments, all three ends of lines, `data:` without its space, data over several lines, events that no empty line
    ends, `error:` lines (llama-server) and error events, and bare JSON where an event should be. Other fields are skipped.
    Raises `Garbled` on data that is no JSON and on events over `LONGEST`.
    """

    def __init__(self) -> None:
        self.done = False
        """`[DONE]` has come: what follows it is not read."""
        self._line = bytearray()
        self._after_cr = False
        self._data: list[bytes] = []
        self._size = 0
        self._kind = b""

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The objects that are complete with these bytes."""
        for line in self._lines(chunk):
            if self.done:
                return
            event = self._read(line)
            if event is not None:
                yield event

    def close(self) -> Iterator[dict[str, Any]]:
        """The last object, if only the end of its line was missing. What was cut off within is dropped."""
        try:
            yield from self.feed(b"\n\n")
        except Garbled:
            return

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        *whole, rest = _LINE_END.split(chunk)
        for line in whole:
            self._bounded(len(self._line) + len(line))
            yield bytes(self._line) + line
            self._line.clear()
        self._bounded(len(self._line) + len(rest))
        self._line += rest

    def _read(self, line: bytes) -> dict[str, Any] | None:
        line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            kind, self._kind = self._kind, b""
            if not self._data:
                return None
            text = b"\n".join(self._data)
            self._data.clear()
            self._size = 0
            if not text.strip():
                return None  # a sign of life
            value = _json(text)
            if value is _NONE:
                raise Garbled("an event that is not JSON")
            return _event(value, kind)
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._kind = value.strip()
        elif name == b"error":
            said = _json(value)
            return {"error": value.decode("utf-8", "replace") if said is _NONE else said}
        elif name == b"data" or line.startswith(b"{"):
            return self._data_line(line if line.startswith(b"{") else value)
        return None

    def _data_line(self, value: bytes) -> dict[str, Any] | None:
        if not self._data:
            if value.strip() == b"[DONE]":
                self.done = True
                return None
            whole = _json(value)
            if whole is not _NONE:
                return _event(whole, self._kind)
        self._data.append(value)
        self._size += len(value)
        self._bounded(self._size)
        return None

    @staticmethod
    def _bounded(size: int) -> None:
        if size > LONGEST:
            raise Garbled(f"an event of over {LONGEST >> 20} MiB")


def read(event: Mapping[str, Any]) -> Delta:
    """What an object of the stream, or a whole answer that was not streamed, says. Raises `Complaint`."""
    if event.get("error") or event.get("object") == "error":
        raise Complaint(_message(event) or "no reason given")
    return Delta(*_choice(event.get("choices")), _usage(event.get("usage")), _chances(event.get("choices")))


def whole(content: bytes) -> Delta:
    """An answer that came at once, though a stream was asked for. Raises `Complaint`, `Garbled`."""
    value = _json(content)
    if not isinstance(value, dict) or not (_first(value.get("choices")) or value.get("error")):
        raise Garbled("no answer")
    return read(value)


def model_ids(content: bytes) -> tuple[tuple[str, ...], bool]:
    """The models that `GET /models` names, and whether they are llama-server's, which takes grammars. Raises `Garbled`."""
    value = _json(content)
    items = (value["data"] or []) if isinstance(value, dict) and "data" in value else None  # Ollama without models says null
    if not isinstance(items, list):
        raise Garbled("no list of models")
    models = [item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]
    return tuple(item["id"] for item in models), any(item.get("owned_by") == "llamacpp" for item in models)


def complaint(content: bytes) -> str:
    """What the body of an error says; "" if it is a page or says nothing."""
    value = _json(content)
    if isinstance(value, dict):
        return _message(value)
    said = content.decode("utf-8", "replace").strip()
    return "" if said.startswith("<") else said


def one_line(said: str) -> str:
    """A text from elsewhere as part of a sentence: no control characters, at most 200 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return line if len(line) <= 200 else line[:199] + "…"


def retry_after(header: str | None, now: float | None = None) -> float:
    """Seconds that a `Retry-After` asks to wait, as a number or as a date; 0 if there is none that can be read."""
    text = (header or "").strip()
    try:
        if text[:1].isdigit():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError, OverflowError):
        return 0.0


_NONE = object()


def _json(data: bytes) -> Any:
    """The value, or `_NONE` if it is not JSON."""
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return _NONE


def _event(value: Any, kind: bytes) -> dict[str, Any] | None:
    if kind == b"error" and not (isinstance(value, dict) and value.get("error")):
        return {"error": value or "no reason given"}
    return value if isinstance(value, dict) else None


def _message(value: Any) -> str:
    """The sentence in an error of OpenAI's shape, of a problem document, or of the several others that there are."""
    if isinstance(value, dict):
        return next((said for key in ("error", "message", "detail", "title") if (said := _message(value.get(key)))), "")
    if isinstance(value, list):
        return "; ".join(said for item in value if (said := _message(item)))
    return value if isinstance(value, str) else ""


def _first(choices: Any) -> Mapping[str, Any]:
    items = choices if isinstance(choices, list) else []
    return next((item for item in items if isinstance(item, dict) and item.get("index") in (0, None)), {})


def _choice(choices: Any) -> tuple[str, str | None]:
    choice = _first(choices)
    said = choice.get("delta") or choice.get("message")
    content = said.get("content") if isinstance(said, dict) else None
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    finish = choice.get("finish_reason")
    return _clean(content) if isinstance(content, str) else "", finish if isinstance(finish, str) and finish else None


def _clean(text: str) -> str:
    """Half a character, as JSON may escape it, cannot be encoded again."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    prompt = _count(value.get("prompt_tokens"))
    return Usage(prompt, _count(value.get("completion_tokens")), min(_count(cached), prompt))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _chances(choices: Any) -> tuple[TokenChances, ...]:
    told = _first(choices).get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    chances = []
    for item in content if isinstance(content, list) else []:
        chosen = _chance(item)
        if chosen is not None:
            others = item.get("top_logprobs")
            top = tuple(chance for other in (others if isinstance(others, list) else []) if (chance := _chance(other)))
            chances.append(TokenChances(*chosen, top))
    return tuple(chances)


def _chance(item: Any) -> tuple[bytes, float] | None:
    if not isinstance(item, dict) or not isinstance(item.get("logprob"), int | float):
        return None
    exact = item.get("bytes")
    if isinstance(exact, list) and all(isinstance(byte, int) and 0 <= byte <= 255 for byte in exact):
        return bytes(exact), float(item["logprob"])
    token = item.get("token")
    return (token.encode("utf-8", "replace"), float(item["logprob"])) if isinstance(token, str) else None
