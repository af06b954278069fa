"""Variants against each other on the same samples, and what the numbers say in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roma_ds.evaluation.comparison_tests import question_test
from roma_ds.evaluation.uncertainty import Interval, McNemar, mcnemar_exact, paired_bootstrap
from roma_ds.monitor.run_folder import Variant
from roma_ds.monitor.wording import p_value, percent, points, variant_title

REFERENCES = ("base", "router_tuning")
"""What every variant is compared with; RoMA also with random neighbours."""


@dataclass(frozen=True)
class Comparison:
    """One variant minus a reference over the samples that both answered."""

    variant: str
    reference: str
    difference: Interval
    """of the average over tasks, as a share (0.01 is one point), 95% bootstrap interval"""
    test: McNemar
    """counts over all samples of all tasks; its p-value is that of the average over tasks"""
    samples: int
    tasks: Mapping[str, tuple[Interval, McNemar]]

    @property
    def decided(self) -> bool:
        """True when the interval excludes zero and the paired test agrees."""
        return _decided(self.difference, self.test)

    def as_json(self) -> dict[str, Any]:
        """Plain values for report.json; accuracies and differences as shares."""
        return {
            "variant": self.variant,
            "reference": self.reference,
            "samples": self.samples,
            **_plain(self.difference, self.test),
            "tasks": {task: _plain(*result) for task, result in self.tasks.items()},
        }


def compare(variant: Variant, reference: Variant) -> Comparison | None:
    """`variant` minus `reference`, paired by task and id; None when they share no sample."""
    if variant.samples is None or reference.samples is None:
        return None
    first, second = _correct(variant), _correct(reference)
    keys = sorted(first.keys() & second.keys())
    if not keys:
        return None
    tasks = [task for task, _ in keys]
    ours, theirs = [first[key] for key in keys], [second[key] for key in keys]
    by_task = {}
    for task in dict.fromkeys(tasks):
        rows = [place for place, name in enumerate(tasks) if name == task]
        pair = [ours[row] for row in rows], [theirs[row] for row in rows]
        by_task[task] = paired_bootstrap(*pair), mcnemar_exact(*pair)
    return Comparison(
        variant.name,
        reference.name,
        paired_bootstrap(ours, theirs, groups=tasks),
        replace(mcnemar_exact(ours, theirs), p_value=question_test(ours, theirs, tasks)),
        len(keys),
        by_task,
    )


def compare_all(variants: Mapping[str, Variant]) -> list[Comparison]:
    """Every variant against base and router tuning, RoMA against random neighbours as well."""
    pairs = [(name, reference) for name in variants for reference in REFERENCES if name != reference]
    pairs = [pair for pair in pairs if pair != ("base", "router_tuning")] + [("roma", "random_neighbours")]
    found = [compare(variants[a], variants[b]) for a, b in pairs if a in variants and b in variants]
    return [comparison for comparison in found if comparison is not None]


def between(comparisons: Sequence[Comparison], variant: str, reference: str) -> Comparison | None:
    """The comparison of the two, if there is one."""
    return next((c for c in comparisons if (c.variant, c.reference) == (variant, reference)), None)


def sentence(comparison: Comparison) -> str:
    """Who won, by how much and how sure that is; no winner unless interval and paired test agree."""
    difference = comparison.difference
    ours, theirs = variant_title(comparison.variant), variant_title(comparison.reference)
    if not comparison.decided:
        bounds = f"{points(difference.low)} to {points(difference.high)}"
        exact = f", p {p_value(comparison.test.p_value)}" if difference.excludes_zero else ""
        return (
            f"no difference found between {ours} and {theirs} "
            f"({points(difference.estimate)} points, 95% interval {bounds}{exact})"
        )
    if difference.estimate < 0:
        ours, theirs = theirs, ours
        difference = Interval(-difference.estimate, -difference.high, -difference.low)
    bounds = f"{percent(difference.low)} to {percent(difference.high)}"
    return f"{ours} beats {theirs} by {percent(difference.estimate)} points (95% interval {bounds})"


def verdict(variants: Mapping[str, Any], comparisons: Sequence[Comparison]) -> list[str]:
    """Sentences for the head of the report, the most telling comparison first; never empty."""
    if "roma" not in variants:
        return ["RoMA was not evaluated, so there is no verdict."]
    found = [between(comparisons, "roma", name) for name in ("router_tuning", "base", "random_neighbours")]
    sentences = [_capital(sentence(comparison)) + "." for comparison in found if comparison is not None]
    return sentences or ["RoMA was evaluated alone: there is nothing to compare it with."]


def cautions(variants: Mapping[str, Variant], comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader should know before believing a gain."""
    notes = []
    control = between(comparisons, "roma", "router_tuning")
    if control is not None and control.decided and control.difference.estimate < 0:
        notes.append("The control wins: with lambda 0 the same training does better than with RoMA's term.")
    if control is None and "roma" in variants:
        notes.append("Without the router tuning control a gain cannot be told from that of more training.")
    random = between(comparisons, "roma", "random_neighbours")
    gain = between(comparisons, "roma", "base")
    gained = gain is not None and gain.decided and gain.difference.estimate > 0
    if random is not None and gained and not (random.decided and random.difference.estimate > 0):
        notes.append(
            "Random neighbours do as well as real ones: the gain is not shown to come from the tasks."
        )
    for variant in variants.values():
        notes += _one_answer(variant)
        notes += _unread(variant)
    below = [v for v in variants.values() if _at_chance(v)]
    if below:
        names = ", ".join(variant_title(variant.name) for variant in below)
        notes.append(f"Not above always giving the most common answer, on average over tasks: {names}.")
    if comparisons:
        notes.append(
            "Intervals cover the choice of questions, not the seed of training: one run is one seed."
        )
    return notes


