"""The run config: typed sections, a strict YAML loader, and the DeepSpeed JSON resolved against them.

`load_run_config` reads a run, `resolve_deepspeed` its DeepSpeed JSON; neither imports torch or deepspeed.
"""

from roma_ds.config.deepspeed_json import resolve_deepspeed
from roma_ds.config.dumping import config_hash, to_dict, to_yaml
from roma_ds.config.frozen_models import EmbedConfig
from roma_ds.config.loader import load_run_config, parse_run_config
from roma_ds.config.optimisation import BatchSplit, TrainConfig
from roma_ds.config.packaged import (
    deepspeed_file,
    deepspeed_names,
    outline_text,
    preset_names,
    preset_text,
    study_names,
    study_text,
)
from roma_ds.config.schema import (
    DataConfig,
    EvalConfig,
    IndexConfig,
    ModelConfig,
    RomaConfig,
    RunConfig,
    TaskConfig,
)
from roma_ds.config.sources import DatasetConfig

__all__ = [
    "BatchSplit",
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
    "config_hash",
    "deepspeed_file",
    "deepspeed_names",
    "load_run_config",
    "outline_text",
    "parse_run_config",
    "preset_names",
    "preset_text",
    "resolve_deepspeed",
    "study_names",
    "study_text",
    "to_dict",
    "to_yaml",
]
