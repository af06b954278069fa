from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import letter_samples, tiny_run
from torch.nn import functional as F

from roma_ds.comm import World, start_world
from roma_ds.config import RunConfig, resolve_deepspeed
from roma_ds.index import Neighbourhood
from roma_ds.network.routed import RoutedLM
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.encoding import Prompt, encode
from roma_ds.sequences.request_set import requests_of
from roma_ds.training.batch_order import BatchOrder
from roma_ds.training.engine import RouterEngine
from roma_ds.training.learning_rate import learning_rate_at
from roma_ds.training.step import StepResult, StepSettings, training_step
from roma_ds.training.targets import ManifoldTargets

SAMPLES = 20
LAYERS = (2, 3)
SIGMA = 0.4


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A process group of one; the variables that DeepSpeed asks for are gone afterwards."""
    before = dict(os.environ)
    found = start_world()
    os.environ["LOCAL_RANK"] = "0"
    yield found
    found.close()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    return encode(letter_samples(SAMPLES), tokenizer, 500)


@pytest.fixture(scope="module")
def targets() -> ManifoldTargets:
    """Neighbours whose routing is far from the model's; row 5 has none."""
    source = np.random.default_rng(0)
    values = np.exp(2 * source.standard_normal((SAMPLES, 4, 8)))
    routing = (values / values.sum(axis=-1, keepdims=True)).astype(np.float16)
    ids = np.array(
        [source.choice([j for j in range(SAMPLES) if j != row], 2, replace=False) for row in range(SAMPLES)]
    )
    ids[5] = -1
    products = np.where(ids < 0, 0.0, source.uniform(0.5, 1.0, ids.shape))
    return ManifoldTargets(routing, LAYERS, Neighbourhood(ids, products), SIGMA)


class Bench:
    """An engine on the tiny model, and steps of it."""

    def __init__(self, world: World, run: RunConfig, prompts: list[Prompt], targets: ManifoldTargets) -> None:
        ds = resolve_deepspeed(run, 1)
        ds["tensorboard"] = {"enabled": False}
        self.run, self.targets, self.requests = run, targets, requests_of(prompts)
        self.feed = Feed(self.requests.sequences, run.roma.tokens)
        self.engine = RouterEngine(world, run, ds)
        train = run.train
        self.order = BatchOrder(SAMPLES, train.epochs, train.split(1).samples, train.seed)

    def step(
        self, number: int, weight: float, rate: float, task: bool = True, norms: bool = False
    ) -> StepResult:
        lengths = [self.requests.lengths[target] for target in self.requests.targets]
        share = self.order.share(number, 0, 1, self.run.train.micro_batch, lengths)
        return self.step_on(share, weight, rate, task, norms)

    def step_on(
        self,
        micro_batches: list[list[int]],
        weight: float,
        rate: float,
        task: bool = True,
        norms: bool = False,
    ) -> StepResult:
        roma, count = self.run.roma, sum(len(rows) for rows in micro_batches)
        settings = StepSettings(roma.layer_reduction, task)
        return training_step(
            self.engine,
            self.requests,
            self.feed,
            self.targets,
            1,
            micro_batches,
            count,
            weight,
            rate,
            settings,
            norms,
        )


@pytest.fixture
def bench(
    world: World, tiny_olmoe: Path, tmp_path: Path, prompts: list[Prompt], targets: ManifoldTargets
) -> Iterator[Any]:
    made: list[Bench] = []

    def make(*overrides: str, model: Path = tiny_olmoe) -> Bench:
        made.append(Bench(world, tiny_run(model, tmp_path, *overrides), prompts, targets))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


