"""llama.cpp through llama-cpp-python's low-level API: a model, its context of several sequences, and samplers.

The only importer of `llama_cpp`. A context is not thread-safe: everything here but `abort` is called by one owner
thread, the one of `rag/engine.py`, which decides what is decoded when. Tokenizing and rendering are pure reads of
the model and safe from any thread.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.capacity import cores
from rag.errors import AdapterUnusable, InvalidInput, MissingPackage, ModelUnusable
from rag.records import Turn

log = logging.getLogger(__name__)

BATCH = 512
"""Most tokens in one decode; llama.cpp's own default for n_ubatch, so prefill runs at its full speed."""

# llama.cpp's ftype numbers whose prefill has no fast kernel here; on 2 AVX-512 cores Q8_0 reads a prompt 2 times
# faster than Q4_1 (DESIGN.md, "Decisions already measured"). Q4_0 and the K formats are repacked at load instead.
_SLOW_FTYPES = {3: "Q4_1", 8: "Q5_0", 9: "Q5_1"}
_FTYPE_Q8_0 = 7

# ggml's threads wait for each other at every node of the graph, and libgomp's wait spins 300,000 times before it sleeps. With other
# work on the cores the one that is waited for cannot run meanwhile: on 2 cores with 2 busy programs beside, 2 to 18 tokens/s. With
# 5,000 it is 28 to 31, and on a quiet machine about the same as without (2026-11-26; 1,000 and less lose there, 20,000 lose here).
_SPINS = "5000"

# Small models fall into loops. The sampler sees the answer's own tokens only, so quoting the prompt is not punished. Of 36
# SQuAD 2.0 questions, 2 to 9 ran into the length limit without it (by the wording of the prompt), none with 1.1.
_REPEAT_LAST = 256


class Aborted(Exception):
    """A decode was stopped by `abort`; nothing of its batch may be relied on."""


@dataclass(slots=True)
class Piece:
    """One token to decode: `token` at position `pos` of sequence `seq`; `logits` if it is to be sampled from."""

    token: int
    pos: int
    seq: int
    logits: bool = False


def _import() -> Any:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)  # read when the library is loaded; no effect where it is not libgomp
    try:
        from llama_cpp import llama_cpp
    except Exception as error:  # a missing package, or a shared library that this CPU or system cannot load
        raise MissingPackage(
            f"llama-cpp-python cannot be loaded: {error}.",
            "Build it on this machine: python -m pip install --force-reinstall llama-cpp-python",
        ) from error
    return llama_cpp


def _quiet(lib: Any) -> None:
    """Send llama.cpp's log to ours, warnings and up; it would flood stderr."""
    global _log_callback
    if _log_callback is None:

        @lib.llama_log_callback
        def forward(level: int, text: bytes, _data: object) -> None:
            # ggml's levels: 1 debug, 2 info, 3 warning, 4 error, 5 continuation. An aborted decode is an error to llama.cpp
            # and an everyday thing to us, and a real one is raised by whoever made the call: so none is louder than info.
            if level in {3, 4}:
                if level == 4:
                    _said.append(text.decode(errors="replace").strip())
                    del _said[:-5]
                log.log(logging.DEBUG if level == 3 else logging.INFO, "llama.cpp: %s", text.decode(errors="replace").rstrip())

        _log_callback = forward  # llama.cpp keeps the pointer, so Python must keep the object
        lib.llama_log_set(forward, None)


_log_callback: Any = None
_said: list[str] = []
"""The last errors of llama.cpp: its functions return only that something went wrong."""


