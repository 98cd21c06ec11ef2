"""Question sets that others made, as golden sets with the documents they are about: SQuAD 2.0, XQuAD, SciFact and more.

Each reads one folder of the data folder (`qa/` in it), which is not part of the project. The documents become files, so that they go
the whole way that a user's files go. Files have numbers for names: the words of a path are searched too, and a name taken from
an article's title would give answers away. Sets of the same kind under another name (`squad2-test-half`) are found as well.
What a golden set is: `rag/golden.py`. What is measured on it: `rag/evaluate.py`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.domains import FILE as DOMAIN_FILE
from rag.errors import InvalidInput, NotFound
from rag.golden import Item, Page


@dataclass(frozen=True, slots=True)
class File:
    """A document as it is written below `corpora/`."""

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Imported:
    """A set with its documents. `source` says where both are from, and which licence; `languages`: of the documents, if not English."""

    name: str
    items: tuple[Item, ...]
    files: tuple[File, ...]
    source: str
    languages: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of the documents. sha256, hex."""
        hashed = hashlib.sha256()
        for file in sorted(self.files, key=lambda file: file.path):
            hashed.update(f"{file.path}\0{len(file.data)}\0".encode() + file.data)
        hashed.update("\0".join(self.languages).encode())
        return hashed.hexdigest()

    def write(self, corpora: Path) -> None:
        """Write the documents below a folder, whole or not at all; one that is there is left as it is."""
        if corpora.is_dir():
            return
        partial = corpora.with_name(corpora.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        for file in self.files:
            path = partial / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data)
        for domain in {file.path.partition("/")[0] for file in self.files if self.languages}:
            (partial / domain / DOMAIN_FILE).write_text(f"languages = {json.dumps(self.languages)}\n", encoding="utf-8")
        partial.rename(corpora)


def names() -> tuple[str, ...]:
    """What can be imported."""
    return tuple(_SETS)