def load_stock(folder: Path) -> Any:
    """The plain model with routers of LAYERS trainable and nothing of this package in it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in LAYERS:
        model.model.layers[layer].mlp.gate.weight.requires_grad_(True)
    return model


def gates(model: Any) -> list[torch.nn.Parameter]:
    return [model.model.layers[layer].mlp.gate.weight for layer in LAYERS]


def keep_in(found: list[torch.Tensor]) -> Any:
    return lambda module, inputs, output: found.append(output[0])


def plain_terms(
    model: Any, prompts: list[Prompt], rows: list[int], neighbours: Mapping[str, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_task and L_manifold per sample, by equations 8 and 7, one sample after the other."""
    task, manifold = [], []
    for row in rows:
        logits: list[torch.Tensor] = []
        hooks = [
            model.model.layers[layer].mlp.gate.register_forward_hook(keep_in(logits)) for layer in LAYERS
        ]
        output = model(input_ids=torch.tensor([prompts[row].prompt]), use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        task.append(F.cross_entropy(output[None], torch.tensor([prompts[row].target[0]])))
        term = torch.zeros(())
        if neighbours is not None:
            live = torch.stack([torch.softmax(values[-1].float(), dim=-1) for values in logits])
            ids, products = neighbours["ids"][row], neighbours["products"][row]
            present = [(int(j), float(p)) for j, p in zip(ids, products, strict=True) if j >= 0]
            similar = [math.exp(-(2 - 2 * product) / (2 * SIGMA**2)) for _, product in present]
            for (j, _), value in zip(present, similar, strict=True):
                other = torch.from_numpy(neighbours["routing"][j][list(LAYERS)].astype(np.float32))
                term = term + value / sum(similar) * (live - other).square().sum()
        manifold.append(term)
    return torch.stack(task), torch.stack(manifold)


def as_given(targets: ManifoldTargets) -> dict[str, Any]:
    found = targets.neighbours
    return {"ids": found.ids, "products": found.inner_products, "routing": targets.routing}


def accumulated(bench: Bench) -> list[torch.Tensor]:
    """The gradient that the first update was made from: AdamW's first moment is a tenth of it."""
    arrays = dict(bench.engine.state_arrays())
    return [10 * torch.from_numpy(arrays[f"exp_avg.{layer}"]) for layer in LAYERS]


def test_the_manifold_term_alone_moves_the_gates_and_falls(bench: Any) -> None:
    one = bench("train.micro_batch=20", "train.epochs=25")
    before = one.engine.masters()
    values = [one.step(step, 1.0, 0.01, task=False).sums.manifold for step in range(20)]
    after = one.engine.masters()
    for layer in LAYERS:
        assert float((after[layer] - before[layer]).abs().max()) > 1e-3
    assert values[-1] < 0.8 * values[0], values
    assert sum(a > b for a, b in pairwise(values)) >= 16, values


def test_the_manifold_terms_value_and_gradient_are_those_of_equation_7(
    bench: Any, tiny_olmoe: Path, prompts: list[Prompt], targets: ManifoldTargets
) -> None:
    """Value, and gradient at the router weights against central differences of a plain model."""
    one = bench("train.micro_batch=4", "train.gradient_accumulation=2")
    rows = one.order.rows(0)
    assert len(rows) == 8
    result = one.step(0, 0.5, 1e-3, task=False)
    stock = load_stock(tiny_olmoe)
    with torch.no_grad():
        _, manifold = plain_terms(stock, prompts, rows, as_given(targets))
    assert result.sums.manifold == pytest.approx(float(manifold.sum()), rel=1e-5)

    def value() -> float:
        with torch.no_grad():
            return float(plain_terms(stock, prompts, rows, as_given(targets))[1].double().mean() * 0.5)

    for gradient, gate in zip(accumulated(one), gates(stock), strict=True):
        for flat in gradient.abs().flatten().topk(4).indices.tolist():
            place = (flat // 32, flat % 32)
            kept, h, sides = gate.data[place].clone(), 3e-3, []
            for sign in (1, -1):
                gate.data[place] = kept + sign * h
                sides.append(value())
            gate.data[place] = kept
            assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=0.02)


def plain_router_tuning(
    folder: Path, run: RunConfig, prompts: list[Prompt], order: BatchOrder, steps: int, seen: Any = None
) -> list[torch.Tensor]:
    """Router tuning as anyone would write it: padded batches, cross-entropy, AdamW.

    seen: the type that forward passes see the routers in.
    """
    model = load_stock(folder)
    config = run.train
    optimizer = torch.optim.AdamW(gates(model), lr=config.lr, weight_decay=config.weight_decay)
    for step in range(steps):
        masters = [gate.detach().clone() for gate in gates(model)]
        for gate in gates(model) if seen is not None else ():
            gate.data.copy_(gate.data.to(seen))
        rows = order.rows(step)
        for start in range(0, len(rows), config.micro_batch):
            part = [prompts[row] for row in rows[start : start + config.micro_batch]]
            longest = max(len(prompt.prompt) for prompt in part)
            ids = torch.zeros((len(part), longest), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, prompt in enumerate(part):
                ids[place, : len(prompt.prompt)] = torch.tensor(prompt.prompt)
                mask[place, : len(prompt.prompt)] = 1
            hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            ends = hidden[torch.arange(len(part)), mask.sum(dim=1) - 1]
            answers = torch.tensor([prompt.target[0] for prompt in part])
            loss = F.cross_entropy(model.lm_head(ends), answers, reduction="sum") / len(rows)
            loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, order.steps, config.lr, config.warmup, config.lr_schedule)
        for gate, master in zip(gates(model), masters, strict=True):
            gate.data.copy_(master)
        optimizer.step()
        optimizer.zero_grad()
    return [gate.detach() for gate in gates(model)]


@pytest.mark.parametrize("split", [("8", "1"), ("4", "2")])
def test_lambda_zero_is_plain_router_tuning(
    bench: Any, tiny_olmoe: Path, prompts: list[Prompt], split: tuple[str, str]
) -> None:
    one = bench(f"train.micro_batch={split[0]}", f"train.gradient_accumulation={split[1]}", "train.epochs=4")
    train = one.run.train
    for step in range(10):
        rate = learning_rate_at(step, one.order.steps, train.lr, train.warmup, train.lr_schedule)
        one.step(step, 0.0, rate)
    wanted = plain_router_tuning(tiny_olmoe, one.run, prompts, one.order, 10)
    found = one.engine.masters()
    for layer, gate in zip(LAYERS, wanted, strict=True):
        torch.testing.assert_close(found[layer], gate, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 3])
