"""The pictures of a run, one function each: arrays and an output path in, a PNG file out."""

from roma_ds.monitor.plots.accuracy import answers_histogram, variants_bar
from roma_ds.monitor.plots.load import expert_load
from roma_ds.monitor.plots.projection import projection
from roma_ds.monitor.plots.routing import routing_heatmap
from roma_ds.monitor.plots.training import loss_curves

__all__ = [
    "answers_histogram",
    "expert_load",
    "loss_curves",
    "projection",
    "routing_heatmap",
    "variants_bar",
]
