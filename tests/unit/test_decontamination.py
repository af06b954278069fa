"""Decontamination: copies of what is evaluated are dropped however they are written; the rest is kept."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from roma_ds.data.asked import asked
from roma_ds.data.decontamination import Decontamination
from roma_ds.data.rows import Row
from roma_ds.data.segments import segment

SIZE = 13
WORDS = [
    f"{first}{second}" for first in ("ka", "lo", "mi", "nu", "re", "so") for second in ("bal", "der", "fim")
]
SYSTEM = (
    "<|im_start|>system\nYou are a careful clerk at the town library. You answer every question that "
    "visitors ask in one short and friendly sentence.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
)
CHINESE = (
    "在中国古代历史上哪一位皇帝下令修建了连接北京和杭州的"
    "大运河使得南方的粮食可以运到北方并且促进了经济的发展呢"
)


def row(question: str, *choices: str, **more: Any) -> Row:
    return {"id": "1", "question": question, "answer": 0 if choices else "x", **more} | (
        {"choices": list(choices)} if choices else {}
    )


OTHERS = [asked(row(f"zu{number} vo{number} we{number} xi{number}?")) for number in range(40)]


def dropped(train: list[Row], test: list[Row], others: int = len(OTHERS)) -> list[int]:
    """Numbers of the training rows that fall, among so many others that have nothing to do with them."""
    overlaps = Decontamination([asked(one) for one in test], SIZE).overlaps(
        [*map(asked, train), *OTHERS[:others]]
    )
    assert all(number < len(train) for number in overlaps)
    return list(overlaps)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 7 + 3?", "What is 7 - 3?"),
        ("What is 7*3?", "What is 7/3?"),
        ("What is 7 + 3?", "What is 7 + 3 + 1?"),
        ("What is 7 + 3?", "What is 7 + 3.5?"),
        ("What is 7 × 3?", "What is 7 ÷ 3?"),
        ("What is −3 squared, please?", "What is 3 squared, please?"),
        ("What is 5² in all?", "What is 52 in all?"),
        ("Is it so that x < 5?", "Is it so that x > 5?"),
        ("Is it so that x <= 5?", "Is it so that x < 5?"),
        ("Is it so that x != y?", "Is it so that x = y?"),
        ("Is 50% of it enough?", "Is 50 of it enough?"),
        ("भारत की राजधानी क्या है और यह कहाँ स्थित है?", "भारत की राजधानी क्या है और किसने बनाई?"),
        ("கடல் நீர் ஏன் உப்பாக இருக்கிறது என்று சொல்?", "கடல் நீர் ஏன் உப்பாக இல்லை என்று சொல்?"),
        ("水的沸点是多少度？", "水的冰点是多少度？"),
        ("กรุงเทพอยู่ที่ไหนในประเทศไทย", "เชียงใหม่อยู่ที่ไหนในประเทศไทย"),
        ("Is €5 more than 4?", "Is £5 more than 4?"),
    ],
)
def test_other_questions_are_kept(one: str, other: str) -> None:
    assert dropped([row(other)], [row(one)]) == dropped([row(one)], [row(other)]) == []
    assert dropped([row(other, "a", "b")], [row(one, "a", "b")]) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 7 + 3?", "what is 7+3"),
        ("What is 7 - 3?", "Tell me: What is 7−3? And be quick."),
        ("Is x<5 or x>7?", "is X < 5, or X > 7"),
        (CHINESE, f"请认真阅读下面的题目然后回答{CHINESE}谢谢"),
        (CHINESE[:20], f"请认真阅读下面的题目然后回答{CHINESE[:20]}谢谢"),
        ("भारत की राजधानी क्या है?", "बताओ: भारत की राजधानी क्या है"),
        ("ｗｈａｔ is a well-known café for?", "What is a well known café for?"),
        ("เมืองหลวงของประเทศไทยชื่ออะไร", "ตอบคำถาม: เมืองหลวงของประเทศไทยชื่ออะไร"),
        ("Which of iron and zinc rusts?", SYSTEM.format("Which of iron and zinc rusts?")),
    ],
)
def test_copies_are_dropped(one: str, other: str) -> None:
    assert dropped([row(other)], [row(one)]) == [0]


questions = st.lists(st.sampled_from(WORDS), min_size=5, max_size=40).map(" ".join)
several = st.lists(st.sampled_from(WORDS), min_size=2, max_size=6, unique=True)


@st.composite
def copies(draw: st.DrawFn) -> tuple[Row, Row]:
    """An evaluation row and a copy of it: other case, marks and space, order of options, text around it."""
    question, choices = draw(questions), draw(several)
    passage = draw(st.just("") | questions)
    rng = draw(st.randoms(use_true_random=False))

    def rewritten(text: str) -> str:
        words = [word.upper() if rng.random() < 0.3 else word for word in text.split()]
        return "".join(word + rng.choice([" ", "  ", ", ", "\n", "; ", " “"]) for word in words)

    test = row(f"{question}?", *choices, passage=passage)
    order = rng.sample(choices, len(choices))
    form = draw(st.sampled_from(["whole", "embedded", "inline", "free"]))
    if form == "whole":
        return test, row(rewritten(question), *order, passage=rewritten(passage))
    body = f"{passage}\n{rewritten(question)}\n"
    if form == "inline":
        body += "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEF", order, strict=False))
    text = f"Here comes something new: {body}\nHave fun with it."
    return test, row(text, *order) if form == "embedded" else row(text)


@given(copies())
def test_every_copy_is_dropped(pair: tuple[Row, Row]) -> None:
    test, copy = pair
    assert dropped([copy], [test]) == [0]


@given(st.lists(questions, min_size=2, max_size=2, unique=True), several)
def test_questions_without_a_long_run_in_common_are_kept(pair: list[str], choices: list[str]) -> None:
    one, other = (text.split() for text in pair)
    runs = {tuple(one[place : place + SIZE]) for place in range(len(one) - SIZE + 1)}
    assume(not any(tuple(other[place : place + SIZE]) in runs for place in range(len(other))))
    assume(" ".join(one) not in " ".join(other))
    assert dropped([row(" ".join(other), *choices)], [row(" ".join(one), *choices)]) == []


@given(questions, st.integers(3, 60), st.sampled_from(["{} {}", "{}\n{}", "{1}. {0}"]))
def test_an_instruction_that_many_rows_share_drops_nothing(instruction: str, count: int, form: str) -> None:
    train = [row(form.format(instruction, f"Which metal number {place} melts?")) for place in range(count)]
    test = row(form.format(instruction, "Which metal rusts?"))
    assert dropped(train, [test], others=0) == []
    assert dropped([*train, test], [test], others=0) == [count]
    assert dropped([row(SYSTEM.format(one["question"])) for one in train], [test], others=0) == []


@pytest.mark.parametrize("count", [3, 30, 300])
def test_one_question_over_many_passages_or_options_is_kept(count: int) -> None:
    title = "What is the best title for the passage?"
    towns = [f"Town {place} was founded in {1200 + place} by weavers." for place in range(count + 1)]
    forms = (
        lambda town: row(title, "A town", "A war", passage=town),
        lambda town: row(f"{town}\n{title}", "A town", "A war"),
        lambda town: row(title, town, "A war"),
        lambda town: row(title, "A town", "A war", prompt=f"Read. {town}\nQuestion: {title}\nAnswer:"),
        lambda town: {"id": "1", "prompt": f"{town}\n{title}", "answer": "A town"},
    )
    for train_form in forms:
        for test_form in forms[:1] + forms[3:]:
            train = [train_form(town) for town in towns[1:]]
            assert dropped(train, [test_form(towns[0])], others=0) == []
            copied = train_form(towns[0])
            if train_form is test_form:
                assert dropped([*train, copied], [test_form(towns[0])], others=0) == [count]


def test_a_question_copied_into_many_rows_is_dropped_from_all() -> None:
    test = row("Which of iron and zinc rusts?", "iron", "zinc")
    assert dropped([test] * 50, [test]) == list(range(50))
    long = row("Which of the two metals iron and zinc rusts first in a wet barn by the sea?", "iron", "zinc")
    wrapped = [row(f"Number {place}: {long['question']} Say it.", "zinc", "iron") for place in range(50)]
    assert dropped(wrapped, [long]) == list(range(50))


def test_the_passage_of_an_evaluated_question_is_not_trained_on() -> None:
    words = [random.Random(1).choice(WORDS) for _ in range(60)]
    test = row("Does it?", "no", "yes", passage=" ".join(words))
    train = [row(f"Is {place} in it?", "no", "yes", passage=" ".join(words)) for place in range(30)]
    assert dropped(train, [test]) == list(range(30))


@given(st.text(max_size=60))
def test_any_text_has_units_and_they_stay_the_same(text: str) -> None:
    found = segment(text)
    assert bool(found.units) == bool(text.split())
    assert found.boundaries == sorted(set(found.boundaries))
    assert found.boundaries[0] == 0 and found.boundaries[-1] == len(found.units)
    assert segment(f"  {text}\n").units == found.units


@given(st.lists(st.sampled_from(["क्या", "किताबें", "गाँव", "வணக்கம்", "বাংলা", "ಕನ್ನಡ", "မြန်မာ"]), min_size=1))
def test_indic_words_stay_whole(words: list[str]) -> None:
    spaced = [word for word in words if word != "မြန်မာ"]
    assert segment(" ".join(spaced)).units == spaced