def load(name: str, data: Path) -> Imported:
    """A set by name, from the data folder. Raises `NotFound` where its files are absent, `InvalidInput` where they are not as expected."""
    pattern, read, source = _SETS[name]
    folder = next((found for base in (data / "qa", data) for found in sorted(base.glob(pattern)) if found.is_dir()), None)
    if folder is None:
        raise NotFound(
            f"The set {name!r} is not here: there is no folder {pattern} in {data / 'qa'}.",
            "Say with --data where the data folder is, or name a golden set of your own.",
        )
    try:
        items, files = read(folder)
    except (OSError, EOFError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InvalidInput(f"{folder} cannot be read as {name}: {type(error).__name__}: {error}.", "Fetch the set again.") from error
    return Imported(name, tuple(items), tuple(files), source, _LANGUAGES.get(name, ()))


Read = tuple[Iterable[Item], Iterable[File]]


def _squad2(folder: Path) -> Read:
    """One file a paragraph; gold is the paragraph a question was asked about."""
    return _squad(_one(folder, "*.json", "*.json.gz"), "squad2")


def _xquad(language: str) -> Callable[[Path], Read]:
    return lambda folder: _squad(folder / f"xquad.{language}.json", f"xquad-{language}")


def _squad(path: Path, domain: str) -> Read:
    """SQuAD's JSON: data[].paragraphs[].{context, qas[].{id, question, answers[].text, is_impossible}}."""
    items, files = [], []
    paragraphs = [paragraph for article in json.loads(_bytes(path))["data"] for paragraph in article["paragraphs"]]
    for number, paragraph in enumerate(paragraphs, 1):
        file = f"{domain}/{number:04}.txt"
        files.append(File(file, paragraph["context"].encode()))
        for asked in paragraph["qas"]:
            answers = () if asked.get("is_impossible") else tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
            items.append(Item(asked["id"], asked["question"].strip(), answers, (file,) if answers else (), domain=domain))
    return items, files


_CITED = re.compile(r"\[([^\[\]#]+\.pdf)#page=(\d+)\]")


def _contoso(folder: Path) -> Read:
    """PDFs as they are; a question's truth ends with the page that it is from, `[file.pdf#page=3]`."""
    files = [File(f"contoso/{path.name}", path.read_bytes()) for path in sorted((folder / "data").glob("*.pdf"))]
    items = []
    for number, row in enumerate(_jsonl(folder / "example_input" / "qa.jsonl"), 1):
        pages = tuple(dict.fromkeys(Page(f"contoso/{name}", int(page)) for name, page in _CITED.findall(row["truth"])))
        items.append(Item(f"qa-{number}", row["question"], (_CITED.sub("", row["truth"]).strip(),), pages=pages, domain="contoso"))
    for number, row in enumerate(_jsonl(folder / "example_input" / "qa_dontknows.jsonl"), 1):
        items.append(Item(f"dontknow-{number}", row["question"], (), domain="contoso"))
    return items, files


def _stici(folder: Path) -> Read:
    """Each document is a domain of its own: the questions ("What happened on day 10?") are asked of one open document."""
    files = [File(f"{_stici_domain(row['index'])}/document.txt", row["text"].encode()) for row in _csv(folder / "documents.csv")]
    items = []
    for kind in ("single_passage", "multi_passage", "no_answer"):
        for number, row in enumerate(_csv(_one(folder, f"{kind}*questions.csv")), 1):
            domain = _stici_domain(row["document_index"])
            answers = (row["answer"],) if kind != "no_answer" else ()
            documents = (f"{domain}/document.txt",) if answers else ()
            items.append(Item(f"{kind}-{number}", row["question"], answers, documents, domain=domain))
    return items, files


def _stici_domain(index: str) -> str:
    return f"stici-{int(index):02}"


def _anthropic(folder: Path) -> Read:
    """One file a chunk, as the set's own retrieval figures take it; gold are the chunks by their links."""
    chunks = json.loads(_bytes(folder / "data" / "anthropic_docs.json"))
    path_of = {chunk["chunk_link"]: f"anthropic-docs/{number:03}.txt" for number, chunk in enumerate(chunks, 1)}
    files = [File(path_of[chunk["chunk_link"]], chunk["text"].encode()) for chunk in chunks]
    items = []
    for row in json.loads(_bytes(folder / "evaluation" / "docs_evaluation_dataset.json")):
        gold = tuple(dict.fromkeys(path_of[link] for link in row["correct_chunks"]))
        items.append(Item(row["id"], row["question"], (row["correct_answer"],), gold, domain="anthropic-docs"))
    return items, files


def _scifact(folder: Path) -> Read:
    """BEIR: one file an abstract, its title above its text. The claims have gold abstracts and no gold answers."""
    abstracts = list(_jsonl(_one(folder, "corpus.jsonl", "corpus.jsonl.gz")))
    files = [File(f"scifact/{row['_id']}.txt", f"{row['title']}\n\n{row['text']}".encode()) for row in abstracts]
    gold: dict[str, list[str]] = {}
    for line in _bytes(_one(folder, "qrels*", "qrels/test.tsv")).decode().splitlines():
        question, *_, abstract, grade = line.split()  # TREC's has a second column, 0; BEIR's own has not, but a head
        if grade.isdigit() and int(grade) > 0:
            gold.setdefault(question, []).append(f"scifact/{abstract}.txt")
    asked = ((str(row["_id"]), row["text"]) for row in _jsonl(_one(folder, "queries*.jsonl", "queries*.jsonl.gz")))
    return [Item(id, text, None, tuple(gold[id]), domain="scifact") for id, text in asked if id in gold], files


def _pool(folder: Path) -> Read:
    """For choosing thresholds, and nothing else: questions about the articles of the training pool that nothing is trained on.

    Their passages are among every eighth of the others. One in four of these passages is left out: its questions have no answer then.
    Passages in small letters get capitals, and what is asked of a lone sentence is left out: most questions that people wrote to have no
    answer come in these forms, which documents do not have, and would be told by them.
    """
    from rag.train.capitals import Capitals
    from rag.train.examples import split
    from rag.train.pairs import LONE, form_of
    from rag.train.pool import Pool, fingerprint

    pool = Pool.read(_one(folder, "pool.json.gz"))
    apart = split(pool)[1]
    asked = {each.passage for each in (*apart.answerable, *apart.unanswerable)}
    missing = {n for n in asked if int(fingerprint(pool.passages[n].text), 16) % 4 == 1}
    kept = {n: f"pool/{n:05}.txt" for n, each in enumerate(pool.passages) if each.text and n not in missing and (n in asked or n % 8 == 0)}
    items = []
    questions: dict[int, list[str]] = defaultdict(list)
    for number, each in enumerate((*apart.answerable, *apart.unanswerable)):
        if form_of(pool.passages[each.passage]) == LONE:
            continue
        questions[each.passage].append(each.question)
        answers = each.accepted if each.passage in kept else ()
        documents = (kept[each.passage],) if answers else ()
        items.append(Item(f"{each.source}-{number}", each.question, answers, documents, domain="pool"))
    items.sort(key=lambda item: fingerprint(item.question))  # all sources mixed, so that the first of them are a fair sample
    capitals = Capitals(text.text for text in pool.passages)
    texts = {n: capitals(text.text, *questions[n]) if (text := pool.passages[n]).small else text.text for n in kept}
    return items, [File(path, texts[n].encode()) for n, path in kept.items()]


def _one(folder: Path, *patterns: str) -> Path:
    """The first file of a folder that has such a name. Raises `FileNotFoundError`."""
    found = next((path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"there is no {' or '.join(patterns)}")
    return found


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def _jsonl(path: Path) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in _bytes(path).decode().split("\n") if line.strip())


def _csv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 27))  # whole documents are in a field
    return list(csv.DictReader(io.StringIO(_bytes(path).decode("utf-8-sig"), newline="")))


_SETS: dict[str, tuple[str, Callable[[Path], Read], str]] = {
    "squad2": ("squad2*", _squad2, "SQuAD 2.0, CC BY-SA 4.0"),
    "contoso": ("contoso*", _contoso, "Azure-Samples/azure-search-openai-demo-csharp and ai-rag-chat-evaluator, MIT"),
    "stici": ("stici*", _stici, "Samuel-Harris/STICI-note; its documents are third parties'"),
    "anthropic-docs": ("anthropic-docs*", _anthropic, "Anthropic cookbook, MIT"),
    "scifact": ("scifact*", _scifact, "SciFact by BEIR, CC BY 4.0 and ODC-By"),
    "xquad-en": ("xquad*", _xquad("en"), "XQuAD, CC BY-SA 4.0"),
    "xquad-de": ("xquad*", _xquad("de"), "XQuAD, CC BY-SA 4.0"),
    "pool": ("train", _pool, "SQuAD 1.1 and 2.0, Natural Questions, CC BY-SA 4.0 and 3.0; SQuADShifts, CC BY 4.0"),
}

_LANGUAGES = {"xquad-de": ("de",)}
