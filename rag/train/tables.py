"""Made-up tables and questions about their cells, as the product writes tables into a passage: `Plan: Plus; Premium: 20`.

Their names and numbers are invented, so nothing can be known without reading them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# What the rows are, what they are called, and columns: a name, how its cells look, what follows in a sentence.
_THINGS = (
    ("plan", "Basic|Plus|Premium|Family|Student|Team|Gold|Silver|Bronze|Standard|Select|Health Plus|Core|Advanced|Starter|Enterprise"),
    ("product", "Lamp|Desk|Chair|Kettle|Toaster|Backpack|Tent|Monitor|Keyboard|Printer|Router|Camera|Speaker|Drill|Heater|Fan"),
    ("room", "Oak|Maple|Cedar|Birch|Elm|Willow|Ash|Pine|Room 101|Room 204|Room 310|Blue Room|Main Hall|Library|Studio|Annex"),
    ("course", "Biology I|Chemistry|Algebra|World History|Drawing|French|German|Statistics|Economics|Philosophy|Music Theory|Geology"),
    ("station", "Northgate|Harbour|Central|Westfield|Riverside|Hillcrest|Airport|University|Old Town|Eastbank|Parkway|Docks"),
    ("model", "A10|A20|B7|C300|X1|X5|Z9|T-40|M2|K8|R15|S90|V60|P3|Q7|L2"),
    ("city", "Arden|Belford|Corvale|Dunmore|Eastham|Fairview|Glenrock|Hartley|Inverton|Kelso|Lindale|Marwick"),
)
_COLUMNS = (
    ("Price", "${}"), ("Premium", "${} a month"), ("Deductible", "${}"), ("Weight", "{} kg"), ("Height", "{} cm"),
    ("Warranty", "{} months"), ("Capacity", "{} people"), ("Area", "{} m²"), ("Battery life", "{} hours"), ("Population", "{},000"),
    ("Opening year", "19{:02d}"), ("Delivery time", "{} days"), ("Storage", "{} GB"), ("Power", "{} W"), ("Copay", "${}"),
    ("Annual limit", "${},000"), ("Credits", "{}"), ("Manager", "name"), ("Contact", "name"), ("Instructor", "name"),
    ("Colour", "colour"), ("Floor", "{}"), ("Response time", "{} hours"),
)  # fmt: skip
_PEOPLE = (
    "Ada Novak", "Ben Ortiz", "Carla Jung", "Deniz Kaya", "Emil Berg", "Fay Osei", "Gus Lindt", "Hana Sato", "Ivo Marin", "Jo Adler",
    "Kim Doyle", "Lea Roth",
)  # fmt: skip
_COLOURS = ("black", "white", "red", "green", "blue", "grey", "silver", "brown", "yellow", "orange")


@dataclass(frozen=True, slots=True)
class Cell:
    """A table as text, a question about one cell, and its answer as a sentence; an empty answer: the table does not say."""

    table: str
    question: str
    answer: str


def cell(rng: random.Random, *, answered: bool) -> Cell:
    """A table of 3 to 8 rows and 2 to 4 columns, and a question for one of its cells; unanswered, for a row or column it has not."""
    kind, called = rng.choice(_THINGS)
    rows = rng.sample(called.split("|"), rng.randint(4, 9))
    columns = rng.sample(_COLUMNS, rng.randint(3, 5))
    absent_row, absent_column = rows.pop(), columns.pop()[0]
    values = {row: {name: _value(rng, form) for name, form in columns} for row in rows}
    lines = ["; ".join([f"{kind.capitalize()}: {row}", *(f"{name}: {value}" for name, value in values[row].items())]) for row in rows]
    row, column = rng.choice(rows), rng.choice(columns)[0]
    value = values[row][column]
    if not answered:
        row, column = (absent_row, column) if rng.random() < 0.5 else (row, absent_column)
    named = row if kind == "city" or row.startswith("Room") else rng.choice((f"the {row} {kind}", f"the {kind} {row}"))
    label = column.lower()
    forms = ("What is the {} of {}?", "What is the {} for {}?", "{} of {}", "Which {} does {} have?")
    question = rng.choice(forms).format(label, named)
    heading = rng.choice(("", "", f"## {kind.capitalize()}s\n\n", f"{kind.capitalize()}s compared\n\n"))
    return Cell(heading + "\n".join(lines), question, f"The {label} of {named} is {value}." if answered else "")


def _value(rng: random.Random, form: str) -> str:
    if form == "name":
        return rng.choice(_PEOPLE)
    if form == "colour":
        return rng.choice(_COLOURS)
    return form.format(rng.randint(1, 99) if "," in form or ":" in form else rng.choice((rng.randint(1, 40), rng.randint(10, 900))))
