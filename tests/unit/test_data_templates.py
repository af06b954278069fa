"""Prompts and answers, letter by letter."""

from __future__ import annotations

from roma_ds.data.shapes.checks import MOST_CHOICES
from roma_ds.data.templates import letters, preview, render

ROW = {"id": "7", "question": " Which is red? ", "choices": [" sky", "blood "], "answer": 1}


def test_letter_answers() -> None:
    sample = render(ROW, "letter", "colours", "train")
    assert sample.prompt == "Which is red?\nA. sky\nB. blood\nAnswer:"
    assert (sample.target, sample.options, sample.answer) == (" B", (" A", " B"), 1)
    assert (sample.id, sample.task, sample.split) == ("colours/train/7", "colours", "train")
    assert (sample.question, sample.choices) == ("Which is red?", ("sky", "blood"))


def test_text_answers() -> None:
    sample = render(ROW, "text", "colours", "train")
    assert sample.prompt == "Question: Which is red?\nAnswer:"
    assert (sample.target, sample.options, sample.answer) == (" blood", (" sky", " blood"), 1)


def test_a_passage_comes_first() -> None:
    row = {**ROW, "passage": "Blood is red.\n"}
    assert render(row, "letter", "t", "s").prompt.startswith("Blood is red.\nWhich is red?\nA. sky\n")
    assert render(row, "text", "t", "s").prompt == "Blood is red.\nQuestion: Which is red?\nAnswer:"
    assert render(row, "text", "t", "s").passage == "Blood is red."
    assert render({**ROW, "passage": None}, "text", "t", "s").passage == ""


def test_prompts_are_taken_verbatim() -> None:
    prompt = "  Pick :  \n\n a or b ?  "
    sample = render({"id": "1", "prompt": prompt, "answer": "a "}, "letter", "t", "s")
    assert (sample.prompt, sample.question) == (prompt, prompt)
    assert (sample.target, sample.options, sample.answer) == (" a ", (), -1)
    row = {"id": "1", "prompt": prompt, "question": "a or b", "choices": ["a", "b"], "answer": 0}
    sample = render(row, "letter", "t", "s")
    assert (sample.prompt, sample.question) == (prompt, "a or b")
    assert (sample.target, sample.options) == (" a", (" a", " b"))


def test_free_text_answers_stay_texts_whatever_the_form() -> None:
    for form in ("letter", "text"):
        sample = render({"id": "1", "question": "6 x 12?", "answer": "72"}, form, "t", "s")
        assert sample.prompt == "Question: 6 x 12?\nAnswer:"
        assert (sample.target, sample.options, sample.choices, sample.answer) == (" 72", (), (), -1)


def test_there_is_a_letter_for_every_choice() -> None:
    assert letters(MOST_CHOICES)[-1] == " Z"
    assert len(set(letters(MOST_CHOICES))) == MOST_CHOICES


def test_the_preview_marks_where_the_answer_stands() -> None:
    samples = [render({**ROW, "id": str(place)}, "letter", "t", "s") for place in range(3)]
    text = preview(samples, 2)
    assert text.count("Answer:<< B>>") == 2
    assert "t/s/1: the answer, one of 2 options, stands between << and >>" in text
    assert preview([], 2) == ""
