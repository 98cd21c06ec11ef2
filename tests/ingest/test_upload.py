"""Uploads: only into a domain's folder, under a safe name, whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from ingest.upload import make_domain, place, sweep
from rag.errors import InvalidInput, OutsideCorpora, Refused, StoreFull, UnknownDomain


@pytest.fixture
def corpora(tmp_path):
    (tmp_path / "corpora/d").mkdir(parents=True)
    return tmp_path / "corpora"


def test_an_upload_is_written_whole_and_replaces_its_namesake(corpora):
    assert place(corpora, "d", "a b.md", [b"one ", b"two"]).read_bytes() == b"one two"
    assert place(corpora, "d", "a b.md", [b"three"]).read_bytes() == b"three"
    assert [p.name for p in (corpora / "d").iterdir()] == ["a b.md"]


def test_a_name_is_stored_in_composed_form(corpora):
    assert place(corpora, "d", "cafe\u0301.md", [b"x"]).name == "caf\u00e9.md"


@pytest.mark.parametrize("name", ["../x.md", "a/b.md", "a\\b.md", "..", "/etc/passwd", "x\0.md"])
def test_a_name_that_leads_elsewhere_is_refused(corpora, name):
    with pytest.raises(OutsideCorpora):
        place(corpora, "d", name, [b"x"])


@pytest.mark.parametrize("name", ["", " ", "a\nb.md", "x" * 300, ".hidden", "a.part", "~$a.docx", "domain.toml"])
def test_a_name_that_no_document_can_have_is_refused(corpora, name):
    with pytest.raises(InvalidInput):
        place(corpora, "d", name, [b"x"])


def test_an_unknown_or_linked_domain_is_refused(corpora, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (corpora / "link").symlink_to(tmp_path / "elsewhere")
    for domain in ("no", "..", "link", ""):
        with pytest.raises((UnknownDomain, OutsideCorpora)):
            place(corpora, domain, "a.md", [b"x"])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_linked_target_is_not_written_through(corpora, tmp_path):
    (tmp_path / "target.md").write_text("mine")
    (corpora / "d/a.md").symlink_to(tmp_path / "target.md")
    with pytest.raises(OutsideCorpora):
        place(corpora, "d", "a.md", [b"x"])
    assert (tmp_path / "target.md").read_text() == "mine"


def test_an_upload_keeps_its_folder_and_makes_what_is_not_there(corpora):
    assert place(corpora, "d", "a.md", [b"x"], folder="trips/cafe\u0301") == corpora / "d/trips/caf\u00e9/a.md"
    assert place(corpora, "d", "b.md", [b"y"], folder="trips").read_bytes() == b"y"
    assert sorted(p.relative_to(corpora).as_posix() for p in corpora.rglob("*.md")) == ["d/trips/b.md", "d/trips/caf\u00e9/a.md"]


@pytest.mark.parametrize(
    "folder", ["../d2", "x/../../d2", "/etc", "x//y", "x/", ".git", "x/.y", "x\\y", "C:", "a.md", "link", "/".join("a" * 21), "é" * 500]
)
def test_a_folder_that_leads_elsewhere_or_cannot_be_is_refused_and_none_is_made(corpora, tmp_path, folder):
    """Not out of the domain, not through a link, not in place of a file, not deeper than file systems go."""
    (corpora / "d/a.md").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (corpora / "d/link").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((InvalidInput, OutsideCorpora)):
        place(corpora, "d", "b.md", [b"x"], folder=folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_system_does_not_let_us_write_is_said(corpora, monkeypatch):
    """With the reason, and a full disk as such; folders that were made for it go again."""
    for number, error in ((errno.EACCES, Refused), (errno.ENOSPC, StoreFull)):

        def refuse(source, target, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(error):
            place(corpora, "d", "a.md", [b"x"], folder="new/one")
        assert list((corpora / "d").iterdir()) == []


def test_a_domain_is_made_once_and_never_elsewhere(corpora, tmp_path):
    assert make_domain(corpora, "New ") == make_domain(corpora, "New") == corpora / "New"
    (corpora / "file").write_text("x")
    (corpora / "link").symlink_to(tmp_path)
    for name in ("..", "a/b", ".hidden", "", "link", "file", "x~"):
        with pytest.raises((InvalidInput, OutsideCorpora)):
            make_domain(corpora, name)
    assert sorted(path.name for path in corpora.iterdir()) == ["New", "d", "file", "link"]


def test_an_upload_that_breaks_off_or_grows_too_large_leaves_nothing(corpora):
    def broken():
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        place(corpora, "d", "a.md", broken())
    with pytest.raises(InvalidInput):
        place(corpora, "d", "a.md", [b"x" * 100] * 100, max_bytes=5000)
    assert list((corpora / "d").iterdir()) == []


def test_what_a_crashed_upload_left_is_swept_at_the_next_start(tmp_path):
    """And nothing else: not a file of that name in a folder of somebody's, not a hidden file of another program."""
    kept = [tmp_path / "guide" / name for name in ("a.md", ".hidden.part", "sub/.upload-1.part")]
    (tmp_path / "guide/sub").mkdir(parents=True)
    for path in [*kept, tmp_path / "guide/.upload-0f.part"]:
        path.write_text("half of it")
    sweep(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
