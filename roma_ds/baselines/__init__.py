"""Controls behind one interface: the same data, steps and layers, one thing changed."""

from roma_ds.baselines.variants import TRAINED, TrainedVariant

__all__ = ["TRAINED", "TrainedVariant"]
