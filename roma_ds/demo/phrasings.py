"""How a skill may be asked for: a cue (the words that say which skill) inside a frame (the rest).

Three groups of phrasings come out of it:

known       known cues in known frames: what the routers saw in base training
rare        rare cues in `train` frames: in the router-training split, beside known ones
held out    rare cues in `validation` or `test` frames: never in router training

Rare cues are shared between router training and the held-out groups; frames are not.
"""

from __future__ import annotations

FRAMES: dict[str, tuple[str, ...]] = {
    "known": (
        "what is {cue} ?",
        "tell me {cue} .",
        "name {cue} .",
    ),
    "train": (
        "please work out {cue} .",
        "can you say {cue} ?",
        "i want to know {cue} .",
        "give {cue} .",
    ),
    "validation": (
        "do you know {cue} ?",
        "we are looking for {cue} .",
        "state {cue} , please .",
    ),
    "test": (
        "your task is to find {cue} .",
        "could anyone tell us {cue} ?",
        "a pupil asks for {cue} .",
        "choose {cue} from the list .",
    ),
}

KNOWN_CUES: dict[str, tuple[str, ...]] = {
    "sum": ("the sum of {a} and {b}", "{a} plus {b}"),
    "difference": ("the difference of {a} and {b}", "{a} minus {b}"),
    "larger": ("the larger of {a} and {b}", "the greater number , {a} or {b}"),
    "smaller": ("the smaller of {a} and {b}", "the lesser number , {a} or {b}"),
    "double": ("the double of {n}", "twice the number {n}"),
    "triple": ("the triple of {n}", "thrice the number {n}"),
    "half": ("the half of {n}", "{n} divided by two"),
    "opposite": ("the opposite of {w}", "the opposite word to {w}"),
    "synonym": ("a synonym of {w}", "a word with the same meaning as {w}"),
    "comparative": ("the comparative of {w}", "the comparative form of the adjective {w}"),
    "superlative": ("the superlative of {w}", "the superlative form of the adjective {w}"),
    "capital": ("the capital of {w}", "the capital city of {w}"),
    "language": ("the language of {w}", "the language spoken in {w}"),
    "continent": ("the continent of {w}", "the continent where {w} lies"),
    "currency": ("the currency of {w}", "the money used in {w}"),
    "young": ("the young of a {w}", "the word for a baby {w}"),
    "sound": ("the sound of a {w}", "the sound that a {w} makes"),
    "home": ("the home of a {w}", "the place where a {w} lives"),
    "class": ("the class of a {w}", "the kind of animal that a {w} is"),
}

RARE_CUES: dict[str, tuple[str, ...]] = {
    "sum": (
        "the total of {a} and {b}",
        "the addition of {a} and {b}",
        "{a} added to {b}",
        "{a} and {b} summed up",
    ),
    "difference": (
        "{a} with {b} subtracted",
        "the subtraction of {b} from {a}",
        "{a} take away {b}",
        "the subtraction of {a} and {b}",
    ),
    "larger": (
        "the maximum of {a} and {b}",
        "the highest of {a} and {b}",
        "the bigger value , {a} or {b}",
        "the upper number among {a} and {b}",
    ),
    "smaller": (
        "the minimum of {a} and {b}",
        "the lowest of {a} and {b}",
        "the tinier value , {a} or {b}",
        "the least number among {a} and {b}",
    ),
    "double": (
        "the doubled value of {n}",
        "two times {n}",
        "the doubling of {n}",
        "{n} doubled",
    ),
    "triple": (
        "{n} multiplied by three",
        "three times {n}",
        "the tripling of {n}",
        "{n} tripled",
    ),
    "half": (
        "{n} halved",
        "fifty percent of {n}",
        "{n} cut into two halves",
        "the division of {n} by two",
    ),
    "opposite": (
        "the antonym of {w}",
        "the contrary of {w}",
        "the reverse of {w}",
        "the opposing word to {w}",
    ),
    "synonym": (
        "a word similar to {w}",
        "a term equivalent to {w}",
        "a word that can replace {w}",
        "an alternative word for {w}",
    ),
    "comparative": (
        "the comparison form of {w}",
        "the compared form of {w}",
        "the comparing degree of {w}",
        "the grammar form of {w} that compares",
    ),
    "superlative": (
        "the most superlative form of {w}",
        "the most extreme form of {w}",
        "the superlative degree of {w}",
        "the maximal form of the adjective {w}",
    ),
    "capital": (
        "the seat of government in {w}",
        "the chief city of {w}",
        "where the parliament of {w} sits",
        "the main metropolis of {w}",
    ),
    "language": (
        "the native tongue of {w}",
        "what people in {w} speak",
        "the official speech in {w}",
        "what they talk in {w}",
    ),
    "continent": (
        "the part of the world that holds {w}",
        "the continental region of {w}",
        "the world region of {w}",
        "the continental landmass of {w}",
    ),
    "currency": (
        "the cash paid in {w}",
        "the coin of {w}",
        "the banknote of {w}",
        "what shoppers pay with in {w}",
    ),
    "young": (
        "the offspring of a {w}",
        "the newborn of a {w}",
        "the little child of a {w}",
        "the infant of a {w}",
    ),
    "sound": (
        "the noise of a {w}",
        "the vocal call of a {w}",
        "the voice of a {w}",
        "the vocal noise from a {w}",
    ),
    "home": (
        "the dwelling place of a {w}",
        "the shelter of a {w}",
        "where a {w} sleeps",
        "the habitat of a {w}",
    ),
    "class": (
        "the category of a {w}",
        "the species group of a {w}",
        "the zoological type of a {w}",
        "how biologists classify a {w}",
    ),
}


def cue_text(skill: str, cue: int) -> str:
    """The cue by number: known cues first, then rare ones."""
    return (KNOWN_CUES[skill] + RARE_CUES[skill])[cue]
