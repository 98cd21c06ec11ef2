"""The repository keeps its word: nothing of one machine in it, dependencies declared and pinned, every setting documented.

Reads files and metadata only. What the README says is checked in `tests/test_readme.py`, the walls in `tests/test_layers.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import typing
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from rag.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
OURS = {"rag", "ingest", "server", "bench", "tests"}

# In pieces, so that this file does not break its own rule.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs"), ("deb", "debian"), ("security", "debian"),
        ("download", "pytorch"), ("conda", "anaconda"), ("index", "crates"), ("proxy", "golang"),
    )
]  # fmt: skip
MACHINE_PATHS = [
    "/".join(parts) for parts in (("", "work", ""), ("", "farm", ""), ("", "root", ""), ("", "opt", "wheels"), ("", "opt", "pypi"))
]


@cache
def tracked() -> dict[str, str]:
    """Every text file that git has or would take, by path."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    files = {}
    for name in filter(None, listed.stdout.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in data[:8000]:
            files[name] = data.decode("utf-8", errors="replace")
    return files


def lines_with(needles: list[str]) -> list[str]:
    pattern = re.compile("|".join(r"(?<![\w.])" * needle.startswith("/") + re.escape(needle) for needle in needles))
    return [
        f"{name}:{number}: {found[0]}"
        for name, text in tracked().items()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := pattern.search(line))
    ]


def test_no_file_names_a_package_registry() -> None:
    """Names and versions are enough; the user's own client knows where its registry is."""
    assert lines_with(REGISTRIES) == []


def test_no_file_holds_a_path_of_one_machine() -> None:
    """A path that exists on one developer's machine is a bug on every other."""
    assert lines_with(MACHINE_PATHS) == []


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, Requirement]:
    extras = (line for group in project()["optional-dependencies"].values() for line in group)
    return {normal(r.name): r for r in map(Requirement, [*project()["dependencies"], *extras])}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!]+", pin)] == []
    return dict(pin.split("==") for pin in pins)


def test_constraints_pin_every_dependency_within_its_range() -> None:
    """After a change of pyproject.toml: `make constraints`. Local versions (+cpu) and addresses are left out there."""
    pins = constraints()
    wrong = {
        name: pins.get(name) for name, r in declared().items() if name not in pins or not r.specifier.contains(pins[name], prereleases=True)
    }
    assert wrong == {}


def test_every_dependency_has_a_range_and_a_ceiling() -> None:
    """`name` alone takes whatever comes next."""
    open_ended = [str(r) for r in declared().values() if not any(s.operator in ("==", "~=", "<", "<=") for s in r.specifier)]
    assert open_ended == []


def test_every_library_that_is_imported_is_declared() -> None:
    """What another package happens to bring along may go with its next version."""
    imported = set()
    for name, text in tracked().items():
        if name.endswith(".py") and name.partition("/")[0] in OURS:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module.partition(".")[0])
    providers = importlib.metadata.packages_distributions()
    third_party = imported - OURS - set(sys.stdlib_module_names)
    undeclared = {name for name in third_party if not {normal(d) for d in providers.get(name, [name])} & declared().keys()}
    assert undeclared == set()


def test_every_data_wheel_is_pinned_by_hash() -> None:
    """A model file is a program's input: it must be the very bytes that were tested."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "models.txt").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9.]+ +--hash=sha256:[0-9a-f]{64}", line)] == []


def test_every_default_model_has_its_data_wheel() -> None:
    """The cards of `rag/models.py` and models.txt name the same distributions."""
    from rag.models import CARDS

    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "models.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert pinned == {card.distribution for card in CARDS}


def setting_keys() -> list[str]:
    """Every setting as it is written in dotted form: `data_dir`, `server.port`."""
    keys = []
    for field, kind in typing.get_type_hints(Settings).items():
        keys += [f"{field}.{inner.name}" for inner in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else [field]
    return keys


@cache
def guide() -> str:
    pages = sorted((ROOT / "corpora" / "guide").glob("**/*.md"))
    assert pages, "corpora/guide has no pages"
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("key", setting_keys())
def test_every_setting_is_documented(key: str) -> None:
    """In a page of corpora/guide, in backticks: `server.port`."""
    assert re.search(rf"`{re.escape(key)}`", guide()), f"`{key}` stands in no page of corpora/guide"


def test_every_documented_setting_exists() -> None:
    """A setting that went must leave the guide as well."""
    sections = {key.partition(".")[0] for key in setting_keys() if "." in key}
    modules = {f"{path.parent.name}.{path.stem}" for package in OURS for path in (ROOT / package).glob("*.py")}
    written = set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)`", guide()))
    files = {name for name in written if name.endswith((".db", ".json", ".toml"))}
    assert written - set(setting_keys()) - modules - files == set()


def test_every_make_target_that_is_named_exists() -> None:
    """Remedies and pages say `make something`; it must be something."""
    targets = set(re.findall(r"^([a-z-]+):", tracked()["Makefile"], re.MULTILINE))
    named = {
        f"{name}: make {target}"
        for name, text in tracked().items()
        if "/vendor/" not in name and not name.startswith("tests/")
        for target in re.findall(r"[`(]make ([a-z]+)\b", text)
        if target not in targets
    }
    assert named == set()


def test_the_version_is_the_same_everywhere() -> None:
    """pyproject.toml, the image's tag and the newest release in the changelog."""
    version = project()["version"]
    image = yaml.safe_load(tracked()["compose.yaml"])["services"]["readingroom"]["image"]
    releases = re.findall(r"^## \[(\d[^\]]*)\]", tracked()["CHANGELOG.md"], re.MULTILINE)
    assert (image, releases[0]) == (f"readingroom:{version}", version)


def test_the_container_is_reachable_from_this_machine_only_and_asks_for_a_key() -> None:
    """Compose publishes on loopback, and stops with a message where no key is given."""
    service = yaml.safe_load(tracked()["compose.yaml"])["services"]["readingroom"]
    assert [port.rpartition(":")[0].rpartition(":")[0] for port in service["ports"]] == ["127.0.0.1"]
    assert service["environment"]["READINGROOM_SERVER__KEY"].startswith("${READINGROOM_SERVER__KEY:?")


def test_ci_runs_what_people_run() -> None:
    """`.ci/run` is executable, and calls make for lint and tests."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.findall(r"^make (\w+)$", tracked()[".ci/run"], re.MULTILINE) == ["lint", "test"]
