"""Grammars for answers that a program reads: GBNF from a JSON schema, or for any JSON object.

A grammar bounds what the model may say, not how long: an answer that reaches `max_tokens` may end in the middle of an object.
What GBNF is: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rag import _llama
from rag.errors import InvalidInput

_LONGEST = 32 << 10
"""Characters of a schema, and eight times as many of a grammar: a hostile one must not take minutes or gigabytes."""
_DEEPEST = 24

# White space is bounded: a small model fills an answer with blanks where it may.
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
"""For any JSON object."""


def of_schema(schema: Mapping[str, Any]) -> str:
    """A grammar for what a JSON schema allows. Raises `InvalidInput` for one that is too large, or cannot be had as a grammar.

    References are followed within the schema only: nothing is fetched.
    """
    try:
        size = len(json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The JSON schema is not JSON: {error}.", "Send an object.") from error
    if size > _LONGEST or _depth(schema) > _DEEPEST:
        raise InvalidInput("The JSON schema is too large.", f"Send at most {_LONGEST} characters, {_DEEPEST} levels deep.", _LONGEST)
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise InvalidInput(f"The JSON schema refers to {reference!r}.", "Put it into the schema, below `$defs`.")
    try:
        grammar = _llama.schema_to_gbnf(schema)
    except Exception as error:  # the converter raises what it likes: KeyError, AssertionError, NotImplementedError
        raise InvalidInput(f"The JSON schema cannot be used: {error}.", "Use type, properties, required, items, enum, anyOf.") from error
    if len(grammar) > 8 * _LONGEST:
        raise InvalidInput("The JSON schema's grammar is too large.", "Use smaller numbers for its limits.", 8 * _LONGEST)
    return grammar


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting and deepest <= _DEEPEST:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
        waiting += [(each, depth + 1) for each in inner]
    return deepest


def _references(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in _references(each)]
    if isinstance(value, list):
        return [found for each in value for found in _references(each)]
    return []
