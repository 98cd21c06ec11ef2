"""What lies in a mail or an archive: documents of their own, bounded in number, depth and size, gone with their file."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from email.message import EmailMessage

import pytest
from PIL import Image

from ingest import members, reading, sandbox
from ingest.members import Entry, Limits, Opening, extract, walk
from ingest.parse import Options
from rag.errors import ParseFailed, Refused, UnknownDocument
from rag.records import Failure

from .conftest import Rig, build_rig, close_rig
from .test_pipeline import Crash

LIMITS = Limits(each=1 << 20, files=100, unpacked=4 << 20, depth=3)
NOTE = "# Note\n\nThe kettle is blue.\n"


def zipped(**files: bytes | str) -> bytes:
    """An archive; `_` in a name stands for the dot of its suffix, `__` for a folder."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return packed.getvalue()


def mail(subject: str, *attachments: tuple[str, bytes]) -> bytes:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, "ann@example.org", "bob@example.org"
    message.set_content(f"The body of {subject}.\n")
    for name, content in attachments:
        message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes()


def outcomes(data: bytes, name: str, limits: Limits = LIMITS, **options: object) -> dict[str, str]:
    """The code of a failure, or `read`, by path."""
    found = [e for e in walk(data, name, Options(), limits, **options) if isinstance(e, Entry)]
    return {e.path: e.result.code if isinstance(e.result, Failure) else "read" for e in found}


def sync(rig: Rig, *paths: str):
    report = rig.pipeline.sync([rig.corpora / path for path in paths] if paths else None)
    rig.check()
    return report


def test_files_in_files_are_read_to_a_bounded_depth():
    inner = mail("Letter", ("deep.zip", zipped(a_md=NOTE, more_zip=zipped(b_md=NOTE))), ("c.md", NOTE.encode()))
    assert outcomes(zipped(folder__letter_eml=inner, d_md=NOTE), "outer.zip") == {
        "": "read",
        "folder/letter.eml": "read",
        "folder/letter.eml/deep.zip": "read",
        "folder/letter.eml/deep.zip/a.md": "read",
        "folder/letter.eml/deep.zip/more.zip": "read",
        "folder/letter.eml/deep.zip/more.zip/b.md": "too_deep",
        "folder/letter.eml/c.md": "read",
        "d.md": "read",
    }


def test_an_archive_with_too_much_in_it_is_not_unpacked_at_all():
    many = zipped(**{f"{i}_md": NOTE for i in range(30)})
    assert outcomes(many, "a.zip", Limits(1 << 20, 29, 1 << 30, 3)) == {"": "too_large"}
    zeros = zipped(a_txt=bytes(900_000), b_txt=bytes(900_000), c_txt=bytes(900_000))
    assert len(zeros) < 10_000
    assert outcomes(zeros, "a.zip", Limits(1 << 20, 9, 2 << 20, 3)) == {"": "too_large"}
    # The limits hold for all that lies in a file together.
    nested = zipped(a_zip=zeros, b_md=NOTE)
    assert outcomes(nested, "x.zip", Limits(1 << 20, 9, 2 << 20, 3)) == {"": "read", "a.zip": "too_large", "b.md": "read"}
    big = zipped(big_txt=b"word " * 300_000, b_md=NOTE)
    assert outcomes(big, "x.zip") == {"": "read", "big.txt": "too_large", "b.md": "read"}


def test_what_is_unpacked_counts_for_all_archives_in_one_together():
    inner = zipped(large_txt="x" * (3 << 20))
    found = outcomes(zipped(one_zip=inner, two_zip=inner), "x.zip", Limits(each=4 << 20, files=100, unpacked=4 << 20, depth=3))
    assert (found["one.zip"], found["one.zip/large.txt"], found["two.zip"]) == ("read", "read", "too_large")


def test_one_bad_file_does_not_take_the_others_along():
    data = zipped(a_pdf=b"%PDF-1.4 half", b_md=NOTE, c_exe=b"MZ", d_md=b"\0\1\2" * 99)
    assert outcomes(data, "x.zip") == {
        "": "read", "a.pdf": "broken_file", "b.md": "read", "c.exe": "unsupported_format", "d.md": "binary_file",
    }  # fmt: skip


def test_what_a_domain_ignores_is_ignored_inside_too():
    data = zipped(drafts__a_md=NOTE, b_md=NOTE)
    assert outcomes(data, "x.zip", ignored=lambda path: path.startswith("drafts/")) == {"": "read", "b.md": "read"}


