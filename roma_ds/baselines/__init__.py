"""Controls and rivals behind one interface: the same data, steps and layers, one thing changed."""

from roma_ds.baselines.variants import TRAINED, Pool, TrainedVariant

__all__ = ["TRAINED", "Pool", "TrainedVariant"]
