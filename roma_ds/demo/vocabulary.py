"""The word-level vocabulary of the demo suite and its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roma_ds.demo.phrasings import FRAMES, KNOWN_CUES, RARE_CUES
from roma_ds.demo.skills import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "<eos>")
SCAFFOLD = ("Question", "Options", "Answer", ":", ",", ".", "?")


def words() -> list[str]:
    """Every word that a prompt or an answer can hold, sorted; special tokens not included."""
    found = set(SCAFFOLD)
    texts = [frame for frames in FRAMES.values() for frame in frames]
    texts += [cue for cues in (KNOWN_CUES, RARE_CUES) for group in cues.values() for cue in group]
    for text in texts:
        found.update(word for word in text.split() if not word.startswith("{"))
    for items in FAMILIES.values():
        for item in items:
            found.update(item.slots.values())
            found.update(item.answers.values())
    return sorted(found)


def cue_words() -> set[str]:
    """Words that tell skills apart: those in the cues of at most a quarter of the skills."""
    skills: dict[str, set[str]] = {}
    for cues in (KNOWN_CUES, RARE_CUES):
        for skill, texts in cues.items():
            for word in " ".join(texts).split():
                skills.setdefault(word, set()).add(skill)
    few = len(KNOWN_CUES) // 4
    return {word for word, users in skills.items() if len(users) <= few and word.isalpha()}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, split at white space; padding goes on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
