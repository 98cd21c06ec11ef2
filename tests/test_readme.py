"""What the README tells a stranger to type is true: commands and flags, make targets, addresses, files.

Nothing is carried out: commands go through the real parser, targets through `make -n`, addresses are looked up in the
real application's own description and asked of it in process. Read next: `tests/test_repository.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from rag.settings import PREFIX, load

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
ENDS_A_COMMAND = {"|", "||", "&&", ";", "&", ">", ">>", "2>"}
ADDRESS = re.compile(r"https?://(?:127\.0\.0\.1|localhost):8000[^\s`'\")]*")


def shell_lines(text: str) -> Iterator[str]:
    """The command lines of the fenced `sh` blocks, continuation lines joined."""
    for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.removeprefix("$ ")


def commands(program: str) -> list[list[str]]:
    """The arguments of each call of a program in the documents; what make passes on as `ARGS` counts as a call too."""
    found = []
    for document in DOCUMENTS:
        for line in shell_lines((ROOT / document).read_text(encoding="utf-8")):
            # $(...) would be split at its spaces; what it gives does not matter here.
            words = shlex.split(re.sub(r"\$\([^)]*\)", "VALUE", line), comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            end = next((i for i, word in enumerate(words) if word in ENDS_A_COMMAND), len(words))
            if words and Path(words[0]).name == program:
                found.append(words[1:end])
            elif words and words[0] == "make" and program == "readingroom" and words[1] in ("serve", "bench"):
                given = next((word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")), "")
                found.append([words[1], *shlex.split(given)])
    return found


@pytest.mark.parametrize("words", commands("readingroom"), ids=" ".join)
def test_every_command_is_understood(words: list[str]) -> None:
    """A renamed flag must not live on in the documents."""
    from server.cli import build_parser

    try:
        build_parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"`readingroom {' '.join(words)}` is wrong usage")


def test_every_command_there_is_is_shown() -> None:
    """A newcomer learns of each command here."""
    from server.cli import _COMMANDS

    assert {words[0] for words in commands("readingroom")} == set(_COMMANDS)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_every_make_target_exists(words: list[str]) -> None:
    """`make -n` fails on a target that is not there; MAKEFLAGS of an outer make would change what it does."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def calls() -> list[tuple[str, str]]:
    """Method and path of every address of the service in the README, whether in a curl line or in the text."""
    found = []
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for words in commands("curl"):
        address = next(word for word in words if ADDRESS.fullmatch(word))
        sends = any(word in ("-d", "--data", "-F", "--form", "--json") for word in words)
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if sends else "GET"
        found.append((method, urlsplit(address).path or "/"))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found += [("GET", urlsplit(address.rstrip(".:,;")).path or "/") for address in ADDRESS.findall(prose)]
    return sorted(set(found))


@pytest.fixture(scope="module")
def get(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], httpx.Response]:
    """GET of the real application, in process, with nothing loaded: enough for its description and its pages."""
    from server.app import ReadingRoom
    from server.http import create_app

    folder = tmp_path_factory.mktemp("readme")
    settings = load(env={}, flags={"data_dir": folder / "data", "corpora": folder / "corpora"})
    app = create_app(ReadingRoom(settings))

    def ask(path: str) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
                return await client.get(path)

        return asyncio.run(once())

    return ask


def test_every_address_is_served(get: Callable[[str], httpx.Response]) -> None:
    """Calls are in the OpenAPI description with that method; pages, which are not, answer 200."""
    described = {
        (method.upper(), re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)))
        for path, methods in get("/schema/openapi.json").json()["paths"].items()
        for method in methods
    }
    unknown = [
        (method, path)
        for method, path in calls()
        if not any(method == known and pattern.fullmatch(path) for known, pattern in described)
        and not (method == "GET" and get(path).status_code == 200)
    ]
    assert calls()
    assert unknown == []


def test_every_file_that_is_named_exists() -> None:
    """Links to files, and the paths of the annotated tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)}
    folder = ""
    for line in re.findall(r"^    ([^\n]+)", text[text.index("## What is where") :], re.MULTILINE):
        indented = line.startswith(" ")
        names = re.findall(r"[\w./-]+/(?=\s|$)|[\w.-]+\.(?:py|toml|txt)\b|\bMakefile\b", re.split(r"\s{2,}(?=[a-z ]{4,})", line.strip())[0])
        if not indented:
            folder = names[0] if names and names[0].endswith("/") else ""
        named |= {f"{folder}{name}" if indented else name for name in names}
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert {"rag/answer.py", "corpora/"} <= named
    assert missing == []


def test_every_setting_that_is_named_exists() -> None:
    """Variables and dotted keys, as the settings know them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    variables = set(re.findall(rf"{PREFIX}[A-Z]+(?:__[A-Z_]+)?", text))
    keys = set(re.findall(r"`((?:server|ingest|embed|store|retrieve|engine)\.[a-z_]+)`", text)) - {"server.cli"}
    settings = load(env={}, toml=None)
    for variable in variables:
        keys.add(variable.removeprefix(PREFIX).lower().replace("__", "."))
    for key in keys:
        section, _, name = key.rpartition(".")
        assert hasattr(getattr(settings, section) if section else settings, name), f"{key} is not a setting"
    assert "server.port" in keys
