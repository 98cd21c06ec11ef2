"""Training a LoRA (Hu and others 2021): low-rank changes beside the frozen weights of every linear layer, on the answers only.

How long is given in seconds, and the learning rate falls with them, so that a run on any machine ends where it should. Plain torch,
no trainer: batches of examples of like length, padded on the right, where a causal model needs no mask.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import InvalidInput
from rag.train import convert
from rag.train.convert import NAMES, Array, Lora
from rag.train.examples import ANSWERED
from rag.train.tokens import Corpus

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

log = logging.getLogger(__name__)

SCALE = 2.0
"""Alpha by rank of what is trained here: how many times its change is applied."""

# Lengths are padded to multiples of this, so that few different shapes come up.
_GRAIN = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `seconds` or `steps`, whichever is over first; `tokens` of a step, padding included, in pieces of at most `piece`.

    `told_every`: steps between two losses, for each of which a GPU must be waited for.
    `dropout`: of what a LoRA reads. `first`: how much more than another token the first two of an answer count: whether it answers
    at all, and from where.
    """

    seconds: float
    steps: int = 1_000_000
    rank: int = 8  # a higher one makes every answer wait longer for its first token, and refuses no better (bench/RESULTS.md)
    alpha: float = 16.0
    rate: float = 1.2e-3
    warm_up: float = 0.04
    tokens: int = 32_768
    piece: int = 16_384
    first: float = 3.0
    dropout: float = 0.05
    seed: int = 1
    device: str = "cpu"
    compile: bool = False
    told_every: int = 50


@dataclass(frozen=True, slots=True)
class Progress:
    """`share`: of the seconds or the steps, whichever is further; `loss`: the mean of an answer's token, nan before the first is known;
    `speed` in tokens a second, padding included."""

    share: float
    step: int
    loss: float
    speed: float


Watch = Callable[[Progress], bool]
"""Told before each piece of a step how far it is; False ends the training there, with what was learnt until the last whole step."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` (rows, length) int64; `rows` and `columns` of the places whose next token is of an answer, `weights` of those, float32."""

    ids: Array
    rows: Array
    columns: Array
    weights: Array


def model_of(path: Path) -> LlamaForCausalLM:
    """A GGUF file as a model of transformers, in float32. Raises `ModelUnusable`, `MissingPackage`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**convert.config(path)))
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in convert.weights(path).items()})
    return model.eval()


def check_device(device: str) -> None:
    """Raises `InvalidInput` for one that torch has not on this machine."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        said = str(error).partition("\n")[0]
        raise InvalidInput(f"There is no device {device!r} here: {said}.", "Use cpu, or install torch for your GPU.") from error


