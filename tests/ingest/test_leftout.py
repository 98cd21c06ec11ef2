"""What is left out of the documents is named with its reason, and nothing lies in the folder that is neither a document nor named."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.folder import Folder
from ingest.leftout import left_out
from rag.domains import FILE, read_domains


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Two domains, of which one ignores drafts."""
    for path in ("d/a.md", "d/sub/b.md", "e/c.md"):
        write(tmp_path / "corpora", path)
    (tmp_path / "corpora/d/domain.toml").write_text('ignore = ["drafts", "*.bak.md"]')
    return tmp_path / "corpora"


def write(corpora: Path, path: str) -> None:
    (corpora / path).parent.mkdir(parents=True, exist_ok=True)
    (corpora / path).write_text("x")


def reasons(corpora: Path) -> dict[str, str]:
    return {item.path: item.reason for item in left_out(corpora, None, 1000).items}


def test_documents_and_the_settings_of_domains_are_not_named(corpora: Path) -> None:
    found = left_out(corpora, None, 1000)
    assert (found.items, dict(found.counts)) == ([], {})
    assert left_out(corpora / "not there", None, 1000).items == []


def test_each_reason_has_its_sentence_and_its_remedy(corpora: Path, tmp_path: Path) -> None:
    write(tmp_path, "outside/o.md")
    for path in ("d/.hidden", "d/.git/config", "d/~$a.docx", "d/drafts/x.md", "d/sub/y.bak.md", "top.md", ".DS_Store"):
        write(corpora, path)
    (corpora / "d/out.md").symlink_to(tmp_path / "outside/o.md")
    (corpora / "d/nowhere.md").symlink_to(tmp_path / "gone")
    (corpora / "d/folder").symlink_to(corpora / "d/sub")
    (corpora / "e/inside.md").symlink_to(corpora / "d/a.md")  # a link to a plain file inside is a document
    (corpora / "linked").symlink_to(corpora / "d")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(corpora / "e/socket"))  # an absolute path may be too long for one
        found = left_out(corpora, None, 1000)
    assert {item.path: item.reason for item in found.items} == {
        "d/.hidden": "hidden", "d/.git": "hidden", "d/~$a.docx": "temporary", "d/drafts": "pattern", "d/sub/y.bak.md": "pattern",
        "d/out.md": "link", "d/nowhere.md": "link", "d/folder": "link", "linked": "link", "top.md": "no_domain", ".DS_Store": "hidden",
        "e/socket": "special",
    }  # fmt: skip
    assert all(item.message and item.remedy for item in found.items)
    assert sum(found.counts.values()) == len(found.items)
    by_path = {item.path: item for item in found.items}
    assert (by_path["d/.git"].folder, by_path["d/.git"].bytes, by_path["d/.hidden"].bytes) == (True, None, 1)
    assert "drafts" in by_path["d/drafts"].message


def test_all_are_counted_and_the_first_are_named(corpora: Path) -> None:
    for number in range(30):
        write(corpora, f"d/.{number:02d}")
    found = left_out(corpora, None, 7)
    assert [item.path for item in found.items] == [f"d/.{number:02d}" for number in range(7)]
    assert found.counts == {"hidden": 30}


def test_who_may_see_one_domain_is_told_of_no_other(corpora: Path) -> None:
    """And not of what lies outside all of them."""
    for path in ("d/.x", "e/.y", "top.md"):
        write(corpora, path)
    assert [item.path for item in left_out(corpora, ["e"], 1000).items] == ["e/.y"]


_NAMES = st.sampled_from(["a.md", ".a", "b~", "drafts", "x", "y.bak.md", "__MACOSX", "z.tmp", "domain.toml"])


@given(paths=st.lists(st.lists(_NAMES, min_size=1, max_size=4), max_size=12))
def test_every_file_is_a_document_or_named(tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]) -> None:
    """By itself, or with a folder above it; and never both."""
    corpora = tmp_path_factory.mktemp("corpora")
    (corpora / "d").mkdir()
    (corpora / "d" / FILE).write_text('ignore = ["drafts", "*.bak.md"]')
    files = {f"d/{FILE}"}
    for parts in paths:
        path = "/".join(("d", *parts))
        if (corpora / path).exists() or any(parent.is_file() for parent in (corpora / path).parents):
            continue
        write(corpora, path)
        files.add(path)
    seen = {seen.path for seen in Folder(corpora, read_domains(corpora)).look("")}
    named = set(reasons(corpora))
    covered = {path for path in files if any(path == name or path.startswith(f"{name}/") for name in named)}
    assert seen & covered == set()
    assert seen | covered == files - {f"d/{FILE}"}
