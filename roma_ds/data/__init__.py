"""Datasets into samples: rows from files or the hub, prompts and answers, filters, the manifest."""

from roma_ds.data.mixture import load_evaluation, load_training
from roma_ds.data.named import NAMED
from roma_ds.data.sample import Sample
from roma_ds.data.store import data_inputs, load_samples, run_data
from roma_ds.data.templates import preview

__all__ = [
    "NAMED",
    "Sample",
    "data_inputs",
    "load_evaluation",
    "load_samples",
    "load_training",
    "preview",
    "run_data",
]
