"""Domains are folders; `domain.toml` is optional and checked."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.domains import ALWAYS_IGNORED, Domain, find_domain, read_domain, read_domains, write_domain
from rag.errors import InvalidSettings, OutsideCorpora, UnknownDomain


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
    assert (Domain("d", ignore=tuple(ignore)).ignored_by(path) is not None) == one_by_one


def test_domain_toml_is_changed_by_a_program_as_by_a_person(tmp_path: Path) -> None:
    """What is given is set or taken out, what is as it was is not written, and a person's comment stays."""
    folder = tmp_path / "d"
    folder.mkdir()
    assert write_domain(folder, {"title": "", "prompt": ""}) == read_domain(folder)
    assert list(folder.iterdir()) == []
    file = folder / "domain.toml"
    file.write_text('# mine\ntitle = "Old"  # for now\npassages = 3\n')
    written = write_domain(folder, {"title": "New", "prompt": "Be brief.\nBe kind.", "ignore": ("drafts",), "adapter": ""})
    assert written == read_domain(folder)
    assert (written.title, written.prompt, written.ignore, written.passages) == ("New", "Be brief.\nBe kind.", ("drafts",), 3)
    assert file.read_text().startswith('# mine\ntitle = "New"  # for now\npassages = 3\n')
    before = file.stat().st_mtime_ns
    write_domain(folder, {"title": "New", "ignore": ("drafts",)})
    assert file.stat().st_mtime_ns == before
    assert write_domain(folder, {"title": "", "prompt": "", "ignore": ()}).title == "d"
    assert file.read_text() == "# mine\npassages = 3\n"


def test_a_domain_toml_with_a_mistake_or_a_link_is_not_written(tmp_path: Path) -> None:
    """What a person has to look at is not written over; what a link leads to is not ours."""
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / "domain.toml"
    for text in ("title = [\n", "colour = 1\n", "passages = 0\n"):
        file.write_text(text)
        with pytest.raises(InvalidSettings):
            write_domain(tmp_path / "d", {"title": "New"})
        assert file.read_text() == text
    file.rename(tmp_path / "elsewhere.toml")
    file.symlink_to(tmp_path / "elsewhere.toml")
    with pytest.raises(OutsideCorpora):
        write_domain(tmp_path / "d", {"title": "New"})
