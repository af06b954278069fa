"""The DeepSpeed JSON against the run config: completed where it is open, refused where it contradicts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roma_ds.config import RunConfig, deepspeed_names, parse_run_config, resolve_deepspeed
from roma_ds.config.deepspeed_keys import (
    KNOWN,
    REMOVED,
    UNSUPPORTED,
    ZERO_KNOWN,
    ZERO_REMOVED,
    ZERO_UNSUPPORTED,
)
from roma_ds.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RUN = """\
model: {path: owner/model, dtype: float32}
data: {train: [{name: openbookqa}]}
eval: {tasks: [arc_easy]}
train: {micro_batch: 4, gradient_accumulation: 2, clip: 0.5}
output_dir: out
deepspeed: ds.json
"""

Resolve = Callable[..., dict[str, Any]]


@pytest.fixture
def resolve(tmp_path: Path) -> Resolve:
    def resolve(content: Any, *overrides: str, ranks: int = 2) -> dict[str, Any]:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "ds.json").write_text(text)
        return resolve_deepspeed(parse_run_config(RUN, tmp_path / "run.yaml", overrides), ranks)

    return resolve


@pytest.fixture
def refusal(resolve: Resolve) -> Callable[..., str]:
    def refusal(content: Any, *overrides: str, ranks: int = 2) -> str:
        with pytest.raises(UserError) as caught:
            resolve(content, *overrides, ranks=ranks)
        assert caught.value.exit_code == 2 and caught.value.fix
        return caught.value.message

    return refusal


def autos(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if value == "auto" else [found for item in inner for found in autos(item)]


def test_an_empty_json_is_completed_from_the_run(resolve: Resolve, tmp_path: Path) -> None:
    assert resolve({}) == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 16,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 0},
        "tensorboard": {
            "enabled": True,
            "output_path": str(tmp_path / "out" / "train"),
            "job_name": "tensorboard",
        },
    }


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_the_batch_follows_the_number_of_ranks(resolve: Resolve, ranks: int) -> None:
    assert resolve({"train_batch_size": "auto"}, ranks=ranks)["train_batch_size"] == 8 * ranks


BATCH = ("train={batch: 32, micro_batch: 8, clip: 0.5}",)


@pytest.mark.parametrize(
    ("ranks", "passes", "micro"), [(1, 4, 8), (2, 2, 8), (3, 2, 6), (4, 1, 8), (8, 1, 4), (5, 1, 7)]
)
def test_accumulation_follows_the_batch(resolve: Resolve, ranks: int, passes: int, micro: int) -> None:
    """DeepSpeed wants a product; a JSON that names the batch agrees whether it divides or not."""
    keys = ("gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size")
    wanted = [passes, micro, passes * micro * ranks]
    for content in ({}, {"train_batch_size": 32}, dict(zip(keys, (passes, 8, 32), strict=True))):
        resolved = resolve(content, *BATCH, ranks=ranks)
        assert [resolved[key] for key in keys] == wanted


def test_a_json_that_says_another_batch_is_refused(refusal: Callable[..., str]) -> None:
    found = refusal({"train_batch_size": 64, "gradient_accumulation_steps": 4}, *BATCH, ranks=3)
    assert "ds.json: train_batch_size: is 64, but run.yaml: train.batch 32 makes it 32" in found
    how = "train.batch 32 with train.micro_batch 8 on 3 ranks makes it 2"
    assert f"ds.json: gradient_accumulation_steps: is 4, but run.yaml: {how}" in found
    # What DeepSpeed is told is not what an update has.
    assert "train_batch_size: is 36" in refusal({"train_batch_size": 36}, *BATCH, ranks=3)
    assert "gpu: is 7, but" in refusal({"train_micro_batch_size_per_gpu": 7}, *BATCH, ranks=3)
    assert "train_batch_size: is null, but" in refusal({"train_batch_size": None}, *BATCH, ranks=3)


def test_precision_follows_the_model(resolve: Resolve) -> None:
    assert resolve({"bf16": {"enabled": "auto"}}, "model.dtype=bfloat16")["bf16"] == {"enabled": True}
    assert resolve({"bfloat16": {"enabled": "auto"}}, "model.dtype=bfloat16")["bf16"] == {"enabled": True}
    off = {"fp16": {"enabled": "auto", "loss_scale": "auto", "initial_scale_power": "auto"}}
    assert "fp16" not in resolve(off)


def test_values_that_agree_are_kept(resolve: Resolve) -> None:
    given = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 16,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "wall_clock_breakdown": True,
        "comms_logger": {"enabled": True},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5},
        "tensorboard": {"enabled": False, "output_path": "elsewhere", "job_name": "mine"},
    }
    before = copy.deepcopy(given)
    assert resolve(given) == before


def test_stage_3_gets_no_leaf_modules_and_resident_routers(resolve: Resolve) -> None:
    zero = resolve({"zero_optimization": {"stage": 3}})["zero_optimization"]
    assert zero["leaf_module"] == {"classes": [], "names": [], "name_suffixes": []}
    assert zero["stage3_param_persistence_threshold"] == 1_000_000
    own = {"stage": 3, "leaf_module": {"classes": ["x.Y"]}, "stage3_param_persistence_threshold": 7}
    assert resolve({"zero_optimization": own})["zero_optimization"] == own
    short = {"stage": 3, "leaf_module": {"classes": []}, "param_persistence_threshold": 7}
    assert resolve({"zero_optimization": short})["zero_optimization"] == short


def test_a_config_of_the_transformers_trainer_is_completed(resolve: Resolve) -> None:
    resolved = resolve(
        {
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto", "loss_scale": 0, "hysteresis": 2},
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
            },
            "scheduler": {
                "type": "WarmupLR",
                "params": {"warmup_min_lr": "auto", "warmup_num_steps": "auto"},
            },
            "zero_optimization": {
                "stage": 3,
                "overlap_comm": True,
                "sub_group_size": 1e9,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
                "stage3_max_live_parameters": 1e9,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
        }
    )
    assert not autos(resolved)
    assert not {"optimizer", "scheduler", "fp16"} & set(resolved)


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (
            {"train_batch_size": 64},
            [
                "ds.json: train_batch_size: is 64, but run.yaml: train.micro_batch 4 x ",
                "x 2 ranks makes it 16",
            ],
        ),
        (
            {"train_micro_batch_size_per_gpu": 8},
            ["ds.json: train_micro_batch_size_per_gpu: is 8, but run.yaml: train.micro_batch 4 makes it 4"],
        ),
        (
            {"gradient_accumulation_steps": 1},
            ["gradient_accumulation_steps: is 1, but run.yaml: train.gradient_accumulation 2 makes it 2"],
        ),
        ({"gradient_accumulation_steps": "2"}, ['ds.json: gradient_accumulation_steps: is "2", but']),
        ({"gradient_clipping": 1.0}, ["ds.json: gradient_clipping: is 1.0, but run.yaml: train.clip 0.5"]),
        ({"bf16": {"enabled": True}}, ["ds.json: bf16.enabled: is true, but run.yaml: model.dtype float32"]),
        ({"bf16": {"enabled": 0}}, ["ds.json: bf16.enabled: is 0, but"]),
        ({"bf16": True}, ["ds.json: bf16: expected a section, got true"]),
        ({"bf16": {}, "bfloat16": {}}, ["bfloat16: is another name of bf16"]),
        (
            {"bf16": {"bf16_master_weights_and_grads": True}},
            ["bf16.bf16_master_weights_and_grads: not supported"],
        ),
        (
            {"fp16": {"enabled": True}},
            ["ds.json: fp16.enabled: is true, but run.yaml: model.dtype is float32"],
        ),
        ({"zero_optimisation": {}}, ["zero_optimisation: unknown key; did you mean 'zero_optimization'?"]),
        ({"zero_optimization": {"stag": 3}}, ["zero_optimization.stag: unknown key; did you mean 'stage'?"]),
        ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage: must be 0, 1, 2 or 3, got 4"]),
        ({"zero_optimization": {"stage": True}}, ["zero_optimization.stage: must be 0, 1, 2 or 3, got true"]),
        (
            {"zero_optimization": {"stage": "auto"}},
            ['zero_optimization.stage: must be 0, 1, 2 or 3, got "auto"'],
        ),
        ({"zero_optimization": {"mics_shard_size": 2}}, ["mics_shard_size: was removed from DeepSpeed 0.19"]),
        ({"elasticity": {}}, ["ds.json: elasticity: was removed from DeepSpeed 0.19"]),
        ({"amp": {"enabled": True}}, ["ds.json: amp: was removed"]),
        (
            {"tensor_parallel": {"autotp_size": 2}},
            ["ds.json: tensor_parallel: not supported: weights are sharded"],
        ),
        ({"gradient_allreduce_op": "sum"}, ["gradient_allreduce_op: must be mean"]),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "eps": "auto"}}},
            ['optimizer.params.lr: is 0.0001, but the routers\' optimizer is set by the keys of "train"'],
        ),
        ({"optimizer": {"type": "Lion", "params": {"lr": "auto"}}}, ['optimizer.type: is "Lion"']),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 9}}}, ["warmup_num_steps: is 9"]),
        ({"aio": {"block_size": "auto"}}, ['ds.json: aio.block_size: "auto" is decided by nothing here']),
        ({"csv_monitor": "auto"}, ['csv_monitor: "auto" is decided by nothing']),
        ({"timers": {"throughput": [{"x": "auto"}]}}, ["timers.throughput.0.x"]),
        (
            {"zero_optimization": {"offload_param": {"device": "auto"}}},
            ["zero_optimization.offload_param.device"],
        ),
        ({"tensorboard": []}, ["tensorboard: expected a section, got []"]),
    ],
)
def test_what_cannot_be_is_refused(refusal: Callable[..., str], content: Any, messages: list[str]) -> None:
    found = refusal(content)
    assert all(message in found for message in messages), found


def test_all_problems_come_at_once(refusal: Callable[..., str]) -> None:
    found = refusal({"trian_batch_size": 1, "gradient_clipping": 9, "fp16": {"enabled": True}, "amp": {}})
    assert found.startswith("ds.json: 4 problems:")
    assert found.count("\n") == 4


def test_one_rank_is_one_rank(refusal: Callable[..., str]) -> None:
    assert "x 1 rank makes it 8" in refusal({"train_batch_size": 16}, ranks=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "a": 1,\n}', "ds.json:3: not valid JSON"),
        (
            '{\n  // why\n  "fp16": {}\n}',
            "ds.json:2: not valid JSON: Expecting property name enclosed in double quotes",
        ),
        ('{\n  // why\n  "fp16": {}\n}', "JSON has no comments"),
        ("", "ds.json:1: not valid JSON"),
        ('{"bf16": {}, "bf16": {}}', "ds.json: the key 'bf16' is given twice"),
        ('{"gradient_clipping": NaN}', "ds.json: NaN is not a value of JSON"),
        ("[]", "ds.json: expected an object in braces"),
    ],
)
def test_unreadable_json_is_named_with_its_line(refusal: Callable[..., str], text: str, message: str) -> None:
    assert message in refusal(text)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}), encoding="utf-8-sig")
    run = parse_run_config(RUN, tmp_path / "run.yaml", ["deepspeed=ds.json"])
    assert resolve_deepspeed(run, 1, judged=False)["zero_optimization"]["stage"] == 2


def test_an_absent_json_is_named_with_the_packaged_ones(tmp_path: Path) -> None:
    run = parse_run_config(RUN, tmp_path / "run.yaml", ["deepspeed=ds_configs/zero4.json"])
    with pytest.raises(UserError) as caught:
        resolve_deepspeed(run, 1)
    assert f"deepspeed: {tmp_path}/ds_configs/zero4.json does not exist" in str(caught.value)
    assert "zero0, zero1, zero2, zero3" in str(caught.value)


FILES = sorted(ROOT.glob("ds_configs/**/*.json"))


def test_all_files_are_tested() -> None:
    names = ["cpu", *(f"zero{stage}" for stage in range(4)), "zero3_hpz", "zero3_nvme", "zero3_offload_cpu"]
    assert [file.stem for file in FILES] == names
    assert deepspeed_names() == tuple(names)
    assert len(list(ROOT.glob("roma_ds/config/**/*.json"))) == len(names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_file_resolves_and_equals_the_packaged_copy(file: Path, dtype: str) -> None:
    run = parse_run_config(RUN, ROOT / "run.yaml", [f"deepspeed={file}", f"model.dtype={dtype}"])
    resolved = resolve_deepspeed(run, 4)
    assert not autos(resolved)
    stage = 3 if file.stem == "cpu" else int(file.stem.removeprefix("zero")[0])
    assert resolved["zero_optimization"]["stage"] == stage
    assert resolved["bf16"]["enabled"] is (dtype == "bfloat16")
    assert (ROOT / "roma_ds" / "config" / "deepspeed" / file.name).read_bytes() == file.read_bytes()


def test_the_readme_explains_every_key() -> None:
    text = (ROOT / "ds_configs" / "README.md").read_text()

    def paths(section: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for key, value in section.items():
            inner = key != "leaf_module" and isinstance(value, dict)
            found += paths(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
        return found

    keys = {path for file in FILES for path in paths(json.loads(file.read_text()))}
    unexplained = [key for key in keys if f"`{key}`" not in text and key != "tensorboard.job_name"]
    assert not unexplained and len(keys) > 12


def test_lists_of_keys_do_not_overlap() -> None:
    assert not KNOWN & REMOVED and not ZERO_KNOWN & ZERO_REMOVED
    assert set(UNSUPPORTED) <= KNOWN
    assert set(ZERO_UNSUPPORTED) <= ZERO_KNOWN


def test_a_swap_folder_of_the_run_s_own(resolve: Resolve, tmp_path: Path) -> None:
    for given, path in (("auto", str(tmp_path / "out" / "swap")), ("/disk", "/disk")):
        offload = {"device": "nvme", "nvme_path": given}
        zero = resolve({"zero_optimization": {"stage": 3, "offload_param": offload}})["zero_optimization"]
        assert zero["offload_param"] == {"device": "nvme", "nvme_path": path}


@pytest.mark.parametrize(
    ("zero", "ranks", "message"),
    [
        ({"stage": 2, "offload_param": {"device": "cpu"}}, 2, "offload_param: needs stage 3, not 2"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, 2, "offload_optimizer: not supported"),
        ({"stage": 3, "zero_quantized_weights": True}, 2, "zero_quantized_weights: not supported"),
        ({"stage": 3, "zero_hpz_partition_size": 4}, 6, "is 4, which does not divide the 6 ranks"),
    ],
    ids=str,
)
def test_variants_of_zero_that_cannot_be(
    refusal: Callable[..., str], zero: dict[str, Any], ranks: int, message: str
) -> None:
    assert message in refusal({"zero_optimization": zero}, ranks=ranks)


def test_a_group_may_be_larger_than_the_run(resolve: Resolve) -> None:
    content = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8, "offload_param": None}}
    for ranks in (1, 2, 8, 16):
        assert resolve(content, ranks=ranks)["zero_optimization"]["zero_hpz_partition_size"] == 8


class AskedKeys(dict[str, Any]):
    """A dict that remembers the keys it was asked for."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[Any] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> AskedKeys:
        return self


