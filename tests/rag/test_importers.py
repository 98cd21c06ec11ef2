"""Sets that others made: each in a small copy of its own format, and the real ones where they are."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from rag import golden, importers
from rag.domains import read_domain
from rag.errors import InvalidInput, NotFound
from rag.golden import Page
from tests.conftest import SHARED


def squad(path: Path, *, packed: bool) -> None:
    """Two paragraphs, three questions, one of them impossible."""
    asked = [
        {"id": "q1", "question": " Where? ", "answers": [{"text": "tin"}, {"text": "tin"}, {"text": "the tin"}], "is_impossible": False},
        {"id": "q2", "question": "Who?", "answers": [], "is_impossible": True},
    ]
    third = {"id": "q3", "question": "When?", "answers": [{"text": "noon"}]}
    data = {"data": [{"title": "Tea", "paragraphs": [{"context": "In a tin.", "qas": asked}, {"context": "At noon.", "qas": [third]}]}]}
    text = json.dumps(data).encode()
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(text) if packed else text)


def test_squad_has_a_file_for_each_paragraph(tmp_path: Path) -> None:
    """Gold is the paragraph it was asked about; what is impossible has none. XQuAD has the same shape."""
    squad(tmp_path / "qa" / "squad2-test-half" / "x.json.gz", packed=True)
    imported = importers.load("squad2", tmp_path)
    assert [(file.path, file.data) for file in imported.files] == [("squad2/0001.txt", b"In a tin."), ("squad2/0002.txt", b"At noon.")]
    assert [(item.id, item.question, item.answers, item.documents) for item in imported.items] == [
        ("q1", "Where?", ("tin", "the tin"), ("squad2/0001.txt",)),
        ("q2", "Who?", (), ()),
        ("q3", "When?", ("noon",), ("squad2/0002.txt",)),
    ]
    squad(tmp_path / "xquad" / "xquad.de.json", packed=False)
    assert importers.load("xquad-de", tmp_path).items[2].documents == ("xquad-de/0002.txt",)


def test_a_set_in_another_language_says_so_to_its_domain(tmp_path: Path) -> None:
    """By a `domain.toml` among its documents, which is none of them."""
    for code in ("de", "en"):
        squad(tmp_path / code / "xquad" / f"xquad.{code}.json", packed=False)
    german, english = (importers.load(f"xquad-{code}", tmp_path / code) for code in ("de", "en"))
    german.write(tmp_path / "corpora")
    english.write(tmp_path / "others")
    assert read_domain(tmp_path / "corpora" / "xquad-de").languages == ("de",)
    assert not (tmp_path / "others" / "xquad-en" / "domain.toml").exists()
    assert (german.languages, english.languages) == (("de",), ())


def test_contoso_has_pages_in_its_answers(tmp_path: Path) -> None:
    """They are gold, and no part of the answer's text."""
    folder = tmp_path / "contoso-benefits"
    (folder / "data").mkdir(parents=True)
    (folder / "example_input").mkdir()
    (folder / "data" / "a.pdf").write_bytes(b"%PDF")
    (folder / "example_input" / "qa.jsonl").write_text('{"question": "How much?", "truth": "Ten dollars.[a.pdf#page=7]"}\n')
    (folder / "example_input" / "qa_dontknows.jsonl").write_text('{"question": "Platinum?", "truth": "Generated."}\n')
    imported = importers.load("contoso", tmp_path)
    known, unknown = imported.items
    assert (known.answers, known.pages) == (("Ten dollars.",), (Page("contoso/a.pdf", 7),))
    assert unknown.answerable is False


def test_stici_asks_each_document_alone(tmp_path: Path) -> None:
    """Its questions name no document. Fields hold whole documents, line ends included."""
    folder = tmp_path / "qa" / "stici-dev"
    folder.mkdir(parents=True)
    long = "x" * 200_000
    (folder / "documents.csv").write_text(f'index,source_url,text\n0,u,"Line one\nline ""two"""\n1,v,{long}\n')
    for kind in ("single_passage", "multi_passage"):
        (folder / f"{kind}_train_questions.csv").write_text(f"document_index,question,answer\n1,{kind}?,yes\n")
    (folder / "no_answer_train_questions.csv").write_text("document_index,question\n0,none?\n")
    imported = importers.load("stici", tmp_path)
    assert [file.data for file in imported.files] == [b'Line one\nline "two"', long.encode()]
    assert [(item.domain, item.answers) for item in imported.items] == [("stici-01", ("yes",)), ("stici-01", ("yes",)), ("stici-00", ())]


