"""The stages after training and evaluation, on one process: export and report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from roma_ds.config import RunConfig
from roma_ds.errors import UserError
from roma_ds.evaluation.results import AS_SERVED
from roma_ds.export.card import model_card, survival_line
from roma_ds.export.licence import base_licence
from roma_ds.pipeline.folders import Folders
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import make_folder, read_json, write_text, writing

Say = Callable[[str], None]


def export(run: RunConfig, folders: Folders, say: Say, fetch: bool = False) -> None:
    """Copy the trained routers and write their card into `export/`. Raises UserError when none is trained.

    fetch: ask the hub for the licence of a base model that is there alone.
    """
    router = folders.training("roma") / "router.safetensors"
    if not router.exists():
        raise UserError(f"{router} does not exist", "run roma-ds train first")
    record = folders.record("export")
    evaluations = _evaluations(run, folders)
    results = {name: fingerprint.of_file(path) for name, path in evaluations.items()}
    licence = base_licence(run.model, fetch)
    survival = folders.training_record("roma").extra().get("served")
    inputs = {
        "router": fingerprint.of_file(router),
        "results": results,
        "licence": licence,
        "served": survival,
    }
    if record.why_stale(inputs) is None:
        say("export: up to date")
        return
    started = time.monotonic()
    folder = make_folder(folders.stage("export"))
    with writing(folder / router.name) as temporary:
        shutil.copyfile(router, temporary)
    write_text(folder / "README.md", model_card(run, folder / router.name, evaluations, licence, survival))
    record.finish(inputs, [router.name, "README.md"], time.monotonic() - started, {})
    say(f"export: {folder / router.name}")
    if survival is not None:
        say(f"export: {survival_line(survival)}")
    if AS_SERVED in evaluations:
        say(f"export: accuracy as served {100 * read_json(evaluations[AS_SERVED])['average']:.2f}%")


def _evaluations(run: RunConfig, folders: Folders) -> dict[str, Path]:
    """What an earlier config of this folder measured is none of a run without tasks."""
    names = ("base", "router_tuning", "roma", AS_SERVED) if run.eval.tasks else ()
    paths = {name: folders.root / "eval" / f"{name}.json" for name in names}
    return {name: path for name, path in paths.items() if path.exists()}


def write_report(run: RunConfig, folders: Folders, say: Say) -> None:
    """Write report.json, report.html, the pictures, and the TensorBoard images; print the table."""
    from roma_ds.monitor.console import next_commands, summary_table
    from roma_ds.monitor.report import build_report
    from roma_ds.monitor.run_folder import NOT_EVALUATED
    from roma_ds.monitor.tensorboard_images import add_images
    from roma_ds.monitor.tensorboard_results import add_results

    record = folders.record("report")
    inputs = {
        path.name: fingerprint.of_file(path)
        for path in sorted((folders.root / "eval").glob("*.json"))
        if not path.name.endswith(".stage.json")
    }
    router = folders.training("roma") / "router.safetensors"
    if router.exists():
        inputs["router"] = fingerprint.of_file(router)
    inputs["config"] = fingerprint.of_file(folders.root / "config.resolved.yaml")
    if record.why_stale(inputs) is None:
        say("report: up to date")
        variants = read_json(folders.stage("report") / "report.json")["variants"]
    else:
        started = time.monotonic()
        variants = build_report(folders.root)["variants"]
        add_images(folders.root)
        add_results(folders.root)
        record.finish(inputs, ["report.json", "report.html"], time.monotonic() - started, {})
    say(summary_table(variants) if run.eval.tasks else f"report: {NOT_EVALUATED}")
    say(next_commands(folders.root))
