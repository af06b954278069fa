"""One model type, tried through the commands from a tiny checkpoint to a merged one; each step with a number.

Steps that a failed one leaves nothing to try on are not reached.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from roma_ds.checkpoint.loading import load_config
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import Family, family_of
from roma_ds.testing.commands import Finished, on_local_ranks, roma_ds
from roma_ds.testing.family_trials.project import write_project
from roma_ds.testing.family_trials.run_results import (
    Run,
    changed_tensors,
    largest_difference,
    network_logits,
    parts_that_learn,
    tensors,
)
from roma_ds.testing.family_trials.steps import (
    EXACT,
    ROUNDED_APART,
    STORED,
    Failed,
    NotReached,
    Step,
    compare,
    one_line,
    same_training,
)
from roma_ds.testing.stock_alone import StockAlone

LEARNS = 1e-3
"""A gate that moves less than this has not learned."""
SHOWS = 1e-4
"""Logits that a merged checkpoint moves by less than this show nothing of it."""
STREAM = ("collect.engine=stream", "train.prefix_cache=on")
WHOLE = ("collect.engine=zero3", "train.prefix_cache=off")


class FamilyTrial:
    """All steps of one type, in a folder of its own."""

    def __init__(self, model_type: str, folder: Path) -> None:
        self.model_type, self.folder = model_type, folder
        self.model = ModelConfig(path=str(folder / "model"), dtype="float32")
        self.runs: dict[str, Run] = {}
        self.found: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """What was found and became of each step, as JSON has it."""
        started = time.monotonic()
        steps = {}
        for name, step in STEPS.items():
            try:
                steps[name] = step(self)
            except NotReached:
                continue
            except (Failed, UserError) as error:
                steps[name] = Step(False, reason=one_line(str(error)))
            except Exception as error:  # noqa: BLE001  whatever it is, it is what became of this type
                steps[name] = Step(False, reason=f"{type(error).__name__}: {one_line(str(error))}")
        return {
            "found": self.found,
            "steps": {name: asdict(step) for name, step in steps.items()},
            "seconds": round(time.monotonic() - started, 1),
        }

    @cached_property
    def family(self) -> Family:
        """Raises UserError where there is none."""
        return family_of(load_config(self.model))

    def detected(self) -> Step:
        """Its routers are found, and the config says of which layers."""
        write_project(self.folder, self.model_type, "last1")
        config, family = load_config(self.model), self.family
        sparse = family.sparse_layers(config)
        # Of six layers, so that some lie before the first trained one, and of most kinds one behind it.
        layers = f"last{min(3, sum(layer > 0 for layer in sparse))}"
        text = (self.folder / "run.yaml").read_text()
        (self.folder / "run.yaml").write_text(text.replace("last1", layers))
        self.found |= {
            "family_file": not any("no family describes it" in limit.reason for limit in family.limits),
            "mixing": family.mixing,
            "scoring": family.scoring,
            "sparse_layers": len(sparse),
            "entries": family.experts(config),
            "limits": family.reason,
        }
        checked = roma_ds("check", "run.yaml", cwd=self.folder)
        if checked.code:
            raise Failed(checked.message)
        return Step(True)

    def collected(self) -> Step:
        """Both engines give the routing, outcomes and cached states that the model gives for each prompt."""
        # Without routers a model is only measured.
        self._require_routers()
        self._done("stream", roma_ds("eval", "run.yaml", "--ranks", "1", *STREAM, cwd=self.folder))
        stream = self.runs["stream"]
        self._copied("zero3", "collect")
        options = ("collect.engine=zero3", "train.prefix_cache=on", "output_dir=zero3")
        self._done("zero3", roma_ds("collect", "run.yaml", "--ranks", "1", *options, cwd=self.folder))
        zero3 = self.runs["zero3"]
        self.found |= {"first": stream.cache("collect").plan.first_layer}
        self.found |= {"bytes_per_token": stream.entering().token_bytes}
        compare("routing of the two engines", stream.routing, zero3.routing, ROUNDED_APART)
        compare("losses of the two engines", stream.losses, zero3.losses, EXACT)
        for part in ("collect", "eval"):
            if (zero3.out / part / "prefix").exists():
                compare(f"{part} caches of the two engines", stream.table(part), zero3.table(part), EXACT)
        stock = self._stock
        alone = [stock.routing(prompt.prompt, stream.layout) for prompt in stream.prompts("samples.parquet")]
        compare("routing and that of each prompt alone", stream.routing, np.stack(alone), STORED)
        losses = [
            -stock.loglikelihood(prompt.before(max(0, prompt.answer)), prompt.target) / len(prompt.target)
            for prompt in stream.prompts("samples.parquet")
        ]
        return compare("losses and those of each prompt alone", stream.losses, np.array(losses), EXACT)

    def suffix(self) -> Step:
        """Routers that learned in the layers from the first trained one on alone."""
        stream = self._ran("stream")
        if not stream.trained_on_cache:
            raise Failed("training ran all layers")
        return self._learned(stream)

    def whole(self) -> Step:
        """The whole network learns the same routers as its suffix, and is evaluated alike."""
        if "stream" not in self.runs:
            self._require_routers()
            self._done(
                "whole",
                roma_ds("eval", "run.yaml", "--ranks", "1", *WHOLE, "output_dir=whole", cwd=self.folder),
            )
            return self._learned(self.runs["whole"])
        self._copied("whole", "train", "eval")
        options = ("train.prefix_cache=off", "output_dir=whole")
        self._done("whole", roma_ds("eval", "run.yaml", "--ranks", "1", *options, cwd=self.folder))
        stream, whole = self.runs["stream"], self.runs["whole"]
        if whole.trained_on_cache:
            raise Failed("training ran on cached states")
        compare("eval of the base", stream.options("base"), whole.options("base"), EXACT)
        return same_training("with the cache and without", stream, whole)

    def ranks(self) -> Step:
        """Two ranks under ZeRO-3 collect and learn what one rank does."""
        stream = self._ran("stream")
        self._copied("ranks", "collect", "train", "eval")
        options = ("collect.engine=zero3", "train.prefix_cache=on", "output_dir=ranks", "deepspeed=zero3")
        self._done(
            "ranks", on_local_ranks(2, "--config", "run.yaml", "--until", "eval", *options, cwd=self.folder)
        )
        ranks = self.runs["ranks"]
        compare("routing on two ranks", stream.routing, ranks.routing, ROUNDED_APART)
        return same_training("on two ranks and on one", stream, ranks)

    def gates_alone(self) -> Step:
        """Of all that the network holds the chosen gates move, in memory and on disk."""
        trained = self._trained()
        moved, chosen = parts_that_learn(self.model, trained.layers)
        if moved != chosen:
            raise Failed(f"{', '.join(sorted(moved ^ chosen))} moved in memory, or did not")
        return Step(True)

    def merged(self) -> Step:
        """`roma-ds merge` writes a checkpoint that differs from the base in the chosen gates alone."""
        trained = self._trained()
        router = trained.out / "train" / "router.safetensors"
        merged = roma_ds("merge", "model", str(router), "--out", "merged", cwd=self.folder)
        if merged.code:
            raise Failed(merged.message)
        changed = changed_tensors(self.folder / "model", self.folder / "merged")
        if changed != set(trained.routers):
            raise Failed(f"{', '.join(sorted(changed ^ set(trained.routers)))} changed, or did not")
        return Step(True)

    def stock(self) -> Step:
        """Stock transformers loads it, and gives the logits of our engine with the trained routers."""
        if not (self.folder / "merged").exists():
            raise NotReached
        trained = self._trained()
        merged = StockAlone(self.folder / "merged")
        prompts = [prompt.prompt for prompt in trained.prompts("eval.parquet")]
        ours = network_logits(self.model, trained.router_weights(), prompts)
        step = compare("logits", ours, [merged.logits(prompt)[-1].numpy() for prompt in prompts], EXACT)
        base = [self._stock.logits(prompt)[-1].numpy() for prompt in prompts]
        self.found |= {"logits_moved": largest_difference(ours, base)}
        if self.found["logits_moved"] < SHOWS:
            raise Failed("the merged model is the base model")
        options = [merged.options(prompt) for prompt in trained.prompts("eval.parquet")]
        compare("eval of the tuned model", trained.options("roma"), options, EXACT)
        return step

    def evaluated(self) -> Step:
        """`eval` of the base gives the log-likelihoods that stock transformers gives on each prompt alone."""
        if "stream" not in self.runs and "whole" not in self.runs:
            self._done(
                "base", roma_ds("eval", "run.yaml", "--ranks", "1", "output_dir=base", cwd=self.folder)
            )
        run = next(self.runs[name] for name in ("stream", "whole", "base") if name in self.runs)
        options = [self._stock.options(prompt) for prompt in run.prompts("eval.parquet")]
        return compare("log-likelihoods of options", run.options("base"), options, EXACT)

    def _require_routers(self) -> None:
        if not self.found:
            raise NotReached

    @cached_property
    def _stock(self) -> StockAlone:
        return StockAlone(self.folder / "model")

    def _done(self, name: str, finished: Finished) -> None:
        """Remember a run. Raises Failed where it did not end well."""
        if finished.code:
            raise Failed(finished.message)
        out = self.folder / ("out" if name == "stream" else name)
        self.runs[name] = Run(out, self.model, finished.out)

    def _copied(self, name: str, *without: str) -> None:
        """A copy of the streamed run for another one to go on from, without some of its stages."""
        self._ran("stream")
        target = self.folder / name
        shutil.copytree(self.folder / "out", target, ignore=shutil.ignore_patterns(*without))

    def _ran(self, name: str) -> Run:
        if name not in self.runs:
            raise NotReached
        return self.runs[name]

    def _trained(self) -> Run:
        return self.runs.get("stream") or self._ran("whole")

    def _learned(self, run: Run) -> Step:
        """Raises Failed where a router did not move."""
        for key, base in tensors(self.folder / "model", run.routers).items():
            moved = largest_difference(run.routers[key], base)
            if moved < LEARNS:
                raise Failed(f"{key} moved by {moved:.1e}")
        return Step(True)


STEPS: dict[str, Callable[[FamilyTrial], Step]] = {
    "detected": FamilyTrial.detected,
    "collected": FamilyTrial.collected,
    "suffix": FamilyTrial.suffix,
    "whole": FamilyTrial.whole,
    "two ranks": FamilyTrial.ranks,
    "gates alone": FamilyTrial.gates_alone,
    "merged": FamilyTrial.merged,
    "stock": FamilyTrial.stock,
    "eval": FamilyTrial.evaluated,
}
"""In their order."""
