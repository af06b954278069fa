"""What generated texts say, and whether that is the right answer."""

from __future__ import annotations

import pytest

from roma_ds.data.sample import Sample
from roma_ds.evaluation.answers import plain, read_answer
from roma_ds.evaluation.reading.option_letters import option_letter
from roma_ds.evaluation.reading.stated_numbers import final_number

LETTERS = (" A", " B", " C", " D")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" C", "C"),
        (" C.", "C"),
        ("(B)", "B"),
        ("**D**\n", "D"),
        (" B because oxygen burns", "B"),
        ("A: oxygen", "A"),
        (" Let me think. It could be B, since plants breathe. The answer is C.", "C"),
        ("First I thought the answer is A. But no: the answer is (D)", "D"),
        ("B looks right at first.\nFinal answer: A", "A"),
        ("Answer: **B**", "B"),
        ("I would take option C here", "C"),
        ("A dog barks", None),
        ("I think so", None),
        ("The answer is E", None),
        ("Carbon dioxide", None),
        ("", None),
    ],
)
def test_the_letter_that_a_text_settles_on(text: str, letter: str | None) -> None:
    assert option_letter(text, 4) == ("ABCD".index(letter) if letter else -1)


def test_letters_beyond_the_options_do_not_count() -> None:
    assert option_letter("The answer is C", 2) == -1
    assert option_letter("The answer is E", 5) == 4


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 16 - 3 = 13, so 13 * 2 = 26.\n#### 26", "26"),
        ("#### 1,234 apples\n\nQuestion: 5 and 6?", "1234"),
        ("It is 3 then 18.", "18"),
        ("costs $2.50.", "2.5"),
        ("16-3", "3"),
        ("It is -3", "-3"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_number_that_a_solution_ends_in(text: str, number: str | None) -> None:
    found = final_number(text)
    assert (None if found is None else str(found)) == number


def test_numbers_are_compared_by_value() -> None:
    sample = Sample("id", "gsm8k", "test", "p", "q", (), -1, " 1,800", ())
    for text, right in ((" so $1800.00", True), ("#### 1800\n9", True), ("1801", False), ("many", False)):
        assert read_answer(sample, text).correct is right
    assert read_answer(sample, " so $1800.00").extracted == "1800"


def test_a_wrong_letter_after_thinking_aloud_is_wrong_and_the_right_one_right() -> None:
    sample = Sample("id", "t", "test", "p", "q", ("a", "b", "c", "d"), 2, " C", LETTERS)
    wrong = read_answer(sample, " C is tempting, for it burns. Still, the answer is B.")
    assert (wrong.predicted, wrong.extracted, wrong.correct) == (1, "B", False)
    right = read_answer(sample, " Both A and B are tempting. The answer is C.")
    assert (right.predicted, right.correct) == (2, True)
    none = read_answer(sample, " It is hard to say")
    assert (none.predicted, none.extracted, none.correct) == (-1, "", False)


def test_options_by_text_and_free_texts() -> None:
    options = (" carbon", " carbon dioxide")
    sample = Sample("id", "t", "test", "p", "q", ("carbon", "carbon dioxide"), 1, options[1], options)
    assert read_answer(sample, " Carbon dioxide, of course").correct
    assert not read_answer(sample, " carbon monoxide").correct
    free = Sample("id", "t", "test", "p", "q", (), -1, " the Nile", ())
    assert read_answer(free, " Nile.\nIt is long").correct
    assert not read_answer(free, " Rhine").correct and not read_answer(free, "").correct
    assert plain("The  Nile, a River!") == "nile river"


def test_a_list_of_numbers_is_an_answer_that_ran_on() -> None:
    from roma_ds.evaluation.answers import _option

    assert [_option(text, ["9", "6", "9500"]) for text in ("9 6", "6 , 9", "9 500")] == [0, 1, 2]
