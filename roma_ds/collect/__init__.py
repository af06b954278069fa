"""The collect stage: pretrained routing weights and the outcome of every training sample."""

from roma_ds.collect.stage import collect

__all__ = ["collect"]