def test_the_known_keys_are_those_of_the_installed_deepspeed() -> None:
    from deepspeed.runtime import config as installed
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    content = AskedKeys({"train_batch_size": 1})
    installed.DeepSpeedConfig(content)
    # Read by transformers' and DeepSpeed's own helpers, not by the parser.
    assert content.asked - REMOVED == KNOWN - {"sequence_parallel_size"} | content.asked & {
        "sequence_parallel_size"
    }
    assert set(installed._REMOVED_TOP_LEVEL_CONFIG_KEYS) == REMOVED
    assert set(installed._REMOVED_ZERO_CONFIG_KEYS) == ZERO_REMOVED
    fields = DeepSpeedZeroConfig.model_fields
    assert set(fields) | {field.alias for field in fields.values() if field.alias} == ZERO_KNOWN


@pytest.mark.parametrize("stage", range(4))
def test_deepspeed_takes_what_was_resolved(stage: int, tmp_path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    run: RunConfig = parse_run_config(RUN, tmp_path / "run.yaml", [f"deepspeed=zero{stage}"])
    config = DeepSpeedConfig(resolve_deepspeed(run, 1))
    assert (config.train_batch_size, config.gradient_clipping) == (8, 0.5)
    assert config.zero_optimization_stage == stage
    assert config.zero_config.leaf_module.classes == (
        [] if stage == 3 else config.zero_config.leaf_module.classes
    )
    assert config.monitor_config.tensorboard.enabled
