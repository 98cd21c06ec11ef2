"""Uploads: what may come, under which name, of which kind and size; and what is sent back of what somebody uploaded."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.formats import FORMATS
from ingest.upload import place, safe_name
from rag.errors import InvalidInput, OutsideCorpora, ParseFailed, ReadingRoomError, UnknownDomain
from server.routes.native import _shown_as
from tests.server.conftest import Served

PLACES = [
    "../evil.md", "..\\evil.md", "a/../../evil.md", "/etc/evil.md", "\\\\host\\share\\evil.md", "C:evil.md", "c:\\evil.md", "Z:/evil.md",
    "evil.md\0", "\0", "a\0/../evil.md", "..", ".", " .. ", "guide/evil.md", "./evil.md",
]  # fmt: skip
"""Names that are a way to somewhere else."""

NO_NAMES = [
    "", " ", "\t", "\u3000", "a\nb.md", "a\rb.md", "a\x1b[2J.md", "a\x7f.md", "a\u2028b.md", "x" * 250 + ".md", "é" * 101 + ".md",
    "CON", "con.md", "NUL.txt", "aux", "Aux.tar.md", "PRN .md", "COM1.md", "lpt9.md", "com¹.md", "evil.md.", "evil.md...",
    "invoice\u202efdp.md", "\u2066evil\u2069.md", ".hidden.md", "..evil.md", "~$evil.docx", "evil.part", "domain.toml", "Thumbs.db",
]  # fmt: skip
"""Names that no document should have."""

INERT = [
    "..\uff0fevil.md", "\uff0e\uff0e\uff0fevil.md", "..\u2215evil.md", "..\u2044evil.md", "..\u29f8evil.md", "..%2fevil.md",
    "%2e%2e%2fevil.md",
    "$HOME.md", "`id`.md", "$(id).md", "; rm -rf x.md", "-rf.md", "--config=x.md", "Con-ference.md", "console.md", "Auxiliary.md",
    "null.md", "10:30 meeting.md", "a" * 190 + ".md", "عربي\u200f.md", "क\u094d\u200dष.md", "👩\u200d🚒.md", "e\u0301.md",
]  # fmt: skip
"""Names that only look dangerous: they are kept as they are, in their folder. Half of them would be another path if somebody
composed (NFKC), decoded or evaluated them."""


@pytest.fixture
def corpora(tmp_path: Path) -> Iterator[Path]:
    """A watched folder with one domain. Nothing may ever lie outside that domain's folder."""
    corpora = tmp_path / "corpora"
    (corpora / "guide").mkdir(parents=True)
    yield corpora
    assert [path for path in tmp_path.rglob("*") if path not in (corpora, corpora / "guide") and path.parent != corpora / "guide"] == []


@pytest.mark.parametrize("name", PLACES, ids=ascii)
def test_a_name_that_is_a_place_is_refused(corpora: Path, name: str) -> None:
    """Of a file, and of a domain that is to be made: up, absolute, a drive, a share, cut off by NUL."""
    with pytest.raises(OutsideCorpora):
        place(corpora, "guide", name, [b"x"])
    with pytest.raises(OutsideCorpora):
        safe_name(name)
    assert list((corpora / "guide").iterdir()) == []


@pytest.mark.parametrize(
    "folder", ["..", "a/../..", "/etc", "a//b", "a/./b", "\\host", "C:/x", "a\0b", "a/CON", "~/x/..", "a/\u202eb"], ids=ascii
)
def test_a_folder_that_leads_elsewhere_is_refused(corpora: Path, folder: str) -> None:
    """Each part of it is a name like a file's; nothing of it is made."""
    with pytest.raises((OutsideCorpora, InvalidInput)):
        place(corpora, "guide", "a.md", [b"x"], folder=folder)
    assert list((corpora / "guide").iterdir()) == []


