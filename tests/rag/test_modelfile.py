"""Modelfiles: what they say, how they are written again, and the assistants that are kept of them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import Broken, InvalidInput, UnknownModel
from rag.modelfile import Assistants, Modelfile, bare_name, checked_name, checked_parameters, parse
from rag.records import Turn

WHOLE = '''
# A librarian.
  # indented comments count too
from readingroom/guide

SYSTEM """
You are a "librarian".
Be brief.
"""
Parameter temperature 0.5
PARAMETER top_k 20
PARAMETER stop "### User: "
PARAMETER stop <|end|>
PARAMETER num_ctx 4096
ADAPTER   legal@0.5
MESSAGE user Who are you?
message ASSISTANT """A
librarian."""
LICENSE Apache-2.0
LICENSE """Second
text"""
'''


def test_every_command_is_read() -> None:
    """In any case and order, over several lines, with comments and blanks between."""
    assert parse(WHOLE) == Modelfile(
        base="readingroom/guide",
        system='\nYou are a "librarian".\nBe brief.\n',
        adapter="legal@0.5",
        parameters={"temperature": 0.5, "top_k": 20, "stop": ("### User: ", "<|end|>"), "num_ctx": 4096},
        messages=(Turn("user", "Who are you?"), Turn("assistant", "A\nlibrarian.")),
        license=("Apache-2.0", "Second\ntext"),
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("SYSTEM plain words  ", "plain words"),
        ("SYSTEM\ttabs", "tabs"),
        ('SYSTEM "  kept  "', "  kept  "),
        ('SYSTEM "two\nlines"', "two\nlines"),
        ('SYSTEM """two\nlines"""', "two\nlines"),
        ('SYSTEM """two\r\nlines"""\r', "two\nlines"),
        ('SYSTEM """marks"""  ', "marks"),
        ('SYSTEM """"""', ""),
        ('SYSTEM ""', ""),
        ('SYSTEM """says "yes""""', 'says "yes"'),
        ('SYSTEM """three """ within"""', 'three """ within'),
        ('SYSTEM "A" or "B"', 'A" or "B'),
        ("SYSTEM # no comment", "# no comment"),
        ("SYSTEM it's", "it's"),
        ("SYSTEM first\nSYSTEM last", "last"),
        ("SYSTEM FROM is a word", "FROM is a word"),
        ('SYSTEM """\nFROM b\n"""', "\nFROM b\n"),
    ],
)
def test_values_are_quoted_as_ollama_quotes_them(line: str, value: str) -> None:
    """A mark closes at the end of a line only; white space counts within marks only."""
    assert parse(f"FROM a\n{line}\n") == Modelfile("a", system=value)
    assert parse(f"{line}\nFROM a") == Modelfile("a", system=value)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("", None, "FROM"),
        ("SYSTEM a", None, "FROM"),
        ('FROM ""', None, "FROM"),
        ("FROM", "1", "FROM"),
        ("FROM a\nBADCOMMAND b", "2", "BADCOMMAND"),
        ("FROM a\n\nSYSTEM", "3", "SYSTEM"),
        ("FROM a\nSYSTEM   \nLICENSE b", "2", "SYSTEM"),
        ('FROM a\nSYSTEM """open\nLICENSE b', "2", "closed"),
        ('FROM a\nSYSTEM """open""\n', "2", "closed"),
        ('FROM a\nSYSTEM "\n', "2", "closed"),
        ("FROM a\nMESSAGE robot hello", "2", "robot"),
        ("FROM a\nMESSAGE user", "2", "MESSAGE"),
        ("FROM a\nPARAMETER temperature", "2", "PARAMETER"),
        ("FROM a\nPARAMETER temperature hot", "2", "hot"),
        ("FROM a\nPARAMETER temperature nan", "2", "nan"),
        ("FROM a\nPARAMETER temperature -1", "2", "temperature"),
        ("FROM a\nPARAMETER top_k 1.5", "2", "top_k"),
        ("FROM a\nPARAMETER colour blue", "2", "colour"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: str | None, word: str) -> None:
    """So that it can be found in a file of a hundred lines."""
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert word in caught.value.message
    found = re.match(r"Line (\d+):", caught.value.message)
    assert (found.group(1) if found else None) == line


