"""The run config: typed sections, a strict YAML loader, and the DeepSpeed JSON resolved against them."""

from roma_ds.config.schema import (
    DataConfig,
    DatasetConfig,
    EmbedConfig,
    EvalConfig,
    IndexConfig,
    ModelConfig,
    RomaConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)

__all__ = [
    "DataConfig",
    "DatasetConfig",
    "EmbedConfig",
    "EvalConfig",
    "IndexConfig",
    "ModelConfig",
    "RomaConfig",
    "RunConfig",
    "TaskConfig",
    "TrainConfig",
]
