"""How much is saved where sequences share what they begin with, against lm-evaluation-harness's `hf`.

    python benchmarks/shared_prefixes.py --data DATA --out results
    python benchmarks/shared_prefixes.py --data DATA --out results --tasks arc_challenge --shots 25 --rows 100
    python benchmarks/shared_prefixes.py --data DATA --out results --tasks gsm8k --rows 64

DATA holds the benchmark files (`NAME/SPLIT.jsonl.gz`) and `tokenizers/olmoe_tokenizer.json.gz`. One model of
random weights, in OLMoE's proportions, in which matrix products dominate. The same rows are answered by the
harness's own class `hf`, at the fastest of several batch sizes, chosen on a few rows; by `lm_eval --model
roma_ds`; and by what `roma-ds eval` runs. Each side is timed from texts to log-likelihoods, tokenising
included and loading left out, in turns. Exits with 1 where a log-likelihood differs by more than the
tolerance, or more than a few texts do. Needs the extra `eval`.
"""

from __future__ import annotations

import argparse
import gzip
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness_agreement
from comparison import write_result
from harness_agreement import TASKS, TOLERANCE, Compared, listed, prepare
from shared_writing import DIFFERENT, WritingSides, compared_writing
from shared_writing import NAME as WRITTEN

from roma_ds.testing.tiny_models import tiny_config

Values = list[list[float]]
Timed = tuple[float, Values]
"""Seconds, and log-likelihoods by question and option."""
SIZES = (1, 8, 16, 32)
PILOT = 0.05