def test_through_the_rounding_it_is_plain_router_tuning_through_it(
    bench: Any, tiny_olmoe: Path, tmp_path: Path, prompts: list[Prompt], stage: int
) -> None:
    from transformers import AutoModelForCausalLM

    stored = tmp_path / "stored"
    AutoModelForCausalLM.from_pretrained(tiny_olmoe, dtype=torch.bfloat16).save_pretrained(stored)
    one = bench("train.gate_dtype=as_stored", "train.epochs=4", f"deepspeed=zero{stage}", model=stored)
    train = one.run.train
    for step in range(10):
        rate = learning_rate_at(step, one.order.steps, train.lr, train.warmup, train.lr_schedule)
        one.step(step, 0.0, rate)
    rounded, exact = (
        plain_router_tuning(stored, one.run, prompts, one.order, 10, seen) for seen in (torch.bfloat16, None)
    )
    masters = one.engine.masters()
    for layer, gate, other in zip(LAYERS, rounded, exact, strict=True):
        torch.testing.assert_close(masters[layer], gate, rtol=0, atol=1e-6)
        assert float((masters[layer] - other).abs().max()) > 1e-5
        assert torch.equal(one.engine.as_seen(masters)[layer], masters[layer].bfloat16().float())
        if stage == 0:
            assert torch.equal(one.engine.routers[layer], masters[layer].bfloat16().float())


def test_all_but_the_chosen_routers_stay_bit_for_bit(bench: Any, tiny_model: Path) -> None:
    one = bench(model=tiny_model)
    network = one.engine.routed.network
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    for step in range(4):
        one.step(step, 1.0, 0.01, norms=step == 2)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in LAYERS}
    assert one.engine.trainable_parameters == 2 * 8 * 32
    assert one.engine.total_parameters == sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("split", [("8", "1"), ("3", "2")])
