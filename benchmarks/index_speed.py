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
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from comparison import Records, spread, write_result
from index_share import share
from index_worker import Case, write_points
from launched import launch, threads_of
from shapes import Questions, Shape, add_options

from roma_ds.planner import index_cost
from roma_ds.planner.index_cost import IndexSetting, Line, Rates

PLACEMENTS = ("replicated", "sharded")
HOURS = 3600.0
OPTIONS = (
    "dim", "width", "payload", "backend", "neighbours", "candidates", "updates", "queries", "seconds",
)  # fmt: skip
"""Fields of a case that are options of `search` alone."""


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
