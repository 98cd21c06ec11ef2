"""Training the reader: the encoder of the second look, over whole passages, says where the answer stands, or that none does.

As in SQuAD 2.0 (Rajpurkar, Jia and Liang 2018; Devlin and others 2019): each token may be the first or the last of the answer, and the
first token of all, [CLS], stands for none. That is more to learn from a question than a yes or no, and it is what tells a passage that
answers from one that only has all of its words. A second head over [CLS] and the mean says yes or no outright.

It goes on from what the second look has learnt (`rerank.py`), of the same questions (`pairs.py`). What reads it: `rag/rerank.py`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.rerank import likeliest
from rag.train.lora import area, fall
from rag.train.pairs import ASK, LONE, LONGEST_TEXT, LOST, NONE, PLAIN, SMALL, Array, Lessons
from rag.train.rerank import Trunk
from rag.train.steps import Texts, padded
from rag.train.weights import Tensors

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

# What a pair is, and how often. How a passage is written, and how long it is, must not tell whether it answers: most questions that people
# wrote to have no answer come with a lone sentence, or with a passage in small letters. So answers come in these forms as well, and lone
# sentences of both kinds among sentences of other passages.
_ANSWERED = {"whole": 0.24, "small": 0.05, "alone": 0.13, "among": 0.06}
_NOT = {"lost": 0.06, "lost small": 0.05, "lost alone": 0.09, "lost among": 0.05, "swapped": 0.10, "cut": 0.085, "near": 0.085}
_SHARES = _ANSWERED | _NOT
_LIKE = {"lost small": "small", "lost alone": "alone", "lost among": "among"}  # the form of answered ones that each is judged against
_POOLED = 0.5  # weight of the yes or no beside that of the place
_TOLD = 50  # steps between two lines of the log


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `seconds` or `steps`, whichever is over first; `pairs` of a step."""

    seconds: float
    steps: int = 1_000_000
    rate: float = 1e-4
    warm_up: float = 0.06
    dropout: float = 0.1
    pairs: int = 256
    seed: int = 1
    workers: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Pair:
    """Tokens, how many of them come before the passage, and the first and the last token of the answer: 0, 0 for none."""

    ids: list[int]
    head: int
    start: int = 0
    end: int = 0


class Reading(Texts):
    """Pairs of a question and a passage. The same for the same seed."""

    def __init__(self, taught: Lessons) -> None:
        super().__init__(taught)
        numbers = np.arange(len(taught))
        asks, lost = taught.kinds == ASK, taught.kinds == LOST
        people = numbers > np.flatnonzero(asks).max()  # those that people wrote to have no answer stand behind
        form = taught.forms[taught.own]
        whole = asks & (form == PLAIN)
        self._numbers = {
            "whole": whole, "small": asks & (form == SMALL), "alone": asks, "among": asks, "cut": whole, "near": asks,
            "lost": lost & people & (form == PLAIN), "lost small": lost & people & (form == SMALL), "swapped": lost & ~people,
            "lost alone": lost & people & (form == LONE), "lost among": lost & people & (form == LONE),
        }  # fmt: skip

    def questions(self, kind: str, *, unseen: bool) -> list[int]:
        """The numbers of its questions, of the articles that are kept for judging or of the others."""
        return np.flatnonzero(self._numbers[kind] & (self._l.unseen == unseen)).tolist()

    def steps(self, recipe: Recipe, seed: int) -> Iterator[list[Pair]]:
        """Without end."""
        rng = random.Random(seed)
        pools = {kind: self.questions(kind, unseen=False) for kind in _SHARES}
        queues: dict[str, list[int]] = {kind: [] for kind in _SHARES}
        kinds = [kind for kind in _SHARES if pools[kind]]
        while True:
            made: list[Pair] = []
            while len(made) < recipe.pairs:
                kind = rng.choices(kinds, [_SHARES[kind] for kind in kinds])[0]
                if not queues[kind]:
                    queues[kind] = rng.sample(pools[kind], len(pools[kind]))
                pair = self.made(queues[kind].pop(), kind, rng)
                if pair is not None:
                    made.append(pair)
            yield made

    def made(self, q: int, kind: str, rng: random.Random, *, changed: bool = True) -> Pair | None:
        """That question with a passage as the kind has it, a little changed or not. None where it cannot be made."""
        taught = self._l
        own, gold, held = int(taught.own[q]), int(taught.gold[q]), int(taught.held[q])
        asked = self.query(q)
        if changed:
            asked = self.noisy(asked, ASK, rng)
        weights = {token: self.weight[token] for token in asked}
        near = [int(p) for p in taught.near[q] if p != NONE and p != own and not self.has(int(p), q)]
        passage, without = own, 0
        if kind == "cut":
            without = held
            if self.left(own, held) < 12:
                return None
        elif kind == "near":
            if not near:
                return None
            passage = near[min(int(rng.expovariate(0.3)), len(near) - 1)] if changed else near[0]
        elif kind in ("alone", "among"):
            without = ~gold
        room = rng.choice((64, 96, 128)) if changed and rng.random() < 0.3 else LONGEST_TEXT
        body, read = self.text(passage, weights, room, without)
        before: list[int] = []
        if kind.endswith("among"):
            if not near:
                return None
            before, after = self._others(near, rng)
            body = [*before, *body, *after][:LONGEST_TEXT]
        start, end = taught.titles[passage].tolist()
        title = self.tokens[start:end] if changed and rng.random() < 0.3 else []
        ids, head = self.pair(asked, body, title)
        if kind not in _ANSWERED:
            return Pair(ids, head) if body else None
        found = self._answer(q, body[len(before) :], passage, read, gold) if read & gold == gold else None
        if found is None:
            return None
        at = head + len(title) + len(before)
        return Pair(ids, head, at + found[0], at + found[1])

    def _others(self, near: Sequence[int], rng: random.Random) -> tuple[list[int], list[int]]:
        """Sentences of some near passages, as they follow each other there, to stand before and behind."""
        found: list[list[int]] = []
        for _ in range(2):
            parts, _ = self.parts(rng.choice(near))
            at = rng.randrange(len(parts)) if parts else 0
            found.append([token for part in parts[at : at + rng.randrange(4)] for token in part][:90])
        return found[0], found[1]

    def _answer(self, q: int, body: Sequence[int], passage: int, read: int, gold: int) -> tuple[int, int] | None:
        """The first and last token of the answer in what is read of the passage, within the piece that answers."""
        start, end = self._l.answers[q].tolist()
        wanted = self.tokens[start:end]
        parts, _ = self.parts(passage)
        at = 0
        for n, part in enumerate(parts):
            if not read >> n & 1:
                continue
            if gold >> n & 1:
                for place in range(at, at + len(part)):
                    if body[place : place + len(wanted)] == wanted:
                        return place, place + len(wanted) - 1
            at += len(part)
        return None