def test_gradient_norms_of_both_terms_and_of_their_sum(
    bench: Any, tiny_olmoe: Path, prompts: list[Prompt], targets: ManifoldTargets, split: tuple[str, str]
) -> None:
    one = bench(f"train.micro_batch={split[0]}", f"train.gradient_accumulation={split[1]}")
    weight = 0.7
    result = one.step(0, weight, 1e-3, norms=True)
    stock = load_stock(tiny_olmoe)
    task, manifold = plain_terms(stock, prompts, one.order.rows(0), as_given(targets))

    def norm(loss: torch.Tensor) -> float:
        parts = torch.autograd.grad(loss, gates(stock), retain_graph=True)
        return float(torch.cat([part.flatten() for part in parts]).norm())

    assert result.grad_norm_task == pytest.approx(norm(task.mean()), rel=1e-4)
    assert result.grad_norm_manifold == pytest.approx(norm(manifold.mean()), rel=1e-4)
    assert result.grad_norm == pytest.approx(norm(task.mean() + weight * manifold.mean()), rel=1e-4)
    assert result.sums.task == pytest.approx(float(task.sum()), rel=1e-5)


def test_measuring_the_norms_changes_no_update(bench: Any) -> None:
    benches = [bench("train.micro_batch=4", "train.gradient_accumulation=2") for _ in range(2)]
    results = [one.step(0, 1.0, 1e-3, norms=norms) for one, norms in zip(benches, (True, False), strict=True)]
    assert results[1].grad_norm_task is None
    assert results[1].grad_norm_manifold is None
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-5)
    first, second = (one.engine.masters() for one in benches)
    for a, b in zip(*(accumulated(one) for one in benches), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    for layer in LAYERS:
        torch.testing.assert_close(first[layer], second[layer], rtol=0, atol=1e-7)


def test_norms_of_a_term_that_is_off(bench: Any) -> None:
    assert bench().step(0, 0.0, 1e-3, norms=True).grad_norm_manifold is None
    alone = bench().step(0, 0.5, 1e-3, task=False, norms=True)
    assert alone.grad_norm_task is None
    assert alone.grad_norm == pytest.approx(0.5 * alone.grad_norm_manifold, rel=1e-5)


@pytest.mark.parametrize(
    "split",
    [
        ("micro_batch=8",),
        ("micro_batch=4", "gradient_accumulation=2"),
        ("micro_batch=2", "gradient_accumulation=4"),
        ("micro_batch=5", "gradient_accumulation=4"),
        ("batch=8", "micro_batch=3"),
        ("batch=11", "micro_batch=5"),
    ],
)
def test_micro_batches_of_any_size_give_the_same_gradient(bench: Any, split: tuple[str, ...]) -> None:
    """Each sample counts the same, also in the short last batch of an epoch, and in uneven micro-batches."""
    wide, one = bench("train.micro_batch=20"), bench(*(f"train.{word}" for word in split))
    last = one.order.steps_per_epoch - 1
    together = wide.step_on([one.order.rows(last)], 1.0, 1e-3).sums
    parted = one.step(last, 1.0, 1e-3).sums
    for a, b in zip(accumulated(wide), accumulated(one), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)
    assert (parted.samples, parted.tokens) == (together.samples, together.tokens)
    assert parted.task == pytest.approx(together.task, rel=1e-5)


def test_clipping_shortens_the_gradient_and_reports_its_length_before(bench: Any) -> None:
    free, clipped = bench(), bench("train.clip=0.001")
    length = free.step(0, 1.0, 1e-3).grad_norm
    assert clipped.step(0, 1.0, 1e-3).grad_norm == pytest.approx(length, rel=1e-6)
    assert length > 0.001
    together = torch.cat([gradient.flatten() for gradient in accumulated(clipped)])
    assert float(together.norm()) == pytest.approx(0.001, rel=1e-2)


def test_a_restored_engine_goes_on_bit_for_bit(bench: Any) -> None:
    whole, first, second = bench(), bench(), bench()
    for step in range(6):
        whole.step(step, 1.0, 0.01)
    for step in range(3):
        first.step(step, 1.0, 0.01)
    arrays = {name: array.copy() for name, array in first.engine.state_arrays()}
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        name: (np.dtype(kind), shape) for name, (kind, shape) in first.engine.state_entries().items()
    }
    second.engine.restore(arrays.__getitem__, 3)
    for step in range(3, 6):
        second.step(step, 1.0, 0.01)
    for layer in LAYERS:
        assert torch.equal(whole.engine.masters()[layer], second.engine.masters()[layer])