def attach(model: LlamaForCausalLM, rank: int, alpha: float, seed: int, dropout: float = 0.0) -> dict[str, tuple[Tensor, Tensor]]:
    """Freeze the model and put a LoRA beside each linear layer; it changes nothing until it is trained. Gives its parameters by module."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    found = {}
    for name, module in model.named_modules():
        if name.split(".", 3)[-1] not in NAMES:
            continue
        wide = module.in_features
        a = (torch.rand((rank, wide), generator=generator) * 2 - 1) / math.sqrt(wide)  # PEFT's start: kaiming_uniform with a = sqrt(5)
        module.register_parameter("lora_a", torch.nn.Parameter(a.to(module.weight.device)))
        module.register_parameter("lora_b", torch.nn.Parameter(torch.zeros(module.out_features, rank, device=module.weight.device)))
        module.register_forward_hook(partial(_added, alpha / rank, dropout))
        found[name] = (module.lora_a, module.lora_b)
    return found


def _added(scale: float, dropout: float, module: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
    x = given[0]
    if dropout and module.training:
        from torch.nn.functional import dropout as dropped

        x = dropped(x, dropout)
    return out + ((x @ module.lora_a.to(x.dtype).T) @ module.lora_b.to(x.dtype).T) * scale


def batches(corpus: Corpus, tokens: int, seed: int, *, first: float = 1.0) -> Iterator[Batch]:
    """The whole corpus once: in random order, but examples of like length together, `tokens` a batch with the padding."""
    rng = np.random.default_rng(seed)
    lengths = -(-corpus.lengths // _GRAIN) * _GRAIN
    order = rng.permutation(len(corpus))
    # Sorted within some dozens of batches: little padding, and still no step of only long ones after one of only short ones.
    window = max(1, 48 * tokens // int(lengths.mean()))
    groups: list[list[int]] = []
    for begin in range(0, len(order), window):
        some = order[begin : begin + window]
        some = some[np.argsort(lengths[some], kind="stable")]
        made: list[list[int]] = [[]]
        for i in some:
            if made[-1] and (len(made[-1]) + 1) * lengths[i] > tokens:
                made.append([])
            made[-1].append(int(i))
        groups += [made[i] for i in rng.permutation(len(made))]
    for group in groups:
        yield _batch(corpus, group, first)


def _batch(corpus: Corpus, group: Sequence[int], first: float) -> Batch:
    wide = -(-max(int(corpus.starts[i + 1] - corpus.starts[i]) for i in group) // _GRAIN) * _GRAIN
    ids = np.zeros((len(group), wide), np.int64)
    rows, columns, weights = [], [], []
    for row, i in enumerate(group):
        start, answer, end = int(corpus.starts[i]), int(corpus.answers[i]), int(corpus.starts[i + 1])
        ids[row, : end - start] = corpus.tokens[start:end]
        told = np.arange(answer - start - 1, end - start - 1)  # a place foretells the token after it
        rows.append(np.full(len(told), row))
        columns.append(told)
        weights.append(np.where(np.arange(len(told)) < 2, first, 1.0).astype(np.float32))
    return Batch(ids, np.concatenate(rows), np.concatenate(columns), np.concatenate(weights))


def train(
    model: LlamaForCausalLM, corpus: Corpus, recipe: Recipe, begin: Lora | None = None, watch: Watch = lambda _: True
) -> tuple[Lora, dict[str, Any]]:
    """Train on the device of the recipe (bfloat16 on a GPU). Gives the LoRA, and what happened: steps, tokens, losses.

    `begin` is a LoRA of the recipe's rank and alpha to go on from.
    """
    import torch

    torch.manual_seed(recipe.seed)
    model.to(recipe.device, torch.bfloat16 if recipe.device.startswith("cuda") else torch.float32)
    pairs = attach(model, recipe.rank, recipe.alpha, recipe.seed, recipe.dropout)
    if begin is not None:
        with torch.no_grad():
            for name, pair in pairs.items():
                for parameter, known in zip(pair, begin[name], strict=True):
                    parameter.copy_(torch.from_numpy(known))
    parameters = [each for pair in pairs.values() for each in pair]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.0)
    if recipe.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    model.train()
    if recipe.compile:
        # To compile takes a minute, of which the learning rate must know nothing.
        for _, batch in zip(range(2), batches(corpus, recipe.piece, recipe.seed + 99), strict=False):
            _loss(model, batch, recipe.device).backward()
        optimizer.zero_grad(set_to_none=True)
    started, step, seen, answered = time.perf_counter(), 0, 0, 0
    losses: list[float] = []
    recent: Any = 0.0
    since = 0

    def share() -> float:
        return max((time.perf_counter() - started) / recipe.seconds, step / recipe.steps if recipe.steps else 1.0)

    def progress() -> Progress:
        speed = seen / max(1e-9, time.perf_counter() - started)
        return Progress(min(1.0, share()), step, losses[-1] if losses else math.nan, speed)

    for held in _steps(corpus, recipe):
        done = share()
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * fall(done, recipe.warm_up)
        total = float(sum(each.weights.sum() for each in held))
        stopped = False
        for each in held:
            if stopped := not watch(progress()):
                break
            loss = _loss(model, each, recipe.device) / total
            loss.backward()
            recent = recent + loss.detach()
            seen += each.ids.size
            answered += len(each.rows)
        if stopped:
            break
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, since = step + 1, since + 1
        if step % recipe.told_every == 0 or step == recipe.steps:
            losses.append(round(float(recent) / since, 4))  # waits for the device, hence seldom
            recent, since = 0.0, 0
            seconds = time.perf_counter() - started
            log.info("step %d, %.0f s: loss %.4f, %d tokens a second", step, seconds, losses[-1], seen / seconds)
    told = {
        "recipe": asdict(recipe), "steps": step, "passes": round(seen / max(1, int(corpus.lengths.sum())), 2), "tokens": seen,
        "answer_tokens": answered, "seconds": round(time.perf_counter() - started, 1), "losses": losses,
    }  # fmt: skip
    return {name: (_array(a), _array(b)) for name, (a, b) in pairs.items()}, told


def _steps(corpus: Corpus, recipe: Recipe) -> Iterator[list[Batch]]:
    """The batches of each step, without end. What is left over at the end of a pass is dropped, unless the pass has no other step."""
    passes = 0
    while True:
        held: list[Batch] = []
        made = 0
        for batch in batches(corpus, recipe.piece, recipe.seed + passes, first=recipe.first):
            held.append(batch)
            if sum(each.ids.size for each in held) >= recipe.tokens - recipe.piece // 4:
                yield held
                held, made = [], made + 1
        if not made:
            yield held
        passes += 1


def fall(share: float, warm_up: float) -> float:
    """Linear rise, then a cosine to nothing."""
    return share / warm_up if share < warm_up else 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))


def _loss(model: LlamaForCausalLM, batch: Batch, device: str) -> Tensor:
    """Weighted sum of the cross entropy of the answers' tokens."""
    from torch.nn.functional import cross_entropy

    logits, targets, weights = _answers(model, batch, device)
    return (cross_entropy(logits, targets, reduction="none") * weights).sum()


def _answers(model: LlamaForCausalLM, batch: Batch, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """(logits (n, vocabulary) float32, the tokens that came, weights) at the places of the answers: the others' are never made."""
    import torch

    ids, rows, columns, weights = (torch.from_numpy(each).to(device) for each in (batch.ids, batch.rows, batch.columns, batch.weights))
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[rows, columns]).float(), ids[rows, columns + 1], weights


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().float().cpu().numpy(), np.float32)