def test_a_walk_goes_on_where_the_last_reader_died():
    data = zipped(a_md=NOTE, b_zip=zipped(c_md=NOTE, d_md=NOTE), e_md=NOTE)
    order = ["", "a.md", "b.zip", "b.zip/c.md", "b.zip/d.md", "e.md"]
    opened = [(e.number, e.path) for e in walk(data, "x.zip", Options(), LIMITS) if isinstance(e, Opening)]
    assert opened == list(enumerate(order))
    for start in range(1, len(order) + 1):
        assert list(outcomes(data, "x.zip", start=start)) == order[start:]
    assert list(outcomes(data, "x.zip", start=3, dead=[2])) == ["e.md"]
    assert outcomes(data, "x.zip", start=4, give_up=True) == {"b.zip/d.md": "broken_file", "e.md": "broken_file"}


def test_two_of_one_path_are_one_document():
    """An archive may hold the archive `a.zip` and, in a folder of that name, what the other holds too."""
    outer = zipped(a_zip=zipped(b_md=NOTE), a_zip__b_md="# Other\n")
    paths = [e.path for e in walk(outer, "x.zip", Options(), LIMITS) if isinstance(e, Entry)]
    assert paths == ["", "a.zip", "a.zip/b.md"]


def test_the_bytes_of_a_member_are_found_again():
    attached = b"PK\x03\x04 no archive"
    data = zipped(folder__letter_eml=mail("Letter", ("c.md", NOTE.encode()), ("fake.zip", attached)))
    assert extract(data, "x.zip", "folder/letter.eml/c.md", Options(), LIMITS) == NOTE.encode()
    assert extract(data, "x.zip", "folder/letter.eml/fake.zip", Options(), LIMITS) == attached
    with pytest.raises(ParseFailed):
        extract(data, "x.zip", "folder/letter.eml/d.md", Options(), LIMITS)


def test_a_mail_and_its_attachments_are_documents(rig):
    file = rig.write("post/letter.eml", mail("Kettles", ("note.md", NOTE.encode()), ("tool.exe", b"MZ"), ("note.md", b"# Two\n")))
    sync(rig)
    assert rig.statuses() == {
        "post/letter.eml": "indexed", "post/letter.eml/note.md": "indexed",
        "post/letter.eml/note (2).md": "indexed", "post/letter.eml/tool.exe": "unsupported_format",
    }  # fmt: skip
    note = rig.document("post/letter.eml/note.md")
    assert (note.title, note.container, note.bytes, note.media_type) == ("Note", "post/letter.eml", len(NOTE), "text/markdown")
    assert rig.document("post/letter.eml").container is None
    assert rig.ledger.text(note.id) == NOTE
    assert rig.pipeline.extract(note.id) == NOTE.encode()
    with pytest.raises(UnknownDocument):
        rig.pipeline.extract(rig.document("post/letter.eml").id)
    assert sync(rig).unchanged == 1
    with pytest.raises(Refused, match=r"post/letter\.eml"):
        rig.pipeline.remove(note.id)
    receipt = rig.pipeline.remove(rig.document("post/letter.eml").id)
    assert (receipt.vectors, receipt.remaining) == (3, 0)
    assert receipt.text > len(NOTE)
    assert not file.exists()
    assert rig.statuses() == {}
    rig.check()


def test_the_bytes_of_a_member_come_from_inside_the_folder_or_not_at_all(rig, tmp_path):
    """Also of a linked archive; and a folder that has become a link that leads out is not followed."""
    rig.write("guide/deep/a.zip", zipped(a_md=NOTE))
    (rig.corpora / "guide/b.zip").symlink_to(rig.corpora / "guide/deep/a.zip")
    sync(rig)
    assert rig.pipeline.extract(rig.document("guide/b.zip/a.md").id) == NOTE.encode()
    id = rig.document("guide/deep/a.zip/a.md").id
    shutil.move(rig.corpora / "guide/deep", tmp_path / "deep")
    (rig.corpora / "guide/deep").symlink_to(tmp_path / "deep")
    with pytest.raises(UnknownDocument):
        rig.pipeline.extract(id)


def test_a_changed_archive_embeds_only_what_changed_in_it(rig):
    rig.write("guide/a.zip", zipped(a_md=NOTE, b_md="# Other\n\nIt stays.\n", c_md="# Third\n\nIt goes.\n"))
    sync(rig)
    rig.embedder.embedded.clear()
    rig.write("guide/a.zip", zipped(a_md=NOTE.replace("blue", "red"), b_md="# Other\n\nIt stays.\n"))
    sync(rig)
    assert [text for text in rig.embedder.embedded if not text.startswith("An archive")] == ["# Note\n\nThe kettle is red."]
    assert set(rig.statuses()) == {"guide/a.zip", "guide/a.zip/a.md", "guide/a.zip/b.md"}
    rig.write("guide/a.zip", b"PK\x03\x04 broken now")
    sync(rig)
    assert rig.statuses() == {"guide/a.zip": "broken_file"}


