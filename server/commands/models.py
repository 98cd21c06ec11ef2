"""`readingroom models ...`: the language models on this machine. Parses and prints; the work is in `rag/models.py` and its neighbours.

Nothing is fetched but by `pull`. No action needs the data directory's lock, so all work beside a running server.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rag.errors import ReadingRoomError, UnknownModel
from rag.settings import PREFIX, Settings
from server.bar import printable
from server.commands import shelf
from server.commands.shown import Json, Line, count, entry_fields, fields_of, print_fields, print_table, size

if TYPE_CHECKING:
    from rag.catalogue import Entry

# Tokens of the prompt that `requantize` reads to measure, in so many rounds for each file, each again and again for so many seconds:
# the best of a few is the machine's, not its guests', and on a busy machine one of them has to do.
_PROMPT, _ROUNDS, _SECONDS = 256, 2, 1.0
# Of a value of a GGUF header, so many characters are shown.
_SHOWN = 100


def add_models(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, parents=[common, as_json])

    listed = action("list", "List the language models on this machine.")
    listed.add_argument("--catalogue", action="store_true", help="those that could be pulled, instead")

    show = action("show", "Show all that is known of a model: card, licence, metadata, memory.")
    show.add_argument("name", help="its name, here or in the catalogue")

    pull = action("pull", "Fetch a model; a download that broke off goes on where it was.")
    pull.add_argument("reference", help="a name of the catalogue, name:tag, host/namespace/name:tag, or https://.../file.gguf")
    pull.add_argument("--name", default="", help="what to call it here (default: as it is asked for)")
    pull.add_argument("--sha256", default="", metavar="HEX", help="what the file must have")
    pull.add_argument("--registry", default="", metavar="HOST", help="another registry than Ollama's (http://HOST without TLS)")
    pull.add_argument("--huggingface", action="store_true", help="fetch a model of the catalogue from Hugging Face")

    add = action("add", "Use a GGUF file of this machine, where it is; or all models of an Ollama or LM Studio folder.")
    add.add_argument("path", nargs="?", type=Path, help="a GGUF file, or a folder of models")
    add.add_argument("--name", default="", help="what to call it (default: the file's name)")
    add.add_argument("--copy", action="store_true", help="copy it into the data directory")
    add.add_argument("--from-ollama", nargs="?", const=True, metavar="DIR", help="the models that Ollama keeps")
    add.add_argument("--from-lmstudio", nargs="?", const=True, metavar="DIR", help="the models that LM Studio keeps")
    add.add_argument("--only", action="append", metavar="NAME", help="of a folder, only this one (repeatable)")
    add.add_argument("--dry-run", action="store_true", help="say what a folder has, and add nothing")

    remove = action("remove", "Remove a model; a file that is used in place stays.")
    remove.add_argument("name", help="its name")

    use = action("use", "Answer with this model from now on: sets engine.model, and a running server changes over.")
    use.add_argument("name", help="its name")

    verify = action("verify", "Compare the files with their sha256.")
    verify.add_argument("name", nargs="?", help="one model (default: all)")

    requantize = action("requantize", "Rewrite a model that this CPU reads slowly, and say what that brings.")
    requantize.add_argument("name", help="its name")
    requantize.add_argument("--to", choices=("Q8_0",), default="Q8_0", help="the format (default: Q8_0)")


def run_models(args: argparse.Namespace, settings: Settings) -> int:
    """Run one; returns the exit status."""
    return _ACTIONS[args.action](args, settings)


def _list(args: argparse.Namespace, settings: Settings) -> int:
    from rag import catalogue, models, shelf

    if args.catalogue:
        return _list_catalogue(catalogue.entries(), args.json)
    found = models.installed(settings.data_dir)
    faulty = models.faulty(settings.data_dir)
    partial = shelf.partials(settings.data_dir)
    if args.json:
        problems = [{"name": name, "error": error.message, "remedy": error.remedy} for name, error in faulty]
        print(json.dumps({"items": [fields_of(model, settings) for model in found], "faulty": problems, "partial": partial}))
        return 0
    rows = [("", "NAME", "SIZE", "FORMAT", "CONTEXT", "LICENCE", "COMMERCIAL USE", "")]
    for model in found:
        fields = fields_of(model, settings)
        where = "in place" if fields["in_place"] and model.folder else ""
        row = ("*" if fields["default"] else "", model.name, size(model.bytes), fields["quantization"], count(fields["context_tokens"]))
        rows.append((*row, fields["licence"], fields["commercial"], where))
    print_table(rows)
    if not any(fields[0] for fields in rows[1:]):
        print(f"\nengine.model is {settings.engine.model}, which is none of these.")
    for name, error in faulty:
        print(f"\n{name}: {error.message}\n  {error.remedy}")
    for name in partial:
        print(f"\n{name}: fetched in part. Pull it again to go on, or: readingroom models remove {name}")
    return 0


def _list_catalogue(entries: Sequence[Entry], as_json: bool) -> int:
    if as_json:
        print(json.dumps({"items": [entry_fields(entry) for entry in entries]}))
        return 0
    rows = [("NAME", "SIZE", "FORMAT", "CONTEXT", "LICENCE", "COMMERCIAL USE", "FROM")]
    for entry in entries:
        about = f"about {size(entry.about_mb * 10**6)}"
        origin = f"ollama {entry.ollama}" if entry.ollama else "huggingface"
        licence = entry.licence
        rows.append((entry.name, about, entry.quantization, count(entry.context_tokens), licence.name, licence.commercial, origin))
    print_table(rows)
    print("\nFetch one: readingroom models pull NAME. Any other of Ollama's registry by its name:tag, any GGUF file by its address.")
    return 0


def _show(args: argparse.Namespace, settings: Settings) -> int:
    from rag import catalogue, models
    from rag.capacity import memory_budget
    from rag.engines import memory_needed

    try:
        model = models.find(args.name, settings.data_dir)
    except UnknownModel:
        entry = catalogue.find(args.name)
        if entry is None:
            raise
        if args.json:
            print(json.dumps({"installed": False, **entry_fields(entry)}))
        else:
            print_fields(entry_fields(entry))
            print(f"\nNot on this machine. Fetch it: readingroom models pull {entry.name}")
        return 0
    header = models.details(model.path)
    needed, budget = memory_needed(model, settings.engine), memory_budget(settings.engine)
    values = {name: value for name, value in header.values.items() if isinstance(value, (str, int, float, bool)) and name != _TEMPLATE}
    fields = {
        "installed": True,
        **fields_of(model, settings),
        "layers": header.layers,
        "vocabulary": header.vocabulary,
        "chat_template": bool(header.chat_template),
        "memory_bytes": needed,
        "memory_budget_bytes": budget,
        "fits": needed <= budget,
    }
    if args.json:
        print(json.dumps({**fields, "metadata": values, "licence_text": models.licence_text(model)}))
        return 0
    fits = "fits" if fields["fits"] else "does not fit"
    fields |= {"memory": f"about {size(needed)} with engine.context_tokens and engine.sequences as set; {fits} in {size(budget)}"}
    print_fields({name: value for name, value in fields.items() if name not in ("memory_bytes", "memory_budget_bytes", "fits")})
    print("\nMetadata of the file:")
    for name, value in values.items():
        text = " ".join(str(value).split())
        print(printable(f"  {name} = {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"))
    if text := models.licence_text(model):
        print("\nThe licence that came with it:\n", *map(printable, text.strip().splitlines()), sep="\n")
    return 0


_TEMPLATE = "tokenizer.chat_template"


def _use(args: argparse.Namespace, settings: Settings) -> int:
    from rag import models, tomlfile
    from server.audit import noted_here
    from server.lock import address_of, command_key

    model = models.find(args.name, settings.data_dir)
    line = Line(sys.stderr if not args.json else None)
    try:
        models.verify(model, progress=line.counter("checking"))
    finally:
        line.end()
    url = address_of(settings.data_dir)
    # The server first: what it cannot load must not stand in the settings.
    if url is not None and not settings.engine.url:
        _tell(url, command_key(settings.data_dir) or settings.server.key, model.name)
    config = args.config or Path("readingroom.toml")
    tomlfile.set_value(config, "engine", "model", model.name)
    if url is None or settings.engine.url:  # else the server has noted it
        noted_here(settings, "model.use", model.name, before=settings.engine.model)
    notes = []
    if os.environ.get(f"{PREFIX}ENGINE__MODEL"):
        notes.append(f"{PREFIX}ENGINE__MODEL is set and goes before the file: unset it.")
    if settings.engine.url:
        notes.append(f"engine.url is set: answers come from {settings.engine.url}, not from this model.")
    if args.json:
        print(json.dumps({"model": model.name, "config": str(config), "server": url, "notes": notes}))
        return 0
    print(f"{config} says now: engine.model = {json.dumps(model.name)}")
    if url is not None and not settings.engine.url:
        print(f"The server at {url} answers with it from now on; answers under way end as they began.")
    for note in notes:
        print(note)
    return 0


def _tell(url: str, key: str, name: str) -> None:
    """Have a running server change over; waits until the model is loaded."""
    import httpx

    from rag.errors import Broken

    try:
        response = httpx.post(
            f"{url}/rag/models/use",
            json={"name": name},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(600, connect=5),
            trust_env=False,  # proxies are for the outside; this is this machine
        )
        body = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Broken(f"The server at {url} did not answer: {error}.", "See its log, or stop it and try again.") from error
    if response.status_code >= 400:
        problem = ReadingRoomError(
            str(body.get("detail", response.status_code)),
            f"{body.get('remedy', '')} Nothing was changed.",
        )
        problem.code = str(body.get("code", "broken"))
        raise problem


def _verify(args: argparse.Namespace, settings: Settings) -> int:
    from rag import models

    data_dir = settings.data_dir
    checks: list[Json] = []
    found = [models.find(args.name, data_dir)] if args.name else models.installed(data_dir)
    if not args.name:
        checks += [{"name": name, "ok": False, "error": error.message, "remedy": error.remedy} for name, error in models.faulty(data_dir)]
    for model in found:
        line = Line(sys.stderr if not args.json else None)
        try:
            models.verify(model, always=True, progress=line.counter(model.name))
        except ReadingRoomError as error:
            checks.append({"name": model.name, "ok": False, "error": error.message, "remedy": error.remedy})
        else:
            checks.append({"name": model.name, "ok": True, "sha256": model.sha256})
        finally:
            line.end()
    if args.json:
        print(json.dumps({"checks": checks}))
    else:
        for check in checks:
            print(f"{check['name']:<36} {'right: ' + check['sha256'] if check['ok'] else check['error']}")
            if not check["ok"]:
                print(f"{'':<36} {check['remedy']}")
    return 0 if all(check["ok"] for check in checks) else 1


def _requantize(args: argparse.Namespace, settings: Settings) -> int:
    from rag import _llama, models

    model = models.find(args.name, settings.data_dir)
    models.verify(model)
    made = models.requantized(model, settings.data_dir)
    known = made.is_file()
    started = time.perf_counter()
    path = _llama.requantize(model.path, made)
    seconds = time.perf_counter() - started
    if path == model.path:
        reason = f"{models.details(path).quantization or 'its format'} is read fast as it is"
        result: Json = {"name": model.name, "path": None, "reason": reason}
        print(json.dumps(result) if args.json else f"{model.name}: {reason}; there is nothing to do.")
        return 0
    before = after = 0.0
    for _ in range(_ROUNDS):  # by turns, so that what else the machine does falls on both
        before = max(before, _prefill_rate(model.path, settings))
        after = max(after, _prefill_rate(path, settings))
    result = {
        "name": model.name,
        "path": str(path),
        "bytes": path.stat().st_size,
        "seconds": 0.0 if known else round(seconds, 1),
        "prefill_before": round(before),
        "prefill_after": round(after),
    }
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{path} ({size(result['bytes'])}) " + ("was there already." if known else f"made in {seconds:.1f} s."))
    print(f"Reads a prompt at {after:,.0f} tokens/s; the file as it came, at {before:,.0f}: {after / before:.1f} times as fast here.")
    if not settings.engine.requantize:
        print("engine.requantize is false: set it to true, or this copy is not used.")
    return 0


def _prefill_rate(path: Path, settings: Settings) -> float:
    """Tokens of prompt a second."""
    from rag import _llama

    engine = settings.engine
    llama = _llama.Llama(path, context_tokens=2 * _PROMPT, sequences=1, threads=engine.threads, gpu_layers=engine.gpu_layers)
    try:
        tokens = (llama.tokenize("the quick brown fox ") * _PROMPT)[:_PROMPT]
        llama.decode([_llama.Piece(token, i, 0, i == 31) for i, token in enumerate(tokens[:32])])  # pages the weights in
        best, spent = float("inf"), 0.0
        while spent < _SECONDS:
            llama.forget(0)
            started = time.perf_counter()
            llama.decode([_llama.Piece(token, i, 0, i == _PROMPT - 1) for i, token in enumerate(tokens)])
            spent += time.perf_counter() - started
            best = min(best, time.perf_counter() - started)
        return _PROMPT / best
    finally:
        llama.close()


_ACTIONS = {
    "list": _list,
    "show": _show,
    "pull": shelf.pull,
    "add": shelf.add,
    "remove": shelf.remove,
    "use": _use,
    "verify": _verify,
    "requantize": _requantize,
}