# Three marks at a line's end cannot be written within three marks; Ollama's files have the same limit.
TEXTS = st.text(st.characters(exclude_characters="\r", exclude_categories=("Cs",)), max_size=40).filter(
    lambda text: not re.search(r'"""[ \t]*\n', text)
)
MARKS = st.text(' "\n\t#ab', max_size=12).filter(lambda text: not re.search(r'"""[ \t]*\n', text))
FILLED = (TEXTS | MARKS).filter(bool)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 5),
        "top_p": st.floats(0, 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "num_predict": st.integers(-2, 1000),
        "use_mmap": st.booleans(),
        "stop": st.lists(FILLED, min_size=1, max_size=3).map(tuple),
    },
)
FILES = st.builds(
    Modelfile,
    base=FILLED.map(str.strip).filter(bool),
    system=TEXTS | MARKS,
    template=TEXTS | MARKS,
    adapter=TEXTS | MARKS,
    parameters=PARAMETERS,
    messages=st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXTS | MARKS), max_size=3).map(tuple),
    license=st.lists(FILLED, max_size=2).map(tuple),
)


def test_several_adapters_are_one_text() -> None:
    """As `rag/adapters.py` reads it."""
    assert parse("FROM a\nADAPTER legal@0.5\nADAPTER brief").adapter == "legal@0.5+brief"


@given(FILES)
def test_what_is_written_is_read_back(file: Modelfile) -> None:
    """`show` gives a Modelfile from which the same assistant can be made."""
    assert parse(str(file)) == file