class Llama:
    """A GGUF model and one context of `sequences` sequences of `context_tokens` each. Raises `ModelUnusable`.

    `gpu_layers` -1 puts all layers on the GPU where llama.cpp was built for one.
    """

    def __init__(self, path: Path, *, context_tokens: int, sequences: int, threads: int = 0, gpu_layers: int = -1) -> None:
        lib = self._lib = _import()
        _quiet(lib)
        lib.llama_backend_init()
        self.path = path
        self.context_tokens = context_tokens
        self.sequences = sequences
        if not path.is_file():
            raise ModelUnusable(f"There is no model file at {path}.", "Correct engine.model.")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelUnusable(f"{path.name} is not a GGUF file.", "Set engine.model to a GGUF file.")
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 10_000 if gpu_layers < 0 else gpu_layers
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelUnusable(
                f"{path.name} cannot be loaded; the file is damaged or too new.", "Fetch it again, or update llama-cpp-python."
            )
        self._vocab = lib.llama_model_get_vocab(self._model)
        trained = lib.llama_model_n_ctx_train(self._model)
        if trained and context_tokens > trained:
            log.warning("%s was trained for %d tokens of context, not %d: using that", path.name, trained, context_tokens)
            self.context_tokens = context_tokens = trained
        context = lib.llama_context_default_params()
        context.n_ctx = context_tokens * sequences
        context.n_seq_max = sequences
        context.n_batch = context.n_ubatch = BATCH
        context.n_threads = context.n_threads_batch = threads or cores()
        context.kv_unified = False  # one stream's speed must not depend on what the others have read
        context.no_perf = True
        # llama.cpp polls the abort callback between graph nodes, hundreds of times a token. A Python function would take
        # the GIL each time, so libc's strlen serves: a C function of one pointer that says "true" (1) for the bytes 01 00
        # and "false" (0) for 00 00.
        self._abort = ctypes.create_string_buffer(2)
        libc = ctypes.CDLL(None)
        context.abort_callback = ctypes.cast(libc.strlen, type(context.abort_callback))
        context.abort_callback_data = ctypes.cast(self._abort, ctypes.c_void_p)
        self._context = lib.llama_init_from_model(self._model, context)
        if not self._context:
            lib.llama_model_free(self._model)
            raise ModelUnusable(
                f"There is not enough memory for {sequences} x {context_tokens} tokens of context.",
                "Lower engine.context_tokens or engine.sequences.",
            )
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._template = self._chat_template()
        self._adapters: dict[str, Any] = {}
        self._words = lib.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        """Free the context, the adapters and the model. Nothing may be called afterwards."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        for adapter in self._adapters.values():
            self._lib.llama_adapter_lora_free(adapter)
        self._lib.llama_model_free(self._model)

    # Text and tokens: safe from any thread.

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of `text`. With `special`, control tokens written in it count as such: only for templates."""
        data = text.encode()
        room = len(data) + 8
        tokens = (self._lib.llama_token * room)()
        n = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special)
        if n < 0:
            raise ModelUnusable("The model's tokenizer failed on the prompt.", "Report the text as a bug.")
        return list(tokens[:n])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; a character may be spread over several tokens. Control tokens are empty."""
        buffer = ctypes.create_string_buffer(64)
        n = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:n]

    def ends(self, token: int) -> bool:
        """Whether the model says with this token that its answer is over."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    @property
    def takes_tools(self) -> bool:
        """Whether the model's chat template has a place for tools."""
        return "tools" in self._template.template

    def render(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The prompt of a conversation in the GGUF's own chat template, as tokens, ready for the assistant's turn.

        `tools` are OpenAI's function descriptions; they are written by the caller of the API, as the template itself says.
        Control tokens that stand in the turns' text are read as plain text, so that a document cannot end the user's
        turn and begin a system's: each message is rendered as a placeholder and its text is tokenized on its own.
        """
        marks = [f"\x02{i}\x03" for i in range(len(turns))]
        messages: Any = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        try:
            text = self._template(messages=messages, tools=list(tools) if tools else None).prompt
        except Exception as error:  # the template is the model's own program and may raise what it likes
            if len(turns) > 1 and turns[0].role == "system" and turns[1].role == "user":
                # Gemma's and others know no system's turn: what it says then stands at the head of the user's.
                return self.render([Turn("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]], tools)
            raise ModelUnusable(f"The model's chat template failed: {error}", "Choose a model whose template knows these roles.") from error
        tokens: list[int] = []
        for i, turn in enumerate(turns):
            before, found, text = text.partition(marks[i])
            if not found and turn.content:
                raise ModelUnusable(f"The model's chat template leaves out a {turn.role} message.", "Choose an instruct model.")
            tokens += self.tokenize(before, special=True) + self.tokenize(turn.content)
        return tokens + self.tokenize(text, special=True)

    def _chat_template(self) -> Any:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        raw = self._lib.llama_model_chat_template(self._model, None)
        if not raw:
            raise ModelUnusable(f"{self.path.name} has no chat template: it is a base model.", "Choose an instruct model.")
        bos, eos = (self._special(f(self._vocab)) for f in (self._lib.llama_vocab_bos, self._lib.llama_vocab_eos))
        return Jinja2ChatFormatter(raw.decode(), eos_token=eos, bos_token=bos)

    def _special(self, token: int) -> str:
        if token < 0:
            return ""
        return (self._lib.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    # Decoding: the owner thread only.

    def decode(self, pieces: Sequence[Piece]) -> None:
        """Run the model over at most `BATCH` tokens. Raises `Aborted` after `abort`, `ModelUnusable` on failure.

        After `Aborted` the caller must `forget` each sequence of the batch back to where it was.
        """
        batch = self._batch
        for i, piece in enumerate(pieces):
            batch.token[i] = piece.token
            batch.pos[i] = piece.pos
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = piece.seq
            batch.logits[i] = piece.logits
        batch.n_tokens = len(pieces)
        status = self._lib.llama_decode(self._context, batch)
        if status == 2:
            raise Aborted
        if status != 0:
            raise ModelUnusable(f"llama.cpp could not decode (status {status}).", "Lower engine.context_tokens; if it stays, report it.")

    def abort(self, on: bool) -> None:
        """Stop a running `decode` within a graph node, or let them run again. From any thread."""
        self._abort[0] = 1 if on else 0

    def forget(self, seq: int, start: int = 0) -> None:
        """Drop a sequence's memory from position `start` on."""
        if not self._lib.llama_memory_seq_rm(self._memory, seq, start, -1):
            # Recurrent models cannot be cut in the middle; then all of it goes.
            self._lib.llama_memory_seq_rm(self._memory, seq, -1, -1)
            raise Aborted

    def erase(self) -> None:
        """Overwrite the memory of all sequences with zeros: nothing of a deleted document may stay in it."""
        self._lib.llama_memory_clear(self._memory, True)

    # Adapters: the owner thread only.

    def load_adapter(self, name: str, path: Path) -> None:
        """Read a LoRA adapter beside the model; `use_adapters` applies it. Raises `AdapterUnusable`."""
        self._adapters[name] = _load_adapter(self._lib, self._model, path)

    def use_adapters(self, parts: Sequence[tuple[str, float]]) -> None:
        """Apply these adapters, each with its scale, from the next decode on; none of them: the bare model."""
        handles = (self._lib.llama_adapter_lora_p_ctypes * len(parts))(*(self._adapters[name] for name, _ in parts))
        scales = (ctypes.c_float * len(parts))(*(scale for _, scale in parts))
        if self._lib.llama_set_adapters_lora(self._context, handles, len(parts), scales) != 0:
            raise AdapterUnusable(f"llama.cpp could not apply {', '.join(name for name, _ in parts)}.", "See the log; check the adapter.")

    # Sampling: the owner thread only.

    def sampler(
        self,
        *,
        temperature: float,
        seed: int | None = None,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.0,
        repeat_penalty: float = 1.1,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        grammar: str = "",
    ) -> Sampler:
        """A sampler, to be freed with its `close`. `temperature` 0 is greedy; `seed` None is a random one. Raises `InvalidInput`."""
        lib = self._lib
        rules = self._grammar(grammar) if grammar else None
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            lib.llama_sampler_chain_add(chain, sampler)

        if repeat_penalty != 1.0 or frequency_penalty or presence_penalty:
            add(lib.llama_sampler_init_penalties(self._words, _REPEAT_LAST, repeat_penalty, frequency_penalty, presence_penalty))
        if temperature <= 0:
            add(lib.llama_sampler_init_greedy())
        else:
            if top_k > 0:
                add(lib.llama_sampler_init_top_k(top_k))
            if top_p < 1:
                add(lib.llama_sampler_init_top_p(top_p, 1))
            if min_p > 0:
                add(lib.llama_sampler_init_min_p(min_p, 1))
            add(lib.llama_sampler_init_temp(temperature))
            add(lib.llama_sampler_init_dist(0xFFFFFFFF if seed is None else seed & 0xFFFFFFFE))
        return Sampler(lib, self._context, chain, rules, self._words, lib.llama_vocab_eos(self._vocab))

    def check_grammar(self, grammar: str) -> None:
        """Raises `InvalidInput` if it is not GBNF. From any thread."""
        self._lib.llama_sampler_free(self._grammar(grammar))

    def _grammar(self, grammar: str) -> Any:
        rules = self._lib.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root")
        if not rules:
            raise InvalidInput("The grammar cannot be read.", "Send GBNF with a rule `root`: see llama.cpp's grammars/README.md.")
        return rules

    def logits(self, index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Those after the `index`-th piece of the last decode, one a word of the vocabulary; a view that the next decode overwrites."""
        return _logits(self._lib, self._context, index, self._words)

    def chances(self, index: int, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
        """Natural log of the probability of `token` after the `index`-th piece of the last decode, and the `top` likeliest tokens
        with theirs, best first: of the model alone, before penalties, temperature and grammar."""
        logits = self.logits(index).astype(np.float64)
        peak = float(logits.max())
        total = peak + float(np.log(np.exp(logits - peak).sum()))
        best = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.int64)
        best = best[np.argsort(-logits[best], kind="stable")]
        return float(logits[token]) - total, [(int(i), float(logits[i]) - total) for i in best]


def _logits(lib: Any, context: Any, index: int, words: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What `Llama.logits` and `Sampler` read."""
    return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, index), shape=(words,))


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's `llama_token_data`."""


