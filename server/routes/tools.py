"""Calls of tools in a model's text, in Hermes' form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

https://github.com/NousResearch/Hermes-Function-Calling; Qwen and many others write it. How tools get into a prompt is the chat
template's business (`Engine.render`), what becomes of a call the dialects'.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from rag.records import Turn

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"

# The white space that ends a text, and after it what may become the opening tag.
_HELD = re.compile(r"\s*(?:" + "|".join(re.escape(_OPEN[:n]) for n in range(len(_OPEN) - 1, 0, -1)) + r")?\Z")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that a model wants called, and the arguments by name."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """As models write it."""
        return f"{_OPEN}\n{json.dumps({'name': self.name, 'arguments': self.arguments}, ensure_ascii=False)}\n{_CLOSE}"


def tool_answer(text: str) -> Turn:
    """What a tool returned, as the turn that models of Hermes' form are trained to read it in."""
    return Turn("user", f"<tool_response>\n{text}\n</tool_response>")


class ToolCalls:
    """Finds the calls of tools in a text that comes in pieces. What is no call after all stays text, letter by letter.

    With `at_once` the text is a call from its first letter on, without tags: a grammar sees to that.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._text = ""
        self._before = ""  # white space and tag, which are text again if no call follows
        self._inside = self._at_once = at_once
        self._called = False

    def feed(self, piece: str) -> list[str | ToolCall]:
        """The texts and calls that are certain now. What may be the beginning of a call waits, with the white space before it."""
        self._text += piece
        found: list[str | ToolCall] = []
        while not self._at_once:
            if not self._inside:
                before, opened, rest = self._text.partition(_OPEN)
                certain = before.rstrip() if opened else before[: _HELD.search(before).start()]  # type: ignore[union-attr]
                found += [certain] if certain else []
                if not opened:
                    self._text = before[len(certain) :]
                    break
                self._before, self._text, self._inside = before[len(certain) :] + opened, rest, True
            body, closed, rest = self._text.partition(_CLOSE)
            if not closed:
                break
            call = _call_of(body)
            self._called |= call is not None
            found.append(call or self._before + body + closed)
            self._text, self._inside = rest, False
        return found

    def flush(self) -> list[str | ToolCall]:
        """What is left when the text is over. A call that was complete but for its closing tag counts."""
        text, self._text = self._text, ""
        if self._inside:
            return [_call_of(text) or self._before + text] if self._before + text else []
        return [text] if text and not (self._called and text.isspace()) else []


def _call_of(text: str) -> ToolCall | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return None
    arguments = said.get("arguments", said.get("parameters", {}))
    return ToolCall(said["name"], arguments) if isinstance(arguments, dict) else None
