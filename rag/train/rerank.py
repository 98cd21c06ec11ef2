"""Training the second look: the embedder's encoder, whole but for its word vectors, reads a query and a passage together.

Two heads on one trunk, both over [CLS] and the mean of the tokens: `relevance`, whether the passage is about what is asked (a softmax over
the passages of a query, and a logistic loss), and `answerable`, whether it holds the answer (a logistic loss). Heads stand after several
layers, so that how deep one reads is chosen after training; the shallow ones learn from the deepest as well. Weights are rounded to 7
bits in each step, as they are when they run (`rag/_onnx.py`), with the gradient passed straight through (Jacob and others 2018).

How long is given in seconds, and the learning rate falls with them. Read `pairs.py` first; what comes out travels by `weights.py`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.train.lora import area, fall
from rag.train.pairs import ASK, KINDS, LOST, NONE, SHARES, Array, Lessons
from rag.train.steps import NO, OUT, SLOTS, YES, Step, Steps, Teacher, padded
from rag.train.weights import EXITS, LARGEST, Tensors, save

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_OF_EXITS = (0.5, 1.0, 0.75)  # weights of their losses: twenty passages a question leave time for about four layers
_RELEVANCE, _ANSWER, _DISTIL, _LIKE_DENSE = 0.3, 0.6, 0.4, 0.15
_OWN = 3.0  # weight of the query's own passage in what is learnt of answers: of the others all are a plain no
_TEMPERATURE = 0.05  # of the embedder's cosines
_HEADS = 12
_EPSILON = 1e-12
_TOLD = 20  # steps between two lines of the log


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `seconds` or `steps`, whichever is over first; `groups`: queries of a step, each with six passages."""

    seconds: float
    steps: int = 1_000_000
    mix: str = "plain"
    rate: float = 1e-4
    warm_up: float = 0.05
    dropout: float = 0.1
    groups: int = 160
    seed: int = 1
    workers: int = 0
    device: str = "cpu"