class Sampler:
    """Chooses tokens for one generation: penalties, then the sampling, then what a grammar allows."""

    def __init__(self, lib: Any, context: Any, chain: Any, rules: Any, words: int, end: int) -> None:
        self._lib, self._context, self._chain, self._rules = lib, context, chain, rules
        self._words, self._end = words, end

    def close(self) -> None:
        """Free it."""
        self._lib.llama_sampler_free(self._chain)
        if self._rules is not None:
            self._lib.llama_sampler_free(self._rules)

    def sample(self, index: int) -> int:
        """The next token after the `index`-th piece of the last decode."""
        if self._rules is None:
            return int(self._lib.llama_sampler_sample(self._chain, self._context, index))
        # To ask the grammar about every token of the vocabulary takes many times as long as to decode one. So the choice is made
        # without it, and again among what it allows only if it forbids that one (llama.cpp's own server does the same).
        token, _ = self._choose(index, obeying=False)
        if not self._allows(token):
            token, possible = self._choose(index, obeying=True)
            if not possible:
                return self._end  # nothing may follow; to give the grammar what it forbids would end the process
        self._lib.llama_sampler_accept(self._rules, token)
        self._lib.llama_sampler_accept(self._chain, token)
        return token

    def take(self, token: int) -> None:
        """Take a token that was chosen elsewhere as the next one of the answer."""
        if self._rules is not None:
            self._lib.llama_sampler_accept(self._rules, token)
        self._lib.llama_sampler_accept(self._chain, token)

    def _choose(self, index: int, *, obeying: bool) -> tuple[int, bool]:
        rows = np.empty(self._words, _CANDIDATE)
        rows["id"] = np.arange(self._words, dtype=np.int32)
        rows["logit"] = _logits(self._lib, self._context, index, self._words)
        rows["p"] = 0
        array = self._array(rows)
        if obeying:
            self._lib.llama_sampler_apply(self._rules, ctypes.byref(array))
            kept = rows[: array.size]
            kept = np.ascontiguousarray(kept[np.isfinite(kept["logit"])])
            if not len(kept):
                return self._end, False
            array = self._array(kept)
        self._lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id), True

    def _allows(self, token: int) -> bool:
        row = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        array = self._array(row)
        self._lib.llama_sampler_apply(self._rules, ctypes.byref(array))
        return bool(np.isfinite(row["logit"][0]))

    def _array(self, rows: np.ndarray[Any, Any]) -> Any:
        array = self._lib.llama_token_data_array()
        array.data = rows.ctypes.data_as(ctypes.POINTER(self._lib.llama_token_data))
        array.size, array.selected, array.sorted = len(rows), -1, False
        array.rows = rows  # to live as long as it is pointed to
        return array


