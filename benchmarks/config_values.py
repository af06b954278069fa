"""Values that the keys of a run config take, and some that they cannot."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from mutations import INF, NAN

Bad = Sequence[Any]
NO_INT: Bad = ("three", "5", 1.5, True, [1], {"a": 1}, NAN, INF, None)
NO_NUMBER: Bad = ("fast", "0.5", True, [0.5], {"a": 1}, NAN, INF, -INF, 10**400, None)
NO_TEXT: Bad = (7, 1.5, True, ["a"], {"a": "b"})
NO_BOOL: Bad = ("yes", "on", 1, 0, "true", [True], None)
NO_CHOICE: Bad = ("nonsense", "", 3.5, True, ["x"], {"a": 1})
Good = Callable[[random.Random], Any]


def one_of(*values: Any) -> Good:
    """Any of these."""
    return lambda rng: rng.choice(values)


def whole(least: int, most: int) -> Good:
    """Any whole number between."""
    return lambda rng: rng.randint(least, most)


def number(least: float, most: float) -> Good:
    """Any number between, or a whole one."""
    return lambda rng: rng.choice([round(rng.uniform(least, most), 6), max(1, int(least)), int(most) or 1])


KEYS: dict[str, tuple[Good, Bad]] = {
    "model.dtype": (one_of("float32", "bfloat16"), (*NO_CHOICE, "float16", None)),
    "model.revision": (one_of(None, "main"), NO_TEXT),
    "model.trust_remote_code": (one_of(False, True), NO_BOOL),
    "data.max_tokens": (whole(64, 4096), (*NO_INT, 0, -1)),
    "data.decontaminate": (one_of("off", 8, 13, 30), (0, -1, 1.5, "on", True, None)),
    "data.long_prompts": (one_of("cut", "refuse"), NO_CHOICE),
    "data.template": (one_of("plain", "auto"), NO_CHOICE),
    "data.exclude": (one_of([], ["boolq"], ["boolq", "multirc"]), ("boolq", 3, [3], ["a", "a"])),
    "data.train.0.limit": (one_of(None, 8, 24, 5000), ("all", 0, -1, 1.5, True)),
    "data.train.0.answer": (one_of("letter", "text"), NO_CHOICE),
    "data.train.0.split": (one_of("train", "other"), (*NO_TEXT, "", None)),
    "embed.text": (one_of("question", "question_choices", "prompt"), NO_CHOICE),
    "embed.batch_size": (whole(1, 512), (*NO_INT, 0, -1)),
    "embed.dtype": (one_of(None, "float32", "bfloat16"), NO_CHOICE),
    "embed.max_tokens": (one_of(None, 32, 128), ("all", 0, 1.5, True)),
    "roma.layers": (
        one_of("last1", "last4", "all", "first2", "middle2", [0, 3], [2]),
        ("last9", "last0", "lst2", [4], [-1], [1, 1], [], 2, True, ["a"], None, {"a": 1}),
    ),
    "roma.tokens": (one_of("last1", "last3", "first1", "middle3"), (*NO_CHOICE, "last2", None)),
    "roma.neighbours": (whole(1, 8), (*NO_INT, 0, -1)),
    "roma.epsilon": (one_of(None, 0.3, 1, 0.999), ("near", 0, -0.1, 1.5, NAN, True)),
    "roma.sigma": (one_of("median", 0.4, 1, 2.5), (0, -1, NAN, INF, "mean", True, None)),
    "roma.lambda": (number(0.1, 5), (*NO_NUMBER, -1)),
    "roma.lambda_warmup": (one_of(0, 0.5, 0.99), (*NO_NUMBER, -0.1, 1, 1.5)),
    "roma.layer_reduction": (one_of("sum", "mean"), (*NO_CHOICE, None)),
    "roma.refresh": (one_of("never", "epoch", 1, 10), (0, -1, 1.5, "always", True, NAN)),
    "collect.engine": (one_of("auto", "zero3", "stream"), (*NO_CHOICE, None)),
    "collect.activation_memory": (one_of(0, 0.5, 4, 64.0), (*NO_NUMBER, -1)),
    "collect.save_every": (number(1, 600), (*NO_NUMBER, 0, -1)),
    "index.backend": (one_of("faiss", "torch"), (*NO_CHOICE, None)),
    "index.placement": (one_of("replicated", "sharded"), (*NO_CHOICE, None)),
    "index.factory": (one_of("Flat"), (*NO_TEXT, "", "Flatt", "IVF0,Flat", None)),
    "index.max_neighbours": (whole(16, 100), (*NO_INT, 0)),
    "index.candidates": (whole(16, 100), (*NO_INT, 0)),
    "index.payload": (one_of("float32", "bfloat16"), (*NO_CHOICE, "float16", None)),
    "index.check_every": (whole(1, 1000), (*NO_INT, 0)),
    "index.on_mismatch": (one_of("stop"), (*NO_CHOICE, None)),
    "train.epochs": (whole(1, 20), (*NO_INT, 0, -1)),
    "train.samples": (one_of(None, 4, 8), ("all", 0, 1.5, True)),
    "train.batch": (one_of(None, 4, 8, 32), ("all", 0, -1, 1.5, True)),
    "train.micro_batch": (whole(1, 16), (*NO_INT, 0)),
    "train.gradient_accumulation": (one_of(1), (*NO_INT, 0)),
    "train.lr": (number(1e-5, 2), (*NO_NUMBER, 0, -1e-3)),
    "train.lr_schedule": (one_of("cosine", "linear", "constant"), (*NO_CHOICE, "step", None)),
    "train.warmup": (one_of(0, 0.1, 0.5), (*NO_NUMBER, -0.1, 1)),
    "train.weight_decay": (one_of(0, 0.01, 1), (*NO_NUMBER, -1)),
    "train.clip": (one_of(0, 1, 0.5), (*NO_NUMBER, -1)),
    "train.seed": (one_of(0, 17, 2**32 - 1), (*NO_INT, -1, 2**32)),
    "train.save_every": (whole(1, 500), (*NO_INT, 0)),
    "train.log_every": (whole(1, 500), (*NO_INT, 0)),
    "train.keep_states": (whole(1, 5), (*NO_INT, 0)),
    "train.result": (one_of("last", "best"), (*NO_CHOICE, None)),
    "train.keep_best": (one_of(True), NO_BOOL),
    "train.on_non_finite": (one_of("stop", "skip"), (*NO_CHOICE, None)),
    "train.task_loss": (one_of(True, False), NO_BOOL),
    "train.prefix_cache": (one_of("auto", "off"), (*NO_CHOICE, None)),
    "eval.limit": (one_of(None, 4, 1000), ("all", 0, 1.5, True)),
    "eval.shots": (one_of(0), (*NO_INT, -1)),
    "eval.seed": (one_of(0, 5), (*NO_INT, -1)),
    "eval.scoring": (one_of("letter", "cloze"), (*NO_CHOICE, None)),
    "eval.max_new_tokens": (whole(1, 64), (*NO_INT, 0)),
    "eval.stop": (one_of([], ["\n\n"], ["Question:", "###"]), ("\n", 3, [3], [""], [None])),
    "eval.answers": (one_of("roma", "strict-match", "flexible-extract"), (*NO_CHOICE, None)),
    "eval.batch_size": (whole(1, 64), (*NO_INT, 0)),
    "eval.tasks": (one_of([]), ("words", 3, [3], [{}], [{"name": "no-such-task"}], None, {"a": 1})),
    "guards.collective_timeout": (number(60, 4000), (*NO_NUMBER, 0)),
    "guards.free_disk": (one_of(0, 0.25), (*NO_NUMBER, -1)),
    "guards.first_batch": (one_of(True, False), NO_BOOL),
    "guards.lost_after": (one_of(None, 30, 60.5), ("never", 0, -1, NAN, True)),
    "controls": (
        one_of([], ["router_tuning"], ["random_neighbours", "router_tuning"]),
        ("router_tuning", ["nonsense"], ["router_tuning", "router_tuning"], 3, [None], None),
    ),
    "deepspeed": (one_of("zero0", "zero1", "zero2", "zero3"), (*NO_TEXT, "", "zero9", "nowhere.json", None)),
    "output_dir": (one_of("out", "runs/new", "a folder", "läufe/1"), (*NO_TEXT, "", None)),
}
"""Keys of a run config: values that it takes, and some that it cannot."""