def test_scifact_has_gold_abstracts_and_no_answers(tmp_path: Path) -> None:
    """TREC's judgements and BEIR's own; a claim nobody judged is left out, and a grade of 0 is no evidence."""
    folder = tmp_path / "qa" / "scifact"
    folder.mkdir(parents=True)
    rows = [{"_id": "4", "title": "T", "text": "four"}, {"_id": "5", "title": "U", "text": "five"}]
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    claims = [{"_id": "1", "text": "Claim."}, {"_id": 2, "text": "Other."}]
    (folder / "queries.test.jsonl").write_text("\n".join(map(json.dumps, claims)))
    for head, column in (("query-id\tcorpus-id\tscore\n", ""), ("", "0 ")):
        (folder / "qrels.txt").write_text(f"{head}1 {column}4 1\n1 {column}5 0\n")
        imported = importers.load("scifact", tmp_path)
        assert [(item.id, item.documents, item.answers) for item in imported.items] == [("1", ("scifact/4.txt",), None)]
    assert imported.files[0].data == b"T\n\nfour"


def test_what_is_absent_or_broken_is_said(tmp_path: Path) -> None:
    """With where it was looked for."""
    with pytest.raises(NotFound, match="squad2") as caught:
        importers.load("squad2", tmp_path)
    assert "--data" in caught.value.remedy
    (tmp_path / "squad2-x").mkdir()
    with pytest.raises(InvalidInput, match=r"\*\.json"):
        importers.load("squad2", tmp_path)
    (tmp_path / "squad2-x" / "a.json").write_text('{"data": [{"paragraphs": [{}]}]}')
    with pytest.raises(InvalidInput, match="context"):
        importers.load("squad2", tmp_path)
    (tmp_path / "squad2-x" / "a.json").unlink()
    (tmp_path / "squad2-x" / "a.json.gz").write_bytes(gzip.compress(b"{}")[:-6])
    with pytest.raises(InvalidInput, match="cannot be read as squad2"):
        importers.load("squad2", tmp_path)


def test_documents_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What a stopped run left is begun anew; what is whole is left alone, so that its index stays good."""
    squad(tmp_path / "squad2" / "x.json", packed=False)
    imported = importers.load("squad2", tmp_path)
    (tmp_path / "corpora.part" / "old").mkdir(parents=True)
    imported.write(tmp_path / "corpora")
    written = tmp_path / "corpora" / "squad2" / "0001.txt"
    assert sorted(path.name for path in (tmp_path / "corpora").rglob("*")) == ["0001.txt", "0002.txt", "squad2"]
    before = written.stat().st_mtime_ns
    imported.write(tmp_path / "corpora")
    assert written.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "files", "answerable", "unanswerable"),
    [
        ("squad2", 636, 3019, 3288),
        ("contoso", 6, 201, 45),
        ("stici", 20, 40, 20),
        ("anthropic-docs", 232, 100, 0),
        ("scifact", 5183, 300, 0),
        ("xquad-en", 240, 1190, 0),
        ("xquad-de", 240, 1190, 0),
    ],
)
def test_the_real_sets_are_as_their_readme_says(name: str, files: int, answerable: int, unanswerable: int) -> None:
    """Every one of their questions, each gold document among the files, and all of it fit to be a golden set."""
    if not (SHARED / "qa").is_dir():
        pytest.skip("the question sets of ../shared/data are not here")
    imported = importers.load(name, SHARED)
    assert len(imported.files) == len({file.path for file in imported.files}) == files
    assert Counter(item.answerable for item in imported.items) == Counter({True: answerable, False: unanswerable})
    paths = {file.path for file in imported.files}
    assert {path for item in imported.items for path in item.gold_documents} <= paths
    assert golden.parse(golden.dumps(imported.items), name) == imported.items