def _load_adapter(lib: Any, model: Any, path: Path) -> Any:
    _said.clear()
    adapter = lib.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        why = "; ".join(_said) or "llama.cpp does not say why"
        raise AdapterUnusable(f"The adapter {path} cannot be loaded: {why}.", "Use an adapter that was made for this model, in GGUF.")
    return adapter


def check_adapter(model: Path, adapter: Path) -> None:
    """Load both, as `Llama` does, and let them go. A second and the memory of the model. Raises `AdapterUnusable`, `ModelUnusable`."""
    lib = _import()
    _quiet(lib)
    lib.llama_backend_init()
    loaded = lib.llama_model_load_from_file(os.fsencode(model), lib.llama_model_default_params())
    if not loaded:
        raise ModelUnusable(f"{model.name} cannot be loaded.", "Fetch it again, or update llama-cpp-python.")
    try:
        lib.llama_adapter_lora_free(_load_adapter(lib, loaded, adapter))
    finally:
        lib.llama_model_free(loaded)


def schema_to_gbnf(schema: Mapping[str, Any]) -> str:
    """A grammar for the JSON texts that a JSON schema allows. Raises what its converter raises."""
    _import()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    # Its strings may hold control characters as they are, line ends for one, which JSON forbids.
    return re.sub(r'(?m)^char ::= \[\^"\\\\\]', lambda _: r'char ::= [^"\\\x7F\x00-\x1F]', str(json_schema_to_gbnf(json.dumps(schema))))


