"""How much the frozen-prefix engine saves: against a Trainer, against arithmetic, and by size.

    python benchmarks/prefix_engine.py rival --layers 48 --out results     steps, epochs, whole job
    python benchmarks/prefix_engine.py bytes --layers 48 --out results     gathered a step, ZeRO-3
    python benchmarks/prefix_engine.py memory --out results                peak memory, 2 GB of weights
    python benchmarks/prefix_engine.py floor --out results                 against the operations it must do
    python benchmarks/prefix_engine.py scaling --axis layers --out results
    python benchmarks/prefix_engine.py parts --out results                 neighbours, synchronisation

Each call runs both sides on the same checkpoint, data, ranks and micro-batch, in turns (--repeats), prints
ratios and writes one JSON a result. Seconds depend on the machine and on what else it does; only ratios from
one call mean something.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comparison import (
    Project,
    Records,
    durations,
    epoch_seconds,
    gathered_bytes,
    job_seconds,
    paired,
    peak_bytes,
    plain_steps,
    processor_seconds,
    show,
    spread,
    step_seconds,
    write_result,
)
from flops import step_cost
from shapes import Questions, Shape, add_options, checkpoint_bytes, from_options

WIDE = Shape(layers=8, hidden=1024, heads=16, key_value_heads=16, expert_width=512)
"""Matrices dominate; the prefix does not matter, so it is short."""
HEAVY = Shape(layers=48, hidden=512, heads=8, key_value_heads=8, experts=64, expert_width=192)
"""4 GB of float32 weights, in about the proportions of a 30-billion model."""
RIVAL_JSONS: dict[str, list[str]] = {"our numbers": [], "the Trainer's numbers": ["--auto"]}
"""How the rival decides what the DeepSpeed JSON leaves open."""
AXES = {
    "layers": (16, 28, 48, 94),
    "tokens": (32, 64, 128, 256),
    "experts": (16, 32, 64, 128),
    "ranks": (1, 2),
}


def project_of(arguments: argparse.Namespace, name: str, **changes: Any) -> Project:
    """The project of the options, with some of shape, questions and settings changed."""
    shape = changes.pop("shape", None) or from_options(arguments, Shape)
    questions = replace(from_options(arguments, Questions), **changes.pop("questions", {}))
    settings = {"ranks": arguments.ranks, "micro_batch": arguments.micro_batch, "epochs": arguments.epochs}
    project = Project(
        arguments.work / name, shape, questions, trained=arguments.trained, **settings | changes
    )
    print(f"{name}: {checkpoint_bytes(shape) / 1e9:.2f} GB of weights", flush=True)
    return project.prepare()


def size_name(shape: Shape) -> str:
    """A short name of a shape."""
    return f"{shape.layers}x{shape.hidden}x{shape.experts}"


def rival_flags(
    arguments: argparse.Namespace, project: Project, zero: int
) -> tuple[list[str], dict[str, float]]:
    """Options that make the rival fastest, or those that were asked for, and what was tried."""
    if arguments.rival != "auto":
        return arguments.rival.split(), {}
    flags, tried = project.fastest_rival(zero)
    print("  rival: " + ", ".join(f"{key} {value:.3f} s a step" for key, value in tried.items()), flush=True)
    return flags, tried


def rival(arguments: argparse.Namespace) -> None:
    """Step, epoch and whole job under each ZeRO stage."""
    project = project_of(arguments, size_name(from_options(arguments, Shape)))
    deep = project.shape.layers >= 48
    wanted = [("epoch", 5.0), ("job", 2.5)] if deep else [("epoch", 2.0)]
    kind = ""
    if project.shape.model_type != Shape.model_type:
        # Hybrid layers: less of them is what the prefix saves, products of experts.
        kind, wanted = f"{project.shape.model_type}-", [("epoch", 4.0 if deep else 2.5)]
    full = ["--full-logits"] if arguments.full_logits else []
    for zero in arguments.zero:
        flags, tried = rival_flags(arguments, project, zero)
        found = paired(
            arguments.repeats,
            lambda: project.ours(zero, *arguments.override),  # noqa: B023 - called before zero changes
            lambda: project.rival(zero, *flags, *full),  # noqa: B023
            {
                "step": step_seconds,
                "processor": processor_seconds,
                "epoch": epoch_seconds,
                "job": job_seconds,
            },
        )
        print(f"{size_name(project.shape)}, ZeRO {zero}, {project.questions.tokens} tokens", flush=True)
        show(found, wanted)
        logits = "-full-logits" if arguments.full_logits else ""
        write_result(
            arguments.out,
            f"rival-{kind}{size_name(project.shape)}-zero{zero}-tokens{project.questions.tokens}{logits}",
            {
                **project.describe(),
                "zero": zero,
                "rival": flags,
                "rival_tried": tried,
                "full_logits": arguments.full_logits,
                "overrides": arguments.override,
                "found": found,
            },
        )


def against_each(
    repeats: int,
    ours: Callable[[], Records],
    rival: Callable[..., Records],
    measures: dict[str, Any],
    least: float,
) -> dict[str, Any]:
    """Under ZeRO-3 the comparison with each way in which the rival decides what the JSON leaves open."""
    rivals = {}
    for name, flags in RIVAL_JSONS.items():
        rivals[name] = paired(repeats, ours, lambda: rival(*flags), measures)  # noqa: B023 - called at once
        print(f"against the rival with {name}", flush=True)
        show(rivals[name], [(next(iter(measures)), least)])
    return rivals


def gathered(arguments: argparse.Namespace) -> None:
    """Gathered bytes a step under ZeRO-3, by DeepSpeed's comms logger."""
    project = project_of(
        arguments, size_name(from_options(arguments, Shape)), questions={"samples": 96}, epochs=1
    )
    rivals = against_each(
        1,
        lambda: project.ours(3, "--count-bytes", *arguments.override),
        lambda *flags: project.rival(3, "--count-bytes", *flags),
        {"gathered": gathered_bytes},
        8.0,
    )
    write_result(arguments.out, f"bytes-{size_name(project.shape)}", {**project.describe(), "rivals": rivals})


