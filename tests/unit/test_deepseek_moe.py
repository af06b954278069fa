"""The own DeepSeekMoE against a reference in plain tensors, written from arXiv 2401.06066, section 3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import detect
from roma_ds.families.deepseek_moe.configuration import DeepseekConfig
from roma_ds.families.own_models import register_own_models

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]

# As the published config.json writes it, with sizes of a test; fewer key heads than query heads on purpose.
PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekConfig",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "model_type": "deepseek",
    "moe_intermediate_size": 12,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 96,
}


def is_sparse(config: dict[str, Any], layer: int) -> bool:
    return layer >= config["first_k_dense_replace"]


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of a checkpoint in the published layout."""
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    size = hidden // config["num_attention_heads"]
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    heads["v"] = heads["k"]

    def mlp(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{prefix}.gate_proj.weight", (width, hidden)
        yield f"{prefix}.up_proj.weight", (width, hidden)
        yield f"{prefix}.down_proj.weight", (hidden, width)

    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        for name, count in heads.items():
            yield f"{at}.self_attn.{name}_proj.weight", (count * size, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, heads["q"] * size)
        if not is_sparse(config, layer):
            yield from mlp(f"{at}.mlp", config["intermediate_size"])
            continue
        yield f"{at}.mlp.gate.weight", (config["n_routed_experts"], hidden)
        for expert in range(config["n_routed_experts"]):
            yield from mlp(f"{at}.mlp.experts.{expert}", inner)
        if config["n_shared_experts"]:
            yield from mlp(f"{at}.mlp.shared_experts", inner * config["n_shared_experts"])
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def make_checkpoint(folder: Path, **changes: Any) -> tuple[dict[str, Any], Tensors]:
    config = {**PUBLISHED, **changes}
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for key, shape in shapes(config):
        values = torch.randn(shape, generator=generator) * (0.6 if len(shape) > 1 else 0.2)
        tensors[key] = values + 1 if len(shape) == 1 else values / shape[-1] ** 0.5 * 2
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return config, tensors


class Reference:
    """DeepSeekMoE in float64, one sequence at a time."""

    def __init__(self, config: dict[str, Any], tensors: Tensors) -> None:
        self.config = config
        self.tensors = {key: value.double() for key, value in tensors.items()}
        self.scores: dict[int, torch.Tensor] = {}

    def norm(self, key: str, x: torch.Tensor) -> torch.Tensor:
        root = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return x / root * self.tensors[f"{key}.weight"]

    def mlp(self, key: str, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.tensors[f"{key}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        inner = x @ gate.T
        return (inner / (1 + torch.exp(-inner)) * (x @ up.T)) @ down.T

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        """x [tokens, size]: component i and component i + size/2 turn by position * theta^(-2i/size)."""
        tokens, size = x.shape
        half = size // 2
        rates = float(self.config["rope_theta"]) ** (-2 * torch.arange(half, dtype=torch.float64) / size)
        angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates
        turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1)

    def attention(self, key: str, x: torch.Tensor) -> torch.Tensor:
        heads = self.config["num_attention_heads"]
        size = x.shape[-1] // heads
        sharing = heads // self.config["num_key_value_heads"]
        q, k, v = (x @ self.tensors[f"{key}.{name}_proj.weight"].T for name in "qkv")
        past = torch.ones(len(x), len(x)).tril().bool()
        outputs = []
        for head in range(heads):
            of, to = slice(head * size, (head + 1) * size), head // sharing
            shared = slice(to * size, (to + 1) * size)
            products = self.rotated(q[:, of]) @ self.rotated(k[:, shared]).T / size**0.5
            outputs.append(products.masked_fill(~past, -torch.inf).softmax(-1) @ v[:, shared])
        return torch.cat(outputs, dim=-1) @ self.tensors[f"{key}.o_proj.weight"].T

    def sparse(self, layer: int, key: str, x: torch.Tensor) -> torch.Tensor:
        scores = (x @ self.tensors[f"{key}.gate.weight"].T).softmax(-1)
        self.scores[layer] = scores
        result = self.mlp(f"{key}.shared_experts", x) if self.config["n_shared_experts"] else x * 0
        for token, row in enumerate(scores):
            chosen = row.argsort(descending=True)[: self.config["num_experts_per_tok"]].tolist()
            scale = float(row[chosen].sum()) if self.config["norm_topk_prob"] else 1.0
            for expert in chosen:
                result[token] += row[expert] / scale * self.mlp(f"{key}.experts.{expert}", x[token])
        return result

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [tokens] -> float64 [tokens, vocabulary]."""
        x = self.tensors["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            x = x + self.attention(f"{at}.self_attn", self.norm(f"{at}.input_layernorm", x))
            normed = self.norm(f"{at}.post_attention_layernorm", x)
            if is_sparse(self.config, layer):
                x = x + self.sparse(layer, f"{at}.mlp", normed)
            else:
                x = x + self.mlp(f"{at}.mlp", normed)
        return self.norm("model.norm", x) @ self.tensors["lm_head.weight"].T


IDS = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(1))


def loaded(folder: Path) -> Any:
    """As a user's own script loads it."""
    register_own_models()
    network, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return network.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_topk_prob": True},
        {"first_k_dense_replace": 3, "num_hidden_layers": 5},
        {"n_shared_experts": None, "num_key_value_heads": 4, "rope_theta": 500.0},
    ],
    ids=["published", "renormalised", "three dense", "nothing shared"],
)
@torch.no_grad()
def test_logits_are_those_of_the_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    config, tensors = make_checkpoint(tmp_path, **changes)
    network = loaded(tmp_path)
    scored: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(network.model.layers):
        assert (type(block.mlp).__name__ == "DeepseekSparseBlock") == is_sparse(config, layer)
        if is_sparse(config, layer):
            block.mlp.gate.register_forward_hook(
                lambda module, inputs, output, layer=layer: scored.update({layer: output[0].softmax(-1)})
            )
    for ids in IDS:
        reference = Reference(config, tensors)
        wanted = reference.logits(ids)
        found = network(input_ids=ids[None]).logits[0]
        assert wanted.std() > 0.3
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
        assert scored.keys() == reference.scores.keys()
        for layer, scores in reference.scores.items():
            torch.testing.assert_close(scored[layer].double(), scores, rtol=1e-4, atol=1e-6)
    if "norm_topk_prob" in changes:
        plain = Reference({**config, "norm_topk_prob": False}, tensors).logits(IDS[0])
        assert (plain - Reference(config, tensors).logits(IDS[0])).abs().max() > 0.1


