"""Chunks: contiguous spans within the budget, with their headings and pages, and stable ids."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.chunk import adopt, chunk
from ingest.ledger import Known
from ingest.parse import Builder, Parsed, parse

from .conftest import HashEmbedder

HASH = HashEmbedder()


def cut(parsed: Parsed, tokens: int = 200, embedder=HASH):
    return chunk("doc", parsed, embedder.count_tokens, embedder.token_spans, chunk_tokens=tokens, max_tokens=embedder.max_tokens)


def check(parsed: Parsed, tokens: int, embedder=HASH) -> None:
    done = cut(parsed, tokens, embedder)
    position = 0
    for ordinal, (c, embed_text) in enumerate(zip(done.chunks, done.embed_texts, strict=True)):
        assert c.ordinal == ordinal
        assert c.text == parsed.text[c.start : c.end] == c.text.strip() != ""
        assert c.start >= position
        position = c.end
        assert {b.page for b in parsed.blocks if b.start < c.end and c.start < b.end} == {c.page}
        assert embed_text.endswith(c.text)
    if done.chunks:
        assert max(embedder.count_tokens([c.text for c in done.chunks])) <= max(tokens, 16)
        assert max(embedder.count_tokens(done.embed_texts)) <= embedder.max_tokens - 2
    assert len({c.id for c in done.chunks}) == len(done.chunks)
    # Nothing visible is lost between the chunks.
    covered = "".join(c.text for c in done.chunks)
    assert "".join(covered.split()) == "".join("".join(parsed.text[b.start : b.end] for b in parsed.blocks).split())


words = st.text("ab .!?\u3002\u00e9\U0001f600-", min_size=1, max_size=400)
blocks = st.lists(
    st.tuples(st.sampled_from(["heading", "paragraph", "list_item", "code"]), words, st.integers(1, 4), st.integers(0, 1)), max_size=12
)


@settings(max_examples=150, deadline=None)
@given(blocks, st.sampled_from([16, 40, 200]))
def test_any_document_is_cut_into_whole_spans_within_the_budget(items, tokens):
    builder, page = Builder(), 1
    for kind, text, level, turn in items:
        page += turn
        builder.add(kind, text, level=level if kind == "heading" else None, page=page)
    check(builder.build(None), tokens)


@settings(max_examples=100, deadline=None)
@given(st.text("# -`|>\n\t ab1.", max_size=600), st.sampled_from(["a.md", "a.rst", "a.org", "a.py", "a.yaml"]))
def test_any_markup_is_cut_into_whole_spans_within_the_budget(text, name):
    check(parse(text.encode(), name), 16)


def test_the_real_tokenizer_keeps_the_same_promises(shared, embedder):
    check(parse((shared / "README.md").read_bytes(), "a.md"), 200, embedder)
    text = "\u4e2d\u6587\u6ca1\u6709\u7a7a\u683c\u3002" * 200 + "\n\n" + "x" * 50_000 + "\n\n" + "un\u00adbreak able " * 300
    check(parse(text.encode(), "a.txt"), 200, embedder)


def test_the_tokenizer_is_given_a_bounded_text_at_once(monkeypatch):
    """It takes 300 bytes a character in the server's own process: a log of 30 MB without an empty line took 9 GB."""
    monkeypatch.setattr("ingest.chunk._LONGEST_BLOCK", 5_000)
    monkeypatch.setattr("ingest.chunk._COUNTED_AT_ONCE", 10_000)
    counted, placed = [], []

    class Watched(HashEmbedder):
        def count_tokens(self, texts):
            counted.append(sum(map(len, texts)))
            return super().count_tokens(texts)

        def token_spans(self, text):
            placed.append(len(text))
            return super().token_spans(text)

    for text in ("a line of a log\n" * 2_000, "words " * 5_000, "x" * 30_000, "a paragraph\n\n" * 2_000, f"# {'title ' * 5_000}\n\nend"):
        parsed = parse(text.encode(), "a.md")
        check(parsed, 200)
        counted.clear()
        cut(parsed, 200, Watched())
        assert max(counted) <= 15_000
    assert max(placed) <= 5_000


def test_a_chunk_knows_the_headings_above_it_also_on_the_next_page():
    builder = Builder()
    for kind, text, level, page in [
        ("heading", "Book", 1, 1), ("heading", "One", 2, 1), ("paragraph", "first", None, 1),
        ("paragraph", "still one", None, 2), ("heading", "Two", 2, 2), ("paragraph", "second", None, 2),
    ]:  # fmt: skip
        builder.add(kind, text, level=level, page=page)
    done = cut(builder.build(None))
    assert [(c.text, c.heading, c.page) for c in done.chunks] == [
        ("Book\n\nOne\n\nfirst", ("Book", "One"), 1),
        ("still one", ("Book", "One"), 2),
        ("Two\n\nsecond", ("Book", "Two"), 2),
    ]
    assert done.embed_texts == ["Book\n\nOne\n\nfirst", "Book > One\nstill one", "Book\nTwo\n\nsecond"]


