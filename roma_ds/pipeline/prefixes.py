"""The prefix caches of a run: whether there are any, where, and what they depend on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from roma_ds.comm import agreement
from roma_ds.data.learned import generated_datasets, training_tokens
from roma_ds.errors import UserError
from roma_ds.frozen_pass.frozen_pass import FrozenPass, begun_engine
from roma_ds.monitor.wording import byte_size
from roma_ds.pipeline.held_model import HeldModel
from roma_ds.planner.frozen_pass import GIB, Engine, choose_engine
from roma_ds.planner.host_memory import available_bytes
from roma_ds.prefix.disk_room import RESERVE
from roma_ds.prefix.prefix_cache import PrefixCache, disk_bytes, is_begun, open_cache
from roma_ds.prefix.segments import Segments
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.request_set import requests_of
from roma_ds.sequences.scores import Scores
from roma_ds.storage import fingerprint

Part = Literal["collect", "eval"]
SAMPLES = {"collect": "samples.parquet", "eval": "eval.parquet"}


class Prefixes:
    """The caches of training (`collect`) and evaluation (`eval`). Methods are collectives."""

    def __init__(self, session: HeldModel, entering: int | None = None) -> None:
        """entering: the layer that caches which others also use enter; a run that trains an earlier one
        goes without a cache, rather than make another."""
        self.session = session
        self.entering = entering
        self._layers: dict[Part, int | None] = {}

    def folder(self, part: Part) -> Path:
        """Where the cache lies."""
        return self.session.folders.prefix(part)

    def fingerprint(self, part: Part, first: int) -> str:
        """Of all that the hidden states entering layer `first` depend on."""
        session = self.session
        return fingerprint.of_json(
            {
                "data": session.fingerprint(session.folders.record("data")),
                **session.model_inputs,
                "max_tokens": session.run.data.max_tokens,
                "part": part,
                "first": first,
                **({"new_tokens": room} if (room := self._room(part)) else {}),
            }
        )

    def _room(self, part: Part) -> int | dict[str, int] | None:
        """Tokens of generated answers, for which prompts may be cut so that they fit behind them."""
        if part == "collect":
            return training_tokens(self.session.run)
        return self.session.run.eval.max_new_tokens if self.session.generates else None

    def layer(self, part: Part) -> int | None:
        """The layer that cached hidden states enter, or None without a cache; says which, and why, once."""
        if part not in self._layers:
            session = self.session
            with agreement(session.world):
                first = min(session.whole.layout.choose(session.run.roma.layers))
                early = self.entering is not None and first < self.entering
                first = self.entering if self.entering is not None and not early else first
            made_from = self.fingerprint(part, first)
            if early:
                session.say(
                    f"{part}: no prefix cache, since it would enter a layer after the first trained one"
                )
                self._layers[part] = None
                return None
            with agreement(session.world):
                decided = self._decide(part, first, made_from) if session.world.is_first else None
            self._layers[part] = session.world.from_first(decided)
        return self._layers[part]

    def _decide(self, part: Part, first: int, made_from: str) -> int | None:
        session, asked = self.session, self.session.run.train.prefix_cache
        if asked == "off":
            return None
        barrier = session.family.barrier("suffix")
        if asked == "auto" and barrier is not None:
            session.say(f"{part}: no prefix cache, since {barrier}")
            return None
        if asked == "auto" and first == 0:
            session.say(f"{part}: no prefix cache, since layer 0 is trained")
            return None
        if self._reason(part, made_from) is None:
            return first
        sequences = requests_of(session.prompts(SAMPLES[part])).sequences
        segments = Segments.of(sequences, session.family.shares_tokens)
        needed = disk_bytes(segments, session.whole.entering(first))
        free = shutil.disk_usage(session.folders.root).free
        if asked == "auto" and needed + RESERVE > free and not is_begun(self.folder(part), made_from):
            session.say(
                f"{part}: no prefix cache, since {byte_size(needed)} leave too little of the "
                f"{byte_size(free)} free on disk"
            )
            return None
        read, kept = segments.tokens_asked, segments.tokens
        once = "" if segments.is_flat else f", {kept:,} stored ({read / kept:.1f} times fewer)"
        session.say(
            f"{part}: prefix cache of {byte_size(needed)}, {read:,} tokens entering layer {first}{once}"
        )
        return first

    def _reason(self, part: Part, made_from: str) -> str | None:
        try:
            open_cache(self.folder(part), made_from).close()
        except UserError as error:
            return error.message
        return None

    def _made_from(self, part: Part) -> str | None:
        """Fingerprint of the cache that is wanted; None where none is."""
        first = self.layer(part)
        return None if first is None else self.fingerprint(part, first)

    def why_stale(self, part: Part) -> str | None:
        """None where the cache is usable or not wanted, else why it has to be made."""
        made_from = self._made_from(part)
        if made_from is None:
            return None
        with agreement(self.session.world):
            reason = self._reason(part, made_from) if self.session.world.is_first else None
        stale: str | None = self.session.world.from_first(reason)
        return stale

    def open(self, part: Part) -> PrefixCache | None:
        """The finished cache, or None where there is to be none."""
        made_from = self._made_from(part)
        if made_from is None:
            return None
        with agreement(self.session.world):
            return open_cache(self.folder(part), made_from)

    def run_pass(self, part: Part, prompts: Sequence[Prompt], title: str) -> Scores | None:
        """The pretrained model over `prompts`; leaves the part's cache where there is to be one."""
        session, run, world = self.session, self.session.run, self.session.world
        first = self.layer(part)
        made_from = self.fingerprint(part, -1 if first is None else first)
        frozen_pass = FrozenPass(
            world=world,
            model=run.model,
            whole=session.whole,
            engine=self._engine(len(prompts), self._unfinished(part), made_from),
            network=session.pretrained,
            tokens=run.roma.tokens,
            batch_size=run.eval.batch_size,
            first=first,
            activation_bytes=int(run.collect.activation_memory * GIB),
            save_every=run.collect.save_every,
            say=session.say,
        )
        return frozen_pass.run(prompts, self.folder(part), self._unfinished(part), made_from, title)

    def _unfinished(self, part: Part) -> Path:
        return self.session.folders.stage(part) / "unfinished"

    def forget_unfinished(self, part: Part) -> None:
        """Delete what a killed pass would have gone on from, once the stage is recorded."""
        if self.session.world.is_first:
            shutil.rmtree(self._unfinished(part), ignore_errors=True)

    def _engine(self, prompts: int, unfinished: Path, made_from: str) -> Engine:
        session, asked = self.session, self.session.run.collect.engine
        if asked != "auto":
            return asked
        whole, world = session.whole, session.world
        if session.family.barrier("suffix") is not None:
            return "zero3"
        if generated_datasets(session.run):
            session.say("frozen pass: engine zero3, since answers are generated, which stream cannot")
            return "zero3"
        size = getattr(torch, session.run.model.dtype).itemsize
        if world.device.type == "cuda":
            available = torch.cuda.mem_get_info()[0]
        else:
            available = available_bytes(world.ranks.local_world_size)
        engine, reason = world.from_first(
            choose_engine(
                whole.total_parameters * size,
                max(whole.layer_parameters) * size,
                session.partitioned,
                world.size,
                available,
                -(-prompts // session.run.eval.batch_size),
                world.device.type,
                begun_engine(unfinished, made_from, session.run.roma.tokens) if world.is_first else None,
            )
        )
        session.say(f"frozen pass: engine {engine}, since {reason}")
        chosen: Engine = engine
        return chosen
