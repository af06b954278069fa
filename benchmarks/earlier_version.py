"""What shared tokens save in collection and training, against a checkout of an earlier version.

    git worktree add ../earlier COMMIT
    python benchmarks/earlier_version.py --earlier ../earlier --data DATA --out results

DATA holds `arc_easy/train.jsonl.gz` and `tokenizers/olmoe_tokenizer.json.gz`. Both versions run in the same
environment, in turns, each command in a process of its own, on one rank, with the same config, model of
random weights and rows:

- collection: ARC-Easy's training rows, answered by the text of an option, at 48 layers; its seconds and the
  bytes of the prefix cache that it leaves;
- training: 16 samples of at most 64 tokens of their own under one instruction of 300 tokens, in one
  micro-batch; seconds a step, from runs of few and of many steps.

Processor seconds tell the two apart where other work runs beside. Peak memory is that of the process above
what is resident once the libraries are imported. Writes one JSON each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import write_result
from harness_agreement import read, write
from shared_prefixes import Wide

WORKER = Path(__file__).with_name("earlier_worker.py")
INSTRUCTION, OWN, SAMPLES = 300, 64, 16
"""Tokens, tokens and rows of the training."""
STEPS = (2, 8)
CONFIG = """\
model: {{path: {model}, dtype: float32}}
data: {{train: [{{path: {rows}{answer}}}], max_tokens: 1024}}
embed: {{model: demo}}
roma: {{layers: last5}}
train: {{epochs: {epochs}, micro_batch: 16, lr: 1.0e-4, log_every: 1000}}
eval: {{tasks: [{{name: unused, path: {unused}}}]}}
controls: []
deepspeed: zero0
output_dir: {out}
"""


@dataclass(frozen=True)
class Version:
    """A checkout whose package is run."""

    name: str
    root: Path

    def run(self, command: str, config: Path, threads: int) -> dict[str, Any]:
        """What `earlier_worker.py` measured of `roma-ds COMMAND CONFIG`."""
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": str(threads)}
        line = [sys.executable, str(WORKER), command, str(config)]
        done = subprocess.run(
            line, env=environment, cwd=self.root, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{self.name}: {command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if Path(found["package"]).resolve() != (self.root / "roma_ds").resolve():
            raise SystemExit(f"{self.name}: {found['package']} was run in place of {self.root}")
        return found


def written(work: Path, name: str, **values: Any) -> Path:
    """A config whose run folder is new."""
    unused = write(
        work / "unused.jsonl", [{"id": 1, "question": "Unused?", "choices": ["no", "yes"], "answer": 0}]
    )
    path = work / f"{name}.yaml"
    path.write_text(CONFIG.format(unused=unused, out=work / name, **{"answer": "", "epochs": 1, **values}))
    return path


def collected(
    version: Version, work: Path, turn: int, model: Path, rows: Path, threads: int
) -> dict[str, float]:
    """Seconds, processor seconds of the command, bytes above the libraries and of the cache."""
    config = written(work, f"{version.name}-collect-{turn}", model=model, rows=rows, answer=", answer: text")
    # Embeddings are no part of what is timed.
    version.run("embed", config, threads)
    found = version.run("collect", config, threads)
    folder = config.with_suffix("")
    stage = json.loads((folder / "collect" / "stage.json").read_text())
    cache = sum(file.stat().st_size for file in folder.rglob("*.bin")) or sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if "cache" in str(file.relative_to(folder)) and file.is_file()
    )
    measured = {name: found[name] for name in ("processor", "memory")}
    return {"seconds": stage["seconds"], **measured, "cache": cache}


def stepped(
    version: Version, work: Path, turn: int, model: Path, rows: Path, threads: int
) -> dict[str, float]:
    """Seconds and processor seconds a step, and bytes above the libraries in the longer of two trainings."""
    seconds, processor, memory = [], [], 0
    for steps in STEPS:
        name = f"{version.name}-train-{turn}-{steps}"
        config = written(work, name, model=model, rows=rows, epochs=steps)
        version.run("index", config, threads)
        found = version.run("train", config, threads)
        memory = found["memory"]
        processor.append(found["processor"])
        seconds.append(json.loads((work / name / "train" / "stage.json").read_text())["seconds"])
    each = {
        name: (found[1] - found[0]) / (STEPS[1] - STEPS[0])
        for name, found in (("seconds", seconds), ("processor", processor))
    }
    return {**each, "memory": memory}


def instructed(work: Path, model: Path) -> Path:
    """Rows under one instruction, counted in the model's tokens."""
    from transformers import AutoTokenizer

    tokenizer, rng = AutoTokenizer.from_pretrained(model), random.Random(0)
    words = "the river runs over green stones while small birds look for their bread near an old mill".split()

    def text(tokens: int) -> str:
        found = "Read"
        while len(tokenizer(found)["input_ids"]) < tokens:
            found += f" {rng.choice(words)}"
        return found

    instruction = text(INSTRUCTION)
    rows = [
        {
            "id": place,
            "question": f"{instruction}\n{place}: {text(rng.randrange(OWN // 2, OWN - 24))}",
            "choices": ["mill", "bread"],
            "answer": place % 2,
        }
        for place in range(SAMPLES)
    ]
    return write(work / "instructed.jsonl", rows)


def compared(
    name: str, earlier: Sequence[dict[str, float]], now: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Ratios by turn and their medians: how much less the present version takes."""
    found: dict[str, Any] = {"earlier": list(earlier), "now": list(now)}
    for key in now[0]:
        ratios = [one[key] / other[key] for one, other in zip(earlier, now, strict=True)]
        found[f"{key}_ratio"], found[f"{key}_ratios"] = statistics.median(ratios), ratios
        print(f"{name}: {key} {found[f'{key}_ratio']:.2f} times as much in the earlier version", flush=True)
    return found


def main() -> int:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--earlier", type=Path, required=True, help="a checkout of the earlier version")
    parser.add_argument("--data", type=Path, required=True, help="folder with the benchmark files")
    parser.add_argument("--what", nargs="+", default=["collection", "training"])
    parser.add_argument("--rows", type=int, default=2251, help="of ARC-Easy's training rows")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--hidden", type=int, default=128, help="of the model that collects")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("earlier_version_work"), help="an empty folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True)
    here = Version("now", Path(__file__).resolve().parents[1])
    versions = (Version("earlier", options.earlier.resolve()), here)
    tokenizer = options.data / "tokenizers" / "olmoe_tokenizer.json.gz"
    facts = {
        "threads": options.threads,
        "layers": options.layers,
        "hidden": options.hidden,
        "rows": options.rows,
    }
    for what, measured in (("collection", collected), ("training", stepped)):
        if what not in options.what:
            continue
        narrow = Wide(options.layers, options.hidden, 16, options.hidden, 4, 4)
        model = (narrow if what == "collection" else Wide()).save(work / what, tokenizer)
        if what == "collection":
            arc = read(options.data / "arc_easy" / "train.jsonl.gz")[: options.rows]
            rows = write(work / "arc_easy.jsonl", arc)
        else:
            rows = instructed(work, model)
        found: dict[str, list[dict[str, float]]] = {version.name: [] for version in versions}
        for turn in range(options.repeats):
            for version in versions:
                found[version.name].append(measured(version, work, turn, model, rows, options.threads))
                print(what, version.name, found[version.name][-1], flush=True)
        result = compared(what, found["earlier"], found["now"])
        write_result(
            options.out, f"shared-prefixes-{what}", {**facts, **result} if what == "collection" else result
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