def test_no_upload_goes_through_a_link(tmp_path: Path) -> None:
    """Not one that is the domain, a folder on the way, or the file itself; what it leads to stays as it was."""
    corpora, outside = tmp_path / "corpora", tmp_path / "outside"
    (corpora / "guide" / "real").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.md").write_text("mine")
    (corpora / "linked").symlink_to(outside)
    (corpora / "guide" / "linked").symlink_to(outside)
    (corpora / "guide" / "real" / "a.md").symlink_to(outside / "a.md")
    (corpora / "guide" / "b.md").symlink_to(outside / "nothing.md")
    for domain, name, folder in (
        ("linked", "a.md", ""), ("guide", "a.md", "linked"), ("guide", "a.md", "linked/deeper"), ("guide", "a.md", "real"),
        ("guide", "b.md", ""),
    ):  # fmt: skip
        with pytest.raises((OutsideCorpora, UnknownDomain)):
            place(corpora, domain, name, [b"x"], folder=folder)
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("a.md", "mine")]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_a_name_that_no_document_should_have_is_refused(corpora: Path, name: str) -> None:
    """Devices, control characters, letters turned around, hidden and temporary files, too long ones."""
    with pytest.raises((InvalidInput, ParseFailed)):
        place(corpora, "guide", name, [b"x"])
    assert list((corpora / "guide").iterdir()) == []


@pytest.mark.parametrize("name", INERT, ids=ascii)
def test_a_name_that_only_looks_like_a_place_is_a_name(corpora: Path, name: str) -> None:
    """Nobody decodes it, expands it or takes a letter for another one."""
    if name.startswith("."):
        with pytest.raises(InvalidInput):  # hidden, whatever comes after the dots
            place(corpora, "guide", name, [b"x"])
        return
    path = place(corpora, "guide", name, [b"text"])
    assert path.parent == corpora / "guide"
    assert [one.name for one in path.parent.iterdir()] == [unicodedata.normalize("NFC", name)]
    assert path.read_bytes() == b"text"


def test_naughty_strings_as_names_stay_in_their_folder(corpora: Path) -> None:
    """Each of them is kept under its own name or refused; none leads out, replaces another, or breaks the server."""
    from tests.server.test_hostile import naughty

    kept = {}
    for n, text in enumerate(naughty()):
        try:
            kept[place(corpora, "guide", f"{text[:60]}.md", [str(n).encode()])] = n
        except ReadingRoomError:
            continue
    assert len(kept) > 200
    assert {path.parent for path in kept} == {corpora / "guide"}
    assert all(path.read_bytes() == str(n).encode() for path, n in kept.items())


@pytest.mark.parametrize(
    "name", ["tool.exe", "lib.dll", "a.so", "run.bat", "x.jar", "page.php3", "shell.cgi", "macro.xlsb", "disk.iso", "a.svg"]
)
def test_a_kind_of_file_that_is_not_read_is_not_taken(corpora: Path, name: str) -> None:
    """It would lie in a shared folder for whoever opens it."""
    with pytest.raises(ParseFailed) as caught:
        place(corpora, "guide", name, [b"MZ"])
    assert caught.value.code == "unsupported_format"
    assert list((corpora / "guide").iterdir()) == []


def send(served: Served, name: str, content: bytes | Iterator[bytes], **more: Any) -> httpx.Response:
    """Upload into the domain `guide`; `more` goes to the client's call."""
    with served.client() as client:
        return client.post("/rag/documents", data={"domain": "guide"}, files={"file": (name, content)}, **more)


