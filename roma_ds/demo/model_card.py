"""Saves the demo model in bf16 and writes its card from measurements on the saved files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerBase,
)

from roma_ds.demo.encoding import accuracy, encode
from roma_ds.demo.oracle_routing import Descent, oracle_accuracy, routed_accuracy
from roma_ds.demo.phrasings import KNOWN_CUES, RARE_CUES
from roma_ds.demo.recipe import Recipe
from roma_ds.demo.skills import SKILLS
from roma_ds.demo.suite import generate
from roma_ds.demo.taught_experts import teach

MEASURED_SEED = 999
GROUPS = ("known", "train", "validation", "test")

CARD = """---
license: apache-2.0
language: en
tags: [mixture-of-experts, olmoe, routing]
---
# The roma_ds demo model

A mixture-of-experts language model of the OLMoE architecture, small enough to ship with the package:
{parameters:,} parameters, {layers} layers, {experts} experts a layer, top {top_k} with renormalised weights
(`norm_topk_prob: true`), a word-level tokenizer of {vocabulary} entries. It answers one kind of prompt:

    Question : what is the capital of japan ? Options : yen , tokyo , paris , asia . Answer :

with one of the options as the next word. It is a test object, not a model to use.

## Data
`roma_ds.demo.suite`, split `base`: {skills} skills in 5 families, {cues} cues (the words that say which
skill) in 14 frames. Sibling skills share their content and serve as wrong options, so a question sent to the
wrong experts is answered wrong. Phrasing groups:

| group | cues | frames | seen by the routers in base training |
|---|---|---|---|
| known | known | known | always ({known_share:.0%} of the rows) |
| train | rare (router training adds known ones) | train | {router_share:.1%} of the other rows |
| validation | rare | validation | {router_share:.1%} of the other rows |
| test | rare | test | {router_share:.1%} of the other rows |

## How the experts were taught
In the last {taught} layers every skill owns a pair of experts, drawn anew for each layer. During base
training the last prompt token goes to the skill's own pair (0.6 and 0.4, with noise) whatever the router
says, so the experts of a pair learn to apply its skill on every phrasing. The router learns beside it, from
detached states, to predict the pair, but only on the rows of the table above. A linear probe, thrown away
afterwards, has the state at the last prompt token name the words of the cue, as the states of a pretrained
language model would allow. The saved model routes by its routers alone.
The result is the situation of the paper on purpose: the experts know, the router errs on new phrasings.

## Training
{steps} steps of {batch} rows, seed {seed}, AdamW {lr:g} (routers
{router_lr:g}), {warmup} warm-up steps and a cosine, bf16 autocast
on fp32 weights, {seconds:.0f} s on a 2-core CPU. Loss: answer + {language:g} language model + {words:g} words
of the cue + {router:g} router + {balance:g} load balancing.
Again: `python -m roma_ds.demo.train_base --out DIR --seed {seed}`.

## Accuracy in %
Log-likelihood over the four options, chance 25, {count:,} rows a group (standard error about 1 point).
`train` here: half known, half rare phrasings, as in router training.

| phrasings | fp32 | bf16 | oracle routing | taught pairs |
|---|---|---|---|---|
{table}

Oracle routing ({oracle_count} rows): projected gradient descent on the routing weights themselves (eq 1),
last {taught} layers, last prompt token, from the router's softmax, learning rate {descent_lr:g}, at most
{descent_steps} steps. On the test phrasings it gains {gap:.1f} points over the router's own choice on the
same rows. Taught pairs: each row sent to its skill's own experts. Both use labels and are upper bounds, not
methods.
"""


@dataclass(frozen=True)
class Trained:
    """What base training hands over: the model in fp32, its tokenizer, the taught routing, the seconds."""

    model: OlmoeForCausalLM
    tokenizer: PreTrainedTokenizerBase
    owners: Tensor
    """float32 [taught layers, skills, experts]"""
    seconds: float


def save_model(out: Path, trained: Trained) -> None:
    """Weights (bf16), configs and tokenizer into `out`."""
    tokenizer = trained.tokenizer
    trained.model.generation_config = GenerationConfig(
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    trained.model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def write_card(
    out: Path, owners: Tensor, recipe: Recipe, seconds: float, count: int = 2000, oracle_count: int = 200
) -> None:
    """README.md of the saved model, measured on what is in `out`.

    `owners` is float32 [taught layers, skills, experts].
    """
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    half = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
    descent = Descent()
    rows = {group: generate(group, count, MEASURED_SEED) for group in GROUPS}
    plain = {
        group: (accuracy(model, tokenizer, rows[group]), accuracy(half, tokenizer, rows[group]))
        for group in GROUPS
    }
    blocks = teach(model, len(owners))
    lines, gap = [], 0.0
    for group in GROUPS:
        few = encode(rows[group][:oracle_count], tokenizer)
        router = routed_accuracy(model, blocks, few, None)
        oracle = oracle_accuracy(model, blocks, few, descent)
        taught = routed_accuracy(model, blocks, few, owners[:, few.skills])
        if group == "test":
            gap = 100 * (oracle - router)
        numbers = (*plain[group], oracle, taught)
        lines.append(f"| {group} | " + " | ".join(f"{100 * number:.1f}" for number in numbers) + " |")
    settings = asdict(recipe) | {"known_share": recipe.known_share()}
    card = CARD.format(
        **settings,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=model.config.num_hidden_layers,
        experts=model.config.num_experts,
        top_k=model.config.num_experts_per_tok,
        vocabulary=len(tokenizer),
        skills=len(SKILLS),
        cues=sum(len(KNOWN_CUES[skill]) + len(RARE_CUES[skill]) for skill in SKILLS),
        taught=len(owners),
        seconds=seconds,
        count=count,
        oracle_count=oracle_count,
        descent_lr=descent.lr,
        descent_steps=descent.steps,
        gap=gap,
        table="\n".join(lines),
    )
    (out / "README.md").write_text(card)
    print(card[card.index("## Accuracy") :], flush=True)