def memory(arguments: argparse.Namespace) -> None:
    """Peak resident memory above the bare libraries, ours in a process that trains only."""
    shape = HEAVY if arguments.layers == Shape.layers else from_options(arguments, Shape)
    project = project_of(arguments, size_name(shape), shape=shape, questions={"samples": 64}, epochs=1)
    measures = {
        "peak_training": lambda records: peak_bytes(records)["training"],
        "peak_process": lambda records: peak_bytes(records)["process"],
    }
    for zero in arguments.zero:

        def ours() -> Records:
            project.ours(zero, *arguments.override, until="index")  # noqa: B023
            return project.ours(zero, *arguments.override, again=True)  # noqa: B023

        def rival(*flags: str) -> Records:
            return project.rival(zero, *flags)  # noqa: B023

        if zero == 3:
            rivals = against_each(arguments.repeats, ours, rival, measures, 5.0)
        else:
            rivals = {"our numbers": paired(arguments.repeats, ours, rival, measures)}
            show(rivals["our numbers"], [("peak_training", 5.0)])
        result = {"zero": zero, "weights_bytes": checkpoint_bytes(shape), "rivals": rivals}
        write_result(arguments.out, f"memory-{size_name(shape)}-zero{zero}", {**project.describe(), **result})


def over_floor(project: Project, records: Records, kind: str) -> list[float]:
    """By step, seconds over those that the slowest rank's operations take at the measured matrix rate."""
    trained = int(project.trained.removeprefix("last"))
    taken, ratios = durations(records[0]), []
    for number in plain_steps(records[0]):
        least = 0.0
        for record in records:
            rate = statistics.mean(rates[kind] for rates in record["matrix_rates"])
            lengths = [record["lengths"][row] for row in record["rows"][number]]
            least = max(least, step_cost(project.shape, lengths, trained).total / rate)
        ratios.append(taken[number] / least)
    return ratios


def floor(arguments: argparse.Namespace) -> None:
    """Step time over the time of the operations that a step cannot do without."""
    shape = WIDE if arguments.hidden == Shape.hidden else from_options(arguments, Shape)
    for ranks in arguments.floor_ranks:
        project = project_of(arguments, size_name(shape), shape=shape, ranks=ranks)
        ratios: dict[str, list[float]] = {"best": [], "median": []}
        rates = []
        for _ in range(arguments.repeats):
            records = project.ours(0, "--matrix-rate", *arguments.override)
            rates.append([record["matrix_rates"] for record in records])
            for kind, values in ratios.items():
                values.append(statistics.median(over_floor(project, records, kind)))
        for kind, values in ratios.items():
            print(
                f"{ranks} ranks: a step takes {statistics.median(values):.2f} times the floor at the {kind} "
                f"matrix rate ({min(values):.2f} to {max(values):.2f}); wanted at most 1.5",
                flush=True,
            )
        found = {kind: spread(values) for kind, values in ratios.items()}
        write_result(
            arguments.out,
            f"floor-{size_name(shape)}-ranks{ranks}",
            {**project.describe(), "over_floor": found, "matrix_rates": rates},
        )