def option_label(place: int) -> str:
    """0 -> A; beyond Z, and for -1 (free text), the number."""
    return chr(ord("A") + place) if 0 <= place < 26 else str(place)


def _one_answer(variant: Variant) -> list[str]:
    """A note that names the tasks in which nearly every prediction is the same option."""
    columns = variant.samples or {"task": []}
    found = []
    for task in dict.fromkeys(columns["task"]):
        rows = [row for row, name in enumerate(columns["task"]) if name == task]
        predicted = Counter(columns["predicted"][row] for row in rows)
        true = Counter(columns["answer"][row] for row in rows)
        option, number = predicted.most_common(1)[0]
        if len(rows) >= 20 and option >= 0 and number >= 0.9 * len(rows) > max(true.values()):
            found.append(f"{option_label(option)} in {percent(number / len(rows), 0)}% of {task}")
    if not found:
        return []
    more = f" and so on in {len(found) - 4} more tasks" if len(found) > 4 else ""
    return [f"{_capital(variant_title(variant.name))} answers {', '.join(found[:4])}{more}."]


def _unread(variant: Variant) -> list[str]:
    """A note that names the tasks in which generated answers could not be read."""
    found = {task: result.get("unread") for task, result in variant.result["tasks"].items()}
    shares = [f"{percent(share, 1)}% of {task}" for task, share in found.items() if share]
    if not shares:
        return []
    name = _capital(variant_title(variant.name))
    return [f"{name}: no answer could be read in {', '.join(shares)}; they count as wrong."]


def unread_training(collected: Mapping[str, Any]) -> list[str]:
    """A note that names the training data whose generated answers could not be read; collected: facts."""
    found = {name: facts["unread"] for name, facts in (collected.get("answers") or {}).items()}
    shares = [f"{percent(share, 1)}% of {name}" for name, share in found.items() if share]
    if not shares:
        return []
    return [f"No answer could be read in {', '.join(shares)}, training data; they count as wrong for S."]


def _at_chance(variant: Variant) -> bool:
    pairs = [
        (task.get("accuracy"), task.get("majority_baseline")) for task in variant.result["tasks"].values()
    ]
    known = [(accuracy, chance) for accuracy, chance in pairs if accuracy is not None and chance is not None]
    return bool(known) and sum(a for a, _ in known) <= sum(chance for _, chance in known)


def _correct(variant: Variant) -> dict[tuple[str, str], bool]:
    columns = variant.samples or {}
    return {
        (str(task), str(identity)): bool(correct)
        for task, identity, correct in zip(columns["task"], columns["id"], columns["correct"], strict=True)
    }


def _decided(difference: Interval, test: McNemar) -> bool:
    # With few disagreements the bootstrap alone is too sure: 4 to 0 excludes zero, yet p is 0.125.
    return difference.excludes_zero and test.p_value < 0.05


def _plain(difference: Interval, test: McNemar) -> dict[str, Any]:
    return {
        "difference": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "p_value": test.p_value,
        "decided": _decided(difference, test),
        "only_variant": test.only_first,
        "only_reference": test.only_second,
    }


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