@torch.no_grad()
def test_padding_and_cached_keys_change_nothing(tmp_path: Path) -> None:
    config, tensors = make_checkpoint(tmp_path)
    network = loaded(tmp_path)
    wanted = Reference(config, tensors).logits(IDS[0])
    mask = torch.ones_like(IDS)
    mask[0, :6] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    left = torch.cat([torch.zeros(6, dtype=torch.long), IDS[0][:11]])
    padded = network(input_ids=torch.stack([left, IDS[1]]), attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(padded.logits[0, 6:].double(), wanted[:11], rtol=1e-4, atol=1e-4)
    first = network(input_ids=IDS[:1, :9], use_cache=True)
    rest = network(input_ids=IDS[:1, 9:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits[0].double(), wanted[9:], rtol=1e-4, atol=1e-4)


def test_the_published_layout_is_read_and_written(tmp_path: Path) -> None:
    _, tensors = make_checkpoint(tmp_path / "published")
    network = loaded(tmp_path / "published")
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(
        prod(tensor.shape) for tensor in tensors.values()
    )
    network.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("deepseek", ["DeepseekForCausalLM"])
    found, wanted = loaded(tmp_path / "again").state_dict(), network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_suffix_is_read_from_the_published_layout(first: int, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, first_k_dense_replace=2)
    whole = loaded(tmp_path).state_dict()
    model = ModelConfig(path=str(tmp_path), dtype="float32")
    network = load_span(model, Span.suffix(first, 4), None, CPU)
    assert detect(network, range(first, 4)).layers == tuple(range(max(2, first), 4))
    found = network.state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, whole[name]), name
    assert any("experts.gate_up_proj" in name for name in found)


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    _, tensors = make_checkpoint(tmp_path)
    del tensors["model.layers.2.mlp.experts.5.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"gate_up_proj|experts"):
        load_span(ModelConfig(path=str(tmp_path), dtype="float32"), Span.suffix(1, 4), None, CPU)


def test_code_in_the_checkpoint_is_never_run(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    for name in ("configuration_deepseek", "modeling_deepseek"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this code ran')\n")
    config = load_config(ModelConfig(path=str(tmp_path), trust_remote_code=True))
    assert type(config) is DeepseekConfig
    assert config.aux_loss_alpha == 0.001  # kept, for a checkpoint that is written again
    assert type(loaded(tmp_path)).__module__ == "roma_ds.families.deepseek_moe.modelling"


def test_random_weights_are_as_the_config_says() -> None:
    register_own_models()
    small = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek", **small, pad_token_id=0))
    block = network.model.layers[1].mlp
    for weight in (block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring_func": "sigmoid"}, "scores by softmax"),
        ({"num_experts_per_tok": 65}, "64 routed experts"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        # As the first DeepSeek-V2 checkpoints had it.
        ({"kv_lora_rank": 512, "q_lora_rank": 1536}, "latent attention"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
    ],
)
def test_configs_that_it_cannot_run_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek", **change}))
    with pytest.raises(UserError, match=message):
        load_config(ModelConfig(path=str(tmp_path)))


def test_the_defaults_are_the_published_16b_model() -> None:
    # arXiv 2401.06066, section 5.1.2: 28 layers, hidden size 2048, 16 heads of 128, all layers but the first
    # sparse, 2 shared and 64 routed experts of which 6 are taken, 16.4B parameters, 2.8B of them active.
    config = DeepseekConfig()
    assert [config.is_sparse(layer) for layer in range(28)] == [False] + [True] * 27
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (28, 2048, 128)
    assert (config.n_routed_experts, config.num_experts_per_tok, config.n_shared_experts) == (64, 6, 2)
    assert not config.norm_topk_prob
    total = sum(prod(shape) for _, shape in shapes({**PUBLISHED, **config.to_dict()}))
    assert total == 16_375_728_128
    idle = 27 * (64 - 6) * 3 * 2048 * 1408
    assert (round(total / 1e9, 1), round((total - idle) / 1e9, 1)) == (16.4, 2.8)
