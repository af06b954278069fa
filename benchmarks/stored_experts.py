"""Training with frozen experts held in the codes of their checkpoint, against the same with decoded ones.

    python benchmarks/stored_experts.py fp8 --out results
    python benchmarks/stored_experts.py mxfp4 --out results

Writes a checkpoint with random codes, and trains a few steps of the layers behind a prefix cache of random
hidden states, each side in a process of its own, in turn. Memory is what is resident above the libraries, at
most in the steps; seconds are the median step's. Under ZeRO-3, on two ranks, bytes that a step gathers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from comparison import write_result
from launched import launch
from plan_worker import random_prompts, write_cache
from shapes import Questions, Shape, add_options, from_options, write_project

from roma_ds.config import resolve_deepspeed

BLOCK = 128
"""Rows and columns that share a scale."""
GROUP = 32
"""Values that share an exponent."""
TYPES = {"fp8": ("qwen3_moe", 8.002), "mxfp4": ("gpt_oss", 4.25)}
"""Model type and bits of a stored value, by format."""
SLACK = 0.03
FIRST_STEADY = 1
LENGTH = 128
LARGE = Shape(
    layers=6, hidden=2048, experts=32, top_k=4, expert_width=1024, heads=16, key_value_heads=4,
    head_width=128, vocabulary=4096, dtype="bfloat16",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training, run with decoded experts and with some in codes."""

    name: str
    per_expert: int
    """Tokens that an expert is given in a step, on average."""
    zero: int = 0
    ranks: int = 1
    steps: int = 4
    cached_share: float = 0.0
    """Of the decoded experts that `model.decoded_cache` has room for."""

    def prompts(self, shape: Shape) -> int:
        """Prompts of a rank and step."""
        return max(1, self.per_expert * shape.experts // shape.top_k // LENGTH)


def cases() -> list[Case]:
    """Many tokens an expert and few, where experts are most of the memory; caches; two ranks at ZeRO-3."""
    return [
        Case("512 tokens an expert", 512),
        Case("64 tokens an expert", 64),
        Case("16 tokens an expert", 16),
        Case("64 tokens an expert, half cached", 64, cached_share=0.5),
        Case("64 tokens an expert, all cached", 64, cached_share=1.0),
        Case("zero3 on 2 ranks", 64, zero=3, ranks=2, steps=6),
    ]


def blocks_of_floats(weight: Any) -> dict[str, Any]:
    """A weight [O, I] in float8 with a scale for each block, by the ends of their keys."""
    import torch
    from torch.nn import functional as F

    high, wide = (-(-size // BLOCK) for size in weight.shape)
    padded = F.pad(weight.float(), (0, wide * BLOCK - weight.shape[1], 0, high * BLOCK - weight.shape[0]))
    scale = padded.view(high, BLOCK, wide, BLOCK).abs().amax(dim=(1, 3)).clamp_(min=1e-12) / 448
    each = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: len(weight), : weight.shape[1]]
    return {"": (weight.float() / each).to(torch.float8_e4m3fn), "_scale_inv": scale}


def blocks_of_experts(shape: tuple[int, ...], dice: Any) -> dict[str, Any]:
    """Random MXFP4 of experts [E, I, O], whose values are about as large as 0.02."""
    import torch

    experts, high, wide = shape
    codes = torch.randint(
        0, 256, (experts, wide, high // GROUP, GROUP // 2), dtype=torch.uint8, generator=dice
    )
    scales = torch.randint(118, 122, (experts, wide, high // GROUP), dtype=torch.uint8, generator=dice)
    return {"_blocks": codes, "_scales": scales}


def store_in_codes(folder: Path, form: str) -> None:
    """Put codes in the place of the experts of a plain checkpoint, file by file."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        return
    dice = torch.Generator().manual_seed(0)
    placed = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, Any] = {}
        for key, values in load_file(path).items():
            coded = ".experts." in key and key.endswith(("_proj.weight", "_proj"))
            if not coded:
                tensors[key] = values
            elif form == "fp8":
                tensors |= {key + end: part for end, part in blocks_of_floats(values).items()}
            else:
                tensors |= {key + end: part for end, part in blocks_of_experts(values.shape, dice).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        placed.update(dict.fromkeys(tensors, path.name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    said = {
        "fp8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]},
        "mxfp4": {"quant_method": "mxfp4"},
    }
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said[form]}))


def expert_bytes(shape: Shape) -> int:
    """Of all decoded experts behind the cache, whose first layer is 1."""
    return (shape.layers - 1) * shape.experts * 3 * shape.hidden * shape.expert_width * 2


def measured(
    case: Case, shape: Shape, project: Path, frozen: str, cache_gib: float, threads: int | None
) -> dict[str, float]:
    """One side, once."""
    text = project.read_text()
    model = f"model: {{path: model, dtype: {shape.dtype}"
    assert model in text
    config = project.with_name(f"zero{case.zero}-{frozen}.yaml")
    settings = f", frozen: {frozen}, decoded_cache: {cache_gib}"
    text = text.replace(model, model + settings).replace(
        "micro_batch: 1\n", f"micro_batch: {case.prompts(shape)}\n"
    )
    config.write_text(text)
    prompts = random_prompts(case.prompts(shape) * case.ranks, LENGTH, shape.vocabulary)
    prefix = project.parent / f"prefix-{len(prompts)}"
    if not prefix.exists():
        write_cache(prefix, prompts, shape.hidden, shape.dtype, 1)
    arguments = [
        "--config",
        str(config),
        "--ds",
        str(_ds_config(config, case)),
        "--cache",
        str(prefix),
        "--first",
        "1",
    ]
    arguments += ["--length", str(LENGTH), "--vocabulary", str(shape.vocabulary)]
    arguments += ["--steps", str(case.steps), *(["--count-bytes"] if case.zero == 3 else [])]
    records = launch(
        "plan_worker.py", case.ranks, arguments, project.parent / "ranks" / frozen, threads=threads
    )
    found = records[0]
    ends, gathered = (found[name][FIRST_STEADY:] for name in ("step_ends", "gathered"))
    steps = [after - before for before, after in itertools.pairwise(ends)]
    brought = [after - before for before, after in itertools.pairwise(gathered)]
    return {
        "memory": max(max(record["peaks"][1 + FIRST_STEADY :]) for record in records),
        "resting": max(record["loaded"] for record in records),
        "step_seconds": statistics.median(steps),
        # DeepSpeed fetches without a plan in the first two passes.
        "gathered": statistics.median(brought[2:]) * case.ranks if brought else 0,
    }


def _ds_config(config: Path, case: Case) -> Path:
    from roma_ds.pipeline.worker import load_for

    path = config.with_suffix(".json")
    path.write_text(json.dumps(resolve_deepspeed(load_for(config, [], None), case.ranks)))
    return path


def compared(
    case: Case, shape: Shape, form: str, project: Path, pairs: int, threads: int | None
) -> dict[str, Any]:
    """Both sides in turn, their medians and what the formula lets them be."""
    cache = case.cached_share * expert_bytes(shape) / 2**30
    sides: dict[str, list[dict[str, float]]] = {"stored": [], "decoded": []}
    for pair in range(pairs):
        for frozen in sorted(sides, reverse=pair % 2 == 0):
            sides[frozen].append(
                measured(case, shape, project, frozen, cache if frozen == "stored" else 0.0, threads)
            )
    middle = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for name, found in sides.items()
    }
    ratios = {key: middle["stored"][key] / value for key, value in middle["decoded"].items() if value}
    share = expert_bytes(shape) / middle["decoded"]["memory"]
    smaller = 1 - TYPES[form][1] / 16
    result = {
        "case": asdict(case),
        "threads": threads,
        "tokens_of_a_step": case.prompts(shape) * LENGTH * case.ranks,
        "expert_share": share,
        "memory_wanted": 1 - share * smaller + SLACK,
        "ratio": ratios,
        "ratios_of_pairs": [
            one["step_seconds"] / other["step_seconds"]
            for one, other in zip(sides["stored"], sides["decoded"], strict=True)
        ],
        "median": middle,
        "runs": sides,
    }
    shown = ", ".join(f"{key} {value:.3f}" for key, value in ratios.items())
    print(
        f"{form}, {case.name}: s {share:.3f}, memory wanted {result['memory_wanted']:.3f}; {shown}",
        flush=True,
    )
    return result


def results(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What each case that was asked for gives."""
    shape = replace(from_options(arguments, Shape), model_type=TYPES[arguments.form][0])
    folder = arguments.work.resolve() / arguments.form
    trained = f"last{shape.layers - 1}"
    projects = {
        zero: write_project(folder, shape, Questions(samples=8), f"zero{zero}", 1, 1, trained)
        for zero in (0, 3)
    }
    store_in_codes(folder / "model", arguments.form)
    for case in cases():
        if not arguments.only or case.name in arguments.only:
            yield compared(
                case, shape, arguments.form, projects[case.zero], arguments.pairs, arguments.threads
            )


def main() -> None:
    """Measure the cases and write one JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=sorted(TYPES))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/stored"), help="checkpoints")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of a rank; by default its share of the cores")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="cases by name")
    add_options(parser, Shape)
    parser.set_defaults(**asdict(LARGE))
    arguments = parser.parse_args()
    found = []
    for result in results(arguments):
        found.append(result)
        shape = replace(from_options(arguments, Shape), model_type=TYPES[arguments.form][0])
        write_result(
            arguments.out,
            f"stored_experts-{arguments.form}",
            {"shape": asdict(shape), "bits": TYPES[arguments.form][1], "cases": found},
        )


if __name__ == "__main__":
    main()
