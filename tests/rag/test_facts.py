"""Numbers, units, dates, names and a "not" are the same in a sentence and its source, however each of them writes it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.facts import claims, known_names, missing, supply
from rag.sentences import sentence_spans
from tests.conftest import ROOT


def lacking(sentence: str, source: str, known: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """What the source lacks of the sentence."""
    return missing(claims(sentence, known), supply(source))


@pytest.mark.parametrize(
    ("sentence", "source"),
    [
        ("It costs 1,000 EUR.", "The price: 1000 €."),
        ("It costs 1 000 euros.", "Price 1.000 EUR"),
        ("It costs $5 million.", "5 million dollars"),
        ("It costs 5 percent more.", "a rise of 5 %"),
        ("It has two rooms and 21 beds.", "2 rooms, twenty-one beds"),
        ("250 people came.", "two hundred and fifty people"),
        ("One hundred and five came.", "105 came"),
        ("It had 1.5 million users.", "1,500,000 users"),
        ("It is 2,5 kg.", "2.5 kilograms"),
        ("It is 5 km long.", "5 kilometres long"),
        ("It is 5km long.", "length in metres and km: 5"),
        ("It fell to -5 °C.", "minus 5 degrees Celsius"),
        ("It opens at 6 pm.", "opens at 18:00"),
        ("It opens at 9:00.", "opens at 9 in the morning"),
        ("It opens at 9.", "opens at 9:00 a.m."),
        ("It was on May 3, 2024.", "on 3 May 2024"),
        ("It was on 2024-05-03.", "on May 3rd, 2024"),
        ("It was on 3/5/2024.", "on 3 May 2024"),
        ("It was on 5/3/2024.", "on 3 May 2024"),
        ("It was on 3 May 2024.", "In 2024 the feast was on 3 May."),
        ("It was in May 2024.", "on 2024-05-03"),
        ("In September it rained.", "Rain: 2024-09-03"),
        ("The war went from 1914 to 1918.", "the war of 1914-18"),
        ("In the 1990s it grew.", "the 1990s"),
        ("It is of the 20th century.", "of the twentieth century"),
        ("It is the third of them.", "the 3rd"),
        ("It is version 1.2.3.", "released as v1.2.3"),
        ("The UN met in Paris.", "the United Nations met in Paris"),
        ("The United Nations met.", "a meeting of the UN"),
        ("The FBI came.", "Federal Bureau of Investigation"),
        ("It is in Germany.", "a German town"),
        ("The French king came.", "the King of France"),
        ("Then Beyoncé sang.", "sung by Beyonce"),
        ("It was Obama's idea.", "an idea of Barack Obama"),
        ("Then President Obama came.", "Barack Obama came"),
        ("It was COVID-19.", "the Covid-19 disease"),
        ("It is an F-16.", "the F16"),
        ("Dogs are not allowed.", "Dogs are forbidden."),
        ("Dogs are not allowed.", "No dogs are allowed."),
        ("Cats are allowed.", "Dogs are not allowed, cats are allowed."),
        ("It is also good.", "It is not only cheap but good."),
        ("Die Katze ist in der Schule.", "die katze, die schule"),
    ],
)
def test_what_is_the_same_is_found_however_it_is_written(sentence: str, source: str) -> None:
    """Formats of numbers, units, spellings of dates, times, short and long names, ways to deny."""
    assert lacking(sentence, source) == ()


@pytest.mark.parametrize(
    ("sentence", "source", "what"),
    [
        ("It costs 1,001 EUR.", "1000 €", "1,001"),
        ("It costs 5 EUR.", "It costs 5 $.", "5"),
        ("It is 5 km long.", "5 miles long", "5"),
        ("It takes two weeks.", "It takes two days.", "two"),
        ("It has 2 million users.", "2 users", "2"),
        ("It opens at 6 pm.", "opens at 6 am", "6 pm."),
        ("It was on 4 May 2024.", "on 3 May 2024", "4 May 2024"),
        ("It was on 3 May 2023.", "on 3 May 2024", "3 May 2023"),
        ("It was on 3 June 2024.", "on 3 May 2024", "3 June 2024"),
        ("It was on 3 May 2024.", "in May 2024", "3 May 2024"),
        ("It is the fourth of them.", "the third", "fourth"),
        ("It was found by Marie Curie.", "found by Pierre Curie", "Marie Curie"),
        ("Marie Curie found it.", "found by Pierre Curie", "Marie Curie"),
        ("It is in Austria.", "It is in Australia.", "Austria"),
        ("The WHO met.", "The UN met.", "WHO"),
        ("It is an F-15.", "the F-16", "f15"),
        ("In October it rained.", "2024-09-03", "October"),
        ("It lasted from 541 to 541.", "from 541 to 700", "541"),
        ("Dogs are not allowed.", "Dogs are allowed.", "not"),
        ("Dogs are allowed.", "Dogs are not allowed.", "not"),
        ("There is a charge.", "There is no charge.", "not"),
    ],
)
def test_what_differs_is_told(sentence: str, source: str, what: str) -> None:
    """One word that must not differ, as the sentence writes it."""
    assert lacking(sentence, source) == (what,)


def test_a_sentence_begins_with_a_name_only_if_that_is_known() -> None:
    """Every sentence begins with a capital; which of them is a name, other sentences tell."""
    text = "The prize went to Becquerel. Physics was his field, and physics he taught."
    assert known_names(text) == {"becquerel"}
    assert lacking("Becquerel taught physics.", "Curie taught physics.", known_names(text)) == ("Becquerel",)
    assert lacking("Teaching was his work.", "He taught.", known_names(text)) == ()


def test_two_sources_are_one_together() -> None:
    """A row of a table has its number, the header its unit."""
    wanted = claims("The Danube is 2850 km long.")
    assert missing(wanted, supply("| 2850 |") | supply("Danube, length in km")) == ()
    assert missing(wanted, supply("| 2850 |")) == ("Danube",)


def test_every_sentence_of_the_guide_holds_what_it_claims() -> None:
    """No sentence is refused itself as a source: 700 of them, with names, numbers, commands and tables."""
    wrong = []
    for page in sorted((ROOT / "corpora" / "guide").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        known = known_names(text)
        for start, end in sentence_spans(text):
            if what := missing(claims(text[start:end], known), supply(text[start:end])):
                wrong.append((what, text[start:end]))
    assert wrong == []


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("0123456789.,-:/ €%AbMay"), max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    """Whatever a model writes."""
    missing(claims(text, known_names(text)), supply(text))


def test_a_table_of_numbers_is_read_in_proportion_to_its_length() -> None:
    """Not to the square of it: this ran to many seconds, with Python's lock held, while answers streamed."""
    text = "EUR 3, " * 4000
    before = time.process_time()
    assert missing(claims(text[:7]), supply(text)) == ()
    assert claims(text).quantities[0].unit == "€"
    assert time.process_time() - before < 5
