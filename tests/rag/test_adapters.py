"""Adapters: packages on the disk, and what the engine makes of them. Invariant 4: an adapter never leaks."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lora import install, write_lora
from rag import adapters, models
from rag.adapters import Adapter, Share
from rag.engine import Engine
from rag.errors import AdapterUnusable, InvalidInput, UnknownAdapter
from rag.generation import Generation, Request
from rag.records import Turn
from rag.settings import Engine as EngineSettings
from tests.conftest import wait_until
from tests.rag.crowd import differs, for_comparison, hear, heard_alone

QUESTIONS = ("What is the capital of France?", "Name three colours.", "Write one sentence about cats.", "What is two plus two?")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("legal", [("legal", None)]),
        ("legal@0.5", [("legal", 0.5)]),
        ("legal@-1", [("legal", -1.0)]),
        (" b + a@2", [("a", 2.0), ("b", None)]),
    ],
)
def test_what_is_asked_for_is_read(text: str, parts: list[tuple[str, float | None]]) -> None:
    """Names with scales, in one order, so that equal wishes are equal."""
    read = [(part.name, None if part.scale != part.scale else part.scale) for part in adapters.parse(text).parts]
    assert read == parts


@pytest.mark.parametrize("text", ["", "@1", "a@", "a@x", "a@nan0", "a@1000", "a+a", "../a", "A B", "a+b+c+d+e", "a" * 65, "a@inf", "a@nan"])
def test_what_names_no_adapter_is_refused(text: str) -> None:
    """Nothing that could be a path, no scale that could only be a mistake."""
    with pytest.raises(InvalidInput):
        adapters.parse(text)


def test_an_adapter_without_a_scale_is_applied_as_its_package_says(tmp_path: Path) -> None:
    """And the text that an answer carries leaves out a scale of 1."""
    install(tmp_path, "legal", 1, scale=0.5)
    install(tmp_path, "brief", 2)
    packages, broken = adapters.installed(tmp_path)
    assert not broken
    assert str(adapters.resolve("legal+brief", packages)) == "brief+legal@0.5"
    assert str(adapters.resolve("legal@1", packages)) == "legal"
    with pytest.raises(UnknownAdapter, match="'other'"):
        adapters.resolve("legal+other", packages)


SHIPPED = ["grounded"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("licence", "license"), "unknown key 'license'"),
        (lambda text: text + "\nrank = 8", "the weights have 4"),
        (lambda text: text.replace('base = "smollm2-135m-instruct"', "base = 5"), "wrong type"),
        (lambda text: "\n".join(line for line in text.splitlines() if not line.startswith("base_sha256")), "lacks base_sha256"),
        (lambda text: text.replace("scale = 1.0", "scale = 100"), "too large"),
        (lambda text: text + "\n[", "cannot be read"),
    ],
)
def test_a_manifest_that_is_wrong_says_what_is(tmp_path: Path, change: object, said: str) -> None:
    """And the others are there all the same."""
    folder = install(tmp_path, "legal", 1)
    install(tmp_path, "good", 2)
    manifest = folder / adapters.MANIFEST
    manifest.write_text(change(manifest.read_text()))  # type: ignore[operator]
    packages, broken = adapters.installed(tmp_path)
    assert list(packages) == [*SHIPPED, "good"]
    assert said in broken["legal"].message


def test_adding_copies_a_file_and_writes_its_manifest(tmp_path: Path) -> None:
    """In one stroke; a second one of that name only by force."""
    base = models.locate("smollm2-135m-instruct", "generator")
    source = write_lora(tmp_path / "Legal.gguf", 1, rank=8)
    with pytest.raises(InvalidInput, match="licence"):
        adapters.add(source, tmp_path / "data", base)
    package = adapters.add(source, tmp_path / "data", base, licence='a "quoted" \\ one')
    assert (package.name, package.rank, package.licence, package.base) == ("legal", 8, 'a "quoted" \\ one', base.name)
    assert package.fits(adapters.base_digest(base))
    with pytest.raises(InvalidInput, match="already"):
        adapters.add(source, tmp_path / "data", base, licence="x")
    again = adapters.add(source, tmp_path / "data", base, licence="x", force=True)
    assert (again.licence, again.version) != (package.licence, package.version)
    assert [path.name for path in (tmp_path / "data" / "adapters").iterdir()] == ["legal"]
    adapters.remove(tmp_path / "data", "legal")
    assert [*adapters.installed(tmp_path / "data")[0]] == SHIPPED
    with pytest.raises(UnknownAdapter):
        adapters.remove(tmp_path / "data", "legal")


def test_what_is_no_adapter_cannot_be_added(tmp_path: Path) -> None:
    """A model, a text, a file that is cut, and an adapter for another model."""
    base = models.locate("smollm2-135m-instruct", "generator")
    with pytest.raises(AdapterUnusable, match="not of a LoRA"):
        adapters.add(base.path, tmp_path, base, name="x", licence="x")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(AdapterUnusable, match="GGUF"):
        adapters.add(tmp_path / "text.gguf", tmp_path, base, name="x", licence="x")
    cut = write_lora(tmp_path / "cut.gguf", 1)
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(AdapterUnusable, match="GGUF"):
        adapters.add(cut, tmp_path, base, name="x", licence="x")
    other = install(tmp_path / "other", "foreign", 1, base_sha256="0" * 64)
    with pytest.raises(AdapterUnusable, match="was made for"):
        adapters.add(other, tmp_path, base)
    assert [*adapters.installed(tmp_path)[0]] == SHIPPED
    for name in ("auto", "none"):  # which say something else where a name may stand
        with pytest.raises(InvalidInput, match="cannot be called"):
            adapters.add(write_lora(tmp_path / f"{name}.gguf", 1), tmp_path, base, licence="x")


def test_the_one_that_comes_with_the_program_gives_way_and_cannot_be_removed(tmp_path: Path) -> None:
    """One of its name takes its place, also where that is broken: what somebody has put there is not passed over."""
    assert adapters.find(tmp_path, "grounded").shipped
    with pytest.raises(InvalidInput, match="comes with the program"):
        adapters.remove(tmp_path, "grounded")
    folder = install(tmp_path, "grounded", 1)
    assert not adapters.find(tmp_path, "grounded").shipped
    (folder / adapters.MANIFEST).write_text("[")
    assert "grounded" not in adapters.installed(tmp_path)[0]
    with pytest.raises(AdapterUnusable):
        adapters.find(tmp_path, "grounded")
    adapters.remove(tmp_path, "grounded")
    assert adapters.find(tmp_path, "grounded").shipped


# The engine


@pytest.fixture(scope="module")
def engine(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The default model with two adapters, one that is made for another model, and one whose weights do not fit it."""
    data_dir = tmp_path_factory.mktemp("adapters")
    (models_dir / "models").mkdir(exist_ok=True)
    (data_dir / "models").symlink_to(models_dir / "models")
    install(data_dir, "one", 1)
    install(data_dir, "two", 2, prompt="Answer in the manner of two.")
    install(data_dir, "foreign", 3, base_sha256="0" * 64)
    write_lora(install(data_dir, "misfit", 4) / adapters.WEIGHTS, 4, width=512)
    engine = Engine(EngineSettings(sequences=3, queue=64), data_dir)
    engine.load()
    yield engine
    engine.stop()