def scaling(arguments: argparse.Namespace) -> None:
    """Seconds a step of both sides along one axis, the rest equal."""
    base = from_options(arguments, Shape)
    rows: list[dict[str, Any]] = []
    for value in arguments.values or AXES[arguments.axis]:
        changes: dict[str, Any] = {"shape": base}
        if arguments.axis in ("layers", "experts"):
            changes["shape"] = replace(base, **{arguments.axis: value})
        elif arguments.axis == "tokens":
            changes["questions"] = {"tokens": value}
        else:
            changes["ranks"] = value
        project = project_of(arguments, f"{arguments.axis}-{value}", **changes)
        for zero in arguments.zero:
            flags, tried = rival_flags(arguments, project, zero)
            found = paired(
                arguments.repeats,
                lambda: project.ours(zero, *arguments.override),  # noqa: B023
                lambda: project.rival(zero, *flags),  # noqa: B023
                {"step": step_seconds, "processor": processor_seconds, "job": job_seconds},
            )
            print(f"{arguments.axis} {value}, ZeRO {zero}", flush=True)
            show(found)
            rows.append(
                {
                    arguments.axis: value,
                    "zero": zero,
                    "rival": flags,
                    "rival_tried": tried,
                    **project.describe(),
                    "found": found,
                }
            )
    write_result(arguments.out, f"scaling-{arguments.axis}", {"axis": arguments.axis, "rows": rows})


def shares_of(records: Records) -> tuple[dict[str, float], dict[str, float]]:
    """Of one training, over ranks: mean seconds of what was timed, and shares of a step."""
    timed = [record["shares"] for record in records]
    mean = {key: statistics.fmean(one.get(key, 0.0) for one in timed) for key in timed[0]}
    whole = mean["steps"] + mean["agreement"]
    named = {
        "neighbours": mean["neighbours"] + mean["manifold term forward"],
        "agreement": mean["agreement"],
        "gradients' mean": mean.get("gradients' mean", 0.0),
    }
    return mean, {key: value / whole for key, value in named.items()}


def parts(arguments: argparse.Namespace) -> None:
    """The share of a step that neighbours and synchronisation take."""
    project = project_of(arguments, size_name(from_options(arguments, Shape)))
    for zero in arguments.zero:
        turns = []
        for _ in range(arguments.repeats):
            seconds, shares = shares_of(project.ours(zero, "--parts", *arguments.override))
            turns.append({"share": sum(shares.values()), "shares": shares, "seconds": seconds})
        total = spread([turn["share"] for turn in turns])
        listed = ", ".join(
            f"{key} {100 * statistics.median(turn['shares'][key] for turn in turns):.2f}%"
            for key in turns[0]["shares"]
        )
        low, middle, high = (100 * total[key] for key in ("least", "median", "largest"))
        print(f"ZeRO {zero}: {middle:.2f}% of a step ({low:.2f} to {high:.2f}): {listed}; wanted at most 2%")
        write_result(
            arguments.out,
            f"parts-{size_name(project.shape)}-zero{zero}",
            {**project.describe(), "zero": zero, "share": total, "turns": turns},
        )


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "rival": rival,
    "bytes": gathered,
    "memory": memory,
    "floor": floor,
    "scaling": scaling,
    "parts": parts,
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/results"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/benchmarks/work"), help="checkpoints and runs"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trained", default="last5", help="roma.layers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 3], choices=(0, 3))
    parser.add_argument("--rival", default="auto", help="options of rival_trainer.py; auto takes the fastest")
    parser.add_argument("--full-logits", action="store_true", help="the rival computes all logits")
    parser.add_argument("--axis", choices=AXES, default="layers")
    parser.add_argument("--values", type=int, nargs="+", help="of --axis")
    parser.add_argument("--floor-ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--override", nargs="*", default=[], metavar="a.b=c", help="config values of our side"
    )
    add_options(parser, Shape)
    add_options(parser, Questions)
    parser.set_defaults(samples=320, tokens=64)
    arguments = parser.parse_args(words)
    arguments.out, arguments.work = arguments.out.resolve(), arguments.work.resolve()
    COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    main()
