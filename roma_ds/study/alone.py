"""Cells that one process runs by itself: rivals with their own training, and methods of the test time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.baselines.decoders import SteeredDecoder
from roma_ds.baselines.descent import C3PO, ORACLE
from roma_ds.baselines.in_context import with_examples
from roma_ds.baselines.networks import Build, Rival
from roma_ds.baselines.rivals import RIVALS, train_rival
from roma_ds.baselines.scoring import score
from roma_ds.baselines.test_time import Questions, Reference, TestTime, described
from roma_ds.checkpoint.loading import load_generation_config
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.data.tasks import new_tokens_of
from roma_ds.manifold.kernel import median_sigma, similarity
from roma_ds.network.steered import Steering
from roma_ds.pipeline.stages import neighbour_pool
from roma_ds.prefix.feed import CachePart, Feed
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.sequences.batches import Batch
from roma_ds.sequences.encoding import Prompt, encode, require_user_ends
from roma_ds.sequences.request_set import requests_of
from roma_ds.sequences.scores import Scores
from roma_ds.study.nearest import nearest_members
from roma_ds.study.shared import chosen_prompts, part_of
from roma_ds.study.work import Work
from roma_ds.study.writing import with_written_answers
from roma_ds.training.batch_order import chosen_rows
from roma_ds.writing.decoding import Decoder

Found = tuple[Scores, dict[str, Any]]


@dataclass(frozen=True)
class _Caches:
    """Prefix caches of both parts, or neither."""

    first: int | None
    training: PrefixCache | None
    evaluation: PrefixCache | None


class Alone:
    """A cell on this process, whatever other ranks do. Not a collective."""

    def __init__(self, work: Work) -> None:
        self.work = work
        outer, cell = work.session, work.cell
        self.session = outer.cell(cell.run, outer.folders, outer.prefixes.entering)
        self.session.world = self.world = World(Ranks(), outer.world.device)
        self.session.ds, self.session.partitioned = {}, False
        self.run_config = cell.run

    def run(self) -> Found:
        """Scores of the cell's questions and its facts."""
        method = self.work.cell.entry.method
        try:
            if method.kind == "rival":
                return self._rival(method.name)
            if method.name == "in_context":
                return self._in_context()
            return self._steered(method.name)
        finally:
            self.session.release_frozen()

    def trained_rows(self) -> list[int]:
        """Rows of the training samples that the cell learns from."""
        train = self.run_config.train
        return list(chosen_rows(len(self.session.prompts("samples.parquet")), train.samples, train.seed))

    def _caches(self) -> _Caches:
        prefixes = self.session.prefixes
        training, evaluation = prefixes.layer("collect"), prefixes.layer("eval")
        if training is None or training != evaluation:
            return _Caches(None, None, None)
        return _Caches(training, prefixes.open("collect"), prefixes.open("eval"))

    def steering(self) -> TestTime:
        """The model, whose routing may be given in the cell's layers, and the questions it is asked."""
        caches = self._caches()
        model = self.session.pretrained() if caches.first is None else self.session.suffix(caches.first)
        layers = [self.session.whole.layout.layers[place] for place in self.work.columns]
        rows = self._question_rows()
        prompts = self._prompts(rows)
        feed = self._feed(prompts, self._part(caches.evaluation, rows))
        routing = np.asarray(self.work.tables.eval_routing[rows])[:, self.work.columns]
        questions = Questions(requests_of(prompts), feed, routing)
        steering = Steering(model.routed, layers)
        return TestTime(steering, questions, self.world.device, self.run_config.eval.batch_size)

    def _question_rows(self) -> list[int]:
        """Of the reported tasks alone: here every question costs many passes."""
        tasks = self.work.tasks
        return tasks.rows(tasks.select if self.work.cell.purpose == "select" else tasks.report)

    def _prompts(self, rows: Sequence[int]) -> list[Prompt]:
        return chosen_prompts(self.session.prompts("eval.parquet"), rows)

    def _part(self, cache: PrefixCache | None, rows: Sequence[int]) -> CachePart | None:
        return part_of(cache, self.session.prompts("eval.parquet"), rows)

    def _feed(self, prompts: Sequence[Prompt], cache: PrefixCache | CachePart | None) -> Feed:
        return Feed(requests_of(prompts).sequences, self.run_config.roma.tokens, cache)

    def reference_questions(self) -> Questions:
        """All training samples, which solved questions are taken from."""
        prompts = self.session.prompts("samples.parquet")
        routing = np.asarray(self.work.tables.routing)[:, self.work.columns]
        return Questions(requests_of(prompts), self._feed(prompts, self._caches().training), routing)

    def _neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The k nearest successful training samples of each question, int64 [n, k], and their kernel."""
        roma, tables = self.run_config.roma, self.work.tables
        members = np.flatnonzero(neighbour_pool(self.session, "successful"))
        ids, products = nearest_members(
            np.asarray(tables.eval_embeddings[self._question_rows()]),
            np.asarray(tables.embeddings),
            members,
            roma.neighbours,
        )
        sigma = roma.sigma
        if sigma == "median":
            sigma = median_sigma(np.asarray(tables.embeddings), self.run_config.train.seed)
        return ids, similarity(products, float(sigma))

    def _steered(self, name: str) -> Found:
        test = self.steering()
        facts: dict[str, Any] = {"train_seconds": 0.0, "trainable_parameters": 0, "partial": True}
        if name == "oracle":
            routing, steps = test.oracle(test.questions, range(len(test.questions.routing)), ORACLE)
            facts |= {
                "uses_test_labels": True,
                "procedure": described(ORACLE),
                "steps_taken": {"least": min(steps), "mean": float(np.mean(steps)), "most": max(steps)},
            }
        else:
            reference = Reference(self.reference_questions(), *self._neighbours())
            if name == "c3po_regression":
                routing, mixes = test.regression(reference)
                facts["own_share_chosen"] = mixes
            else:
                routing, _ = test.descent(reference, C3PO)
                facts["procedure"] = described(C3PO)
        base_tokens = sum(test.questions.requests.lengths)
        scores = test.scores(routing, f"eval {self.work.cell.title}")
        facts["inference"] = 1.0 + test.tokens / base_tokens
        facts["rows"] = rows = self._question_rows()
        prompts = self._prompts(rows)
        test.steering.close()

        def decoder() -> Decoder:
            run, new = self.run_config, new_tokens_of(self.run_config)
            samples = [self.work.tasks.samples[row] for row in rows]
            written = [place for place, sample in enumerate(samples) if sample.task in new]
            network = self.session.pretrained().routed
            own = load_generation_config(run.model, network.network.config)
            steering = Steering(network, test.steering.layers)
            most = run.eval.max_new_tokens
            users = [prompts[place].users[0] for place in written]
            return SteeredDecoder(self.world, steering, routing[written], run.roma.tokens, most, own, users)

        return self._with_written(rows, prompts, scores, decoder, facts)

    def _in_context(self) -> Found:
        rows, roma = self._question_rows(), self.run_config.roma
        questions = [self.work.tasks.samples[row] for row in rows]
        ids, _ = self._neighbours()
        reference = self.session.samples("samples.parquet")
        asked = with_examples(questions, reference, ids, self.session.chat)
        data = self.run_config.data
        # Every solved example may be as long as a question.
        limit = data.max_tokens * (roma.neighbours + 1)
        refuse = data.long_prompts == "refuse"
        new = new_tokens_of(self.run_config)
        prompts = encode(asked, self.session.tokenizer, limit, self.session.context, new, refuse)
        if roma.tokens == "user1":
            require_user_ends(prompts, lambda row: asked[row].id)
        model = self.session.pretrained()
        size = self.run_config.eval.batch_size
        scores = model.score(prompts, roma.tokens, size, f"eval {self.work.cell.title}")
        assert scores is not None
        plain = sum(requests_of(self._prompts(rows)).lengths)
        facts = {
            "train_seconds": 0.0,
            "trainable_parameters": 0,
            "examples": roma.neighbours,
            "truncated": sum(prompt.truncated for prompt in prompts),
            "inference": sum(requests_of(prompts).lengths) / plain,
            "rows": rows,
        }
        return self._with_written(rows, prompts, scores, lambda: self.session.decoder({}), facts)

    def _with_written(
        self,
        rows: Sequence[int],
        prompts: Sequence[Prompt],
        scores: Scores,
        decoder: Callable[[], Decoder],
        facts: Mapping[str, Any],
    ) -> Found:
        samples = [self.work.tasks.samples[row] for row in rows]
        found, more = with_written_answers(
            self.session, samples, prompts, scores, decoder, self.work.cell.title
        )
        assert found is not None
        return found, {**facts, **more}

    def _rival(self, name: str) -> Found:
        started = time.monotonic()
        run, session, caches = self.run_config, self.session, self._caches()
        layout = session.whole.layout
        chosen = layout.choose(run.roma.layers)
        routers = sum(site.experts * site.hidden for site in layout.sites if site.layer in chosen)
        session.release_frozen()
        depth, seed = session.whole.depth, run.train.seed
        build = Build(self.world, run.model, depth, caches.first, routers, seed, chosen)
        with contextlib.closing(RIVALS[name].build(build)) as rival:
            return self._trained_rival(name, rival, routers, caches, started)

    def _trained_rival(self, name: str, rival: Rival, routers: int, caches: _Caches, started: float) -> Found:
        """routers: trainable numbers of the routers; started: when the rival began to be made."""
        run, session = self.run_config, self.session
        trained = sum(weight.numel() for weight in rival.trained)
        cached = rival.first is not None
        prompts = session.prompts("samples.parquet")
        feed = self._feed(prompts, caches.training if cached else None)
        # A step has as many samples as one of the routers' cells has on all ranks together.
        samples = run.train.split(self.work.session.world.size).samples
        train = replace(run.train, batch=samples, gradient_accumulation=1)
        result = train_rival(rival, train, requests_of(prompts), feed, self.trained_rows(), session.say)
        seconds = time.monotonic() - started
        asked = self._prompts(self.work.rows)
        part = self._part(caches.evaluation, self.work.rows) if cached else None

        def forward(numbers: Sequence[int], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return rival.read(batch)

        requests = requests_of(asked)
        scores = score(
            requests, self._feed(asked, part), run.eval.batch_size, forward, f"eval {self.work.cell.title}"
        )
        lengths = requests.lengths
        virtual = rival.facts.get("virtual_tokens", 0) if name == "prompt_tuning" else 0
        facts = {
            **rival.facts,
            "train_seconds": round(seconds, 3),
            "trainable_parameters": trained,
            "matched_to_routers": trained / routers,
            "steps": result.steps,
            "first_loss": result.first_loss,
            "last_loss": result.last_loss,
            "merges": RIVALS[name].merges,
            "inference": 1.0 + virtual * len(lengths) / sum(lengths),
            "partial": True,
        }
        return self._with_written(self.work.rows, asked, scores, rival.decoder, facts)
