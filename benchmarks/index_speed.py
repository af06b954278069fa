"""What the live index costs: searches, walks, updates and memory; and which part of a training step.

    python benchmarks/index_speed.py --sizes 10000 100000 1000000 --ranks 1 2 --out results
    python benchmarks/index_speed.py share --out results

The first, by size: random unit vectors, half of them in S. One-process FAISS Flat over the members alone and
a torch matrix product with top-k stand for what a user would write; against them our index, replicated and
sharded, in turns (--repeats). Beside each number stands what `roma_ds/planner/index_cost.py` predicts at
rates that the same run measured on small indexes. One JSON a size, number of ranks and placement.

The second trains the last 5 of 6 layers with `roma.refresh=1` on as many short questions as the index holds,
after the real stages before: embeddings, collection, index. On cached hidden states a step is that of a
deeper model with the same suffix; one frozen layer keeps the collection short. These stages are kept in
--work, and a further call goes on with them. Short questions make short steps, of which the index takes a
larger part.
Ratios from one call mean something; seconds belong to the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from comparison import SHARED_STAGES, Project, Records, plain_steps, spread, write_result
from index_share_worker import BESIDE, INDEX
from index_worker import Case, write_points
from launched import launch, threads_of
from shapes import Questions, Shape, add_options, from_options

from roma_ds.planner import index_cost
from roma_ds.planner.index_cost import IndexSetting, Line, Rates

PLACEMENTS = ("replicated", "sharded")
STILL = "without refreshing"
HOURS = 3600.0
OPTIONS = (
    "dim", "width", "payload", "backend", "neighbours", "candidates", "updates", "queries", "seconds",
)  # fmt: skip
"""Fields of a case that are options of `search` alone."""
MOST_SHARE = 0.02
"""What neighbours and synchronisation may take of a step."""


def together(records: Records, name: str) -> float:
    """Median seconds of a call that is over when the slowest rank has finished."""
    return statistics.median(
        max(values) for values in zip(*(record[name] for record in records), strict=True)
    )


def setting_of(case: Case, ranks: int) -> IndexSetting:
    """A case in the cost model's words."""
    return IndexSetting(
        case.samples,
        ranks,
        case.sharded,
        case.dim,
        case.width,
        case.payload,  # type: ignore[arg-type]
        case.backend,  # type: ignore[arg-type]
        case.neighbours,
        case.candidates,
        case.micro_batch,
    )


def rates_of(case: Case, records: Records) -> Rates:
    """The slower rank's rates."""
    found = [record["rates"] for record in records]

    def slowest(name: str) -> float:
        return max(float(rates[name]) for rates in found)

    def line(name: str) -> Line:
        points = zip(*(rates[name] for rates in found), strict=True)
        small, large = ((same[0][0], max(point[1] for point in same)) for same in points)
        return Line.through(small, large)

    least = {name: min(float(rates[name]) for rates in found) for name in ("link", "digest")}
    return Rates(
        message=slowest("message"),
        link=least["link"] if len(records) > 1 else math.inf,
        many=line("many"),
        few=line("few"),
        digest=least["digest"],
        neighbours=slowest("neighbours"),
        apply=line("apply"),
        few_queries=case.micro_batch * (len(records) if case.sharded else 1),
    )