def request(engine: Engine, question: str, adapter: str = "", tokens: int = 16) -> Request:
    """A greedy one."""
    return Request(engine.render([Turn("user", question)]), tokens, adapter=engine.adapter(adapter))


async def read(generation: Generation) -> str:
    """The whole text."""
    return "".join([piece async for piece in generation.pieces()])


def cold(engine: Engine, question: str, adapter: str = "") -> str:
    """What it says to that when nothing was read before."""

    async def run() -> str:
        engine.erase()
        return await read(engine.submit(request(engine, question, adapter)))

    return asyncio.run(run())


def test_an_adapter_changes_the_answer_and_its_scale_counts(engine: Engine) -> None:
    """Else the other tests of adapters would show nothing."""
    said = [cold(engine, QUESTIONS[2], adapter) for adapter in ("", "one", "two", "one@0.5", "one+two")]
    assert len(set(said)) == len(said)
    assert cold(engine, QUESTIONS[2], "one@0") == said[0]
    assert cold(engine, QUESTIONS[2], "two+one") == said[4]


def test_after_one_adapter_another_answers_as_if_it_were_the_first(engine: Engine) -> None:
    """The same prompt under A, then B, equals B from cold, for each pair, the bare model included."""
    names = ("", "one", "two")
    alone = {name: cold(engine, QUESTIONS[0], name) for name in names}

    async def run() -> None:
        for first, second in itertools.permutations(names, 2):
            engine.erase()
            await read(engine.submit(request(engine, QUESTIONS[0], first)))
            after = engine.submit(request(engine, QUESTIONS[0], second))
            assert await read(after) == alone[second], f"{second!r} after {first!r}"
            assert after.usage.cached_tokens == 0

    asyncio.run(run())


