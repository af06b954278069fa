"""What DeepSpeed's own models say of a JSON, told before anything runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roma_ds.config import parse_run_config, resolve_deepspeed
from roma_ds.config.deepspeed_keys import MUST_BE, REMOVED, UNSUPPORTED
from roma_ds.config.deepspeed_models import known_keys
from roma_ds.config.deepspeed_sections import Scalars, judges
from roma_ds.errors import UserError

RUN = """\
model: {path: owner/model, dtype: bfloat16}
data: {train: [{name: openbookqa}]}
eval: {tasks: [arc_easy]}
output_dir: out
deepspeed: ds.json
"""
Problems = Callable[..., list[str]]
SECTIONS = sorted(judges())
SWITCHES = [name for name in SECTIONS if "enabled" in known_keys(judges()[name]) and name != "bf16"]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Problems:
    folder = tmp_path_factory.mktemp("json")

    def problems(content: Any, *overrides: str, ranks: int = 2) -> list[str]:
        (folder / "ds.json").write_text(json.dumps(content))
        try:
            resolve_deepspeed(parse_run_config(RUN, folder / "run.yaml", overrides), ranks)
        except UserError as error:
            assert error.exit_code == 2 and error.fix and str(folder / "ds.json") in error.fix
            return [line for line in error.message.splitlines() if not line.endswith("problems:")]
        return []

    return problems


def zero(stage: int = 3, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bf16": {"enabled": "auto", "loss_scale": 0}}, "bf16.loss_scale: unknown key: a loss is scaled in"),
        ({"tensorboard": {"enabled": True, "log_dir": "y"}}, "tensorboard.log_dir: unknown key; tensorboard"),
        ({"compile": {"enabled": True}}, "compile.enabled: unknown key; compile has"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile: is true, which is not supported"),
        (
            {"timers": {"throughput": {"enable": False}}},
            "throughput.enable: unknown key; did you mean",
        ),
        ({"aio": {"thread_count": 1}}, "aio.thread_count: unknown key; aio has block_size, "),
        (
            {"checkpoint": {"writer": {"typ": "fast"}}},
            "writer.typ: unknown key; did you mean 'type'",
        ),
        ({"flops_profiler": {"profile_stp": 1}}, "flops_profiler.profile_stp: unknown key; did you mean"),
        ({"steps_per_print": 0}, "steps_per_print: must be greater than 0, got 0"),
        ({"wall_clock_breakdown": "true"}, 'is the text "true" where true or false is meant; write true'),
        ({"communication_data_type": "fp17"}, "must be 'fp16', 'bf16' or 'fp32', got \"fp17\""),
        (
            {"data_types": {"param_dtype": "fp32"}},
            'param_dtype: is "fp32", but run.yaml: model.dtype',
        ),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation: is false, which is not"),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow: is false, which is not"),
        ({"comms_logger": []}, "comms_logger: expected a section, got []"),
        (zero(reduce_bucket_size="5e8"), 'is the text "5e8" where a number is meant; write 500000000'),
        (zero(reduce_bucket_size="many"), 'is the text "many" where a number is meant'),
        (zero(reduce_bucket_size=0.9e6 + 0.5), "must be a whole number, got 900000.5; write 900000"),
        (zero(reduce_bucket_size=0), "zero_optimization.reduce_bucket_size: must be greater than 0, got 0"),
        (zero(sub_group_size="1000000"), "sub_group_size: is the text"),
        (zero(stage3_max_live_parameters=True), "stage3_max_live_parameters: must be a number, got true"),
        (zero(contiguous_gradients="yes"), 'is the text "yes" where true or false is meant'),
        (zero(offload_param={"device": "cpu", "pin_mempry": True}), "did you mean 'pin_memory'?"),
        (zero(offload_param={"devise": "cpu"}), "offload_param.devise: unknown key; did you mean 'device'?"),
        (zero(offload_param={"device": "gpu"}), "device: must be 'none', 'cpu' or 'nvme', got \"gpu\""),
        (zero(prefetch_bucket_size=1, stage3_prefetch_bucket_size=2), "is given under two names"),
        (zero(leaf_module=[]), "zero_optimization: leaf_module configuration must be a mapping"),
        (zero(1, compute_grad_norm=False), "zero_optimization.compute_grad_norm: is false, which is not"),
        (zero(zenflow={"topk_ratio": 0.1}), "zero_optimization.zenflow: not supported"),
        ({"prescale_gradients": True, **zero()}, "prescale_gradients: DeepSpeed's optimizer of stage 3"),
        (
            {"gradient_predivide_factor": 2.0, **zero(2)},
            "predivide_factor: DeepSpeed's optimizer of",
        ),
    ],
    ids=str,
)
def test_what_training_would_end_with_is_named(problems: Problems, content: Any, message: str) -> None:
    found = problems(content)
    assert any(message in line and line.startswith("ds.json: ") for line in found), found


def test_all_of_them_at_once(problems: Problems) -> None:
    content = {
        "prescale_gradients": True,
        "wall_clock_breakdown": "true",
        "comms_logger": {"enabld": True},
        **zero(reduce_bucket_size="5e8", sub_group_size=0.5, offload_param={"pin_mempry": True}),
    }
    assert len(problems(content)) == 6


@pytest.mark.parametrize(
    "content",
    [
        {"prescale_gradients": True, "gradient_predivide_factor": 2, **zero(1)},
        {"prescale_gradients": False, "gradient_predivide_factor": 1.0, **zero(3)},
        {"fp16": {"enabled": False, "loss_scale": 0}, "amp": {"enabled": False}, "sparse_gradients": False},
        {"tensor_parallel": {"autotp_size": 1}, "sequence_parallel_size": 1, "pipeline": {"stages": 1}},
        {"tensor_parallel": {"tp": {"tp_size": 1}}, "wandb": None, "hybrid_engine": {"enabled": False}},
        {
            "compile": {"enabled": False, "backend": "inductor"},
            "autotuning": {"enabled": False, "fast": True},
        },
        {"wall_clock_breakdown": True, "flops_profiler": {"enabled": True, "profile_step": 2}},
        zero(offload_param={"device": "none", "pin_mempry": True}, offload_optimizer={"device": "none"}),
        zero(mics_shard_size=-1, mics_hierarchical_params_gather=False, zero_hpz_partition_size=1),
        zero(reduce_bucket_size=5e8, stage3_max_live_parameters=1e9, overlap_comm=None),
    ],
    ids=str,
)
def test_what_trains_is_no_fault(problems: Problems, content: Any) -> None:
    assert problems(content) == []


def test_numbers_are_what_deepspeed_reads(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(zero(reduce_bucket_size=5e8, contiguous_gradients=1)))
    resolved = resolve_deepspeed(parse_run_config(RUN, tmp_path / "run.yaml"), 1)["zero_optimization"]
    assert repr(resolved["reduce_bucket_size"]) == "500000000"
    assert resolved["contiguous_gradients"] is True


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data(), name=st.sampled_from(SECTIONS))
def test_any_misspelt_key_is_named_with_a_suggestion(
    problems: Problems, data: st.DataObject, name: str
) -> None:
    known = known_keys(judges()[name])
    key = data.draw(st.sampled_from(sorted(known)))
    place = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from(["", "q", "_x"]))
    wrong = key[:place] + letter + key[place + 1 :]
    if wrong in known or not wrong:
        return
    value = data.draw(st.sampled_from([True, 3, "text", None, {"a": 1}]))
    lines = problems({name: {wrong: value}, "train_batch_size": 3})
    mine = [line for line in lines if line.startswith(f"ds.json: {name}.{wrong}: unknown key")]
    assert len(mine) == 1 and any(other in mine[0] for other in known), lines
    # The other fault of the file is told too.
    assert any("train_batch_size: is 3" in line for line in lines)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    name=st.sampled_from([*SWITCHES, *sorted(UNSUPPORTED), *sorted(REMOVED), "compile"]),
    keys=st.dictionaries(
        st.sampled_from(["x", "stage", "enable", "type"]), st.sampled_from([1, "t", None]), max_size=3
    ),
)
def test_a_section_that_is_switched_off_is_no_fault(
    problems: Problems, name: str, keys: dict[str, Any]
) -> None:
    assert problems({name: {**keys, "enabled": False}}) == []


def test_kinds_of_compression_that_are_switched_off_are_no_fault(problems: Problems) -> None:
    groups = {"different_groups": {"wq1": {"params": {"start_bits": 8}, "modules": ["attention"]}}}
    kinds = {"layer_reduction": {"enabled": False, "keep_number_layer": 5}}
    kinds["weight_quantization"] = {"shared_parameters": {"enabled": False}, **groups}
    assert problems({"compression_training": kinds}) == []
    kinds["sparse_pruning"] = {"shared_parameters": {"enabled": True}, **groups}
    [problem] = problems({"compression_training": kinds})
    assert problem.startswith("ds.json: compression_training: was removed")


def test_our_sections_have_the_keys_that_deepspeed_reads() -> None:
    from deepspeed.runtime import config as installed

    class Asked(dict[str, Any]):
        """Remembers what it was asked for."""

        def get(self, key: Any, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

        def __copy__(self) -> Asked:
            return self

        def __deepcopy__(self, memo: Any) -> Asked:
            return self

    for name, parent in (
        ("activation_checkpointing", None),
        ("aio", None),
        ("checkpoint", None),
        ("writer", "checkpoint"),
        ("parallel_write", "checkpoint"),
        ("data_types", None),
        ("flops_profiler", None),
    ):
        asked = set[str]()
        section = {name: Asked()}
        installed.DeepSpeedConfig({"train_batch_size": 1, **({parent: section} if parent else section)})
        model = judges()[parent or name]
        if parent:
            kinds = {"writer": "Writer", "parallel_write": "ParallelWrite"}
            from roma_ds.config import deepspeed_sections

            model = getattr(deepspeed_sections, kinds[name])
        assert asked == known_keys(model), name
    from deepspeed.comm.config import CommsLoggerConfig

    assert set(CommsLoggerConfig.model_fields) == known_keys(judges()["comms_logger"])


def test_every_key_is_one_of_deepspeed() -> None:
    from roma_ds.config.deepspeed_keys import KNOWN

    assert set(Scalars.model_fields) <= KNOWN and set(judges()) <= KNOWN
    sections = judges()
    for key in MUST_BE:
        name, _, own = key.rpartition(".")
        assert own in (known_keys(sections[name]) if name else KNOWN)


def test_what_was_resolved_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(zero(stage3_prefetch_bucket_size=5)))
    run = parse_run_config(RUN, tmp_path / "run.yaml")
    unjudged, judged = resolve_deepspeed(run, 2, judged=False), resolve_deepspeed(run, 2)
    assert copy.deepcopy(unjudged) == judged
