"""Chat templates as they are published, small ones of their kind, and tokenizers that have them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

OLMOE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
)
"""Written anew in the form of OLMoE-Instruct's: no token ends a user's turn."""
GRANITE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|start_of_role|>system<|end_of_role|>Today is ' }}"
    "{{- strftime_now('%B %d, %Y') + '.<|end_of_text|>\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
    "{{- message['content'] + '<|end_of_text|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
"""Written anew in the form of Granite's: a system turn of its own with the date, no BOS, and a prompt that
ends in a special token."""
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system turn is taken') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""Written anew in the form of early Mistral models': no system turn, no generation prompt, and a space before
an answer."""
PACKAGED = {
    "qwen3": "qwen3",
    "gpt-oss": "gptoss",
    "glm-4-moe": "glm4moe",
    "deepseek-v3": "deepseekv3",
    "gemma-4": "gemma4_v5",
}
"""Templates that come with TRL, by the names of its files."""
STAND_INS = {"olmoe": OLMOE, "granite": GRANITE}
NAMES = (*PACKAGED, "llama-4", *STAND_INS)
_TOKENS = re.compile(r"<\|?[\w|/▁｜]+\|?>|<｜[^｜]+｜>|\[/?[A-Za-z]+\]")


def template_of(name: str) -> str:
    """The chat template of one of NAMES. Raises FileNotFoundError where TRL, of the extra dev, is absent."""
    if name in STAND_INS:
        return STAND_INS[name]
    if name == "llama-4":
        from transformers.models.llama4 import processing_llama4

        return str(processing_llama4.chat_template)
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("trl is not installed: pip install -e '.[dev]'")
    folder = Path(next(iter(found.submodule_search_locations)))
    return (folder / "chat_templates" / f"{PACKAGED[name]}.jinja").read_text(encoding="utf-8")


def chat_tokenizer(template: str, adds_bos: bool = False) -> Any:
    """A byte-level BPE tokenizer whose added tokens are those that the template writes.

    adds_bos: whether it puts BOS before every text by itself.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    words = [f"Question: which w{place} is it?\n\nA. one\nB. two\nAnswer: A" for place in range(40)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<pad>", "<bos>", "<eos>", *sorted(set(_TOKENS.findall(template)))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([*words, template], trainer)
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = template
    return tokenizer


def give_template(folder: Path, template: str, bos: str | None = None) -> Any:
    """Give the tokenizer saved in `folder` a chat template and the tokens that it writes; returns it.

    bos: one of its tokens that becomes BOS.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(sorted(set(_TOKENS.findall(template))), special_tokens=True)
    tokenizer.chat_template = template
    if bos is not None:
        tokenizer.bos_token = bos
    tokenizer.save_pretrained(folder)
    return tokenizer