def test_a_step_draws_no_random_numbers(bench: Any) -> None:
    """So a resume state needs none of the generators' states."""
    one = bench()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    one.step(0, 1.0, 1e-2, norms=True)
    one.step(1, 1.0, 1e-2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    found = np.random.get_state()
    assert all(np.array_equal(one, other) for one, other in zip(found, before[2], strict=True))


def test_counts_of_a_step(bench: Any, prompts: list[Prompt]) -> None:
    one = bench("train.micro_batch=20")
    sums = one.step(0, 1.0, 1e-3).sums
    assert (sums.samples, sums.micro_batches, sums.empty) == (20, 1, 1)
    assert sums.tokens == sum(len(prompt.prompt) for prompt in prompts)
    assert 0 <= sums.correct <= 20
    assert sums.load is not None
    torch.testing.assert_close(sums.load.sum(dim=-1), torch.ones(2))


@pytest.mark.parametrize("split", [("8", "1"), ("4", "2")])
def test_lambda_zero_is_router_tuning_bit_for_bit(
    bench: Any, tiny_olmoe: Path, split: tuple[str, str]
) -> None:
    """A loop of its own, without DeepSpeed and without the manifold, over the same packed batches."""
    one = bench(f"train.micro_batch={split[0]}", f"train.gradient_accumulation={split[1]}", "train.epochs=4")
    config, order, requests = one.run.train, one.order, one.requests
    model = load_stock(tiny_olmoe)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    routed = RoutedLM(model, one.engine.routed.layout, tuple(LAYERS)).attach()
    learned = [gate.requires_grad_(True) for gate in routed.routers().values()]
    optimizer = torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)
    lengths = [requests.lengths[target] for target in requests.targets]
    for step in range(10):
        rate = learning_rate_at(step, order.steps, config.lr, config.warmup, config.lr_schedule)
        one.step(step, 0.0, rate)
        for rows in order.share(step, 0, 1, config.micro_batch, lengths):
            batch = one.feed.batch([requests.targets[row] for row in rows])
            logits = routed(**batch.inputs(torch.device("cpu"))).logits
            loss = F.cross_entropy(logits, batch.answer_ids, reduction="none")
            ((1.0 / len(order.rows(step))) * loss.sum()).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    for found, gate in zip(one.engine.masters().values(), learned, strict=True):
        assert torch.equal(found, gate.detach())


@pytest.mark.parametrize("stage", [2, 3])
def test_timings_and_the_profile_of_training_are_shown(
    bench: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: int
) -> None:
    """DeepSpeed starts its timers in hooks that our opaque output does not have."""
    profile = {"enabled": True, "profile_step": 1, "output_file": str(tmp_path / "profile.txt")}
    content = {
        "wall_clock_breakdown": True,
        "flops_profiler": profile,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 10000},
    }
    (tmp_path / "timed.json").write_text(json.dumps(content))
    one = bench(f"deepspeed={tmp_path / 'timed.json'}")
    for number in range(2):
        assert math.isfinite(one.step(number, 1.0, 0.01, norms=number == 1).grad_norm)
    shown = capfd.readouterr().out
    for name in ("fwd_microstep", "bwd_microstep", "bwd_inner", "step_microstep"):
        assert len(re.findall(rf"{name}: [0-9.]+", shown)) >= 2
    assert "Flops Profiler" in (tmp_path / "profile.txt").read_text()
