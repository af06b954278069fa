"""What is measured of one cell beside its training: answers, alignment, side effects, costs."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.data.sample import Sample
from roma_ds.evaluation import alignment as geometry
from roma_ds.evaluation.results import average, task_results
from roma_ds.evaluation.side_effects import expert_overlap, load_entropy, perplexity
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.scores import Scores
from roma_ds.storage.atomic import write_parquet

_PEAK_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> bool:
    """Start to measure peak memory anew; False where this machine cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _PEAK_RESET.write_text("5")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """Bytes held at most since `reset_peak`: of the accelerator, or resident on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_outcome(
    path: Path, samples: Sequence[Sample], scores: Scores, written: Mapping[str, Sequence[Any]]
) -> None:
    """Answers sample by sample; written: columns of what was generated."""
    write_parquet(
        path,
        {
            "task": [sample.task for sample in samples],
            "id": [sample.id for sample in samples],
            "predicted": scores.predicted,
            "answer": [sample.answer for sample in samples],
            "correct": scores.correct,
            "loss": scores.loss,
            **written,
        },
    )


def accuracies(samples: Sequence[Sample], scores: Scores, scoring: Mapping[str, str]) -> dict[str, Any]:
    """Per task, and their average; scoring: by task."""
    tasks = task_results(samples, scores, scoring)
    return {"tasks": tasks, "average": average(tasks)}


def text_perplexity(prompts: Sequence[Prompt], scores: Scores, rows: Sequence[int]) -> float | None:
    """Perplexity of the plain text in these rows; None without any."""
    if not rows:
        return None
    found = [float(scores.target_loglikelihood[row]) for row in rows]
    return perplexity(found, [len(prompts[row].target) for row in rows])


def routing_effects(
    routing: NDArray[np.floating], base: NDArray[np.floating], columns: Sequence[int], top_k: int
) -> dict[str, float]:
    """Expert load and overlap of chosen experts with base in layers `columns`; routing [n, MoE layers, E]."""
    ours, theirs = routing[:, list(columns)], base[:, list(columns)]
    return {
        "expert_load_entropy": load_entropy(ours, top_k),
        "expert_load_entropy_base": load_entropy(theirs, top_k),
        "expert_overlap_with_base": expert_overlap(ours, theirs, top_k),
    }


def alignments(
    samples: Sequence[Sample],
    tasks: Sequence[str],
    embeddings: NDArray[np.floating],
    routing: NDArray[np.floating],
    columns: Sequence[int],
    neighbours: int,
    limit: int,
) -> dict[str, Mapping[str, float] | str]:
    """Per task the alignment of routing [n, MoE layers, E] with embeddings [n, dim], or why there is none."""
    found: dict[str, Mapping[str, float] | str] = {}
    for task in tasks:
        rows = [row for row, sample in enumerate(samples) if sample.task == task]
        prompts = [samples[row].prompt for row in rows]
        try:
            found[task] = geometry.alignment(
                embeddings[rows], routing[rows][:, list(columns)], neighbours, prompts, limit
            )
        except ValueError as error:
            found[task] = str(error)
    return found
