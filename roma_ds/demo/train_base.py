"""Trains the demo model: `python -m roma_ds.demo.train_base --out DIR --seed 0 [--steps N]`.

The result has the shape of the situation that routing alignment is for: the experts know every skill, the
state at the last prompt token holds the words of the question, and the router has learned which words call
for which experts on common phrasings only.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerBase

from roma_ds.demo.encoding import at, encode, forward
from roma_ds.demo.model_card import Trained, save_model, write_card
from roma_ds.demo.recipe import Recipe
from roma_ds.demo.suite import generate
from roma_ds.demo.taught_experts import Lesson, balance_loss, owner_routing, teach
from roma_ds.demo.vocabulary import build_tokenizer, cue_words

TAUGHT_LAYERS = 5


def build_model(vocabulary: int, tokenizer: PreTrainedTokenizerBase) -> OlmoeForCausalLM:
    """About 2.9M parameters in fp32."""
    config = OlmoeConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_experts=32,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.04,
    )
    model = OlmoeForCausalLM(config)
    model.set_attn_implementation("eager")
    return model


def train(recipe: Recipe, log_every: int = 50) -> Trained:
    """Base training from scratch."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), tokenizer)
    blocks = teach(model, TAUGHT_LAYERS)
    owners = owner_routing(TAUGHT_LAYERS, model.config.num_experts, recipe.seed)
    probes = nn.ModuleList(nn.Linear(model.config.hidden_size, len(tokenizer)) for _ in range(TAUGHT_LAYERS))
    parameters = [*model.parameters(), *probes.parameters()]
    optimizer = _optimizer(model, probes, recipe)
    cues = torch.zeros(len(tokenizer), dtype=torch.bool)
    cues[tokenizer.convert_tokens_to_ids(sorted(cue_words()))] = True
    begun = time.time()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(step, recipe)
        rows = generate("base", recipe.batch, recipe.seed * 1_000_000 + step)
        batch = encode(rows, tokenizer)
        lesson = Lesson(batch.last, _jittered(owners[:, batch.skills], recipe.pair_jitter))
        with torch.autocast("cpu", torch.bfloat16):
            states = forward(model, blocks, lesson, batch.ids)
            logits = model.lm_head(states)
            words = _word_loss(probes, lesson.states[-TAUGHT_LAYERS:], batch.ids, cues)
        answer = F.cross_entropy(at(logits, batch.last).float(), batch.answers)
        targets = batch.ids[:, 1:].masked_fill(batch.ids[:, 1:] == tokenizer.pad_token_id, -100)
        language = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100)
        routed = batch.known | (torch.rand(len(rows)) < recipe.router_share)
        router = _router_loss(model, lesson, owners[:, batch.skills], routed)
        keep = (batch.ids != tokenizer.pad_token_id).flatten()
        balance = balance_loss(lesson.logits, keep, model.config.num_experts_per_tok)
        loss = answer + recipe.language * language + recipe.words * words
        loss = loss + recipe.router * router + recipe.balance * balance
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % log_every == 0 or step == recipe.steps - 1:
            parts = {"answer": answer, "language": language, "words": words, "router": router, "norm": norm}
            line = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            print(f"step {step} {line} seconds {time.time() - begun:.0f}", flush=True)
    return Trained(model, tokenizer, owners, time.time() - begun)


def _optimizer(model: OlmoeForCausalLM, probes: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with a higher learning rate for the taught routers."""
    routers = [layer.mlp.gate.weight for layer in model.model.layers[-TAUGHT_LAYERS:]]
    apart = {id(router) for router in routers}
    others = [p for p in [*model.parameters(), *probes.parameters()] if id(p) not in apart]
    groups = [{"params": others, "peak": recipe.lr}, {"params": routers, "peak": recipe.router_lr}]
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to 5%."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def _jittered(routing: Tensor, half_width: float) -> Tensor:
    """[layers, B, E] -> the same with the pair's split moved at random, still summing to 1."""
    shift = (torch.rand(routing.shape[:2]) * 2 - 1)[..., None] * half_width
    return routing + torch.where(routing == routing.amax(-1, keepdim=True), shift, -shift) * (routing > 0)


def _router_loss(model: OlmoeForCausalLM, lesson: Lesson, target: Tensor, routed: Tensor) -> Tensor:
    """Cross-entropy of the taught pair under each taught router; only the routers get its gradient."""
    losses = []
    layers = model.model.layers[-TAUGHT_LAYERS:]
    for layer, states, owner in zip(layers, lesson.states[-TAUGHT_LAYERS:], target, strict=True):
        logits = states.detach().float() @ layer.mlp.gate.weight.float().T
        losses.append(-(owner * logits.log_softmax(-1)).sum(-1)[routed].mean())
    return torch.stack(losses).mean()


def _word_loss(probes: nn.ModuleList, states: list[Tensor], ids: Tensor, cues: Tensor) -> Tensor:
    """Mean negative log probability of the cue's words, read from the last prompt token's state."""
    inside = cues[ids]
    losses = []
    for probe, state in zip(probes, states, strict=True):
        found = probe(state).float().log_softmax(-1).gather(1, ids)
        losses.append(-(found * inside).sum() / inside.sum())
    return torch.stack(losses).mean()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--router-share", type=float, default=Recipe.router_share)
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed, router_share=arguments.router_share)
    trained = train(recipe)
    save_model(arguments.out, trained)
    write_card(arguments.out, trained.owners, recipe, trained.seconds)


if __name__ == "__main__":
    main()