@given(st.text() | st.text('FROMSYTEparmte "\n#', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Never another exception, whatever a client sends."""
    with contextlib.suppress(InvalidInput):
        assert parse(text).base


def test_parameters_of_a_call_are_checked_and_others_left_out() -> None:
    """Clients send whatever any server might know; null means: not given."""
    sent = {"temperature": 1, "top_k": 40.0, "stop": "x", "seed": None, "num_ctx": 4096, "mine": [1]}
    assert checked_parameters(sent, strict=False) == {"temperature": 1.0, "top_k": 40, "stop": ("x",)}
    assert checked_parameters({"num_ctx": 4096, "stop": ["a", ""]}, strict=True) == {"num_ctx": 4096, "stop": ("a",)}
    with pytest.raises(InvalidInput, match="mine"):
        checked_parameters({"mine": 1}, strict=True)


@pytest.mark.parametrize(
    "sent",
    [
        {"temperature": "hot"}, {"temperature": "0.5"}, {"temperature": True}, {"temperature": float("nan")}, {"temperature": 6},
        {"top_k": 1.5}, {"top_k": -1}, {"top_p": 2}, {"seed": 2**70}, {"stop": 5}, {"stop": [5]}, {"num_predict": float("inf")},
        {"repeat_penalty": 0},
    ],
)  # fmt: skip
def test_a_parameter_of_the_wrong_kind_is_named(sent: dict[str, object]) -> None:
    """With the value, so that it can be corrected."""
    with pytest.raises(InvalidInput, match=next(iter(sent))):
        checked_parameters(sent, strict=False)


def test_an_assistant_made_from_another_keeps_what_it_does_not_say() -> None:
    """And stands alone afterwards: the other may be deleted."""
    parent = Modelfile("m", "Old.", "", "legal", {"temperature": 0.5, "seed": 1}, (Turn("user", "a"),), ("MIT",))
    assert Modelfile("parent", system="New.", parameters={"seed": 2}).over(parent) == Modelfile(
        "m", "New.", "", "legal", {"temperature": 0.5, "seed": 2}, (Turn("user", "a"),), ("MIT",)
    )


@pytest.mark.parametrize(
    ("name", "bare"),
    [("mario", "mario"), ("mario:latest", "mario"), ("a/b:7b-q4.1", "a/b:7b-q4.1"), ("Mario:LATEST", "Mario"), ("hf.co/a/b:Q4_K_M",) * 2],
)
def test_names_lose_latest_and_nothing_else(name: str, bare: str) -> None:
    """`:latest` is what Ollama adds to a name without a tag."""
    assert checked_name(name) == bare
    assert bare_name(name) == bare


@pytest.mark.parametrize(
    "name",
    ["", ":latest", "a:", "a:b:c", "../a", "a/../b", "a..b", "/a", "a/", "a//b", "~/a", "a b", ".a", "a/.b", "a\\b", "a%2fb", "ü", "a\0",
     "x" * 81, "a/b/c/d/e", "C:/a", "a\n"],
)  # fmt: skip
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    """A name becomes the name of a file."""
    with pytest.raises(InvalidInput):
        checked_name(name)


def test_assistants_are_kept_copied_and_deleted(tmp_path: Path) -> None:
    """Names are found with :latest and in any case; each is a file directly in its folder."""
    kept = Assistants(tmp_path)
    assert kept.all() == ()
    assert kept.find("anyone") is None
    file = parse(WHOLE)
    made = kept.save("Team/Mario:v1", file)
    assert Assistants(tmp_path).find("team/mario:V1") == made
    assert made.modelfile == file
    copied = kept.copy("team/mario:v1", "luigi:latest")
    assert (copied.name, copied.modelfile) == ("luigi", file)
    assert [assistant.name for assistant in kept.all()] == ["luigi", "Team/Mario:v1"]
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / "assistants"}
    kept.delete("luigi:latest")
    assert [assistant.name for assistant in kept.all()] == ["Team/Mario:v1"]
    replaced = kept.save("team/mario:v1", Modelfile("other"))
    assert kept.all() == (replaced,)


def test_what_is_not_there_cannot_be_copied_or_deleted(tmp_path: Path) -> None:
    """404, in Ollama's words; a path is as unknown as a name."""
    kept = Assistants(tmp_path)
    (tmp_path / "outside.json").write_text("{}")
    for name in ("mario", "../outside", ""):
        with pytest.raises(UnknownModel, match=f"model '{name}' not found"):
            kept.delete(name)
        with pytest.raises(UnknownModel):
            kept.copy(name, "luigi")
        assert kept.find(name) is None
    assert (tmp_path / "outside.json").exists()


def test_a_damaged_file_does_not_take_the_others_away(tmp_path: Path) -> None:
    """The list goes on without it; asked by name it says what to do."""
    kept = Assistants(tmp_path)
    kept.save("good", Modelfile("m"))
    (tmp_path / "assistants" / "bad.json").write_text('{"name": "bad"')
    assert [assistant.name for assistant in kept.all()] == ["good"]
    with pytest.raises(Broken, match="bad"):
        kept.find("bad")
    kept.delete("bad")
    assert kept.find("bad") is None


def test_the_digest_is_of_what_it_says(tmp_path: Path) -> None:
    """Equal for a copy, another for another temperature."""
    kept = Assistants(tmp_path)
    first = kept.save("a", Modelfile("m", parameters={"temperature": 0.5}))
    assert kept.copy("a", "b").modelfile.digest == first.modelfile.digest
    assert re.fullmatch("[0-9a-f]{64}", first.modelfile.digest)
    assert Modelfile("m", parameters={"temperature": 0.6}).digest != first.modelfile.digest


def test_parameters_are_listed_one_a_line() -> None:
    """As `ollama show` prints them."""
    file = parse('FROM a\nPARAMETER stop x\nPARAMETER stop " y"\nPARAMETER temperature 0.5\nPARAMETER numa true')
    assert file.parameters_text.split("\n") == [
        "stop                           x", "stop                           \" y\"", "temperature                    0.5",
        "numa                           true",
    ]  # fmt: skip
