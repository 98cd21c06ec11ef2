"""Zip archives: what is listed, what the members are called, and what becomes of bombs and damage."""

from __future__ import annotations

import io
import stat
import struct
import time
import zipfile

import pytest

from ingest.parse import Options, parse
from ingest.readers import archive
from ingest.readers.archive import Names
from rag.errors import ParseFailed


def packed(*files: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as made:
        for name, content in files:
            made.writestr(name, content, compress_type=how)
    return buffer.getvalue()


def code(member, limit: int = 1 << 20) -> str:
    with pytest.raises(ParseFailed) as caught:
        member.read(limit)
    return caught.value.code


def test_an_archive_lists_its_files_and_gives_their_bytes():
    parsed = parse(packed(("a.txt", b"one"), ("b/c.md", b"# Two")), "x.zip")
    assert parsed.title is None
    assert [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == "list_item"] == ["a.txt (3 bytes)", "b/c.md (5 bytes)"]
    assert [(m.path, m.size, m.read(100)) for m in parsed.members] == [("a.txt", 3, b"one"), ("b/c.md", 5, b"# Two")]


def test_a_real_archive(shared):
    parsed = parse((shared / "files/markitdown/packages/markitdown/tests/test_files/test_files.zip").read_bytes(), "x.zip")
    assert len(parsed.members) > 5
    assert all(len(member.read(1 << 28)) == member.size for member in parsed.members)


def test_folders_links_and_leftovers_of_file_managers_are_no_members():
    link = zipfile.ZipInfo("link.txt")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    made = packed(
        ("d/", b""), (link, b"/etc/passwd"), ("__MACOSX/a.txt", b"x"), ("d/.DS_Store", b"x"), ("d/Thumbs.db", b"x"), ("d/a.txt", b"x")
    )
    assert [member.path for member in parse(made, "x.zip").members] == ["d/a.txt"]


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/home/a.txt", "home/a.txt"),
        ("C:\\Users\\me\\a.txt", "Users/me/a.txt"),
        ("a//./b/../c.txt", "a/b/c.txt"),
        ("a\x00\n\x1b[31m\u202etxt.exe", "a[31mtxt.exe"),
        ("", "unnamed"),
        ("...", "unnamed"),
        ("x" * 300 + ".pdf", "x" * 180 + ".pdf"),
    ],
)
def test_no_path_leaves_its_parent(given, stored):
    assert Names().add(given) == stored


def test_paths_of_one_parent_differ():
    names = Names()
    assert [names.add(path) for path in ("a.txt", "a.txt", "a.txt", "a (2).txt", "b", "b", "c.d/e", "c.d/e")] == [
        "a.txt", "a (2).txt", "a (3).txt", "a (2) (2).txt", "b", "b (2)", "c.d/e", "c.d/e (2)",
    ]  # fmt: skip
    assert len(names.add("/".join(["folder"] * 1000) + "/a.txt")) <= 800


def test_a_path_of_30_000_folders_takes_no_time():
    """An archive may hold many such names, and each took 20 s."""
    started = time.process_time()
    assert Names().add("a/" * 32_000 + "b.txt").endswith("/a/b.txt")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("name", "encoding", "languages"),
    [("שלום.txt", "utf-8", ()), ("שלום.txt", "cp862", ("en", "he")), ("報告書.txt", "cp932", ("ja",)), ("Größe.txt", "cp437", ("en",))],
)
def test_names_without_the_unicode_flag_are_read_as_their_writer_meant_them(name, encoding, languages):
    raw = name.encode(encoding)
    made = packed(("n" * len(raw), b"x")).replace(b"n" * len(raw), raw)
    assert [member.path for member in archive.read(made, Options("x.zip", languages)).members] == [name]


def test_a_file_under_a_password_says_so():
    made = bytearray(packed(("a.txt", b"secret")))
    made[6] |= 1
    made[made.index(b"PK\x01\x02") + 8] |= 1
    assert code(parse(bytes(made), "x.zip").members[0]) == "encrypted"


def test_a_damaged_file_fails_alone():
    made = packed(("a.txt", b"hello hello"), ("b.txt", b"fine"), how=zipfile.ZIP_STORED).replace(b"hello hello", b"hello jello")
    first, second = parse(made, "x.zip").members
    assert code(first) == "broken_file"
    assert second.read(10) == b"fine"


def test_an_unknown_compression_is_said_to_be_one():
    made = bytearray(packed(("a.txt", b"hello")))
    made[8] = made[made.index(b"PK\x01\x02") + 10] = 97  # WavPack
    assert code(parse(bytes(made), "x.zip").members[0]) == "broken_file"


def test_an_archive_cut_short_is_broken():
    with pytest.raises(ParseFailed) as caught:
        parse(packed(("a.txt", b"x" * 1000))[:-30], "x.zip")
    assert caught.value.code == "broken_file"


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_is_read_to_the_limit_and_no_further(how):
    parsed = parse(packed(*[(f"{i}.bin", bytes(10 << 20)) for i in range(3)], how=how), "x.zip")
    assert [code(member) for member in parsed.members] == ["too_large"] * 3
    assert len(parsed.members[0].read(10 << 20)) == 10 << 20  # exactly the limit is allowed


def test_the_declared_size_is_not_believed():
    made = bytearray(packed(("a.bin", bytes(1 << 20))))
    at = made.index(b"PK\x01\x02") + 24
    made[at : at + 4] = struct.pack("<L", 10)
    member = parse(bytes(made), "x.zip").members[0]
    assert member.size == 10
    assert code(member, 1000) == "broken_file"  # it would go on beyond what it declares
    made[at : at + 4] = struct.pack("<L", 0xFFFFFFF0)
    assert code(parse(bytes(made), "x.zip").members[0], 1000) == "too_large"


def test_a_directory_of_a_million_files_is_refused_before_it_is_read():
    made = packed(("f.txt", b"x"))
    start, end = made.index(b"PK\x01\x02"), made.index(b"PK\x05\x06")
    many = made[start:end] * 1_000_000
    made = made[:start] + many + b"PK\x05\x06\0\0\0\0" + struct.pack("<HHLLH", 0xFFFF, 0xFFFF, len(many), start, 0)
    with pytest.raises(ParseFailed) as caught:
        parse(made, "x.zip")
    assert caught.value.code == "too_large"


def test_a_long_list_is_cut_and_says_how_much_is_left(monkeypatch):
    monkeypatch.setattr(archive, "_MAX_LISTED", 3)
    parsed = parse(packed(*[(f"{i}.txt", b"x") for i in range(10)]), "x.zip")
    assert parsed.text.endswith("2.txt (1 bytes)\n\nAnd 7 more files.")
    assert len(parsed.members) == 10