@dataclass(frozen=True)
class Wide:
    """OLMoE's shape, smaller."""

    layers: int = 8
    hidden: int = 512
    experts: int = 16
    width: int = 512
    top_k: int = 4
    heads: int = 8

    def save(self, folder: Path, tokenizer_file: Path) -> Path:
        """A random checkpoint in float32 with OLMoE's vocabulary."""
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(gzip.decompress(tokenizer_file.read_bytes()).decode()),
            pad_token="<|padding|>",
            eos_token="<|endoftext|>",
        )
        config = tiny_config(
            "olmoe",
            50_304,
            layers=self.layers,
            hidden=self.hidden,
            experts=self.experts,
            intermediate_size=self.width,
            num_experts_per_tok=self.top_k,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.hidden // self.heads,
            max_position_embeddings=4096,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder


@dataclass
class Sides:
    """What is compared, on one task."""

    work: Path
    task: Compared
    rows: int

    def harness(self, model: Any, limit: int | None = None) -> Timed:
        """The harness's questions to one of its models, already loaded."""
        os.environ["HF_DATASETS_CACHE"] = str(self.work / "cache")
        import lm_eval
        from lm_eval.tasks import TaskManager

        spent, asked = [], model.loglikelihood

        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            found = asked(*given, **named)
            spent.append(time.perf_counter() - started)
            return found

        model.loglikelihood = timed
        name = f"compared_{self.task.name}"
        try:
            result = lm_eval.simple_evaluate(
                model=model,
                tasks=[name],
                num_fewshot=self.task.shots,
                limit=limit,
                task_manager=TaskManager(include_path=str(self.work / "tasks"), include_defaults=False),
                bootstrap_iters=0,
                log_samples=True,
            )
        finally:
            model.loglikelihood = asked
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        return sum(spent), [[float(one[0][0]) for one in sample["resps"]] for sample in samples]

    def hf(self, size: int, limit: int | None = None) -> Timed:
        """The harness's own class at a batch size."""
        from lm_eval.models.huggingface import HFLM

        return self.harness(HFLM(batch_size=size, **self._loading()), limit)

    def bridge(self, size: int) -> Timed:
        """`lm_eval --model roma_ds`."""
        from roma_ds.evaluation.harness import RoutedHarnessModel

        return self.harness(RoutedHarnessModel(batch_size=size, **self._loading()))

    def _loading(self) -> dict[str, Any]:
        return {"pretrained": str(self.work / "model"), "dtype": "float32", "device": "cpu"}

    def evaluation(self, size: int) -> Timed:
        """What `roma-ds eval` does between its samples on disk and its scores."""
        import torch

        from roma_ds.checkpoint.loading import load_tokenizer
        from roma_ds.comm import World
        from roma_ds.comm.ranks import Ranks
        from roma_ds.config import load_run_config
        from roma_ds.data.store import load_samples
        from roma_ds.frozen_pass.frozen_model import FrozenModel
        from roma_ds.sequences.encoding import encode

        run = load_run_config(self._rendered())
        samples = load_samples(self.work / "out" / "data" / "eval.parquet")
        model = FrozenModel(World(Ranks(), torch.device("cpu")), run.model, {})
        tokenizer = load_tokenizer(run.model)
        started = time.perf_counter()
        prompts = encode(samples, tokenizer, run.data.max_tokens)
        scores = model.score(prompts, "last1", size, "score")
        spent = time.perf_counter() - started
        assert scores is not None
        return spent, [values.tolist() for values in scores.option_loglikelihoods]

    def _rendered(self) -> Path:
        """The run's config, with the task's samples written by the stage `data`."""
        from roma_ds.cli.main import main

        config, task = self.work / "run.yaml", self.task
        if not config.exists():
            train = harness_agreement.write(self.work / "train.jsonl", [harness_agreement._UNUSED])
            config.write_text(
                f"model: {{path: {self.work / 'model'}, dtype: float32}}\n"
                f"data: {{train: [{{path: {train}}}], max_tokens: 4000, decontaminate: 'off'}}\n"
                f"eval: {{tasks: [{listed(self.work, task)}], data_root: {self.work / 'data'}}}\n"
                f"roma: {{layers: last1}}\ndeepspeed: zero0\noutput_dir: {self.work / 'out'}\n"
            )
            if code := main(["data", str(config), "--ranks", "1"]):
                raise SystemExit(code)
        return config


def compared(sides: Sides, repeats: int, size: int) -> dict[str, Any]:
    """Seconds and ratios of the three, in turns, and how far their numbers are apart."""
    pilot = max(2, round(PILOT * sides.rows))
    tried = {candidate: sides.hf(candidate, pilot)[0] for candidate in SIZES}
    best = min(tried, key=tried.__getitem__)
    ways: dict[str, Callable[[], Timed]] = {
        "hf": lambda: sides.hf(best),
        "bridge": lambda: sides.bridge(size),
        "eval": lambda: sides.evaluation(size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, Values] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            spent, values[name] = way()
            seconds[name].append(spent)
            print(f"  {sides.task.name} {name}: {spent:.2f} s", flush=True)
    found: dict[str, Any] = {
        "rows": sides.rows,
        "shots": sides.task.shots,
        "hf_batch_size": best,
        "pilot": tried,
    }
    for name in ("bridge", "eval"):
        ratios = [one / other for one, other in zip(seconds["hf"], seconds[name], strict=True)]
        pairs = zip(values["hf"], values[name], strict=True)
        found[name] = {
            "ratios": ratios,
            "ratio": statistics.median(ratios),
            "largest_difference": max(
                abs(one - other) for row in pairs for one, other in zip(*row, strict=True)
            ),
        }
    return {**found, "seconds": seconds}


def chosen_tasks(names: Sequence[str], shots: int | None) -> list[Compared]:
    """Tasks by name, with other numbers of solved examples where that is asked for."""
    return [task if shots is None else replace(task, shots=shots) for task in TASKS if task.name in names]


def _write(options: argparse.Namespace) -> bool:
    """The task whose answers are generated; whether the texts are the same."""
    shots = 8 if options.shots is None else options.shots
    work = options.work.resolve() / f"{WRITTEN}-{shots}"
    work.mkdir(parents=True)
    sides = WritingSides(work, options.rows, shots, options.new)
    sides.prepare(options.data.resolve(), Wide().save)
    found = compared_writing(sides, options.repeats, options.size)
    name = f"shared-prefixes-{WRITTEN}-{shots}-shots"
    write_result(options.out, name, {"threads": options.threads, "our_batch_size": options.size, **found})
    for way in ("bridge", "eval"):
        print(f"{WRITTEN}, {shots} shots, {way}: {found[way]['ratio']:.2f} times as fast as hf")
    return bool(found["different_texts"] <= DIFFERENT * sides.rows)


def main() -> int:
    """Compare, print and write one JSON a task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the benchmark files")
    parser.add_argument("--tasks", nargs="+", default=[task.name for task in TASKS], metavar="NAME")
    parser.add_argument("--shots", type=int, help="solved examples, in place of the task's own number")
    parser.add_argument("--rows", type=int, default=300, help="rows of each task")
    parser.add_argument("--new", type=int, default=64, help="new tokens of each generated answer")
    parser.add_argument("--size", type=int, default=32, help="our batches hold the tokens of so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("shared_prefixes_work"), help="an empty folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    harness_agreement.save_with_vocabulary = Wide().save
    good = True
    if WRITTEN in options.tasks:
        good &= _write(options)
    for task in chosen_tasks(options.tasks, options.shots):
        work = options.work.resolve() / f"{task.name}-{task.shots}"
        work.mkdir(parents=True)
        prepare(options.data.resolve(), work, options.rows, [task])
        rows = len((work / "data" / task.name / f"{task.split}.jsonl").read_text().splitlines())
        found = compared(Sides(work, task, rows), options.repeats, options.size)
        name = f"shared-prefixes-{task.name}-{task.shots}-shots"
        write_result(options.out, name, {"threads": options.threads, "our_batch_size": options.size, **found})
        for way in ("bridge", "eval"):
            print(f"{task.name}, {task.shots} shots, {way}: {found[way]['ratio']:.2f} times as fast as hf")
            good &= found[way]["largest_difference"] <= TOLERANCE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