def measured(case: Case, ranks: int, records: Records) -> dict[str, float]:
    """Of one run: seconds by operation, bytes of memory."""
    found = {name: together(records, name) for name in ("many", "few", "neighbours", "apply", "check")}
    found["queries_per_second"] = max(1, case.queries // ranks) * ranks / found["many"]
    found["memory"] = float(max(record["memory"] for record in records))
    return found


def predicted(case: Case, ranks: int, rates: Rates) -> dict[str, float]:
    """The same by the cost model."""
    setting, each = setting_of(case, ranks), max(1, case.queries // ranks)
    many = index_cost.search_seconds(setting, rates, each)
    # Of a step's updates half come, a quarter goes, a quarter stays with another vector.
    told = case.updates / ranks
    return {
        "many": many,
        "few": index_cost.search_seconds(setting, rates, case.micro_batch),
        "neighbours": index_cost.neighbour_seconds(setting, rates),
        "apply": index_cost.apply_seconds(setting, rates, told, 0.75 * told),
        "check": index_cost.check_seconds(setting, rates),
        "queries_per_second": each * ranks / many,
        "memory": float(memory_before_a_search(setting)),
    }


def memory_before_a_search(setting: IndexSetting) -> int:
    """Bytes that are a rank's own: FAISS makes its copy of the embeddings when a list first runs dry, and a
    replicated index maps the file of the others."""
    held = index_cost.held(setting)
    own = setting.own * setting.dim * index_cost.NUMBER if setting.spread else 0
    return held.payload + held.numbers + own


def start(case: Case, ranks: int, arguments: argparse.Namespace) -> Records:
    """Measure a case on ranks."""
    points = write_points(arguments.work / "points", case.samples, case.dim, case.seed)
    words = ["--points", str(points), "--case", json.dumps(asdict(case))]
    kind = "plain" if case.plain else PLACEMENTS[case.sharded]
    return launch(
        "index_worker.py", ranks, words, arguments.work / "ranks" / f"{case.samples}-{kind}-{ranks}"
    )


def places(ranks: Sequence[int]) -> list[tuple[int, bool]]:
    """(ranks, sharded) to measure: on one rank both placements are the same."""
    return [(count, sharded) for count in ranks for sharded in (False, True) if count > 1 or not sharded]


def search(arguments: argparse.Namespace) -> None:
    """All sizes, ranks and placements."""
    asked = {name: getattr(arguments, name) for name in (*OPTIONS, "micro_batch", "seed")}
    for size in arguments.sizes:
        case = Case(size, **asked)
        case = replace(case, queries=min(case.queries, size // 2))
        plain: list[dict[str, float]] = []
        ours: dict[tuple[int, bool], list[dict[str, Any]]] = {}
        for turn in range(arguments.repeats):
            records = start(replace(case, plain=True), 1, arguments)
            plain.append(
                {
                    name: together(records, name)
                    for name in ("faiss many", "faiss few", "torch many", "torch few")
                }
            )
            for ranks, sharded in places(arguments.ranks):
                of_place = replace(case, sharded=sharded)
                records = start(of_place, ranks, arguments)
                found = {
                    "measured": measured(of_place, ranks, records),
                    "predicted": predicted(of_place, ranks, rates_of(of_place, records)),
                    "rates": asdict(rates_of(of_place, records)),
                    "built": max(record["built"] for record in records),
                    "dry": sum(record["dry"] for record in records),
                }
                ours.setdefault((ranks, sharded), []).append(found)
                print(
                    f"  {turn + 1}/{arguments.repeats}: {size}, {ranks} ranks, {PLACEMENTS[sharded]}",
                    flush=True,
                )
        for (ranks, sharded), turns in ours.items():
            result = compared(replace(case, sharded=sharded), ranks, turns, plain)
            show_case(size, ranks, PLACEMENTS[sharded], result)
            write_result(arguments.out, f"index-{size}-ranks{ranks}-{PLACEMENTS[sharded]}", result)


def compared(
    case: Case, ranks: int, turns: list[dict[str, Any]], plain: list[dict[str, float]]
) -> dict[str, Any]:
    """Numbers of all turns, turn by turn over the model's and over the one-process searches'."""
    found: dict[str, Any] = {}
    for name in turns[0]["measured"]:
        values = [turn["measured"][name] for turn in turns]
        said = [turn["predicted"][name] for turn in turns]
        found[name] = {
            "measured": spread(values),
            "predicted": spread(said),
            "measured_over_predicted": spread(
                [value / guess for value, guess in zip(values, said, strict=True)]
            ),
        }
    ratios = {}
    for name in plain[0]:
        library, amount = name.split()
        # Ours answers for every rank at once, and with few queries each rank has as many.
        times = 1 if amount == "many" else ranks
        ratios[f"{amount} queries, over {library}"] = spread(
            [times * one[name] / turn["measured"][amount] for one, turn in zip(plain, turns, strict=True)]
        )
    return {
        "case": asdict(case),
        "ranks": ranks,
        "threads_a_rank": threads_of(ranks),
        "placement": PLACEMENTS[case.sharded],
        "found": found,
        "plain_seconds": {name: spread([one[name] for one in plain]) for name in plain[0]},
        "queries_per_second_ratio": ratios,
        "rates": [turn["rates"] for turn in turns],
        "seconds_to_build": spread([turn["built"] for turn in turns]),
        "dry_lists": [turn["dry"] for turn in turns],
    }


def show_case(size: int, ranks: int, placement: str, result: dict[str, Any]) -> None:
    """Print what matters."""
    found = result["found"]
    print(f"{size} vectors, {ranks} ranks, {placement}:")
    for name, unit, times in (
        ("queries_per_second", "queries a second", 1.0),
        ("few", "ms, search of one micro-batch a rank", 1e3),
        ("neighbours", "ms, its neighbours by walking, with routing vectors", 1e3),
        ("apply", "ms, updates of a step", 1e3),
        ("check", "ms, check of the ranks", 1e3),
        ("memory", "MB a rank before its first search", 1e-6),
    ):
        value, said = found[name]["measured"], found[name]["predicted"]["median"]
        print(
            f"  {times * value['median']:.4g} {unit} ({times * value['least']:.4g} to "
            f"{times * value['largest']:.4g}); the model says {times * said:.4g}"
        )
    for name, value in result["queries_per_second_ratio"].items():
        print(f"  {name}: {value['median']:.2f} times ({value['least']:.2f} to {value['largest']:.2f})")


def prepared(arguments: argparse.Namespace) -> tuple[Project, Path]:
    """The project of `share` and a job in it with every stage before training done; kept between calls."""
    shape, questions = from_options(arguments, Shape), from_options(arguments, Questions)
    name = f"share-{shape.layers}x{shape.hidden}x{shape.experts}-{questions.samples}x{questions.tokens}"
    project = Project(
        arguments.work / name,
        shape,
        questions,
        ranks=arguments.share_ranks,
        micro_batch=arguments.micro_batch,
        epochs=1,
        trained=arguments.trained,
    ).prepare()
    job = project.folder / "job-share"
    if not job.exists():
        for stage in SHARED_STAGES:
            shutil.copytree(project.shared / stage, job / stage)
    words = ["--config", str(project.config(0)), "--until", "index", *settings(arguments, job)]
    ranks = project.folder / "ranks" / "stages"
    launch("prefix_worker.py", project.ranks, words, ranks, timeout=24 * HOURS)
    return project, job


def settings(arguments: argparse.Namespace, job: Path) -> list[str]:
    """Config values of `share`."""
    return ["roma.refresh=1", "eval.batch_size=256", *arguments.override, f"output_dir={job}"]


def share(arguments: argparse.Namespace) -> None:
    """What neighbours, updates and checks of the live index add to a training step.

    Each turn trains with S as collected and with each placement. Waiting is the part of a step in which the
    training waits for the index; the whole difference also holds what the index's thread takes away from it.
    """
    project, job = prepared(arguments)
    kinds = {STILL: ["roma.refresh=never"]}
    kinds |= {kind: [f"index.placement={kind}"] for kind in arguments.placements}
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(arguments.repeats):
        for kind, words in kinds.items():
            shutil.rmtree(job / "train", ignore_errors=True)
            given = ["--config", str(project.config(0)), "--until", "train", "--steps", str(arguments.steps)]
            given += [*settings(arguments, job), *words]
            out = project.folder / "ranks" / f"share-{kind}"
            turns[kind].append(shares_of(launch("index_share_worker.py", project.ranks, given, out)))
    for kind in arguments.placements:
        waits = spread([turn["share"] for turn in turns[kind]])
        longer = spread(
            [
                turn["step"]["median"] / still["step"]["median"] - 1
                for turn, still in zip(turns[kind], turns[STILL], strict=True)
            ]
        )
        listed = ", ".join(
            f"{name} {100 * statistics.median(turn['shares'][name] for turn in turns[kind]):.2f}%"
            for name in (*INDEX, BESIDE)
        )
        print(
            f"{kind}, {project.ranks} ranks: a step waits {percent(waits)} of its time for the index "
            f"({listed}); wanted at most {100 * MOST_SHARE:g}%: "
            f"{'yes' if waits['median'] <= MOST_SHARE else 'NO'}; median step longer than without refreshing "
            f"by {percent(longer)}",
            flush=True,
        )
        write_result(
            arguments.out,
            f"index-share-{project.questions.samples}-ranks{project.ranks}-{kind}",
            {
                **project.describe(),
                "overrides": arguments.override,
                "share": waits,
                "longer": longer,
                "turns": turns[kind],
                "without_refreshing": turns[STILL],
            },
        )


def percent(value: dict[str, float]) -> str:
    """A spread of shares."""
    return f"{100 * value['median']:.2f}% ({100 * value['least']:.2f} to {100 * value['largest']:.2f})"


def shares_of(records: Records) -> dict[str, Any]:
    """Of one training, over steps and ranks, checks included: the share of a step that waits for the index.

    Left out are steps to warm up and those that are logged.
    """
    parts: dict[str, list[float]] = {}
    names = (*INDEX, BESIDE, "clock")
    for record in records:
        steps = [
            {name: after.get(name, 0.0) - before.get(name, 0.0) for name in names}
            for before, after in itertools.pairwise(record["by_step"])
        ]
        # `by_step` begins behind the first step, so its difference number i is that of step i + 1.
        for number in plain_steps(record):
            for name, value in steps[number - 1].items():
                parts.setdefault(name, []).append(value)
    mean = {name: statistics.fmean(values) for name, values in parts.items()}
    return {
        "share": sum(mean[name] for name in INDEX) / mean["clock"],
        "shares": {name: mean[name] / mean["clock"] for name in (*INDEX, BESIDE)},
        "step": spread(parts["clock"]),
        "seconds": mean,
        "median_seconds": {name: statistics.median(values) for name, values in parts.items()},
        "steps": len(plain_steps(records[0])),
        "successful": [records[0]["by_step"][place]["successful"] for place in (0, -1)],
        "searched": [record["searched"] for record in records],
        "memory": [record["memory"] for record in records],
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("search", "share"), default="search")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/work"), help="points, runs")
    parser.add_argument("--repeats", type=int, default=3)
    group = parser.add_argument_group("search")
    group.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    group.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    for field in fields(Case):
        if field.name in OPTIONS:
            group.add_argument(
                "--" + field.name.replace("_", "-"), type=type(field.default), default=field.default
            )
    group = parser.add_argument_group("share")
    group.add_argument("--share-ranks", type=int, default=2)
    group.add_argument("--steps", type=int, default=220, help="training ends behind so many")
    group.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=list(PLACEMENTS))
    group.add_argument("--trained", default="last5", help="roma.layers")
    group.add_argument("--override", nargs="*", default=[], metavar="a.b=c", help="config values")
    parser.add_argument("--micro-batch", type=int, default=8, help="samples of a rank in a step")
    add_options(parser, Shape)
    add_options(parser, Questions)
    # Questions of one or two words would be the same text many times.
    parser.set_defaults(layers=6, experts=64, samples=50_000, tokens=20, spread=0.2)
    arguments = parser.parse_args(words)
    arguments.out, arguments.work = arguments.out.resolve(), arguments.work.resolve()
    {"search": search, "share": share}[arguments.command](arguments)


if __name__ == "__main__":
    main()
