"""The walls of the house hold: which package imports which, and where the heavy libraries live.

Read from the syntax tree of every module, so nothing is imported and an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rag", "ingest", "server")

# Imports point one way: rag <- ingest <- server.
MAY_IMPORT = {"rag": {"rag"}, "ingest": {"rag", "ingest"}, "server": {"rag", "ingest", "server"}}
# Within server, only the composition root knows how files come in.
COMPOSITION_ROOT = {"server/app.py", "server/cli.py"}

# Each takes seconds or hundreds of megabytes to import, or may be missing, so one module owns it and imports it late.
HEAVY = {"torch", "sentence_transformers", "unstructured", "llama_cpp", "qdrant_edge", "qdrant_client", "onnx", "onnxruntime"}
OWNERS = {"llama_cpp": "rag/_llama.py"}


def modules() -> list[Path]:
    """Every Python file of the three packages, as paths relative to the repository."""
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(tree: ast.AST, package: str) -> set[str]:
    """The top-level names that are imported anywhere in a tree; a relative import counts as its own package.

    A call with a text such as "torch.nn" or f"unstructured.partition.{kind}" counts too: it is how modules are imported by name.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else node.module.partition(".")[0])
        elif isinstance(node, ast.Call):
            texts = (arg.values[0] if isinstance(arg, ast.JoinedStr) and arg.values else arg for arg in node.args)
            names = (text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str))
            found |= {name.partition(".")[0] for name in names if re.match(rf"({'|'.join(sorted(HEAVY))})\.\w+(\.|$)", name)}
    return found


def imports_on_loading(tree: ast.Module, package: str) -> set[str]:
    """As `imports`, but only what runs when the module is loaded: not in functions, not under `TYPE_CHECKING`."""
    found, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= imports(node, package)
        waiting += ast.iter_child_nodes(node)
    return found


def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), filename=str(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_before_it(package: str) -> None:
    """rag imports neither neighbour, ingest only rag."""
    wrong = {
        str(module): sorted(unwanted)
        for module in modules()
        if module.parts[0] == package and (unwanted := imports(parse(module), package) & (set(PACKAGES) - MAY_IMPORT[package]))
    }
    assert wrong == {}


def test_within_server_only_the_composition_root_imports_ingest() -> None:
    """Routes are handed what they call; only app.py and cli.py put the parts together."""
    knows = {str(module) for module in modules() if module.parts[0] == "server" and "ingest" in imports(parse(module), "server")}
    assert knows - COMPOSITION_ROOT == set()


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_a_heavy_library_lives_in_one_module(library: str) -> None:
    """One owner each, so that a missing or changed library is dealt with in one place. Training is a program of its own."""
    served = [module for module in modules() if module.parts[:2] != ("rag", "train")]
    users = [str(module) for module in served if library in imports(parse(module), module.parts[0])]
    assert len(users) <= 1, f"{library} is imported by {users}"
    assert users in ([], [OWNERS.get(library, *users)])


def test_loading_a_module_loads_no_heavy_library() -> None:
    """Heavy imports stand inside functions: `readingroom --help` answers at once, and a missing one can be explained."""
    wrong = {str(module): sorted(heavy) for module in modules() if (heavy := imports_on_loading(parse(module), module.parts[0]) & HEAVY)}
    assert wrong == {}


@pytest.mark.parametrize(
    ("source", "everywhere", "on_loading"),
    [
        ("import torch.nn as nn", {"torch"}, {"torch"}),
        ("from torch import nn", {"torch"}, {"torch"}),
        ("def f():\n    import torch", {"torch"}, set()),
        ("class A:\n    async def f(self):\n        from torch import nn", {"torch"}, set()),
        ("class A:\n    import torch", {"torch"}, {"torch"}),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", {"torch"}, {"torch"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", {"torch", "typing"}, {"typing"}),
        ("from . import answer", {"rag"}, {"rag"}),
        ("def f(kind):\n    load(f'torch.nn.{kind}')", {"torch"}, set()),
        ("find_spec('torch')", set(), set()),
    ],
)
def test_the_reader_of_imports_sees_every_kind(source: str, everywhere: set[str], on_loading: set[str]) -> None:
    """The checks above are worth what their reader sees."""
    tree = ast.parse(source)
    assert (imports(tree, "rag"), imports_on_loading(tree, "rag")) == (everywhere, on_loading)


def test_there_is_something_to_check() -> None:
    """A moved folder must not turn these tests into nothing."""
    assert {module.parts[0] for module in modules()} == set(PACKAGES)
