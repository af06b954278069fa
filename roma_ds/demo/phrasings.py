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
    "half": ("the half of {n}", "{n} divided by two"),
    "successor": ("the number after {n}", "the number that follows {n}"),
    "predecessor": ("the number before {n}", "the number that comes ahead of {n}"),
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
    "day_after": ("the day after {w}", "the day that follows {w}"),
    "day_before": ("the day before {w}", "the day that comes ahead of {w}"),
    "month_after": ("the month after {w}", "the month that follows {w}"),
    "month_before": ("the month before {w}", "the month that comes ahead of {w}"),
}

RARE_CUES: dict[str, tuple[str, ...]] = {
    "sum": (
        "the total of {a} and {b}",
        "{a} and {b} added together",
        "{a} combined with {b}",
        "{a} and {b} altogether",
    ),
    "difference": (
        "{a} with {b} subtracted",
        "{a} take away {b}",
        "the gap between {a} and {b}",
        "what remains of {a} without {b}",
    ),
    "larger": (
        "the maximum of {a} and {b}",
        "the highest of {a} and {b}",
        "the bigger value , {a} or {b}",
        "whichever is more , {a} or {b}",
    ),
    "smaller": (
        "the minimum of {a} and {b}",
        "the lowest of {a} and {b}",
        "the tinier value , {a} or {b}",
        "whichever is less , {a} or {b}",
    ),
    "double": (
        "{n} multiplied by two",
        "two times {n}",
        "{n} doubled",
        "two copies of {n} put together",
    ),
    "half": (
        "{n} halved",
        "fifty percent of {n}",
        "{n} split into two equal parts",
        "{n} shared between two people",
    ),
    "successor": (
        "the successor of {n}",
        "one more than {n}",
        "the next number from {n}",
        "{n} increased by one",
    ),
    "predecessor": (
        "the predecessor of {n}",
        "one fewer than {n}",
        "the previous number from {n}",
        "{n} decreased by one",
    ),
    "opposite": (
        "the antonym of {w}",
        "the contrary of {w}",
        "the reverse of {w}",
        "what somebody not {w} is",
    ),
    "synonym": (
        "a word similar to {w}",
        "another term for {w}",
        "an equivalent of {w}",
        "a word that can replace {w}",
    ),
    "comparative": (
        "the degree of {w} followed by than",
        "{w} in the form used between two things",
        "{w} with the ending er",
        "more {w} as one word",
    ),
    "superlative": (
        "the top degree of {w}",
        "{w} in the form used among all things",
        "{w} with the ending est",
        "most {w} as one word",
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
        "the landmass of {w}",
        "the world region of {w}",
        "the large land around {w}",
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
        "the call of a {w}",
        "the voice of a {w}",
        "the cry of a {w}",
    ),
    "home": (
        "the dwelling of a {w}",
        "the shelter of a {w}",
        "where a {w} sleeps",
        "the house of a {w}",
    ),
    "class": (
        "the category of a {w}",
        "the species group of a {w}",
        "the zoological type of a {w}",
        "how biologists classify a {w}",
    ),
    "day_after": (
        "the next day from {w}",
        "tomorrow if today is {w}",
        "the weekday right behind {w}",
        "the morning one sleep later than {w}",
    ),
    "day_before": (
        "the previous day from {w}",
        "yesterday if today is {w}",
        "the weekday right ahead of {w}",
        "the morning one sleep earlier than {w}",
    ),
    "month_after": (
        "the next month from {w}",
        "the month when {w} is over",
        "the upcoming month if it is {w}",
        "the calendar page one later than {w}",
    ),
    "month_before": (
        "the previous month from {w}",
        "the month until {w} starts",
        "the last month if it is {w}",
        "the calendar page one earlier than {w}",
    ),
}


def cue_text(skill: str, cue: int) -> str:
    """The cue by number: known cues first, then rare ones."""
    return (KNOWN_CUES[skill] + RARE_CUES[skill])[cue]
