"""Configs of a known type of which no network can be made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from roma_ds.checkpoint.loading import load_config
from roma_ds.cli.main import main
from roma_ds.cli.subject import Subject
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import has_routers
from roma_ds.families.registry import FAMILIES
from roma_ds.families.unusable_config import require_numbers


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model_type": "olmoe", "num_experts": 0}, "num_experts must be 1 or more, not 0"),
        ({"model_type": "olmoe", "num_experts_per_tok": 65}, "is 65, more than the 64 of num_experts"),
        ({"model_type": "deepseek_v2"}, "num_experts_per_tok must be 1 or more, not None"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step must be 1 or more"),
        ({"model_type": "ernie4_5_moe", "moe_layer_interval": 0}, "moe_layer_interval must be 1 or more"),
        ({"model_type": "olmoe", "hidden_act": "foo"}, "hidden_act"),
        ({"model_type": "dots1"}, "'dots1'"),
        ({"model_type": "dbrx"}, "rope_theta"),
        ({"model_type": "lfm2_moe"}, "layer_types"),
        ({"model_type": "hunyuan_v1_moe"}, "head_dim"),
        (
            {
                "model_type": "qwen3_5_moe",
                "text_config": {"model_type": "qwen3_5_moe_text", "num_experts": 0},
            },
            "num_experts must be 1 or more",
        ),
        ({"model_type": "qwen3_vl_moe"}, "'qwen3_vl_moe_text' may be sparse (num_experts=60), but"),
        ({"model_type": "gemma4", "text_config": {"num_experts": -1}}, "text_config of model.path"),
        ({"model_type": ["olmoe"]}, "model.path"),
        ({"model_type": "olmoe", "num_attention_heads": 0}, "olmoe"),
        (
            {"model_type": "olmoe", "num_attention_heads": 12, "num_key_value_heads": 5},
            "num_attention_heads is 12, no multiple of the 5 of num_key_value_heads; hidden_size is 2048, no",
        ),
        (
            {"model_type": "qwen3_moe", "num_attention_heads": 30, "num_key_value_heads": 4},
            "num_attention_heads is 30, no multiple of the 4",
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_plan_refuses_a_config_that_describes_no_network(
    content: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    code, out, err = main(["plan", str(file)]), *capsys.readouterr()
    assert code == 2 and not out and err.count("roma-ds: error") == 1 and "fix: " in err and says in err


def test_a_config_that_describes_no_network_is_not_taken_for_a_dense_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "olmoe", "num_experts_per_tok": 65}))
    model = ModelConfig(path=str(tmp_path))
    run = SimpleNamespace(model=model)
    assert Subject(cast(Any, run), 1).evaluation_only is None
    with pytest.raises(UserError, match="more than the 64"):
        has_routers(load_config(model))


def test_numbers_of_heads_by_layer_are_not_judged() -> None:
    [family] = [family for family in FAMILIES if "olmoe" in family.model_types]
    heads = {"num_attention_heads": [4, 8], "num_key_value_heads": [2, 4], "hidden_size": 30}
    config = SimpleNamespace(model_type="olmoe", num_experts=8, num_experts_per_tok=2, **heads)
    require_numbers(family, config)
    config.num_attention_heads, config.num_key_value_heads = 8, 8
    with pytest.raises(UserError, match="hidden_size is 30, no multiple of the 8"):
        require_numbers(family, config)