def test_the_server_refuses_what_is_no_upload(served: Served) -> None:
    """By the type of the body, by its size whether it is said or not, by the file's kind; nothing of it is left in the folder."""
    before = sorted(served.corpora.rglob("*"))

    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="domain"\r\n\r\nguide\r\n--b\r\n'
        yield b'Content-Disposition: form-data; name="file"; filename="big.md"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 65_536
        yield b"\r\n--b--\r\n"

    with served.client() as client:
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        answers = {
            "json": client.post("/rag/documents", json={"domain": "guide", "file": "x"}),
            "urlencoded": client.post("/rag/documents", data={"domain": "guide", "file": "x"}),
            "text": client.post("/rag/documents", content=b"x", headers={"Content-Type": "text/plain"}),
            "none": client.post("/rag/documents", content=b"x"),
            "said": client.post("/rag/documents", data={"domain": "guide"}, files={"file": ("big.md", b"x" * 3_200_000)}),
            "unsaid": client.post("/rag/documents", content=pieces(), headers=form),
            "over": client.post("/rag/documents", data={"domain": "guide"}, files={"file": ("big.md", b"x" * ((2 << 20) + 1))}),
            "kind": client.post("/rag/documents", data={"domain": "guide"}, files={"file": ("tool.exe", b"MZ")}),
            "no file": client.post("/rag/documents", data={"domain": "guide", "file": "just text"}, files={"other": ("a.md", b"x")}),
            "broken": client.post("/rag/documents", content=b"--b\r\nContent-Dis", headers=form),
            "no boundary": client.post("/rag/documents", content=b"x", headers={"Content-Type": "multipart/form-data"}),
        }
    expected = {
        "json": 415, "urlencoded": 415, "text": 415, "none": 415, "said": 413, "unsaid": 413, "over": 422, "kind": 422, "no file": 422,
        "broken": (400, 422), "no boundary": (400, 422),
    }  # fmt: skip
    for name, answer in answers.items():
        wanted = expected[name]
        assert answer.status_code in (wanted if isinstance(wanted, tuple) else (wanted,)), (name, answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/problem+json", name
    assert sorted(served.corpora.rglob("*")) == before


def test_the_browsers_word_for_a_file_changes_nothing(served: Served) -> None:
    """A program said to be a text, a text said to be a program: the name and the bytes tell."""
    with served.client() as client:
        form = {"domain": "guide"}
        refused = client.post("/rag/documents", data=form, files={"file": ("tool.exe", b"MZ", "text/plain")})
        assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_format")
        taken = client.post("/rag/documents", data=form, files={"file": ("said.md", b"# Said\n", "application/x-msdownload")})
        assert (taken.status_code, taken.json()["media_type"]) == (202, "text/markdown")
        client.delete(f"/rag/documents/{taken.json()['id']}")


SHOWN = {"application/pdf", "image/png", "image/jpeg", "image/gif", "text/plain"}


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_a_documents_file_is_no_page_and_no_script_of_ours(suffix: str) -> None:
    """Whatever of the formats it is: pictures, PDF and plain text are shown, the rest is a download; none has a type that browsers run."""
    kind, disposition, headers = _shown_as(f"name{suffix}")
    assert disposition == "attachment" or kind in SHOWN
    assert not any(word in kind for word in ("javascript", "ecmascript", "css"))
    if kind != "application/pdf":
        assert headers["Content-Security-Policy"].startswith("sandbox;")
        assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["a.html", "a.xhtml", "a.svg", "a.xml", "a.js", "a.mjs", "a.css", "a.md", "a.wasm", "a.swf", "a.hta", "a"])
def test_what_browsers_would_run_is_not_sent_as_that(name: str) -> None:
    """HTML, SVG and XML as downloads; scripts and styles as text, which no page can name as one (`nosniff`)."""
    kind, disposition, _ = _shown_as(name)
    if name in ("a.js", "a.mjs", "a.css", "a.md"):
        assert kind == "text/plain"
    else:
        assert disposition == "attachment"


def test_a_web_page_is_read_as_its_words(served: Served) -> None:
    """Scripts, styles, comments, hidden attributes and addresses of an HTML file or of a drawing are not in the text that is shown."""
    page = (
        "<html><head><title>Cormorant</title><style>body{background:url(https://evil.example/s)}</style><script>alert('RUN')</script>"
        "</head><body onload=\"alert('RUN')\"><h1>Cormorant</h1><p onclick='RUN()'>The cormorant dries its wings."
        "<img src=x onerror=alert('RUN')></p><!-- RUN --><svg onload=alert('RUN')><script>alert('RUN')</script></svg>"
        '<iframe srcdoc="<script>RUN</script>"></iframe></body></html>'
    )
    record = served.save("hostile/cormorant.html", page)
    with served.client() as client:
        text = client.get(f"/rag/documents/{record['id']}/text").json()["text"]
        file = client.get(f"/rag/documents/{record['id']}/file")
        found = client.post("/rag/search", json={"question": "What does the cormorant dry?", "domain": "hostile"}).json()
    assert "The cormorant dries its wings." in text
    assert "RUN" not in text
    assert "evil.example" not in text
    assert "RUN" not in str(found["passages"])
    assert file.headers["content-disposition"].startswith("attachment")
    assert file.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert (file.headers["x-content-type-options"], file.text) == ("nosniff", page)
