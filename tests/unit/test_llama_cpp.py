"""What is said of llama.cpp names families and architectures that there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import pytest

from roma_ds.families.llama_cpp import ROUTING, routing_line
from roma_ds.families.registry import FAMILIES

DOCS = Path(__file__).resolve().parents[2] / "docs"
NEWER = {"deepseek32"}
"""Architectures of llama.cpp that the released package has no name for yet."""


@pytest.mark.parametrize("name", ROUTING)
def test_an_architecture_is_one_of_llama_cpp_with_routers(name: str) -> None:
    assert set(ROUTING[name].families) <= {family.name for family in FAMILIES}
    kinds = {title: kind for kind, title in gguf.MODEL_ARCH_NAMES.items()}
    assert name in NEWER or gguf.MODEL_TENSOR.FFN_GATE_INP in gguf.MODEL_TENSORS[kinds[name]]


@pytest.mark.parametrize("name", sorted(set(ROUTING) - NEWER))
def test_our_gates_are_mapped_to_its_names(name: str) -> None:
    """The converter's own map of names takes each family's router to the tensor that is replaced."""
    kinds = {title: kind for kind, title in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[name], 4)
    for family in FAMILIES:
        if family.name in ROUTING[name].families:
            key = family.gate_key.format(layer=2)
            assert names.get_name(key, (".weight",)) == "blk.2.ffn_gate_inp.weight", key


def test_each_says_where_the_rule_is() -> None:
    assert routing_line("olmoe").endswith("in its own code (`norm_topk_prob` of the config is not read)")
    assert "expert_weights_norm" in routing_line("glm4moe")
    assert "has not been looked up here" in routing_line("no-such-architecture")


def test_the_table_of_the_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("serving_tables", DOCS / "serving_tables.py")
    assert spec is not None and spec.loader is not None
    printer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(printer)
    assert "\n".join(printer.rows()) in (DOCS / "serving.md").read_text()
