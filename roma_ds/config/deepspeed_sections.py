"""The sections of a DeepSpeed JSON as models: DeepSpeed's own, and ours where it reads without one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Dtype = Annotated[
    Literal["fp16", "bf16", "fp32"], BeforeValidator(lambda x: x.lower() if isinstance(x, str) else x)
]
Upper = BeforeValidator(lambda x: x.upper() if isinstance(x, str) else x)
Count = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    """A section that DeepSpeed reads key by key, ignoring those that it does not know."""

    model_config = ConfigDict(extra="forbid")


class Scalars(BaseModel):
    """Top-level keys that are no sections, but those that the run config decides."""

    communication_data_type: Dtype | None = None
    dataloader_drop_last: bool = False
    disable_allgather: bool = False
    disable_python_gc: bool = False
    dump_state: bool = False
    gradient_predivide_factor: Annotated[float, Field(gt=0)] = 1.0
    log_level: str = "warning"
    managed_gradient_accumulation: bool = True
    memory_breakdown: bool = False
    prescale_gradients: bool = False
    seq_parallel_communication_data_type: Dtype | None = None
    steps_per_print: Count | None = None
    use_data_before_expert_parallelism: bool = False
    vocabulary_size: int | None = None
    wall_clock_breakdown: bool = False
    zero_allow_untested_optimizer: bool = False
    zero_force_ds_cpu_optimizer: bool = False


class ActivationCheckpointing(_Section):
    """`activation_checkpointing`."""

    partition_activations: bool = False
    number_checkpoints: int | None = None
    contiguous_memory_optimization: bool = False
    synchronize_checkpoint_boundary: bool = False
    profile: bool = False
    cpu_checkpointing: bool = False


class Aio(_Section):
    """`aio`."""

    block_size: Count = 1
    queue_depth: Count = 1
    intra_op_parallelism: Count = 1
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class ParallelWrite(_Section):
    """`checkpoint.parallel_write`."""

    pipeline_stage: bool = False


class Writer(_Section):
    """`checkpoint.writer`."""

    type: Annotated[Literal["MOCK", "PYTHON", "FAST"], Upper] = "FAST"
    io_buffer_size: Count = 1
    io_buffer_double: bool = True
    io_multiplier: Count = 1
    show_statistics: bool = False
    data_parallel: Annotated[Literal["REPLICA", "SOCKET", "MACHINE"], Upper] | None = None
    decoupled: bool = False


class Checkpoint(_Section):
    """`checkpoint`."""

    tag_validation: Annotated[Literal["IGNORE", "WARN", "FAIL"], Upper] = "WARN"
    checkpoint_serialization: bool = True
    load_universal: bool = False
    use_node_local_storage: bool = False
    parallel_write: ParallelWrite = ParallelWrite()
    writer: Writer | None = None


class CommsLogger(_Section):
    """`comms_logger`."""

    enabled: bool = False
    prof_all: bool = True
    prof_ops: list[str] = []
    verbose: bool = False
    debug: bool = False


class DataTypes(_Section):
    """`data_types`."""

    grad_accum_dtype: Dtype | None = None
    param_dtype: Dtype | None = None
    buffer_dtype: Dtype | None = None
    keep_in_fp32_modules: list[str] | None = None


class FlopsProfiler(_Section):
    """`flops_profiler`."""

    enabled: bool = False
    recompute_fwd_factor: Annotated[float, Field(ge=0)] = 0.0
    profile_step: Annotated[int, Field(ge=0)] = 1
    module_depth: int = -1
    top_modules: int = 1
    detailed: bool = True
    output_file: str | None = None


def judges() -> dict[str, type[BaseModel]]:
    """The model of each section, by its key: DeepSpeed's own wherever it has one."""
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    class Timers(_Section):
        throughput: DeepSpeedThroughputTimerConfig = DeepSpeedThroughputTimerConfig()

    return {
        "activation_checkpointing": ActivationCheckpointing,
        "aio": Aio,
        "bf16": DeepSpeedBF16Config,
        "checkpoint": Checkpoint,
        "comet": CometConfig,
        "comms_logger": CommsLogger,
        "compile": CompileConfig,
        "csv_monitor": CSVConfig,
        "data_types": DataTypes,
        "flops_profiler": FlopsProfiler,
        "tensorboard": TensorBoardConfig,
        "timers": Timers,
        "wandb": WandbConfig,
        "zero_optimization": DeepSpeedZeroConfig,
    }
