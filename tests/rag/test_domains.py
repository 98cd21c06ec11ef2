"""Domains are folders; `domain.toml` is optional and checked."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.domains import ALWAYS_IGNORED, Domain, find_domain, read_domain, read_domains
from rag.errors import InvalidSettings, UnknownDomain


def test_each_real_visible_folder_is_a_domain(tmp_path: Path) -> None:
    """Files, hidden folders and links are not."""
    for name in ("b", "a", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "file.md").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert list(read_domains(tmp_path)) == ["a", "b"]


def test_domain_toml_is_read(tmp_path: Path) -> None:
    """All its keys arrive, lists as tuples."""
    (tmp_path / "domain.toml").write_text(
        'title = "T"\nprompt = "P"\npassages = 3\nabstain_below = 0.5\nignore = ["x"]\nlanguages = ["de"]'
    )
    read = read_domain(tmp_path)
    assert (read.title, read.prompt, read.passages, read.abstain_below, read.ignore, read.languages) == ("T", "P", 3, 0.5, ("x",), ("de",))


@pytest.mark.parametrize(
    "text",
    [
        "colour = 1",
        "passages = 0",
        "passages = true",
        'passages = "3"',
        "abstain_below = 1.5",
        "withhold_above = -1",
        "ignore = [1]",
        "title = [",
        "\x00",
    ],
)
def test_a_mistake_in_domain_toml_is_named_and_does_not_take_the_domain_away(tmp_path: Path, text: str) -> None:
    """The domain goes on with the defaults and says what is wrong."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "domain.toml").write_text(text)
    with pytest.raises(InvalidSettings):
        read_domain(tmp_path / "d")
    domain = read_domains(tmp_path)["d"]
    assert domain.error
    assert domain.title == "d"


def test_an_unknown_domain_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    """404, with a list to choose from."""
    (tmp_path / "handbook").mkdir()
    with pytest.raises(UnknownDomain) as caught:
        find_domain(tmp_path, "handbok")
    assert "handbook" in caught.value.remedy
    with pytest.raises(UnknownDomain):
        find_domain(tmp_path, "../handbook")


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("a.md", False), ("domain.toml", True), ("sub/domain.toml", False), (".hidden.md", True), (".git/config.md", True),
        ("~$a.docx", True), ("a.md~", True), ("x.part", True), ("a.swp", True), ("drafts/a.md", True), ("x/drafts/a.md", True),
        ("a.bak.md", True), ("drafts.md", False), ("~WRL0001.tmp", True), (".~lock.a.odt#", True), ("a.txt.sb-1a2b3c4d-AbCdEf", True),
        ("__MACOSX/a.md", True), ("@eaDir/a.md", True), ("#recycle/a.md", True), ("node_modules/a.md", False),
    ],
)  # fmt: skip
def test_what_is_ignored(path: str, left_out: bool) -> None:
    """Temporary files always; patterns on the whole path and on each part of it."""
    assert Domain("d", ignore=("drafts/", "*.bak.md")).ignores(path) is left_out


@given(
    st.text("ad~$#./*[!]? -\n", max_size=12),
    st.lists(st.text("ad~$#./*[!]?-", min_size=1, max_size=6), max_size=3),
)
def test_all_patterns_as_one_ignore_what_they_ignore_one_by_one(path: str, ignore: list[str]) -> None:
    """The expression that they are joined into is an optimization and nothing else."""
    parts = path.split("/")
    one_by_one = any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in ALWAYS_IGNORED) or any(
        fnmatch.fnmatchcase(path, pattern) or any(fnmatch.fnmatchcase(part, pattern.rstrip("/")) for part in parts) for pattern in ignore
    )
    assert Domain("d", ignore=tuple(ignore)).ignores(path) == one_by_one
