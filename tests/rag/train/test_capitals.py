from rag.train.capitals import Capitals

TAUGHT = Capitals(
    [
        "In May the river Danube floods Vienna. The river is wide, and NASA sees the Danube. It may be so. NASA on iOS, and iOS.",
        "People in Vienna, of NASA and of iOS, know the river. The may be of the people.",
        "all of vienna in small letters, vienna, vienna, vienna, vienna",
    ]
)


def test_words_are_written_as_within_the_sentences_of_other_texts() -> None:
    assert TAUGHT("the danube is in vienna. nasa knows. people of ios know i am.") == (
        "The Danube is in Vienna. NASA knows. People of iOS know I am."
    )


def test_what_the_question_writes_with_a_capital_has_it() -> None:
    assert TAUGHT("it was spielberg who made it.", "What did Spielberg make?") == "It was Spielberg who made it."
    assert TAUGHT("what he made.", "What did he make?") == "What he made."


def test_a_word_that_is_seldom_written_so_stays_small() -> None:
    assert TAUGHT("a may b the people") == "A may b the people"


def test_parted_numbers_are_joined() -> None:
    assert TAUGHT("it has 28. 70 square miles. then 5") == "It has 28.70 square miles. Then 5"
