"""What a model's name stands for in either dialect: the documents, a language model, or an assistant that was made from one of them.

An assistant is a Modelfile under a name (`POST /api/create`, `rag/modelfile.py`): its SYSTEM, MESSAGEs, PARAMETERs and ADAPTER
come with every call, under what the call itself says. The calls are `openai.py`'s and `ollama.py`'s; bare names are
`dialect.resolve`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from rag import modelfile
from rag.answer import Question
from rag.engine import Engine
from rag.errors import UnknownModel
from rag.modelfile import Assistants, Modelfile, Value
from rag.records import Turn
from server.app import ReadingRoom
from server.routes import dialect
from server.routes.dialect import Documents, Sampling, wrong
from server.routes.ollama_wire import sampling_of
from server.scopes import Caller

_NO_FILE = Modelfile("")


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for: the documents or a model, and the Modelfile where it is an assistant's."""

    means: Documents | Engine
    file: Modelfile = _NO_FILE

    def parameters(self, options: Mapping[str, object] | None) -> dict[str, Value]:
        """The assistant's, and on top of them the call's."""
        return {**self.file.parameters, **modelfile.checked_parameters(options or {}, strict=False)}

    def sampling(self, wanted: Sampling) -> Sampling:
        """What the call wants, and where it says nothing what the assistant's PARAMETERs say."""
        own = sampling_of(self.file.parameters)
        missing = {field.name: getattr(own, field.name) for field in fields(wanted) if getattr(wanted, field.name) is None}
        return replace(wanted, **missing)

    def opened(self, turns: Sequence[Turn], system: str | None = None) -> tuple[Turn, ...]:
        """The turns after those that the assistant begins with. Its SYSTEM gives way to one of the call."""
        if turns and turns[0].role == "system":
            system, turns = turns[0].content, turns[1:]
        rules = system or self.file.system
        return (*((Turn("system", rules),) if rules else ()), *self.file.messages, *turns)

    def question(self, turns: Sequence[Turn], sampling: Sampling, adapter: str | None = None) -> Question:
        """The question to the documents that a conversation ends in. An assistant's SYSTEM takes the place of the usual rules.

        The sampling of answers from documents is the room's, but for temperature, seed and the longest answer. Raises a validation
        error if nobody asks anything.
        """
        assert isinstance(self.means, Documents)
        text, history = dialect.question_of(turns)
        return Question(
            text,
            self.means.domain,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            adapter=adapter or self.file.adapter or None,
            history=(*self.file.messages, *history),
            rules=self.file.system,
            within=self.means.within,
        )


async def find(name: str, room: ReadingRoom, caller: Caller) -> Target:
    """What a name stands for to a caller, loaded. Raises `UnknownModel`, and what loading raises."""
    if not name.strip():
        raise wrong("model", "is empty; say which model you want.")
    assistant = await asyncio.to_thread(Assistants(room.settings.data_dir).find, name)
    if assistant is None or not dialect.shown(assistant.modelfile.base, caller):
        return Target(await dialect.resolve(name, room, caller))
    base = assistant.modelfile.base
    try:
        return Target(await dialect.resolve(base, room, caller), assistant.modelfile)
    except UnknownModel as error:
        raise UnknownModel(
            f"model '{base}' not found, which '{name}' is made from.", "Get it back, or delete the assistant: DELETE /api/delete."
        ) from error
