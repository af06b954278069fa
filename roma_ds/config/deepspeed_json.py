"""The DeepSpeed JSON made complete: no "auto" left, nothing in it that contradicts the run config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roma_ds.config.deepspeed_keys import (
    AUTO,
    KNOWN,
    REMOVED,
    UNSUPPORTED,
    ZERO_KNOWN,
    ZERO_REMOVED,
    ZERO_UNSUPPORTED,
)
from roma_ds.config.deepspeed_switches import OFFLOADS, drop_switched_off, is_no_device, switched_off
from roma_ds.config.packaged import deepspeed_file, deepspeed_names
from roma_ds.config.schema import RunConfig
from roma_ds.config.spelling import did_you_mean
from roma_ds.errors import UserError

Json = dict[str, Any]

_OPTIMIZERS = ("auto", "Adam", "AdamW")
_SCHEDULERS = ("auto", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")


def resolve_deepspeed(run: RunConfig, world_size: int, judged: bool = True) -> Json:
    """The JSON that `run.deepspeed` names, resolved for `world_size` ranks: what deepspeed.initialize takes.

    judged: also hold it against DeepSpeed's own models, which takes the seconds that its import takes.

    Batch sizes, clipping, precision and the TensorBoard folder come from the run config wherever the JSON
    says "auto" or nothing. `optimizer` and `scheduler` sections with nothing but "auto" are dropped, because
    the routers' optimizer is built from `train`.

    Raises UserError that lists every problem at once: unknown, removed or unsupported keys, values that
    contradict the run config (with both files and both keys), an "auto" that nothing decides, and whatever
    DeepSpeed would refuse when training begins. Sections that are switched off are no problem.
    """
    path = deepspeed_file(run.deepspeed)
    content = _read(path)
    resolution = _Resolution(run, world_size, path.name, content)
    resolution.resolve()
    if judged:
        resolution.judge()
    if resolution.problems:
        count = len(resolution.problems)
        title = "" if count == 1 else f"{path.name}: {count} problems:\n"
        raise UserError(
            title + "\n".join(resolution.problems),
            f'change {path} or {run.source}; "auto" takes the value of the run config',
        )
    return resolution.content


class _Resolution:
    def __init__(self, run: RunConfig, world_size: int, name: str, content: Json) -> None:
        self.run, self.world_size, self.name = run, world_size, name
        self.content = content
        self.problems: list[str] = []
        self.reported: set[str] = set()
        self.off = switched_off(content)

    def resolve(self) -> None:
        drop_switched_off(self.content, self.off)
        self._check_keys(self.content, "", KNOWN, REMOVED)
        self._refuse_unsupported()
        self._drop_all_auto("optimizer", _OPTIMIZERS)
        self._drop_all_auto("scheduler", _SCHEDULERS)
        self._batch()
        self._precision()
        self._zero()
        self._tensorboard()
        self._fill_auto(self.content, "")

    def judge(self) -> None:
        """Add what DeepSpeed refuses, in its models and in the engine alone."""
        from roma_ds.config.deepspeed_models import judge, refused_by_engine, whole_config_problem

        for problems in (judge(self.content, self.off), refused_by_engine(self.content, self.run)):
            for key, message in problems:
                if key not in self.reported:
                    self._problem(key, message)
        if not self.problems and (said := whole_config_problem(self.content)):
            self.problems.append(f"{self.name}: DeepSpeed refuses it: {said}")

    def _problem(self, key: str, message: str) -> None:
        self.reported.add(key)
        self.problems.append(f"{self.name}: {key}: {message}")

    def _section(self, key: str) -> Json:
        """The section of that name, made where it is absent; an empty one where it is no section."""
        section = self.content.setdefault(key, {})
        if not isinstance(section, dict):
            self._problem(key, f"expected a section, got {json.dumps(section)}")
            self.content[key] = section = {}
        return section

    def _check_keys(self, section: Json, path: str, known: frozenset[str], removed: frozenset[str]) -> None:
        for key in section:
            if key in removed:
                self._problem(f"{path}{key}", "was removed from DeepSpeed 0.19; delete it")
            elif key not in known:
                self._problem(f"{path}{key}", f"unknown key{did_you_mean(key, known)}")

    def _refuse_unsupported(self) -> None:
        for key, reason in UNSUPPORTED.items():
            if key in self.content:
                self._problem(key, f"not supported: {reason}; delete it")
                del self.content[key]
        if self.content.get("gradient_allreduce_op", "mean") != "mean":
            self._problem("gradient_allreduce_op", "must be mean: the loss is a mean over all ranks' samples")

    def _drop_all_auto(self, key: str, types: tuple[str, ...]) -> None:
        section = self.content.pop(key, None)
        if section is None or section == "auto":
            return
        for path, value in _leaves(section, key):
            if value != "auto" and not (path == f"{key}.type" and value in types):
                self._problem(
                    path,
                    f'is {json.dumps(value)}, but the routers\' {key} is set by the keys of "train" in '
                    f"{self.run.source.name}; delete the section {key}",
                )

    def _decide(self, section: Json, path: str, value: Any, origin: str, also: Any = None) -> None:
        """Set the last part of `path` to `value`, which comes from `origin`; refuse another value there.

        also: a second value that says the same.
        """
        key = path.rpartition(".")[2]
        given = section.get(key, "auto")
        same = given == value or (also is not None and given == also)
        if given != "auto" and (not same or isinstance(given, bool) != isinstance(value, bool)):
            self._problem(
                path,
                f"is {json.dumps(given)}, but {self.run.source.name}: {origin} makes it {json.dumps(value)}",
            )
        section[key] = value

    def _batch(self) -> None:
        train, split = self.run.train, self.run.train.split(self.world_size)
        ranks = f"{self.world_size} {'rank' if self.world_size == 1 else 'ranks'}"
        micro = f"train.micro_batch {train.micro_batch}"
        if train.batch is None:
            passes = f"train.gradient_accumulation {train.gradient_accumulation}"
            samples, part = f"{micro} x {passes} x {ranks}", micro
        else:
            samples = f"train.batch {train.batch}"
            passes = part = f"{samples} with {micro} on {ranks}"
        # A rank runs no more than train.micro_batch, and less where the batch is small.
        self._decide(
            self.content, "train_micro_batch_size_per_gpu", split.micro_batch, part, train.micro_batch
        )
        self._decide(self.content, "gradient_accumulation_steps", split.passes, passes)
        self._decide(self.content, "train_batch_size", split.samples, samples)
        # DeepSpeed wants the product of these, also where an update has fewer samples, and only counts with
        # it: a sample's weight in the loss is our own.
        self.content["train_batch_size"] = split.micro_batch * split.passes * self.world_size
        self._decide(self.content, "gradient_clipping", train.clip, f"train.clip {train.clip}")

    def _precision(self) -> None:
        dtype = self.run.model.dtype
        if "bfloat16" in self.content:
            if "bf16" in self.content:
                self._problem("bfloat16", "is another name of bf16, which is there too; delete one")
            self.content["bf16"] = self.content.pop("bfloat16")
        bf16 = self._section("bf16")
        self._decide(bf16, "bf16.enabled", dtype == "bfloat16", f"model.dtype {dtype}")
        for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
            if bf16.get(key) is True:
                self._problem(f"bf16.{key}", "not supported: routers keep float32 masters; delete it")
        fp16 = self._section("fp16").get("enabled", False)
        if fp16 not in (False, "auto"):
            clash = f"is {json.dumps(fp16)}, but {self.run.source.name}: model.dtype is {dtype}"
            self._problem("fp16.enabled", f"{clash}; float16 is not supported, delete the section fp16")
        del self.content["fp16"]

    def _zero(self) -> None:
        zero = self._section("zero_optimization")
        self._check_keys(zero, "zero_optimization.", ZERO_KNOWN, ZERO_REMOVED)
        stage = zero.setdefault("stage", 0)
        if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
            self._problem("zero_optimization.stage", f"must be 0, 1, 2 or 3, got {json.dumps(stage)}")
        if stage == 3:
            # By default whole MoE blocks are leaves, which crash in backward when only routers learn.
            zero.setdefault("leaf_module", {"classes": [], "names": [], "name_suffixes": []})
            if "param_persistence_threshold" not in zero:
                zero.setdefault("stage3_param_persistence_threshold", "auto")
        for key, reason in ZERO_UNSUPPORTED.items():
            value = zero.get(key)
            offloads_nothing = key in OFFLOADS and isinstance(value, dict) and is_no_device(value)
            if value not in (None, False) and not offloads_nothing:
                self._problem(f"zero_optimization.{key}", f"not supported: {reason}; delete it")
        self._offload(zero, stage)
        group = zero.get("zero_hpz_partition_size", 1)
        if isinstance(group, int) and 1 < group < self.world_size and self.world_size % group:
            self._problem(
                "zero_optimization.zero_hpz_partition_size",
                f"is {group}, which does not divide the {self.world_size} ranks",
            )

    def _offload(self, zero: Json, stage: Any) -> None:
        offload = zero.get("offload_param")
        if not isinstance(offload, dict) or is_no_device(offload):
            return
        if stage != 3:
            self._problem("zero_optimization.offload_param", f"needs stage 3, not {json.dumps(stage)}")
        if offload.get("device") == "nvme" and offload.get("nvme_path", "auto") == "auto":
            offload["nvme_path"] = str(Path(self.run.output_dir) / "swap")

    def _tensorboard(self) -> None:
        board = self._section("tensorboard")
        folder = str(Path(self.run.output_dir) / "train")
        for key, value in (("enabled", True), ("output_path", folder), ("job_name", "tensorboard")):
            if board.get(key, "auto") == "auto":
                board[key] = value
        table = self.content.get("csv_monitor")
        if isinstance(table, dict) and table.get("enabled"):
            for key, value in (("output_path", folder), ("job_name", "csv")):
                if table.get(key, "auto") == "auto":
                    table[key] = value

    def _fill_auto(self, content: Any, path: str) -> None:
        """Replace each "auto" inside an object or array by its value."""
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in list(items):
            here = f"{path}.{key}" if path else str(key)
            if isinstance(value, dict | list):
                self._fill_auto(value, here)
            elif value == "auto" and here in AUTO:
                content[key] = AUTO[here]
            elif value == "auto":
                self._problem(here, '"auto" is decided by nothing here; write a value or delete the key')


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(key path, value) of everything in nested JSON that is neither object nor array."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{path}.{place}")
    else:
        yield path, value


def _read(path: Path) -> Json:
    fix = f"name a DeepSpeed JSON file with deepspeed=FILE, or a packaged one: {', '.join(deepspeed_names())}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"deepspeed: {path} does not exist", fix) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"deepspeed: {path} cannot be read: {reason}", fix) from error
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if text else ""
        comment = "; JSON has no comments" if "//" in line or "#" in line else ""
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg}{comment}", "correct that line"
        ) from error
    except _Unreadable as error:
        raise UserError(f"{path}: {error}", "correct the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object in braces", fix)
    return content


class _Unreadable(Exception):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    content: Json = {}
    for key, value in pairs:
        if key in content:
            raise _Unreadable(f"the key {key!r} is given twice")
        content[key] = value
    return content


def _no_constant(name: str) -> Any:
    raise _Unreadable(f"{name} is not a value of JSON")
