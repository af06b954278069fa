"""What the data stage costs on many rows: speed against `datasets` iterating them as dicts, and memory.

    python benchmarks/data_rows.py --rows 1000000 --out results

Writes a Parquet file of random rows for each shape, and in turns, three times: the data stage on it (rows
read and checked, held against 2,000 evaluation questions, written as samples; nothing is tokenised), and a
loop over `datasets.load_dataset("parquet", ...)`, whose preparation is timed apart. Each side is a process of
its own; the memory is the largest that was resident, above that once all was imported. One JSON a shape.
Ratios from one call mean something; seconds belong to the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison import spread, write_result
from measured import resident_bytes

HERE = Path(__file__).resolve()
PAIRS = 3
EVALUATED = 2_000
AT_ONCE = 50_000
LEAST_SPEED = 1 / 3
"""Of the speed of the loop."""
MOST_MEMORY = 1.5 * 2**30
"""Bytes above the bare imports."""
RUN = """\
model: {{path: owner/model}}
data: {{train: [{{path: rows.parquet}}]}}
eval: {{tasks: [{{name: asked, path: test.jsonl}}]}}
output_dir: out
"""
_SOUNDS = [first + last for first in "ba de fi go ku la".split() for last in "lan mer tos vik zu".split()]
WORDS = [*(a + b for a in _SOUNDS for b in _SOUNDS), *"the of in a which is to and for".split() * 20]


def text(rng: random.Random, least: int, most: int) -> str:
    """So many words, with a comma among them."""
    words = rng.choices(WORDS, k=rng.randint(least, most))
    words[len(words) // 2] += ","
    return " ".join(words).capitalize()


def question(place: int, rng: random.Random) -> dict[str, Any]:
    """A row with options."""
    return {
        "id": f"q{place}",
        "question": f"{text(rng, 12, 30)}, number {place}?",
        "choices": [text(rng, 2, 5) for _ in range(4)],
        "answer": rng.randrange(4),
    }


def conversation(place: int, rng: random.Random) -> dict[str, Any]:
    """A row of two questions and two answers."""
    turns = [
        {"role": role, "content": f"{text(rng, 12, 30)}, number {place}."}
        for role in ("user", "assistant") * 2
    ]
    return {"id": f"c{place}", "messages": turns}


SHAPES = {"question": question, "conversation": conversation}


def write_rows(folder: Path, shape: str, rows: int) -> None:
    """`rows.parquet` of a shape, and a run that trains on it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    writer = None
    for start in range(0, rows, AT_ONCE):
        made = [SHAPES[shape](place, rng) for place in range(start, min(rows, start + AT_ONCE))]
        table = pa.Table.from_pylist(made)
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    asked = [question(rows + place, rng) for place in range(EVALUATED)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "run.yaml").write_text(RUN.format())


def ours(folder: Path) -> Iterator[dict[str, float]]:
    """The data stage; first what it starts from, then what it took."""
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from roma_ds.config import load_run_config
    from roma_ds.data import run_data

    run = load_run_config(folder / "run.yaml", [])
    yield {}
    manifest = run_data(run, folder / "out")
    yield {"samples": manifest["training"]["samples"]}


def peer(folder: Path) -> Iterator[dict[str, float]]:
    """The loop; its preparation is no part of it."""
    import datasets

    datasets.disable_progress_bars()
    started = time.perf_counter()
    rows = datasets.load_dataset(
        "parquet", data_files=str(folder / "rows.parquet"), split="train", cache_dir=str(folder / "cache")
    )
    yield {"prepared": time.perf_counter() - started}
    count = 0
    for _ in rows:
        count += 1
    yield {"samples": count}


def measure(side: str, folder: Path) -> dict[str, float]:
    """One side in this process."""
    steps = {"ours": ours, "peer": peer}[side](folder)
    found = dict(next(steps))
    bare, wall, processor = resident_bytes(), time.perf_counter(), time.process_time()
    found |= next(steps)
    found["seconds"] = time.perf_counter() - wall
    found["processor_seconds"] = time.process_time() - processor
    found["memory"] = float(resident_bytes("VmHWM") - bare)
    return found


def compare(folder: Path, shape: str, rows: int, pairs: int) -> dict[str, Any]:
    """Both sides in turns."""
    write_rows(folder, shape, rows)
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for _ in range(pairs):
        for side, found in sides.items():
            call = [sys.executable, str(HERE), "--side", side, "--work", str(folder)]
            done = subprocess.run(call, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    for side, found in sides.items():
        if any(one["samples"] != rows for one in found):
            raise SystemExit(f"{side} gave {[one['samples'] for one in found]} of {rows} rows")
    result: dict[str, Any] = {"shape": shape, "rows": rows, "pairs": pairs, **sides}
    for name in ("seconds", "processor_seconds"):
        pairs_of = zip(sides["peer"], sides["ours"], strict=True)
        result[f"speed_by_{name}"] = spread([theirs[name] / mine[name] for theirs, mine in pairs_of])
    result["memory_above_imports"] = spread([one["memory"] for one in sides["ours"]])
    result["rows_per_second"] = spread([rows / one["seconds"] for one in sides["ours"]])
    return result


def main() -> int:
    """Measure every shape; 1 where one is too slow or takes too much memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--work", type=Path, default=Path("work-data-rows"), help="folder of the files")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.work)))
        return 0
    missed = False
    for shape in options.shapes:
        result = compare(options.work / shape, shape, options.rows, options.pairs)
        write_result(options.out, f"data_rows-{shape}", result)
        speed, memory = result["speed_by_seconds"]["median"], result["memory_above_imports"]["largest"]
        print(f"{shape}: {speed:.2f} of the speed of the loop, {memory / 2**20:.0f} MiB above the imports")
        missed = missed or speed < LEAST_SPEED or memory > MOST_MEMORY
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
