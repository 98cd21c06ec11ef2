"""Results of evaluations, kept in `data_dir/evaluations/`, so that drift after a change of model, library or prompt is seen.

One JSON file a run: `report` says what is in it. It holds names and numbers, no text of questions, answers or documents: what is
deleted from the index is not to live on here. Made from what `rag/evaluate.py` measures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rag import adapters, golden, models, prompt, tomlfile
from rag.domains import read_domains
from rag.errors import InvalidInput, ReadingRoomError
from rag.evaluate import Difference, Outcome, differences, figures, trade_off
from rag.golden import Item
from rag.records import Passage, Turn
from rag.settings import Settings

Json = dict[str, Any]

_PACKAGES = ("readingroom", "llama-cpp-python", "qdrant-edge-py", "onnxruntime", "sentence-transformers", "tokenizers", "numpy")

# What does not bear on what is found or answered: how many at once, how long, how fast, where.
_BESIDE = {
    "engine.key", "engine.queue", "engine.sequences", "engine.threads", "engine.gpu_layers", "engine.memory_mb", "engine.timeout_s",
    "engine.deadline_s", "embed.threads",
}  # fmt: skip


def configuration(settings: Settings) -> Json:
    """What of the settings bears on answers, by dotted key; and the wording of the prompt, as a digest."""
    found: Json = {"ingest.chunk_tokens": settings.ingest.chunk_tokens}
    for section in ("embed", "retrieve", "cite", "engine"):
        values = dataclasses.asdict(getattr(settings, section))
        found |= {f"{section}.{key}": value for key, value in values.items() if f"{section}.{key}" not in _BESIDE}
    for name, domain in read_domains(settings.corpora).items():
        told = {"prompt": domain.prompt and _digest(domain.prompt), "adapter": domain.adapter, "model": domain.model}
        told |= {"passages": domain.passages, "abstain_below": domain.abstain_below, "withhold_above": domain.withhold_above}
        found |= {f"{name}/domain.toml: {key}": value for key, value in told.items() if value not in (None, "")}
    return found | {"prompt": _prompt()}


def _prompt() -> str:
    """Changes with every word of the prompt that is ours."""
    passage = Passage("", "", "", "guide/a.md", "A", ("B",), None, 0, 1, "one", 1.0)
    built = prompt.build("what", [passage, passage], render=lambda turns: (), budget=1, history=(Turn("user", "before"),))
    return _digest(json.dumps([[turn.role, turn.content] for turn in built.turns]) + prompt.REFUSAL)


def versions(settings: Settings, model: str | None, adapter: str | None) -> Json:
    """Of Python, the libraries that decide on results, and digests of the model's and the adapter's file, where they are here."""
    found: Json = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    try:
        found["model_sha256"] = models.locate(model or settings.engine.model, "generator", settings.data_dir).sha256[:16]
        for share in adapters.parse(adapter).parts if adapter else ():
            found[f"adapter_sha256 {share.name}"] = models.sha256(adapters.find(settings.data_dir, share.name).weights)[:16]
    except ReadingRoomError:  # at `engine.url`, or not installed: the run itself says so
        pass
    return found


def report(
    name: str,
    items: Sequence[Item],
    outcomes: Sequence[Outcome],
    *,
    label: str = "",
    said: str = "base",
    settings: Json | None = None,
    versions: Json | None = None,
    where: str = "",
    search_only: bool = False,
    seconds: float = 0.0,
    partial: bool = False,
    seed: int = 0,
) -> Json:
    """A run for programs and for keeping. `said` is the configuration as it was given, `settings` as it came out (None: a server's,
    which are not known), `seconds` how long it took. `lost` counts gold evidence that is not in the index."""
    given = {"settings": settings, "models": _used(outcome.model for outcome in outcomes)}
    given["adapters"] = _used(outcome.adapter for outcome in outcomes)
    return {
        "set": name,
        "label": label,
        "date": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "kind": "search" if search_only else "answers",
        "configuration": said,
        "where": where,
        "questions": len(items),
        "answerable": sum(item.answerable is True for item in items),
        "unanswerable": sum(item.answerable is False for item in items),
        "done": len(outcomes),
        "partial": partial,
        "seconds": round(seconds, 1),
        "digest": golden.digest(items),
        "fingerprint": _digest(json.dumps([given, versions], sort_keys=True)),
        **given,
        "versions": versions,
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "lost": sum(len(outcome.lost) for outcome in outcomes),
        "figures": [dataclasses.asdict(figure) for figure in figures(outcomes, seed)],
        "trade_off": [dataclasses.asdict(point) for point in trade_off(outcomes)],
        "outcomes": [{"id": outcome.id, "values": outcome.values} for outcome in outcomes],
    }


def _used(names: Any) -> list[str]:
    return sorted(set(filter(None, names)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder(data_dir: Path) -> Path:
    """Where results are."""
    return data_dir / "evaluations"


def keep(result: Json, data_dir: Path) -> Path:
    """Write a report as a file of its own; returns it."""
    date = re.sub(r"\D", "", result["date"].partition("+")[0])
    named = "-".join(filter(None, (f"{date[:8]}-{date[8:]}", _slug(result["set"]), _slug(result["label"]))))
    place = folder(data_dir)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{named}.json"
    for n in range(2, 1000):  # two in one second
        if not path.exists():
            break
        path = place / f"{named}-{n}.json"
    tomlfile.write(path, json.dumps(result) + "\n")
    return path


def kept(data_dir: Path, name: str) -> list[Json]:
    """The kept reports of a set, the oldest first. Raises `InvalidInput` for a file that is none."""
    found = []
    for path in sorted(folder(data_dir).glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["set"] == name:
                found.append(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{path} is not a kept result: {error}.", "Delete it, or move it away.") from error
    return sorted(found, key=lambda result: result["date"])


def before(results: Sequence[Json], n: int) -> Json | None:
    """The last one before the `n`-th that put the same questions in the same way."""
    now = results[n]
    same = (one for one in reversed(results[:n]) if (one["digest"], one["kind"]) == (now["digest"], now["kind"]))
    return next(same, None)


def compared(first: Json, second: Json, seed: int = 0) -> list[Difference]:
    """The differences of two kept reports."""
    return differences(*([Outcome(one["id"], one["values"]) for one in result["outcomes"]] for result in (first, second)), seed)


def changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What is different in how two kept reports came about: `retrieve.focus 0.7 -> 0.5`."""
    flat = [
        {
            "model": ", ".join(result["models"]),
            "adapter": ", ".join(result["adapters"]),
            **(result["settings"] or {}),
            **(result["versions"] or {}),
        }
        for result in (first, second)
    ]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    pairs = ((key, flat[0].get(key), flat[1].get(key)) for key in keys)
    return [f"{key} {_shown(old)} -> {_shown(new)}" for key, old, new in pairs if old != new]


def _shown(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:60]
