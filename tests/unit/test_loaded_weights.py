"""What is held against the files after loading and between runs: gates, and tensors of the experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import MODEL_TYPES, depth, layers_of

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.checksums import checksums, sampled_keys
from roma_ds.checkpoint.loaded_weights import check_loaded, refuse_not_finite
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config import ModelConfig
from roma_ds.errors import RomaError, UserError
from roma_ds.families import detect
from roma_ds.testing.tiny_models import save_tiny


def stacked(name: str, values: Any) -> bool:
    """Whether a parameter has weights of all experts of an MLP: of no attention's, and no convolution's."""
    return (
        "attention" not in name
        and "conv" not in name
        and ((values.dim() == 3 and 1 not in values.shape) or ".experts.mlp." in name)
    )


OTHERS = ["inkling2_text", "longcat_flash", "zaya"]
"""Rows of gate and up by turns; choices of a token that are no expert, with unused rows and without."""


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, *OTHERS])
def test_weights_in_the_wrong_place_are_seen(model_type: str, tmp_path: Path) -> None:
    # One type does not run in bfloat16.
    dtype: Any = "float32" if model_type == "inkling2_text" else "bfloat16"
    world, model = World(Ranks(), torch.device("cpu")), ModelConfig(path=str(tmp_path), dtype=dtype)
    save_tiny(tmp_path, model_type, layers=depth(model_type))
    network = load_span(model, Span.suffix(0, depth(model_type)), None, world.device)
    files, layout = CheckpointFiles(model), detect(network)
    check_loaded(network, layout, files, world)
    gates = [network.get_parameter(f"{site.product}.weight") for site in layout.sites]
    layer = layers_of(network)[layout.layers[0]]
    stacks: list[Any] = [values for name, values in layer.named_parameters() if stacked(name, values)]
    wanted = 3 if model_type == "dbrx" else 2
    assert len(stacks) == wanted, "gate and up projections, in one but for one family; down projections"
    stacks = [
        stack if stack.dim() == 3 else stack.view(layout.networks, -1, stack.shape[1]) for stack in stacks
    ]
    for one, other in ((gates[0], gates[1]), *((stack[0], stack[5]) for stack in stacks)):
        kept = one.clone(), other.clone()
        one.data.copy_(kept[1]), other.data.copy_(kept[0])
        with pytest.raises(RomaError, match="is not where it belongs"):
            check_loaded(network, layout, files, world)
        one.data.copy_(kept[0]), other.data.copy_(kept[1])
    check_loaded(network, layout, files, world)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_tensor_of_the_experts_of_each_layer_has_a_digest(model_type: str, tmp_path: Path) -> None:
    layers = depth(model_type)
    model = ModelConfig(path=str(save_tiny(tmp_path, model_type, layers=layers)))
    layout, files = (
        detect(load_span(model, Span.suffix(0, layers), None, torch.device("cpu"))),
        CheckpointFiles(model),
    )
    keys = sampled_keys(files, layout)
    gates = [layout.gate_key(layer) for layer in layout.layers]
    others = [key for key in keys if key not in gates]
    assert [key for key in keys if key in gates] == gates
    assert [int(key.split(".")[2]) for key in others] == list(layout.layers)
    named = (".experts.", ".input_linear.", ".output_linear.")
    assert all(any(part in key for part in named) for key in others)
    assert set(checksums(files, keys)) == set(keys)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    network = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)])}
    ).to(torch.bfloat16)
    refuse_not_finite(network, 0)
    network["layers"][1].weight.data[1, 2] = value  # type: ignore[index]
    with pytest.raises(UserError, match=r"not finite \(NaN or infinity\): layers\.1\.weight\n") as caught:
        refuse_not_finite(network, 0)
    assert "checkpoint" in str(caught.value.fix)


@pytest.mark.parametrize(("rank", "refused"), [(0, True), (1, False), (2, False)])
def test_what_pads_a_share_is_no_value(rank: int, refused: bool) -> None:
    """DeepSpeed 0.19.8 leaves it as the allocator had it. Here: three values in shares of two."""
    share: Any = torch.tensor([1.0, float("nan")])
    share.final_location, share.ds_numel = None, 2
    weight: Any = torch.nn.Parameter(torch.empty(0))
    weight.ds_tensor, weight.ds_shape = share, torch.Size([3])
    network = torch.nn.Module()
    network.register_parameter("weight", weight)
    if refused:
        with pytest.raises(UserError, match="not finite"):
            refuse_not_finite(network, rank)
    else:
        refuse_not_finite(network, rank)
