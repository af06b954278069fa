"""Numbers, formulas and names that generated texts say, text by text."""

from __future__ import annotations

import pytest
from number_texts import NUMBERS
from read_texts import by_letter, by_reference, by_text

from roma_ds.evaluation.answers import Answer
from roma_ds.evaluation.reading import expressions

OTHER_NUMBERS = [
    ("100", "1000"),
    ("1000", "100"),
    ("9500", "95"),
    ("9.5", "95"),
    ("50%", "5%"),
    ("50%", "5000%"),
    ("3/4", "3"),
    ("3/4", "4"),
    ("3", "3/4"),
    ("-3", "3"),
    ("3", "-3"),
    ("12", "The answer is not 12."),
    ("12", "13 (not 12)"),
    ("1000000", "1000001"),
    ("0.3", "0.31"),
    ("12", "no number"),
    ("12", ""),
    ("12", "<think>12"),
    ("12", "1.2"),
    ("2", "x_2"),
    ("2", "5 m²"),
    ("2", "H2"),
    ("3", "2\\boxed{\\sqrt{3}}"),
    ("3", "\\boxed{2\\sqrt{3}}"),
    ("18 dollars", "19 dollars"),
    ("1.5", "15"),
    ("34", "(3,4)"),
]

FREE = [
    ("the Nile", "Nile.\nIt is long"),
    ("the Nile", "The answer is the Nile."),
    ("the Nile", "**Nile**"),
    ("the Nile", "<think>x</think>\n\nThe Nile"),
    ("the Nile", "\\boxed{\\text{Nile}}"),
    ("x^2+1", "\\boxed{1+x^2}"),
    ("\\sqrt{2}/2", "\\boxed{\\frac{1}{\\sqrt{2}}}"),
    ("(3,4)", "The answer is (3, 4)."),
    ("\\frac{\\pi}{2}", "$\\frac{\\pi}{2}$"),
    ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
    ("[0,1)", "\\boxed{[0,1)}"),
    ("2\\sqrt{3}", "$2\\sqrt3$"),
    ("George Washington", "Answer: George Washington"),
    ("3 blind mice", "3 blind mice"),
    ("7 Years War", "7 Years War"),
    ("x=2", "x = 2"),
    ("10:30", "10:30"),
]

OTHER_FREE = [
    ("the Nile", "Rhine"),
    ("the Nile", ""),
    ("the Nile", "The answer is not the Nile."),
    ("x^2+1", "\\boxed{x^2-1}"),
    ("2\\sqrt{3}", "3"),
    ("(3,4)", "(4,3)"),
]


def test_numbers() -> None:
    wrong = [
        (reference, text)
        for reference, texts in NUMBERS.items()
        for said in texts
        for text in (said, f" {said}")
        if not by_reference(text, reference).correct
    ]
    assert not wrong
    assert not [pair for pair in OTHER_NUMBERS if by_reference(pair[1], pair[0]).correct]


def test_formulas_and_names() -> None:
    assert not [pair for pair in FREE if not by_reference(pair[1], pair[0]).correct]
    assert not [pair for pair in OTHER_FREE if by_reference(pair[1], pair[0]).correct]


def test_what_cannot_be_read_extracts_nothing() -> None:
    assert by_letter("Well ...") == by_text("Well ...", ("no", "yes")) == Answer(-1, "", False)
    assert by_reference("Well ...", "12") == by_reference(" ", "the Nile") == Answer(-1, "", False)
    assert by_reference("#### 1,800.50", "3").extracted == "1800.5"
    assert by_reference("\\frac{1}{3} or 25%?", "3").extracted == "1/3"


def test_a_formula_that_takes_too_long_is_given_up_and_the_next_one_asked() -> None:
    assert expressions.same_expression("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expressions, "_SECONDS", 0.0)
        assert not expressions.same_expression("x^2", "x \\cdot x")
    assert expressions.same_expression("x^3", "x \\cdot x^2")
