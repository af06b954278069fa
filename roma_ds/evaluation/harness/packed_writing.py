"""Texts for the harness by packed trees: what prompts share is run once, and an answer that ends leaves.

A text ends as in the harness's own class for an answer that is alone in its batch. There, several in one
batch go on until the last of them ends; what stands behind the first stop sequence is cut off either way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from roma_ds.network.rotary import switching_length
from roma_ds.network.routed import RoutedLM
from roma_ds.planner.host_memory import available_bytes
from roma_ds.prefix.feed import FILLER
from roma_ds.sequences.prompt_batches import Room, in_prompt_batches
from roma_ds.writing.generation import new_tokens
from roma_ds.writing.tree_decoding import TreeSteps

MOST_RUN = 8192
"""Distinct tokens of the prompts of a batch, or those of one prompt."""
MOST_ANSWERS = 128
KEPT_SHARE = 0.25
"""Of the memory that is free, for keys and values."""
GREEDY = {"until", "max_gen_toks", "do_sample", "temperature"}
"""Settings of a request that are followed here."""
WITHOUT_EFFECT = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "use_cache", "_from_model_config", "renormalize_logits", "top_h"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "length_penalty"),
    *("return_dict_in_generate", "early_stopping", "cache_implementation", "disable_compile"),
}
"""Settings of a model's generation config that change nothing where the likeliest token is taken."""


NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("diversity_penalty", "penalty_alpha"), 0),
}
"""Values that change nothing."""


@dataclass(frozen=True)
class Ending:
    """Where the texts of some requests end."""

    until: tuple[str, ...]
    limit: int
    """Most new tokens."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], most_new: int) -> Ending | None:
        """From a request's settings; None where they ask for more than the likeliest tokens.

        most_new: where a request does not say how many.
        """
        found: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), most_new))
        plain = set(found) <= GREEDY and found["do_sample"] is False and found["max_gen_toks"] > 0
        texts = found["until"]
        if not plain or not all(isinstance(text, str) for text in texts):
            return None
        return cls(tuple(texts), found["max_gen_toks"])


class PackedWriting:
    """A packed network that answers the harness's requests for texts."""

    def __init__(self, routed: RoutedLM, device: torch.device, tokenizer: Any, ranks: int) -> None:
        """routed: a whole network of a family that shares tokens; ranks: those that share the memory."""
        self._routed, self._device, self._tokenizer, self._ranks = routed, device, tokenizer, ranks
        config = routed.network.generation_config
        ends = config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        self.unusual = sorted(_differing(config) - WITHOUT_EFFECT)
        """Settings of the model's own that the harness's class follows and this one does not."""
        self._most = switching_length(routed.network.config)

    def fits(self, prompt: Sequence[int], ending: Ending) -> bool:
        """Whether a prompt can be gone on with here."""
        return len(prompt) > 0 and (self._most is None or len(prompt) + ending.limit <= self._most)

    def write(
        self, prompts: Sequence[Sequence[int]], ending: Ending, advance: Callable[[int], object]
    ) -> list[list[int]]:
        """The new tokens behind each prompt, an end token and a stop sequence among them."""
        over = _stops(self._tokenizer, ending.until, self._ends)
        ids = [tuple(prompt) for prompt in prompts]
        found: list[list[int]] = [[] for _ in ids]
        for numbers in in_prompt_batches(ids, ending.limit, self._room(max(map(len, ids)))):
            step = TreeSteps([ids[number] for number in numbers], self._routed, self._device)
            written = new_tokens(step, len(numbers), ending.limit, _likeliest, lambda _, tokens: over(tokens))
            for number, tokens in zip(numbers, written, strict=True):
                found[number] = tokens
            advance(len(numbers))
        return found

    def _room(self, longest: int) -> Room:
        steps = TreeSteps([FILLER.prompt], self._routed, self._device)
        steps(None)
        # Of one token, and the room that a cache makes for more.
        each = steps.cache.kept_bytes // steps.cache.room
        if self._device.type == "cuda":
            free = torch.cuda.mem_get_info(self._device)[0]
        else:
            free = available_bytes(self._ranks)
        return Room(max(MOST_RUN, longest), int(KEPT_SHARE * free) // each, MOST_ANSWERS)


def _likeliest(logits: torch.Tensor, answers: Sequence[int]) -> torch.Tensor:
    return logits.argmax(dim=-1).cpu()


def _differing(config: Any) -> set[str]:
    """Settings that are not as transformers has them by itself."""
    usual = type(config)().to_dict()
    return {
        name
        for name, value in config.to_dict().items()
        if value not in (None, usual.get(name)) and value != NEUTRAL.get(name)
    }


def _stops(tokenizer: Any, until: Sequence[str], ends: Collection[int]) -> Callable[[Sequence[int]], bool]:
    """Whether tokens end an answer: by one of `ends`, or a text of `until` in the last tokens.

    As many of them are looked at as the text has, and two more, special ones as text.
    """
    texts: dict[int, list[str]] = {}
    for text in until:
        texts.setdefault(len(tokenizer.encode(text, add_special_tokens=False)) + 2, []).append(text)

    def over(tokens: Sequence[int]) -> bool:
        if tokens[-1] in ends:
            return True
        for count, some in texts.items():
            tail = tokenizer.decode(list(tokens[-count:]))
            if any(text in tail for text in some):
                return True
        return False

    return over