def judge(model: LlamaForCausalLM, corpus: Corpus, device: str, *, refusing: int) -> dict[str, Any]:
    """How it does on examples that it has not seen, each answer's true beginning given. `refusing`: the first token of a refusal.

    By kind: how many, how many it would refuse (the refusal's first token above a half), the mean probability of that token, and the
    share of tokens that it foretells right; over all, the area under the curve of that probability.
    """
    import torch

    told: dict[str, list[tuple[float, bool, float]]] = {}
    model.eval()
    with torch.inference_mode():
        for at in range(0, len(corpus), 16):
            group = list(range(at, min(at + 16, len(corpus))))
            batch = _batch(corpus, group, 1.0)
            logits, targets, _ = _answers(model, batch, device)
            right = (logits.argmax(-1) == targets).float().cpu().numpy()
            refusal = logits.softmax(-1)[:, refusing].float().cpu().numpy()
            for row, i in enumerate(group):
                of = np.flatnonzero(batch.rows == row)
                second = bool(right[of[1]]) if len(of) > 1 else True
                told.setdefault(str(corpus.kinds[i]), []).append((float(refusal[of[0]]), second, float(right[of].mean())))
    chances = [(chance, kind not in ANSWERED) for kind, found in told.items() for chance, _, _ in found]
    return {
        "area": round(area([chance for chance, _ in chances], [refuse for _, refuse in chances]), 4),
        "kinds": {
            kind: {
                "count": len(found),
                "refused": round(sum(chance > 0.5 for chance, _, _ in found) / len(found), 3),
                "chance": round(float(np.mean([chance for chance, _, _ in found])), 3),
                "second_token": round(float(np.mean([second for _, second, _ in found])), 3),
                "tokens": round(float(np.mean([share for _, _, share in found])), 3),
            }
            for kind, found in sorted(told.items())
        },
        "trade_off": _trade_off(chances),
    }


def area(chances: Sequence[float], wanted: Sequence[bool]) -> float:
    """Under the ROC curve: how often one that is wanted has more of a chance than one that is not, equal ones half; nan without both."""
    chance, want = np.asarray(chances), np.asarray(wanted, bool)
    yes, no = chance[want], np.sort(chance[~want])
    if not len(yes) or not len(no):
        return math.nan
    behind = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")
    return float(behind.mean() / (2 * len(no)))


def _trade_off(chances: Sequence[tuple[float, bool]]) -> list[dict[str, float]]:
    """At some thresholds of the refusal's first token: what is refused of what should be, and of what should not."""
    found = []
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        rates = [np.mean([chance > threshold for chance, refuse in chances if refuse == wanted] or [0]) for wanted in (True, False)]
        found.append({"threshold": threshold, "refused": round(float(rates[0]), 3), "wrongly": round(float(rates[1]), 3)})
    return found


def mean(folders: Sequence[Path], rank: int) -> Lora:
    """The mean change of several that `save` wrote, of whatever ranks, as one LoRA of that rank, to be applied `SCALE` times.

    Beside each other they are one of the sum of their ranks; of that the nearest of `rank` is taken (Eckart and Young 1936).
    """
    loaded = [load(folder) for folder in folders]
    shares = [told["recipe"]["alpha"] / told["recipe"]["rank"] / SCALE / len(loaded) for _, told in loaded]
    found = {}
    for name in loaded[0][0]:
        a = np.concatenate([known[name][0] for known, _ in loaded])
        b = np.concatenate([known[name][1] * np.float32(share) for (known, _), share in zip(loaded, shares, strict=True)], axis=1)
        found[name] = (a, b) if len(a) <= rank else _cut(a, b, rank)
    return found


def _cut(a: Array, b: Array, rank: int) -> tuple[Array, Array]:
    (left, upper), (right, lower) = np.linalg.qr(b), np.linalg.qr(a.T)
    u, values, v = np.linalg.svd(upper @ lower.T)
    roots = np.sqrt(values[:rank])  # half of it on each side
    return roots[:, None] * (v[:rank] @ right.T), (left @ u[:, :rank]) * roots


def save(lora: Lora, told: dict[str, Any], folder: Path) -> list[Path]:
    """As two files of float16 (each below 16 MiB up to rank 48 of the default model) and `report.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(lora)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    written = []
    for n, half in enumerate(halves):
        written.append(folder / f"lora-{n}.npz")
        np.savez(written[-1], **{f"{name}.{part}": lora[name][i].astype(np.float16) for name in half for i, part in enumerate("ab")})
    (folder / "report.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    return written


def load(folder: Path) -> tuple[Lora, dict[str, Any]]:
    """What `save` wrote."""
    arrays: dict[str, Array] = {}
    for path in sorted(folder.glob("lora-*.npz")):
        with np.load(path) as file:
            arrays |= {name: file[name].astype(np.float32) for name in file.files}
    lora = {name[:-2]: (arrays[name], arrays[f"{name[:-2]}.b"]) for name in arrays if name.endswith(".a")}
    return lora, json.loads((folder / "report.json").read_text(encoding="utf-8"))
