"""Embeddings and routing weights for TensorBoard's projector, with labels.

Shapes: n evaluation samples, M chosen layers, E experts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.evaluation.alignment import subsample
from roma_ds.monitor.run_folder import Run, Variant

MOST = 2000
"""Samples that are shown: the page loads all of them."""
FOLDER = "projector"
CONFIG = "projector_config.pbtxt"


def add_projections(run: Run, folder: Path) -> list[str]:
    """Write what the run has into the TensorBoard `folder`; names of the point clouds.

    `embeddings` are those of the questions, `routing NAME` the routing weights of a variant in the trained
    layers; each point has its task, its label, its id, and whether the variant answers it. Those of an
    earlier call are replaced.
    """
    labels = run.labels()
    rows = subsample(np.arange(len(labels)), MOST, seed=0)
    clouds: dict[str, tuple[NDArray[np.floating], Variant | None]] = {}
    if run.embeddings is not None and len(run.embeddings) == len(labels):
        clouds["embeddings"] = np.asarray(run.embeddings[rows], np.float32), run.variants.get("base")
    for name, tuned in run.variants.items():
        routing = tuned.routing
        if name in ("base", "roma") and routing is not None and len(routing) == len(labels):
            chosen = routing[rows][:, run.chosen_layers(routing.shape[1])]
            clouds[f"routing {name}"] = np.asarray(chosen, np.float32).reshape(len(rows), -1), tuned
    clouds = {name: cloud for name, cloud in clouds.items() if np.isfinite(cloud[0]).all() and len(rows) > 2}
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    (folder / CONFIG).unlink(missing_ok=True)
    entries = []
    for name, (points, variant) in clouds.items():
        place = folder / FOLDER / name.replace(" ", "_")
        place.mkdir(parents=True)
        np.savetxt(place / "tensors.tsv", points, fmt="%.6g", delimiter="\t")
        (place / "metadata.tsv").write_text(_metadata(run, labels, [int(row) for row in rows], variant))
        entries.append(_entry(name, f"{FOLDER}/{place.name}", points.shape))
    if entries:
        (folder / CONFIG).write_text("".join(entries))
    return list(clouds)


def _entry(name: str, place: str, shape: tuple[int, ...]) -> str:
    """One point cloud in the projector's configuration, a protocol buffer as text."""
    return (
        f'embeddings {{\n  tensor_name: "{name}"\n  tensor_shape: {shape[0]}\n  tensor_shape: {shape[1]}\n'
        f'  tensor_path: "{place}/tensors.tsv"\n  metadata_path: "{place}/metadata.tsv"\n}}\n'
    )


def _metadata(run: Run, labels: list[str], rows: list[int], variant: Variant | None) -> str:
    columns = {"label": labels, "task": run.evaluation.get("task"), "id": run.evaluation.get("id")}
    if variant is not None and variant.samples is not None:
        columns["right"] = variant.samples.get("correct")
    shown = {name: values for name, values in columns.items() if values and len(values) == len(labels)}
    lines = ["\t".join(shown)]
    lines += ["\t".join(_cell(values[row]) for values in shown.values()) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Without what ends a cell or a line."""
    return " ".join(str(value).split())