class Trunk:
    """A BERT encoder in torch with heads after `EXITS`: what `rag/_onnx.py` builds, to be trained. bfloat16 on a GPU."""

    def __init__(self, tensors: Tensors, device: str) -> None:
        import torch

        self._torch, self._device = torch, device
        self._dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        arrays = dict(tensors)
        self.words = torch.from_numpy(np.array(arrays.pop("embeddings.word_embeddings.weight"))).to(device, self._dtype)
        self.width = self.words.shape[1]
        self.layers = 1 + max(int(name.split(".")[2]) for name in arrays if name.startswith("encoder.layer."))
        for exit in EXITS:
            arrays.setdefault(f"exits.{exit}.weight", np.zeros((2, 2 * self.width), np.float32))
            arrays.setdefault(f"exits.{exit}.bias", np.zeros(2, np.float32))
        wanted = ("embeddings.", "encoder.layer.", "exits.")
        self.parameters = {
            name: torch.nn.Parameter(torch.from_numpy(np.array(array, np.float32)).to(device))
            for name, array in arrays.items()
            if name.startswith(wanted) and array.dtype.kind == "f"
        }

    def used(self, *, rounded: bool = True) -> dict[str, Tensor]:
        """The weights as they are multiplied with, once for a step."""
        found = {}
        for name, weight in self.parameters.items():
            if name.startswith("exits."):
                found[name] = weight
                continue
            if rounded and weight.ndim == 2 and name.startswith("encoder."):
                plain = weight.detach()
                scale = (plain.abs().amax(1, keepdim=True) / LARGEST).clamp_min(1e-12)
                weight = weight + ((plain / scale).round() * scale - plain)
            found[name] = weight.to(self._dtype)
        return found

    def hidden(self, w: Mapping[str, Tensor], chunk: tuple[Array, Array, Array], dropout: float = 0.0) -> Iterator[Tensor]:
        """After each layer, the pooled tokens (n, 2 * width) float32: those of [CLS], and the mean."""
        for _, pooled in self.states(w, chunk, dropout):
            yield pooled

    def states(self, w: Mapping[str, Tensor], chunk: tuple[Array, Array, Array], dropout: float = 0.0) -> Iterator[tuple[Tensor, Tensor]]:
        """After each layer, the tokens (n, wide, width), and what `hidden` makes of them."""
        torch, f = self._torch, self._torch.nn.functional
        ids, lengths, heads = (torch.from_numpy(each).to(self._device, torch.long, non_blocking=True) for each in chunk)
        n, wide = ids.shape
        places = torch.arange(wide, device=self._device)
        there = places < lengths[:, None]
        second = ((places >= heads[:, None]) & there).long()
        x = self.words[ids] + w["embeddings.position_embeddings.weight"][:wide] + w["embeddings.token_type_embeddings.weight"][second]
        x = self._normed(w, x, "embeddings.LayerNorm")
        if dropout:
            x = f.dropout(x, dropout)
        mask = there[:, None, None, :]
        share = (there / lengths[:, None]).to(self._dtype)[:, None, :]
        for i in range(self.layers):
            layer = f"encoder.layer.{i}"
            q, k, v = (self._dense(w, x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
            q, k, v = (each.view(n, wide, _HEADS, -1).transpose(1, 2) for each in (q, k, v))
            attended = f.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(n, wide, self.width)
            out = self._dense(w, attended, f"{layer}.attention.output.dense")
            x = self._normed(w, x + (f.dropout(out, dropout) if dropout else out), f"{layer}.attention.output.LayerNorm")
            out = self._dense(w, f.gelu(self._dense(w, x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
            x = self._normed(w, x + (f.dropout(out, dropout) if dropout else out), f"{layer}.output.LayerNorm")
            yield x, torch.cat([x[:, 0], (share @ x)[:, 0]], 1).float()

    def logits(self, w: Mapping[str, Tensor], chunk: tuple[Array, Array, Array], dropout: float = 0.0) -> Tensor:
        """(n, exits, 2): relevance and answer at each exit."""
        found = []
        for depth, pooled in enumerate(self.hidden(w, chunk, dropout), 1):
            if depth in EXITS:
                found.append(self._torch.nn.functional.linear(pooled, w[f"exits.{depth}.weight"], w[f"exits.{depth}.bias"]))
        return self._torch.stack(found, 1)

    def vectors(self, texts: Sequence[list[int]]) -> Tensor:
        """(n, width) unit rows, as the embedder makes them of those tokens (special ones included)."""
        torch = self._torch
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = torch.empty((len(texts), self.width), dtype=torch.float16, device=self._device)
        with torch.inference_mode():
            w = self.used(rounded=False)
            for at in range(0, len(order), 1024):
                part = order[at : at + 1024]
                for pooled in self.hidden(w, padded([(texts[i], len(texts[i])) for i in part])):
                    last = pooled
                rows[part] = torch.nn.functional.normalize(last[:, self.width :], dim=1).half()
        return rows

    def arrays(self) -> dict[str, Array]:
        """What was learnt, float32."""
        return {name: np.asarray(weight.detach().float().cpu().numpy(), np.float32) for name, weight in self.parameters.items()}

    def _dense(self, w: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
        return self._torch.nn.functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def _normed(self, w: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
        return self._torch.nn.functional.layer_norm(x, (self.width,), w[f"{name}.weight"], w[f"{name}.bias"], _EPSILON)


def teacher(trunk: Trunk, taught: Lessons, nearest: int = 16) -> Teacher:
    """The embedder's own view of the lessons; `trunk` must not be trained yet."""
    import torch

    first, last = taught.special[:2].tolist()
    tokens = taught.tokens.tolist()

    def of(spans: Array, most: int) -> Tensor:
        return trunk.vectors([[first, *tokens[a : min(b, a + most)], last] for a, b in spans.tolist()])

    places = taught.pieces[taught.passages]
    queries, passages = of(taught.queries, 64), of(np.stack([places[:-1], places[1:]], 1), 254)
    nearest = min(nearest, len(passages) - 1)
    own = torch.from_numpy(taught.own).to(passages.device, torch.long)
    dense = np.empty((len(taught), nearest), np.uint16)
    for at in range(0, len(taught), 8192):
        similar = queries[at : at + 8192] @ passages.T
        similar[torch.arange(len(similar), device=similar.device), own[at : at + 8192]] = -2
        dense[at : at + 8192] = similar.topk(nearest, 1).indices.cpu().numpy().astype(np.uint16)
    return Teacher(queries.cpu().numpy(), passages.cpu().numpy(), dense)


def train(trunk: Trunk, taught: Lessons, taught_by: Teacher, recipe: Recipe, kept: Path | None = None) -> dict[str, Any]:
    """Train it. Gives what happened. At half time what is learnt so far is written to `kept`."""
    import torch

    torch.manual_seed(recipe.seed)
    heads = [weight for name, weight in trunk.parameters.items() if name.startswith("exits.")]
    rest = [weight for name, weight in trunk.parameters.items() if not name.startswith("exits.")]
    optimizer = torch.optim.AdamW(
        [{"params": rest, "times": 1.0}, {"params": heads, "times": 10.0}],
        lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=recipe.device.startswith("cuda"),
    )  # fmt: skip
    started, step, seen, share = time.perf_counter(), 0, 0, 0.0
    parts: dict[str, Any] = {}
    losses: list[dict[str, float]] = []
    for each in _steps(taught, taught_by, recipe):
        if step == 0:
            started = time.perf_counter()  # the first step waits for the workers to begin
        before, share = share, max((time.perf_counter() - started) / recipe.seconds, step / recipe.steps)
        if share >= 1:
            break
        if kept is not None and before < 0.5 <= share:
            save(trunk.arrays(), {"steps": step}, kept)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * group["times"] * fall(share, recipe.warm_up)
        w = trunk.used()
        logits = torch.cat([trunk.logits(w, chunk, recipe.dropout) for chunk in each.chunks])
        for name, value in _losses(logits, each).items():
            parts[name] = parts.get(name, 0.0) + value.detach()
            if name == "all":
                value.backward()
        torch.nn.utils.clip_grad_norm_([*rest, *heads], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += sum(int(lengths.sum()) for _, lengths, _ in each.chunks)
        if step % _TOLD == 0:
            losses.append({name: round(float(value) / _TOLD, 4) for name, value in parts.items()})  # waits for the device, hence seldom
            parts = {}
            seconds = time.perf_counter() - started
            log.info("step %d, %.0f s: %s, %d pairs a second", step, seconds, losses[-1], step * recipe.groups * SLOTS / seconds)
    seconds = time.perf_counter() - started
    return {"recipe": asdict(recipe), "steps": step, "pairs": step * recipe.groups * SLOTS, "tokens": seen, "seconds": round(seconds, 1),
            "losses": losses}  # fmt: skip


def _steps(taught: Lessons, taught_by: Teacher, recipe: Recipe) -> Iterator[Step]:
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Endless(IterableDataset[Step]):
        def __iter__(self) -> Iterator[Step]:
            worker = get_worker_info()
            seed = recipe.seed * 1000 + (worker.id if worker else 0)
            return iter(Steps(taught, taught_by, SHARES[recipe.mix], seed=seed, groups=recipe.groups))

    return iter(DataLoader(Endless(), batch_size=None, num_workers=recipe.workers, collate_fn=_same, **(
        {"prefetch_factor": 8, "multiprocessing_context": "fork"} if recipe.workers else {}
    )))  # fmt: skip


def _same(step: Step) -> Step:
    return step


def _losses(logits: Tensor, step: Step) -> dict[str, Tensor]:
    """Each loss (mean over exits by their weights), and `all` together. `logits` in the order of the chunks."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as logistic

    device = logits.device
    order = torch.from_numpy(step.order).to(device)
    logits = torch.empty_like(logits).index_copy(0, order, logits).view(-1, SLOTS, len(EXITS), 2)
    about, answered, cosine = (torch.from_numpy(each).to(device) for each in (step.relevant, step.answering, step.cosine))
    by_exit = torch.tensor(_OF_EXITS, device=device) / sum(_OF_EXITS)
    relevance, answer = logits[..., 0], logits[..., 1]  # (groups, slots, exits)

    chances = relevance.masked_fill((about == OUT)[..., None], -1e4).log_softmax(1)
    rank = -chances[:, 0].mean(0) @ by_exit
    told = (about == NO) | (about == YES)
    pointwise = logistic(relevance, (about == YES).float()[..., None].expand_as(relevance), reduction="none").mul(by_exit).sum(2)
    pointwise = (pointwise * told).sum() / told.sum()
    weight = (answered != OUT).float()
    weight[:, 0] *= _OWN
    answers = logistic(answer, (answered == YES).float()[..., None].expand_as(answer), reduction="none").mul(by_exit).sum(2)
    answers = (answers * weight).sum() / weight.sum()

    deepest = chances[..., -1:].detach()
    kept = (about != OUT)[..., None]
    distil = ((deepest.exp() * (deepest - chances)) * kept).sum(1).mean(0) @ by_exit
    sure = answer[..., -1:].detach().sigmoid().expand_as(answer)
    distil = distil + (logistic(answer, sure, reduction="none").mul(by_exit).sum(2) * weight).sum() / weight.sum()
    like = (cosine / _TEMPERATURE).masked_fill(about == OUT, -1e4).softmax(1)[..., None]
    dense = -((like * chances) * kept).sum(1).mean(0) @ by_exit
    return {
        "rank": rank, "relevance": pointwise, "answer": answers, "distil": distil, "dense": dense,
        "all": rank + _RELEVANCE * pointwise + _ANSWER * answers + _DISTIL * distil + _LIKE_DENSE * dense,
    }  # fmt: skip


def judge(trunk: Trunk, taught: Lessons, taught_by: Teacher, *, room: int, most: int = 800) -> dict[str, Any]:
    """How it does on articles that it has not seen, at each exit: by kind of query, the reciprocal rank of its own passage among those
    near by BM25, and beside it the embedder's; and the area under the curve of `answerable`, own passages of `ask` against `lost`."""
    import torch

    steps = Steps(taught, taught_by, SHARES["plain"], seed=0, groups=1)
    ranks: dict[str, list[list[float]]] = {}
    chances: list[tuple[list[float], bool]] = []
    with torch.inference_mode():
        w = trunk.used()
        unseen = np.flatnonzero(taught.unseen)
        for q in random.Random(0).sample(unseen.tolist(), min(most, len(unseen))):
            kind = int(taught.kinds[q])
            pairs = steps.judged(q, room)
            logits = trunk.logits(w, padded(pairs)).float().cpu().numpy()
            if kind in (ASK, LOST):
                chances.append((logits[0, :, 1].tolist(), kind == ASK))
            if len(pairs) > 1:
                near = [int(taught.own[q]), *(int(p) for p in taught.near[q] if p != NONE and not steps.has(int(p), q))]
                cosines = taught_by.passages[near].astype(np.float32) @ taught_by.queries[q].astype(np.float32)
                columns = [*logits[..., 0].T, cosines]
                ranks.setdefault(KINDS[kind], []).append([1 / (1 + int((column > column[0]).sum())) for column in columns])
    names = [*map(str, EXITS), "embedder"]
    return {
        "room": room,
        "reciprocal_rank": {kind: dict(zip(names, np.round(np.mean(rows, 0), 4).tolist(), strict=True)) for kind, rows in ranks.items()},
        "queries": {kind: len(rows) for kind, rows in ranks.items()},
        "area": {name: round(area([each[n] for each, _ in chances], [yes for _, yes in chances]), 4) for n, name in enumerate(names[:-1])},
    }