def test_adapters_side_by_side_answer_as_they_do_alone(engine: Engine) -> None:
    """More requests than sequences, adapters mixed, some of which leave on the way."""
    names = ("", "one", "two", "one@0.5")
    kinds = {(question, name): for_comparison(request(engine, question, name)) for question in QUESTIONS for name in names}
    alone = {kind: asyncio.run(heard_alone(engine, each)) for kind, each in kinds.items()}

    async def leave(generation: Generation) -> None:
        async for _ in generation.pieces():
            break

    async def run() -> None:
        rng = random.Random(5)
        wanted = list(alone)
        rng.shuffle(wanted)
        work, leaving = [], []
        for n, (question, name) in enumerate(wanted):
            work.append(asyncio.create_task(hear(engine.submit(kinds[question, name]))))
            if n % 4 == 0:
                leaving.append(asyncio.create_task(leave(engine.submit(request(engine, rng.choice(QUESTIONS), rng.choice(names))))))
        said = await asyncio.gather(*work)
        await asyncio.gather(*leaving)
        problems = [(pair, problem) for pair, one in zip(wanted, said, strict=True) if (problem := differs(one, alone[pair]))]
        assert not problems
        assert sum(one.text == alone[pair].text for pair, one in zip(wanted, said, strict=True)) >= 0.8 * len(wanted)

    asyncio.run(run())


def test_nobody_waits_long_because_of_an_adapter(engine: Engine) -> None:
    """While two long answers with one adapter run, a short one with another gets through in turns, not after them."""

    async def run() -> None:
        long = [engine.submit(request(engine, "Write a long story about a dragon.", "one", 300)) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: all(generation.first_token_at for generation in long))
        changes = engine.adapter_changes
        before = [generation.usage.completion_tokens for generation in long]
        short = engine.submit(request(engine, "Write a long story about a cat.", "two", 20))
        await read(short)
        assert short.usage.completion_tokens == 20
        told = [generation.usage.completion_tokens - n for generation, n in zip(long, before, strict=True)]
        for generation in long:
            generation.cancel()
        assert engine.adapter_changes - changes >= 3  # there, back and there again: the others went on meanwhile
        # Its prompt and 20 tokens are 3 turns, each after a turn of 8 batches of the others.
        assert 8 <= min(told) <= max(told) <= 4 * 8

    asyncio.run(run())


def test_what_does_not_fit_is_said_at_the_start_and_when_it_is_asked_for(engine: Engine) -> None:
    """Another base, and tensors of another width; the others are usable."""
    assert sorted(engine.packages) == [*SHIPPED, "one", "two"]
    assert "smollm2" in engine.unusable["foreign"].message
    for name in ("foreign", "misfit"):
        with pytest.raises(AdapterUnusable):
            engine.adapter(name)
    with pytest.raises(UnknownAdapter) as raised:
        engine.adapter("nobody")
    assert "one, two" in raised.value.remedy


def test_the_default_one_is_asked_for_by_no_name(engine: Engine) -> None:
    """And none at all by a word that is no name."""
    assert str(engine.adapter("auto")) == "grounded"
    assert engine.adapter("none") is None
    assert engine.adapter("") is None


def test_an_adapter_that_is_installed_later_is_found_and_a_replaced_one_is_another(engine: Engine) -> None:
    """Without a restart, and one that is removed is gone; what was read under the old weights is not taken for what the new ones read."""
    folder = install(engine._data_dir, "later", 11)
    before = cold(engine, QUESTIONS[2], "later")
    first = engine.adapter("later")
    write_lora(folder / adapters.WEIGHTS, 12)
    engine.refresh_adapters()
    second = engine.adapter("later")
    assert first != second
    assert str(first) == str(second) == "later"
    assert cold(engine, QUESTIONS[2], "later") != before
    adapters.remove(engine._data_dir, "later")
    with pytest.raises(UnknownAdapter):
        engine.adapter("later")


def test_the_rules_of_an_adapter_are_known(engine: Engine) -> None:
    """For domains that have none of their own."""
    assert engine.prompt_of(engine.adapter("one+two")) == "Answer in the manner of two."
    assert engine.prompt_of(None) == ""
    assert engine.prompt_of(Adapter((Share("gone"),))) == ""
