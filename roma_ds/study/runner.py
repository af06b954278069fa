"""Runs a study on all ranks: shared stages, selection, the cells of the table; finished cells are skipped."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from roma_ds.comm import World, agreement
from roma_ds.comm.arrivals import meet
from roma_ds.config import resolve_deepspeed
from roma_ds.config.study import StudyConfig
from roma_ds.data.store import load_samples
from roma_ds.network.release import leave_libraries_alone
from roma_ds.pipeline import stages
from roma_ds.pipeline.folders import describe_run, installed
from roma_ds.pipeline.machine_support import check_machine
from roma_ds.pipeline.measuring import scoring_inputs
from roma_ds.pipeline.session import Session
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import make_folder, read_json, write_json
from roma_ds.storage.stage import StageRecord
from roma_ds.study.cell_work import OUTCOME, run_cell
from roma_ds.study.plan import Cell, Planner, Point
from roma_ds.study.shared import Shared, Tasks, settle_tasks, with_text
from roma_ds.study.work import Work
from roma_ds.training.batch_order import batch_line
from roma_ds.training.interruption import Interruption

CHOSEN = "chosen.json"
CELLS = "cells.json"
TOGETHER = ("base", "routers")
"""Kinds of cells that all ranks run together; of the others each rank takes its own."""
TRAINING = ("routers", "rival")


class Runner:
    """One launch of a study. Methods are collectives."""

    def __init__(
        self, world: World, study: StudyConfig, planner: Planner, interruption: Interruption
    ) -> None:
        self.world, self.study, self.planner = world, study, planner
        self.started = time.monotonic()
        run = planner.shared_run()
        with agreement(world):
            ds = resolve_deepspeed(run, world.size)
            check_machine(ds, writes=False)
            make_folder(planner.root / "shared")
            run = with_text(run, study, planner.root / "shared") if world.is_first else run
        run = world.from_first(run)
        self.session = Session(world, run, ds, interruption)
        leave_libraries_alone()
        with agreement(world):
            if world.is_first:
                describe_run(self.session.folders, run, ds, world.size, str(world.device))
        self.session.say(f"cells: {batch_line(run.train, world.size)}")
        stages.data_stage(self.session)
        with agreement(world):
            samples = load_samples(self.session.folders.stage("data") / "eval.parquet")
            self.tasks: Tasks = settle_tasks(study, samples)
        self.shared = Shared(self.session, study, run, planner.everything())

    def run(self) -> dict[str, Any]:
        """All cells; returns what the report needs beside their files, on every rank."""
        selection = self.planner.selection()
        self._all(selection, "selection")
        chosen = self._choose(selection)
        cells = self.planner.reported(chosen)
        self._all(cells, "report")
        facts = {
            "chosen": {name: list(point) for name, point in chosen.items()},
            "tasks": {"report": list(self.tasks.report), "select": list(self.tasks.select)},
            "seeds": list(self.study.seeds),
            "world_size": self.world.size,
            "packages": installed(),
            "seconds_of_this_launch": round(time.monotonic() - self.started, 1),
            "processor_seconds_of_this_launch": round(time.process_time(), 1),
            "shared_seconds": self._shared_seconds(),
            "cells": [self._described(cell) for cell in cells],
            "selection": [self._described(cell) for cell in selection],
        }
        with agreement(self.world):
            if self.world.is_first:
                write_json(self.planner.root / CELLS, facts)
        return facts

    def _shared_seconds(self) -> float:
        """Seconds that the shared stages took, whenever they ran; 0 elsewhere than on rank 0."""
        if not self.world.is_first:
            return 0.0
        shared = self.planner.root / "shared"
        # A neighbours' index is made by the first cell that needs it and is in that cell's time.
        paths = [path for path in sorted(shared.rglob("*stage.json")) if shared / "index" not in path.parents]
        records = [read_json(path) for path in paths]
        return round(sum(float(record["seconds"]) for record in records), 3)

    def _described(self, cell: Cell) -> dict[str, Any]:
        entry = cell.entry
        return {
            "entry": entry.name,
            "variant": entry.method.name,
            "description": entry.method.description,
            "kind": entry.method.kind,
            "uses_test_labels": entry.method.uses_test_labels,
            "seeded": entry.method.seeded,
            "overrides": [*entry.overrides, *cell.point],
            "point": list(cell.point),
            "seed": cell.seed,
            "curve": asdict(entry.curve) if entry.curve else None,
            "folder": str(cell.folder.relative_to(self.planner.root)),
        }

    def _all(self, cells: Sequence[Cell], what: str) -> None:
        """Run cells in their order, those in a row that need one process each side by side."""
        place = 0
        for is_together, group in itertools.groupby(cells, lambda cell: cell.entry.method.kind in TOGETHER):
            turn = list(group)
            run = self._together if is_together else self._apart
            run(turn, place, f"/{len(cells)}", what)
            place += len(turn)

    def _together(self, cells: Sequence[Cell], place: int, total: str, what: str) -> None:
        for number, cell in enumerate(cells, place + 1):
            reason = self._why_stale(cell)
            if reason is None:
                continue
            self.session.say(f"{what} {number}{total}: {cell.title} ({reason})")
            session = self.shared.of(cell)
            facts = run_cell(self._work(cell, session))
            with agreement(self.world):
                if self.world.is_first:
                    self._finish(cell, facts)
            self.world.barrier()
            session.release_frozen()

    def _apart(self, cells: Sequence[Cell], place: int, total: str, what: str) -> None:
        size, rank = self.world.size, self.world.rank
        for start in range(0, len(cells), size):
            turn = cells[start : start + size]
            # Sessions are made together, since their shared stages are collectives.
            sessions = {cell.folder: self.shared.of(cell) for cell in turn if self._why_stale(cell)}
            with agreement(self.world):
                try:
                    if rank < len(turn) and turn[rank].folder in sessions:
                        cell = turn[rank]
                        print(f"{what} {place + start + rank + 1}{total}: {cell.title}", flush=True)
                        self._finish(cell, run_cell(self._work(cell, sessions[cell.folder])))
                finally:
                    if self.session.run.guards.lost_after is not None:
                        meet(rank, size, f"{what} {place + start}")
            self.world.barrier()

    def _record(self, cell: Cell) -> StageRecord:
        return StageRecord(cell.folder, "cell")

    def _inputs(self, cell: Cell) -> dict[str, Any]:
        folders = self.session.folders
        run = asdict(cell.run)
        for without_effect in ("output_dir", "source", "eval", "data"):
            run.pop(without_effect)
        # The size of an update decides the result, not how ranks and micro-batches share it.
        for without_effect in ("batch", "micro_batch", "gradient_accumulation"):
            run["train"].pop(without_effect)
        batch = cell.run.train.split(self.world.size).samples
        return {
            "run": fingerprint.of_json(_plain(run)),
            "variant": cell.entry.method.name,
            "data": folders.record("data").read()["fingerprint"],
            "model": self.session.model_hash,
            "tasks": [list(self.tasks.report), list(self.tasks.select), cell.purpose],
            **scoring_inputs(self.session.run),
            "batch": batch if cell.entry.method.kind in TRAINING else None,
        }

    def _why_stale(self, cell: Cell) -> str | None:
        with agreement(self.world):
            found = self._record(cell).why_stale(self._inputs(cell)) if self.world.is_first else None
        reason: str | None = self.world.from_first(found)
        return reason

    def _work(self, cell: Cell, session: Session) -> Work:
        return Work(self.study, self.tasks, cell, session, self.shared.tables(session))

    def _finish(self, cell: Cell, facts: Mapping[str, Any]) -> None:
        facts = {key: value for key, value in facts.items() if key not in ("rows", "partial", "written")}
        self._record(cell).finish(self._inputs(cell), [OUTCOME], float(facts["seconds"]), facts)
        print(f"  {cell.title}: average {100 * facts['average']:.2f}%, {facts['seconds']:.1f} s", flush=True)

    def _choose(self, cells: Sequence[Cell]) -> dict[str, Point]:
        """By entry, the point of best mean accuracy on the selection tasks; the first of equals."""
        chosen: dict[str, Point] = {}
        with agreement(self.world):
            if self.world.is_first:
                scores: dict[str, dict[Point, list[float]]] = {}
                for cell in cells:
                    average = float(self._record(cell).read()["extra"]["average"])
                    scores.setdefault(cell.entry.name, {}).setdefault(cell.point, []).append(average)
                for name, points in scores.items():
                    chosen[name] = max(points, key=lambda point: float(np.mean(points[point])))
                    print(f"chosen {name}: {' '.join(chosen[name])}", flush=True)
                write_json(
                    self.planner.root / CHOSEN,
                    {
                        name: [
                            {"point": list(point), "accuracy": values, "chosen": point == chosen[name]}
                            for point, values in points.items()
                        ]
                        for name, points in scores.items()
                    },
                )
        shared: dict[str, Point] = self.world.from_first(chosen)
        return shared


def _plain(value: Any) -> Any:
    """As JSON takes it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
