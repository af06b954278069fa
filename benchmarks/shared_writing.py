"""How much is saved where prompts of generated answers share solved examples: GSM8K, for shared_prefixes.py.

The same rows are written by the harness's own class `hf`, at the fastest of several batch sizes, by `lm_eval
--model roma_ds`, and by what `roma-ds eval` runs, whose solved examples are others of the same file. Random
weights write until the limit of new tokens, which is the most work that an answer can be.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness_agreement import read, write

NAME = "gsm8k"
SIZES = (1, 8, 16, 32)
DIFFERENT = 0.02
"""Share of texts that may differ: behind two tokens that are as likely to rounding the rest is another."""
Timed = tuple[float, list[str]]
"""Seconds, and texts by question."""


@dataclass
class WritingSides:
    """What is compared."""

    work: Path
    rows: int
    shots: int
    new: int

    def prepare(self, data: Path, save: Callable[[Path, Path], Path]) -> None:
        """The model, the first rows in both forms, and the harness's task file."""
        import lm_eval

        save(self.work / "model", data / "tokenizers" / "olmoe_tokenizer.json.gz")
        (self.work / "tasks").mkdir()
        lines = [f"include: {Path(lm_eval.__file__).parent / 'tasks' / 'gsm8k' / 'gsm8k.yaml'}"]
        lines += [f"task: compared_{NAME}", "dataset_path: json", "dataset_name: null", "tag: null"]
        lines += ["fewshot_config: {sampler: first_n}", "dataset_kwargs:", "  data_files:"]
        for split, rows in (("test", self.rows), ("train", 200)):
            chosen = read(data / NAME / f"{split}.jsonl.gz")[:rows]
            write(self.work / "data" / NAME / f"{split}.jsonl", chosen)
            asked = [{"question": row["question"], "answer": row["solution"]} for row in chosen]
            lines.append(f"    {split}: {write(self.work / 'hub' / f'{split}.jsonl', asked)}")
        (self.work / "tasks" / f"compared_{NAME}.yaml").write_text("\n".join(lines) + "\n")

    def harness(self, model: Any, limit: int | None = None) -> Timed:
        """The harness's questions to one of its models, already loaded; its prompts are made beforehand."""
        os.environ["HF_DATASETS_CACHE"] = str(self.work / "cache")
        import lm_eval
        from lm_eval.tasks import TaskManager

        spent, asked = [], model.generate_until

        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            found = asked(*given, **named)
            spent.append(time.perf_counter() - started)
            return found

        model.generate_until = timed
        name = f"compared_{NAME}"
        try:
            result = lm_eval.simple_evaluate(
                model=model,
                tasks=[name],
                num_fewshot=self.shots,
                limit=limit,
                task_manager=TaskManager(include_path=str(self.work / "tasks"), include_defaults=False),
                gen_kwargs={"max_gen_toks": self.new},
                bootstrap_iters=0,
                log_samples=True,
            )
        finally:
            model.generate_until = asked
        # Each filter has records of its own.
        texts = {sample["doc_id"]: str(sample["resps"][0][0]) for sample in result["samples"][name]}
        return sum(spent), [texts[number] for number in sorted(texts)]

    def hf(self, size: int, limit: int | None = None) -> Timed:
        """The harness's own class at a batch size."""
        from lm_eval.models.huggingface import HFLM

        return self.harness(HFLM(batch_size=size, **self._loading()), limit)

    def bridge(self) -> Timed:
        """`lm_eval --model roma_ds`."""
        from roma_ds.evaluation.harness import RoutedHarnessModel

        return self.harness(RoutedHarnessModel(**self._loading()))

    def _loading(self) -> dict[str, Any]:
        return {"pretrained": str(self.work / "model"), "dtype": "float32", "device": "cpu"}

    def evaluation(self, size: int) -> Timed:
        """What `roma-ds eval` does between its samples on disk and its texts."""
        import torch

        from roma_ds.checkpoint.loading import load_tokenizer
        from roma_ds.cli.main import main
        from roma_ds.comm import World
        from roma_ds.comm.ranks import Ranks
        from roma_ds.config import load_run_config
        from roma_ds.data.store import load_samples
        from roma_ds.frozen_pass.frozen_model import FrozenModel
        from roma_ds.sequences.encoding import encode
        from roma_ds.writing.generation import Asked, Writer
        from roma_ds.writing.tree_decoding import TreeDecoder

        config = self.work / "run.yaml"
        if not config.exists():
            unused = {"id": "1", "question": "Unused?", "choices": ["no", "yes"], "answer": 0}
            train = write(self.work / "train.jsonl", [unused])
            config.write_text(
                f"model: {{path: {self.work / 'model'}, dtype: float32}}\n"
                f"data: {{train: [{{path: {train}}}], max_tokens: 3800, decontaminate: 'off'}}\n"
                f"eval: {{tasks: [{{name: {NAME}, scoring: generate, shots: {self.shots}}}], "
                f"data_root: {self.work / 'data'}, max_new_tokens: {self.new}}}\n"
                f"roma: {{layers: last1}}\ndeepspeed: zero0\noutput_dir: {self.work / 'out'}\n"
            )
            if code := main(["data", str(config), "--ranks", "1"]):
                raise SystemExit(code)
        run = load_run_config(config)
        samples = load_samples(self.work / "out" / "data" / "eval.parquet")
        frozen = FrozenModel(World(Ranks(), torch.device("cpu")), run.model, {})
        tokenizer = load_tokenizer(run.model)
        writer = Writer(TreeDecoder(frozen, run.model), tokenizer, self.new)
        started = time.perf_counter()
        prompts = encode(samples, tokenizer, run.data.max_tokens)
        written = writer.write([Asked(one.prompt, ("Question:",)) for one in prompts], size, "write")
        spent = time.perf_counter() - started
        assert written is not None
        return spent, [one.text for one in written]


def compared_writing(sides: WritingSides, repeats: int, size: int) -> dict[str, Any]:
    """Seconds and ratios of the three, in turns, and how many texts of the bridge are others than `hf`'s."""
    # As many rows as the largest batch holds: fewer would make two sizes one.
    pilot = min(sides.rows, max(SIZES))
    sizes = [one for one in SIZES if one <= sides.rows]
    tried = {candidate: sides.hf(candidate, pilot)[0] for candidate in sizes}
    best = min(tried, key=tried.__getitem__)
    ways: dict[str, Callable[[], Timed]] = {
        "hf": lambda: sides.hf(best),
        "bridge": sides.bridge,
        "eval": lambda: sides.evaluation(size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            spent, texts[name] = way()
            seconds[name].append(spent)
            print(f"  {NAME} {name}: {spent:.2f} s", flush=True)
    found: dict[str, Any] = {
        "rows": sides.rows,
        "shots": sides.shots,
        "new_tokens": sides.new,
        "hf_batch_size": best,
        "pilot": tried,
        "different_texts": sum(one != other for one, other in zip(texts["hf"], texts["bridge"], strict=True)),
    }
    for name in ("bridge", "eval"):
        ratios = [one / other for one, other in zip(seconds["hf"], seconds[name], strict=True)]
        found[name] = {"ratios": ratios, "ratio": statistics.median(ratios)}
    return {**found, "seconds": seconds}