def test_an_archive_that_may_not_be_read_any_more_takes_its_files_along(tmp_path, monkeypatch):
    """It fails, and what lay in it is no more in the index than a plain file that fails."""
    rig = build_rig(tmp_path, max_file_mb=1)
    file = rig.write("guide/a.zip", zipped(a_md=NOTE))
    sync(rig)
    assert set(rig.statuses()) == {"guide/a.zip", "guide/a.zip/a.md"}
    with open(file, "ab") as opened:
        opened.truncate(2 << 20)
    sync(rig)
    assert rig.statuses() == {"guide/a.zip": "too_large"}
    assert rig.store.count() == 0
    rig.write("guide/a.zip", zipped(a_md=NOTE))
    sync(rig)
    assert set(rig.statuses()) == {"guide/a.zip", "guide/a.zip/a.md"}

    def refuse(file, limit):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "_digest", refuse)
    rig.write("guide/a.zip", zipped(a_md=NOTE, b_md=NOTE))
    sync(rig)
    assert rig.statuses() == {"guide/a.zip": "unreadable"}
    close_rig(rig)


def test_a_renamed_archive_takes_its_files_along_unread(rig, monkeypatch):
    rig.write("guide/a.zip", zipped(a_md=NOTE, bad_pdf=b"%PDF-1.4 half", inner_zip=zipped(b_md="# Inner\n\nDeep.\n")))
    sync(rig)
    rig.embedder.embedded.clear()
    monkeypatch.setattr(rig.sandbox, "read", lambda *_, **__: pytest.fail("a renamed archive was read"))
    (rig.corpora / "guide/sub").mkdir()
    os.rename(rig.corpora / "guide/a.zip", rig.corpora / "guide/sub/b.zip")
    sync(rig)
    assert rig.embedder.embedded == []
    assert rig.statuses() == {
        "guide/sub/b.zip": "indexed", "guide/sub/b.zip/a.md": "indexed", "guide/sub/b.zip/bad.pdf": "broken_file",
        "guide/sub/b.zip/inner.zip": "indexed", "guide/sub/b.zip/inner.zip/b.md": "indexed",
    }  # fmt: skip
    assert rig.document("guide/sub/b.zip/inner.zip/b.md").container == "guide/sub/b.zip"


def test_an_archive_that_moves_to_a_domain_with_other_rules_is_read_by_them(rig):
    rig.write("guide/a.zip", zipped(a_md=NOTE, drafts__b_md=NOTE + "b"))
    rig.write("strict/domain.toml", 'ignore = ["drafts"]\n')
    sync(rig)
    assert len(rig.statuses()) == 3
    os.rename(rig.corpora / "guide/a.zip", rig.corpora / "strict/a.zip")
    sync(rig)
    assert set(rig.statuses()) == {"strict/a.zip", "strict/a.zip/a.md"}


def test_a_rule_for_one_place_holds_for_an_archive_that_is_moved_there(rig):
    rig.write("guide/domain.toml", 'ignore = ["deep/a.zip/b.md"]\n')
    file = rig.write("guide/a.zip", zipped(a_md=NOTE, b_md="# Other\n"))
    sync(rig)
    assert set(rig.statuses()) == {"guide/a.zip", "guide/a.zip/a.md", "guide/a.zip/b.md"}
    (rig.corpora / "guide/deep").mkdir()
    shutil.move(file, rig.corpora / "guide/deep/a.zip")
    sync(rig)
    assert set(rig.statuses()) == {"guide/deep/a.zip", "guide/deep/a.zip/a.md"}


def test_a_rule_that_changes_reaches_into_archives(rig):
    rig.write("guide/a.zip", zipped(a_md=NOTE, drafts__b_md=NOTE + "b"))
    sync(rig)
    rig.write("guide/domain.toml", 'ignore = ["drafts"]\n')
    sync(rig, "guide/domain.toml")
    assert set(rig.statuses()) == {"guide/a.zip", "guide/a.zip/a.md"}
    (rig.corpora / "guide/domain.toml").unlink()
    sync(rig, "guide/domain.toml")
    assert len(rig.statuses()) == 3


