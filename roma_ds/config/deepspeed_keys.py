"""What DeepSpeed 0.19.8 reads from its JSON, and what a run that trains routers alone cannot take."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KNOWN = _names(
    """
    activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger
    communication_data_type compile csv_monitor data_efficiency data_types dataloader_drop_last
    datastates_ckpt disable_allgather disable_python_gc dump_state expert_parallel flops_profiler fp16
    gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor
    hybrid_engine log_level managed_gradient_accumulation memory_breakdown optimizer pipeline
    prescale_gradients scheduler seq_parallel_communication_data_type sequence_parallel_size
    steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size
    train_micro_batch_size_per_gpu use_data_before_expert_parallelism vocabulary_size
    wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization
    """
)
"""Top-level keys. DeepSpeed itself ignores any other without a word."""

REMOVED = _names(
    """
    amp compression_training curriculum_learning eigenvalue elasticity graph_harvesting nebula
    progressive_layer_drop quantize_training sparse_attention sparse_gradients
    """
)
"""Top-level keys of older versions."""

ZERO_KNOWN = _names(
    """
    stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce
    allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights
    elastic_checkpoint offload_param offload_optimizer zenflow sub_group_size cpu_offload_param
    cpu_offload_use_pin_memory cpu_offload prefetch_bucket_size stage3_prefetch_bucket_size
    param_persistence_threshold stage3_param_persistence_threshold model_persistence_threshold
    stage3_model_persistence_threshold max_live_parameters stage3_max_live_parameters
    max_reuse_distance stage3_max_reuse_distance gather_16bit_weights_on_model_save
    stage3_gather_16bit_weights_on_model_save module_granularity_threshold
    stage3_module_granularity_threshold use_all_reduce_for_fetch_params
    stage3_use_all_reduce_for_fetch_params allgather_sequential stage3_allgather_sequential
    stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1
    round_robin_gradients parameter_alignment zero_hpz_partition_size zero_quantized_weights
    zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear
    pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks
    save_muon_momentum_buffer_in_memory leaf_module
    """
)
"""Keys of zero_optimization."""

ZERO_REMOVED = frozenset({"mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"})
"""Keys of zero_optimization in older versions."""

UNSUPPORTED = {
    "autotuning": "no experiments are started from here",
    "data_efficiency": "the order of samples is that of train.seed",
    "datastates_ckpt": "what a run resumes from is written by roma_ds",
    "expert_parallel": "DeepSpeed's expert parallelism does not take an optimizer over routers alone",
    "hybrid_engine": "nothing is generated during training",
    "pipeline": "the model is not cut into pipeline stages",
    "sequence_parallel_size": "every rank holds whole prompts",
    "tensor_parallel": "weights are sharded by ZeRO alone",
    "torch_autocast": "the forward pass runs in model.dtype, as it did when routing was collected",
    "weight_quantization": "the weights stay as the checkpoint has them",
}
"""Top-level keys that would change what is trained, each with the reason."""

ZERO_UNSUPPORTED = {
    "offload_optimizer": "optimizer states of routers alone are a few megabytes; see offload_param",
    "cpu_offload": "an older name of offload_optimizer, which is not supported",
    "cpu_offload_param": "an older name of offload_param",
    "zero_quantized_weights": "frozen weights would no longer be those that were collected from",
    "zero_quantized_nontrainable_weights": "frozen weights would no longer be those that were collected from",
    "zero_quantized_gradients": "gradients of routers alone are a few megabytes",
    "zenflow": "it needs offload_optimizer, which is not supported",
}
"""Keys of zero_optimization that are refused, each with the reason."""

MUST_BE = {
    "managed_gradient_accumulation": (True, "the last micro-batch of a step is known here"),
    "bf16.check_grad_overflow": (True, "a gradient that is not finite would get into the routers"),
    "compile.deepcompile": (False, "nothing is compiled"),
    "zero_optimization.compute_grad_norm": (True, "the norm says whether a gradient is finite"),
}
"""Keys with the one value that they may have, and why."""

SIZES = frozenset({"autotp_size", "tp_size", "stages"})
"""Keys that switch their section off where they are 1 or less."""

AUTO = {
    "zero_optimization.reduce_bucket_size": 20_000_000,
    "zero_optimization.allgather_bucket_size": 500_000_000,
    "zero_optimization.sub_group_size": 1_000_000_000,
    "zero_optimization.stage3_prefetch_bucket_size": 5_000_000,
    "zero_optimization.stage3_param_persistence_threshold": 1_000_000,
    "zero_optimization.stage3_max_live_parameters": 1_000_000_000,
    "zero_optimization.stage3_max_reuse_distance": 1_000_000_000,
}
"""What `auto` stands for where neither the run config nor the number of ranks decides it.

The reduce bucket is small because it holds the gradients of routers alone; the persistence threshold is above
the size of any router, so that routers stay whole on every rank. The prefetch bucket is a tenth of
DeepSpeed's default: one parameter is always fetched ahead, however large, and experts are large; more ahead
is memory that a small suffix does not save. The others are DeepSpeed's defaults.
"""