def test_a_page_that_is_one_heading_is_not_stored_again_with_each_of_its_chunks():
    """100 KB of it made 100 chunks with 100 KB of heading each."""
    for data, name in ((b"<h1>%s</h1>", "a.html"), (b"# %s\n\n", "a.md"), (b"| %s |\n|---|\n" + b"| x |\n" * 300, "b.md")):
        done = cut(parse(data % (b"word " * 20_000), name))
        assert len(done.chunks) >= 100
        assert max(len(label) for chunk in done.chunks for label in chunk.heading) <= 300


def test_neighbours_of_a_section_share_a_chunk_and_sections_do_not():
    done = cut(parse(b"# A\n\none\n\ntwo\n\n# B\n\nthree\n", "a.md"))
    assert [c.text for c in done.chunks] == ["# A\n\none\n\ntwo", "# B\n\nthree"]


def test_a_long_paragraph_is_cut_where_a_sentence_ends():
    sentence = "One two three four five six seven eight nine ten. "
    done = cut(parse((sentence * 20).encode(), "a.txt"), 50)
    assert len(done.chunks) == 5
    assert all(c.text.endswith("ten.") and c.text.startswith("One") for c in done.chunks)


def test_code_that_fits_stays_whole():
    code = "```\n" + "x = 1\n\n" * 20 + "```"
    done = cut(parse(f"# A\n\n{'word ' * 150}\n\n{code}\n".encode(), "a.md"))
    assert any(c.text == code for c in done.chunks)


def test_code_that_fits_only_without_its_heading_is_not_cut():
    code = "```\n" + "x = 1\n\n" * 63 + "```"
    done = cut(parse(f"# A rather long heading of the code below\n\n{code}\n".encode(), "a.md"))
    assert [(c.text == code, c.heading) for c in done.chunks] == [(False, done.chunks[0].heading), (True, done.chunks[0].heading)]
    assert done.embed_texts[1].startswith("A rather long heading of the code below\n```")


def test_code_beyond_the_budget_is_cut_at_blank_lines_or_else_at_lines():
    blocks = "".join(f"    a_{i} = f(x).y  # one. two.\n    b_{i} = 2\n\n" for i in range(30))
    done = cut(parse(f"def long():\n{blocks}".encode(), "a.py"), 60)
    assert len(done.chunks) > 5
    assert all(c.text.startswith(("def long", "a_")) and c.text.splitlines()[-1].lstrip().startswith("b_") for c in done.chunks)
    lines = "".join(f"call_{i}(x). y  # one. two.\n" for i in range(60))
    done = cut(parse(f"```\n{lines}```\n".encode(), "a.md"), 60)
    assert all(c.text.startswith(("```", "call_")) and c.text.endswith(("two.", "```")) for c in done.chunks)


def test_a_block_with_a_level_ends_the_headings_it_stands_beside():
    builder = Builder()
    for kind, text, level in [
        ("heading", "class A", 1), ("heading", "def f", 2), ("code", "return 1", None), ("code", "x = 1", 2), ("code", "y = 1", None),
        ("code", "z = 1", 1),
    ]:  # fmt: skip
        builder.add(kind, text, level=level)
    assert [(c.text, c.heading) for c in cut(builder.build(None)).chunks] == [
        ("class A\n\ndef f\n\nreturn 1", ("class A", "def f")),
        ("x = 1\n\ny = 1", ("class A",)),
        ("z = 1", ()),
    ]


def test_a_table_that_is_cut_keeps_its_column_names_in_the_heading_path():
    rows = "".join(f"| item {i} | {i} |\n" for i in range(60))
    done = cut(parse(f"# Prices\n\n| Name | Price |\n|---|---|\n{rows}".encode(), "a.md"), 60)
    assert len(done.chunks) > 3
    assert done.chunks[0].heading == ("Prices",)
    assert all(c.heading == ("Prices", "Name | Price") for c in done.chunks[1:])
    assert done.embed_texts[2].startswith("Prices > Name | Price\n| item")


def test_a_paragraph_inserted_above_leaves_ids_and_hashes_below_alone():
    text = "".join(f"# S{i}\n\nWords of section {i}.\n\n" for i in range(10))
    before, after = cut(parse(text.encode(), "a.md")), cut(parse(("New opening.\n\n" + text).encode(), "a.md"))
    assert [c.id for c in after.chunks[1:]] == [c.id for c in before.chunks]
    assert [c.embed_hash for c in after.chunks[1:]] == [c.embed_hash for c in before.chunks]


def test_equal_texts_under_different_headings_have_ids_and_hashes_of_their_own():
    text = "# Outer A\n\n" + "x " * 197 + "\n\nSame.\n\n# Outer B\n\n" + "y " * 197 + "\n\nSame.\n"
    same = [c for c in cut(parse(text.encode(), "a.md")).chunks if c.text == "Same."]
    assert len({c.id for c in same}) == len({c.embed_hash for c in same}) == 2


def test_a_renamed_document_adopts_the_spans_under_new_ids():
    parsed = parse(b"# A\n\nSame.\n\n# A\n\nSame.\n", "a.md")
    old = cut(parsed).chunks
    known = [Known(c.id, c.ordinal, c.heading, c.page, c.start, c.end, c.embed_hash) for c in old]
    new = adopt("other", "other", parsed.text, known)
    fresh = chunk("other", parsed, HASH.count_tokens, HASH.token_spans, chunk_tokens=200, max_tokens=256).chunks
    assert new == fresh
    assert {c.id for c in new}.isdisjoint(c.id for c in old)