def test_a_folder_in_place_of_an_archive_and_back(rig):
    rig.write("guide/a.zip", zipped(a_md=NOTE, b_md=NOTE + "b"))
    sync(rig)
    (rig.corpora / "guide/a.zip").unlink()
    rig.write("guide/a.zip/a.md", NOTE + "on its own")
    sync(rig)
    assert rig.statuses() == {"guide/a.zip/a.md": "indexed"}
    assert rig.document("guide/a.zip/a.md").container is None
    shutil.rmtree(rig.corpora / "guide/a.zip")
    rig.write("guide/a.zip", zipped(a_md=NOTE))
    sync(rig)
    assert rig.statuses() == {"guide/a.zip": "indexed", "guide/a.zip/a.md": "indexed"}
    assert rig.document("guide/a.zip/a.md").container == "guide/a.zip"


def test_files_that_hang_the_parser_are_named_and_after_some_the_rest_is_left(tmp_path, monkeypatch):
    """A real child process, and a tesseract that never ends."""
    monkeypatch.setattr(sandbox, "_DEADLY", 2)
    script = tmp_path / "tesseract"
    script.write_text("#!/bin/sh\nsleep 300\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    packed = io.BytesIO()
    Image.new("RGB", (200, 80), "white").save(packed, "PNG")
    rig = build_rig(tmp_path, parse_timeout_s=5)
    rig.write("guide/a.zip", zipped(a_md=NOTE, b_png=packed.getvalue(), c_md=NOTE + "c", d_png=packed.getvalue(), e_md=NOTE + "e"))
    sync(rig)
    found = rig.statuses()
    close_rig(rig)
    assert found["guide/a.zip/a.md"] == found["guide/a.zip/c.md"] == "indexed"
    assert found["guide/a.zip/b.png"] == found["guide/a.zip/d.png"] == "timed_out"
    assert found["guide/a.zip/e.md"] == "broken_file"
    assert len(found) == 6


@pytest.mark.parametrize(("part", "method"), [("ledger", "commit"), ("ledger", "mark"), ("store", "upsert_many")])
def test_after_a_crash_in_the_middle_of_an_archive_it_is_whole_again(tmp_path, monkeypatch, part, method):
    """The file is committed after all that lies in it: killed after any write, the next sync makes it whole."""
    for nth in range(1, 9 if method == "mark" else 6):
        base = tmp_path / str(nth)
        rig = build_rig(base, batch_chunks=1)
        rig.write("guide/a.zip", zipped(a_md=NOTE, b_md=NOTE + "b", c_md=NOTE + "c"))
        rig.pipeline.sync(None)
        rig.write("guide/a.zip", zipped(a_md=NOTE + "new", b_md=NOTE + "b", d_md=NOTE + "d"))
        target, calls = getattr(rig, part), []
        real = getattr(target, method)

        def fail(*args, real=real, calls=calls, nth=nth, **kwargs):
            calls.append(1)
            if len(calls) == nth and method == "mark":
                raise Crash  # before it: between one document's last write and the next one's first
            found = real(*args, **kwargs)
            if len(calls) == nth:
                raise Crash
            return found

        monkeypatch.setattr(target, method, fail)
        try:
            rig.pipeline.sync(None)
        except Crash:
            pass
        else:
            assert nth > 1
        monkeypatch.undo()
        close_rig(rig)
        rig = build_rig(base)
        sync(rig)
        assert set(rig.statuses()) == {f"guide/a.zip{name}" for name in ("", "/a.md", "/b.md", "/d.md")}
        assert rig.ledger.text(rig.document("guide/a.zip/a.md").id) == NOTE + "new"
        close_rig(rig)


def test_a_lost_store_is_filled_again_from_inside_archives(tmp_path):
    rig = build_rig(tmp_path)
    rig.write("guide/a.zip", zipped(a_md=NOTE, b_zip=zipped(c_md=NOTE + "c")))
    sync(rig)
    close_rig(rig)
    shutil.rmtree(tmp_path / "data/store")
    rig = build_rig(tmp_path)
    sync(rig)
    assert set(rig.statuses().values()) == {"indexed"}
    close_rig(rig)


def test_passages_of_one_member_that_the_store_lost_come_back(rig):
    rig.write("guide/a.zip", zipped(a_md=NOTE, b_md="# Other\n\nIt stays.\n"))
    sync(rig)
    rig.store.delete_document(rig.document("guide/a.zip/a.md").id)
    sync(rig)
    assert rig.store.count(document_id=rig.document("guide/a.zip/a.md").id) == 1


def test_the_reasons_of_a_walk_have_a_remedy():
    for failure in (members._GIVEN_UP, members._too_deep(3), members.failure_of(RecursionError()), members.failure_of(ValueError("x"))):
        assert failure.message.endswith(".")
        assert failure.remedy