class Reader:
    """The trunk with the heads: `span` over each token, `pool` over [CLS] and the mean. Those of another reader are gone on from."""

    def __init__(self, tensors: Tensors, device: str) -> None:
        import torch

        self._torch = torch
        torch.manual_seed(0)
        self.trunk = Trunk({name: array for name, array in tensors.items() if not name.startswith("exits.")}, device)
        width = self.trunk.width
        heads = {
            "span.weight": torch.randn(2, width) * 0.02,
            "span.bias": torch.zeros(2),
            "pool.weight": torch.randn(1, 2 * width) * 0.02,
            "pool.bias": torch.zeros(1),
        } | {name: torch.from_numpy(np.array(array, np.float32)) for name, array in tensors.items() if name.startswith(("span.", "pool."))}
        self.heads = {name: torch.nn.Parameter(head.to(device)) for name, head in heads.items()}

    def __call__(self, w: Mapping[str, Tensor], chunk: tuple[Array, Array, Array], dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """((n, 2, wide) logits of the first and the last token, those that cannot be one at -1e4; (n,) logits of yes)."""
        torch = self._torch
        for tokens, pooled in self.trunk.states(w, chunk, dropout):
            x, both = tokens, pooled
        spans = (x.float() @ self.heads["span.weight"].T + self.heads["span.bias"]).transpose(1, 2)
        places = torch.arange(x.shape[1], device=x.device)
        lengths, heads = (torch.from_numpy(each).to(x.device)[:, None] for each in chunk[1:])
        possible = ((places >= heads) & (places < lengths - 1)) | (places == 0)
        spans = spans.masked_fill(~possible[:, None, :], -1e4)
        return spans, (both @ self.heads["pool.weight"].T + self.heads["pool.bias"])[:, 0]

    def arrays(self) -> dict[str, Array]:
        """What was learnt, float32."""
        learnt = {name: array for name, array in self.trunk.arrays().items() if not name.startswith("exits.")}
        return learnt | {name: weight.detach().float().cpu().numpy() for name, weight in self.heads.items()}


def train(reader: Reader, taught: Lessons, recipe: Recipe) -> dict[str, Any]:
    """Train it. Gives what happened."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    torch.manual_seed(recipe.seed)
    rest = [weight for name, weight in reader.trunk.parameters.items() if not name.startswith("exits.")]
    heads = list(reader.heads.values())
    optimizer = torch.optim.AdamW(
        [{"params": rest, "times": 1.0}, {"params": heads, "times": 5.0}],
        lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=recipe.device.startswith("cuda"),
    )  # fmt: skip
    started, step, share, losses = time.perf_counter(), 0, 0.0, []
    place_sum = yes_sum = torch.zeros((), device=recipe.device)
    for pairs in _steps(Reading(taught), recipe):
        if step == 0:
            started = time.perf_counter()
        share = max((time.perf_counter() - started) / recipe.seconds, step / recipe.steps)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * group["times"] * fall(share, recipe.warm_up)
        w = reader.trunk.used()
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].ids))
        place = yes = torch.zeros((), device=recipe.device)
        for part in np.array_split(order, 4):
            some = [pairs[i] for i in part]
            spans, said = reader(w, padded([(pair.ids, pair.head) for pair in some]), recipe.dropout)
            wanted = torch.tensor([[pair.start, pair.end] for pair in some], device=spans.device)
            place = place + cross_entropy(spans.flatten(0, 1), wanted.flatten(), reduction="sum") / (2 * len(pairs))
            answered = (wanted[:, 0] > 0).float()
            yes = yes + binary_cross_entropy_with_logits(said, answered, reduction="sum") / len(pairs)
        (place + _POOLED * yes).backward()
        place_sum, yes_sum = place_sum + place.detach(), yes_sum + yes.detach()
        torch.nn.utils.clip_grad_norm_([*rest, *heads], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % _TOLD == 0:
            losses.append([round(float(each) / _TOLD, 4) for each in (place_sum, yes_sum)])
            place_sum = yes_sum = torch.zeros((), device=recipe.device)
            seconds = time.perf_counter() - started
            log.info("step %d, %.0f s: %s, %d pairs a second", step, seconds, losses[-1], step * recipe.pairs / seconds)
    return {"recipe": asdict(recipe), "steps": step, "seconds": round(time.perf_counter() - started, 1), "losses": losses}


def _steps(reading: Reading, recipe: Recipe) -> Iterator[list[Pair]]:
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Endless(IterableDataset[list[Pair]]):
        def __iter__(self) -> Iterator[list[Pair]]:
            worker = get_worker_info()
            return reading.steps(recipe, recipe.seed * 1000 + (worker.id if worker else 0))

    return iter(DataLoader(Endless(), batch_size=None, num_workers=recipe.workers, collate_fn=_same, **(
        {"prefetch_factor": 8, "multiprocessing_context": "fork"} if recipe.workers else {}
    )))  # fmt: skip


def _same(pairs: list[Pair]) -> list[Pair]:
    return pairs


def judge(reader: Reader, taught: Lessons, *, most: int = 1500) -> dict[str, Any]:
    """How it does on articles that it has not seen.

    `answered`, by form: [how many, share whose place is right to the token, share with a token in common]. `area`, of each kind that has
    no answer: [how many, areas under the curve against answered ones of that form: by margin, by yes, by both].
    """
    import torch

    reading, rng = Reading(taught), random.Random(0)
    rows: dict[str, list[tuple[float, float]]] = {}
    told: dict[str, Any] = {"answered": {}, "area": {}}
    with torch.inference_mode():
        w = reader.trunk.used()
        for kind in _SHARES:
            questions = reading.questions(kind, unseen=True)
            chosen = rng.sample(questions, min(most, len(questions)))
            pairs = [pair for q in chosen if (pair := reading.made(q, kind, rng, changed=False))]
            pairs.sort(key=lambda pair: len(pair.ids))
            rows[kind], right, touched = [], 0, 0
            for at in range(0, len(pairs), 64):
                some = pairs[at : at + 64]
                spans, yes = reader(w, padded([(pair.ids, pair.head) for pair in some]))
                for pair, logits, said in zip(some, spans.float().cpu().numpy(), yes.float().cpu().numpy(), strict=True):
                    margin, first, last = likeliest(logits, pair.head, len(pair.ids))
                    rows[kind].append((margin, float(said)))
                    right += (first, last) == (pair.start, pair.end)
                    touched += first <= pair.end and last >= pair.start
            if kind in _ANSWERED and pairs:
                told["answered"][kind] = [len(pairs), round(right / len(pairs), 4), round(touched / len(pairs), 4)]
    for kind in _NOT:
        yes_kind = _LIKE.get(kind, "whole")
        both = [*rows[yes_kind], *rows[kind]]
        truth = [True] * len(rows[yes_kind]) + [False] * len(rows[kind])
        areas = [area([pick(row) for row in both], truth) for pick in (lambda r: r[0], lambda r: r[1], lambda r: r[0] + 2 * r[1])]
        told["area"][kind] = [len(rows[kind]), *(round(each, 4) for each in areas)]
    return told
