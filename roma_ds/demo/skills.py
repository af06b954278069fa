"""The skills of the demo suite: what a question is about, and what its right answer is.

Skills come in families that share their content. "7 and 5" may be asked for the sum, the difference, the
larger or the smaller, and the answers of the sibling skills are offered as options, so a model that applies
the wrong skill gives a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

ADJECTIVES = """
big small large bigger biggest
fast slow quick faster fastest
happy sad glad happier happiest
cold hot chilly colder coldest
hard soft firm harder hardest
rich poor wealthy richer richest
brave cowardly bold braver bravest
loud quiet noisy louder loudest
clever stupid smart cleverer cleverest
clean dirty tidy cleaner cleanest
thin thick slim thinner thinnest
angry calm mad angrier angriest
strong weak mighty stronger strongest
easy difficult simple easier easiest
"""
"""word, opposite, synonym, comparative, superlative"""

COUNTRIES = """
france paris french europe euro
japan tokyo japanese asia yen
brazil brasilia portuguese america real
russia moscow russian europe ruble
china beijing chinese asia yuan
india delhi hindi asia rupee
sweden stockholm swedish europe krona
poland warsaw polish europe zloty
peru lima spanish america sol
thailand bangkok thai asia baht
israel jerusalem hebrew asia shekel
kenya nairobi swahili africa shilling
egypt cairo arabic africa pound
nigeria abuja english africa naira
"""
"""country, capital, language, continent, currency"""

ANIMALS = """
dog puppy bark kennel mammal
cow calf moo barn mammal
pig piglet oink sty mammal
sheep lamb bleat fold mammal
horse foal neigh stable mammal
lion cub roar den mammal
duck duckling quack pond bird
owl owlet hoot tree bird
hen chick cluck coop bird
eagle eaglet screech eyrie bird
bee larva buzz hive insect
cricket nymph chirp burrow insect
frog tadpole croak swamp amphibian
snake snakelet hiss hole reptile
"""
"""animal, young, sound, home, class"""


@dataclass(frozen=True)
class Item:
    """One thing to ask about: what fills a phrasing, and the right answer of every skill of the family."""

    slots: dict[str, str]
    answers: dict[str, str]


def _pairs() -> Iterator[Item]:
    for high in range(3, 17):
        for low in range(1, high):
            answers = {
                "sum": high + low,
                "difference": high - low,
                "larger": high,
                "smaller": low,
            }
            if len(set(answers.values())) == len(answers):
                yield Item({"a": str(high), "b": str(low)}, {k: str(v) for k, v in answers.items()})


def _numbers() -> Iterator[Item]:
    for number in range(6, 42, 2):
        answers = {
            "double": 2 * number,
            "triple": 3 * number,
            "half": number // 2,
        }
        yield Item({"n": str(number)}, {k: str(v) for k, v in answers.items()})


def _table(text: str, skills: tuple[str, ...]) -> Iterator[Item]:
    for line in text.strip().splitlines():
        word, *answers = line.split()
        yield Item({"w": word}, dict(zip(skills, answers, strict=True)))


_SOURCES: dict[str, Callable[[], Iterator[Item]]] = {
    "pair": _pairs,
    "number": _numbers,
    "adjective": lambda: _table(ADJECTIVES, ("opposite", "synonym", "comparative", "superlative")),
    "country": lambda: _table(COUNTRIES, ("capital", "language", "continent", "currency")),
    "animal": lambda: _table(ANIMALS, ("young", "sound", "home", "class")),
}

FAMILIES: dict[str, tuple[Item, ...]] = {name: tuple(source()) for name, source in _SOURCES.items()}
"""family -> its items"""

SKILLS: dict[str, str] = {skill: family for family, items in FAMILIES.items() for skill in items[0].answers}
"""skill -> its family, in a fixed order"""