def requantize(path: Path, target: Path) -> Path:
    """A Q8_0 copy of a GGUF file whose format this CPU reads slowly, made once; other files are returned as they are.

    1.7 s for the default model; no loss, since 8 bits hold what 4 or 5 bits said. Raises `ModelUnusable`.
    """
    lib = _import()
    _quiet(lib)
    if target.is_file():
        return target
    if file_type(path) not in _SLOW_FTYPES:
        return path
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = _FTYPE_Q8_0, True, cores()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.part")
    try:
        if lib.llama_model_quantize(os.fsencode(path), os.fsencode(partial), ctypes.byref(params)) != 0:
            raise ModelUnusable(f"{path.name} cannot be converted to Q8_0.", "Set engine.requantize = false, or check free space.")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def file_type(path: Path) -> int | None:
    """llama.cpp's `general.file_type` of a GGUF file, or None. Reads only the header. Raises `ModelUnusable`."""
    lib = _import()
    _quiet(lib)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelUnusable(f"{path.name} cannot be loaded: not a GGUF file, or damaged.", "Fetch it again, or correct engine.model.")
    try:
        buffer = ctypes.create_string_buffer(32)
        n = lib.llama_model_meta_val_str(model, b"general.file_type", buffer, len(buffer))
        return int(buffer.value) if n > 0 else None
    finally:
        lib.llama_model_free(model)


def gpu_offload() -> bool:
    """Whether this build of llama.cpp can put layers on a GPU."""
    return bool(_import().llama_supports_gpu_offload())


def version() -> str:
    """llama-cpp-python's version."""
    import llama_cpp

    return str(llama_cpp.__version__)
