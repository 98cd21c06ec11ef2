"""An adapter for one domain: the grounded one, taught further with questions that are made of the domain's own documents.

No model writes the questions: a sentence's subject is asked for, or the sentence is turned into a yes-or-no question, and the same is
asked where its sentence or passage is missing or a name or number is another. What is learnt is the domain's words, and to refuse what
only sounds like it. Whether it helped is judged on every tenth document, which is kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rag import adapters
from rag.errors import InvalidInput
from rag.train import answers, convert, lora
from rag.train.examples import DOMAIN, REFUSAL, split
from rag.train.pool import Asked, Pool, Text
from rag.train.tokens import Tokens, corpus

_LEAST = 60
"""Questions, below which there is nothing to learn and nothing to judge by."""


def pool_of(texts: Mapping[str, Sequence[str]]) -> Pool:
    """The passages of each document, by its path, and what can be asked of them by rule."""
    passages, asked = [], []
    for path, parts in texts.items():
        for text in parts:
            for start, end in answers.spans(text):
                if found := answers.subject_asked(text[start:end]):
                    asked.append(Asked(found[0], len(passages), (found[1],), DOMAIN))
            passages.append(Text(text, path, DOMAIN))
    return Pool(passages, asked, [])


def joined(first: Pool, second: Pool) -> Pool:
    """Both, the passages of the second after those of the first."""
    shift = len(first.passages)
    moved = [[replace(each, passage=each.passage + shift) for each in of] for of in (second.answerable, second.unanswerable)]
    return Pool(
        [*first.passages, *second.passages],
        [*first.answerable, *moved[0]],
        [*first.unanswerable, *moved[1]],
        first.dropped + second.dropped,
    )


def train(
    texts: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    base: Path,
    begin: Path,
    recipe: lora.Recipe,
    general: Pool | None = None,
    count: int = 2000,
) -> dict[str, Any]:
    """Teach the adapter `begin` (a GGUF file) the domain's `texts`; write `adapter.gguf` and the report into `folder`.

    The report has `before` and `after`, each as `lora.judge` says it, of documents that were kept apart. `general` is a pool to mix in,
    against forgetting. Raises `InvalidInput` where the texts are too few, `MissingPackage`, `ModelUnusable`.
    """
    own = pool_of(texts)
    if len(own.answerable) < _LEAST:
        raise InvalidInput(
            f"Of these documents only {len(own.answerable)} questions can be made; {_LEAST} are the least.",
            "Train on a domain with more text, or use the adapter `grounded` as it is.",
        )
    tokens = Tokens.of_gguf(base)
    seen, unseen = split(own, 10)
    if not unseen.answerable or not seen.answerable:
        raise InvalidInput("One document cannot be both learnt and judged by.", "Train on a domain with ten documents or more.")
    learnt_from = corpus(joined(general, seen) if general else seen, tokens, count=count, seed=recipe.seed, longest=1408)
    judged_by = corpus(unseen, tokens, count=max(40, count // 10), seed=recipe.seed + 1, longest=1408)
    told_of_base = convert.config(base)
    heads, kv_heads = told_of_base["num_attention_heads"], told_of_base["num_key_value_heads"]
    known, alpha = convert.read(begin, heads=heads, kv_heads=kv_heads)
    recipe = replace(recipe, alpha=alpha, rank=next(iter(known.values()))[0].shape[0])
    refusing = tokens.text(REFUSAL)[0]
    model = lora.model_of(base)
    _, told = lora.train(model, learnt_from, replace(recipe, steps=0), known)
    before = lora.judge(model, judged_by, recipe.device, refusing=refusing)
    # Anew: a model takes one LoRA.
    model = lora.model_of(base)
    learnt, told = lora.train(model, learnt_from, recipe, known)
    told |= {"before": before, "after": lora.judge(model, judged_by, recipe.device, refusing=refusing), "questions": len(own.answerable)}
    lora.save(learnt, told, folder)
    convert.write(learnt, folder / adapters.WEIGHTS, alpha=alpha, heads=heads, kv_heads=kv_heads)
    return told
