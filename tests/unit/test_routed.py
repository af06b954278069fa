from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import model_config, stock_network
from transformers import AutoModelForCausalLM

from roma_ds.families import detect
from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.sequences.batches import TOKEN_CHOICES, Batch, collate, routing_positions
from roma_ds.sequences.encoding import Encoded

CPU = torch.device("cpu")
SEQUENCES = [
    Encoded(0, (5, 6, 7, 8, 9, 10, 11), (12,)),
    Encoded(1, (20, 21), (22, 23, 24)),
    Encoded(2, (30,), (31,)),
    Encoded(3, (40, 41, 42, 43), (44, 45)),
]


def routed_model(folder: Path) -> RoutedLM:
    network = stock_network(model_config(folder))
    layout = detect(network)
    return RoutedLM(network, layout, layout.layers).attach()


@pytest.fixture
def routed(tiny_model: Path) -> RoutedLM:
    return routed_model(tiny_model)


@pytest.fixture
def stock(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def run(routed: RoutedLM, batch: Batch) -> RoutedOutput:
    with torch.no_grad():
        output: RoutedOutput = routed(**batch.inputs(CPU))
    return output


def by_hand(stock: Any, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(h W^T) [layers, tokens, experts] and the top-k experts, from what the routers were given."""
    inputs: list[torch.Tensor] = []
    gates = [layer.mlp.gate for layer in stock.model.layers]
    hooks = [gate.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for gate in gates]
    with torch.no_grad():
        stock(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    weights = []
    for gate, hidden in zip(gates, inputs, strict=True):
        scores = hidden.reshape(len(ids), -1).float() @ gate.weight.detach().float().T
        scores = scores - scores.max(dim=-1, keepdim=True).values
        weights.append(scores.exp() / scores.exp().sum(dim=-1, keepdim=True))
    found = torch.stack(weights)
    return found, found.topk(gates[0].top_k, dim=-1).indices


def read(sequence: Encoded) -> list[int]:
    return [*sequence.prompt, *sequence.continuation[:-1]]


@pytest.mark.parametrize("tokens", TOKEN_CHOICES)
def test_live_routing_is_the_softmax_of_the_routers_product(
    routed: RoutedLM, stock: Any, tokens: str
) -> None:
    for sequence in SEQUENCES:
        output = run(routed, collate([sequence], tokens))
        weights, _ = by_hand(stock, read(sequence))
        wanted = weights[:, routing_positions(len(sequence.prompt), tokens)].mean(dim=1)
        assert output.routing.dtype == torch.float32
        torch.testing.assert_close(output.routing[0], wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(output.routing.sum(dim=-1), torch.ones(1, len(wanted)))


def test_routing_at_the_user_s_token_is_that_of_a_prompt_that_ends_there(routed: RoutedLM) -> None:
    ends = [2, 0, 0, 3]
    whole = [replace(sequence, user=end) for sequence, end in zip(SEQUENCES, ends, strict=True)]
    short = [Encoded(one.row, one.prompt[: one.user + 1], (7,)) for one in whole]
    found, wanted = run(routed, collate(whole, "user1")), run(routed, collate(short, "last1"))
    torch.testing.assert_close(found.routing, wanted.routing, rtol=0, atol=1e-5)
    last = run(routed, collate(whole, "last1"))
    assert (found.routing - last.routing).abs().amax(dim=(1, 2)).tolist()[0] > 1e-2
    torch.testing.assert_close(found.logits, last.logits, rtol=0, atol=1e-5)


def test_a_second_softmax_would_be_seen(routed: RoutedLM, stock: Any) -> None:
    """The check above has teeth: these routers are far from uniform."""
    weights, _ = by_hand(stock, read(SEQUENCES[0]))
    twice = torch.softmax(weights, dim=-1)
    assert float((weights - twice).abs().max()) > 0.1


@pytest.mark.parametrize("tokens", ["last1", "middle3"])
def test_padded_and_batched_is_as_alone(routed: RoutedLM, tokens: str) -> None:
    together = run(routed, collate(SEQUENCES, tokens))
    batch = collate(SEQUENCES, tokens)
    for index, sequence in enumerate(SEQUENCES):
        alone = run(routed, collate([sequence], tokens))
        torch.testing.assert_close(together.routing[index], alone.routing[0], rtol=0, atol=1e-5)
        places = batch.answer_sequence == index
        torch.testing.assert_close(together.logits[places], alone.logits, rtol=0, atol=1e-5)


def test_what_else_is_in_the_batch_changes_nothing(routed: RoutedLM) -> None:
    """No token sees one of another sequence, whatever it is and in whatever order they lie."""
    others = [Encoded(9, (90, 91, 92), (93,)), SEQUENCES[1], Encoded(8, tuple(range(60, 80)), (81, 82))]
    for batch in (others, others[::-1]):
        alone, together = run(routed, collate([SEQUENCES[1]], "last3")), run(routed, collate(batch, "last3"))
        torch.testing.assert_close(together.routing[1], alone.routing[0], rtol=0, atol=1e-6)
        places = collate(batch, "last3").answer_sequence == 1
        torch.testing.assert_close(together.logits[places], alone.logits, rtol=0, atol=1e-5)


def test_logits_are_those_of_the_stock_model(routed: RoutedLM, stock: Any) -> None:
    batch = collate(SEQUENCES, "last1")
    output = run(routed, batch)
    assert output.logits.shape[0] == sum(len(sequence.continuation) for sequence in SEQUENCES)
    for index, sequence in enumerate(SEQUENCES):
        with torch.no_grad():
            logits = stock(input_ids=torch.tensor([read(sequence)])).logits[0]
        first = len(sequence.prompt) - 1
        wanted = logits[first : first + len(sequence.continuation)]
        torch.testing.assert_close(output.logits[batch.answer_sequence == index], wanted, rtol=0, atol=1e-5)


def test_load_counts_the_choices_of_tokens_in_the_last_layer_of_those_read(
    routed: RoutedLM, stock: Any
) -> None:
    output = run(routed, collate(SEQUENCES, "last1"))
    experts = output.load.shape[-1]
    counts = torch.zeros_like(output.load)
    for sequence in SEQUENCES:
        _, chosen = by_hand(stock, read(sequence))
        for layer, choices in enumerate(chosen):
            if layer == len(chosen) - 1:
                choices = choices[len(sequence.prompt) - 1 :]
            counts[layer] += torch.bincount(choices.reshape(-1), minlength=experts)
    total, last = sum(s.length for s in SEQUENCES), sum(len(s.continuation) for s in SEQUENCES)
    assert counts.sum(dim=-1).tolist() == [2.0 * total] * (len(counts) - 1) + [2.0 * last]
    torch.testing.assert_close(output.load, counts / counts.sum(dim=-1, keepdim=True))
    torch.testing.assert_close(output.load.sum(dim=-1), torch.ones(len(counts)))


def test_only_the_chosen_layers_are_read(tiny_model: Path) -> None:
    whole = run(routed_model(tiny_model), collate(SEQUENCES, "last1"))
    network = stock_network(model_config(tiny_model))
    chosen = RoutedLM(network, detect(network), (1, 3)).attach()
    part = run(chosen, collate(SEQUENCES, "last1"))
    torch.testing.assert_close(part.routing, whole.routing[:, [1, 3]], rtol=0, atol=0)
    assert list(chosen.routers()) == [1, 3]
    assert chosen.routers()[3] is network.model.layers[3].mlp.gate.weight


def test_in_the_last_layer_only_tokens_that_are_read_do_work(routed: RoutedLM) -> None:
    """Queries, attention output and experts see the last prompt token and the answer's; keys see all."""
    seen: dict[str, int] = {}
    last = routed.network.model.layers[-1]
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate"):
        last.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].numel() // inputs[0].shape[-1]})
        )
    run(routed, collate(SEQUENCES, "last1"))
    total, last_rows = sum(s.length for s in SEQUENCES), sum(len(s.continuation) for s in SEQUENCES)
    assert seen.pop("self_attn.k_proj") == total
    assert seen == {"self_attn.q_proj": last_rows, "self_attn.o_proj": last_rows, "mlp.gate": last_rows}


def test_the_loaded_network_is_frozen_and_routing_carries_a_gradient(routed: RoutedLM) -> None:
    assert not any(parameter.requires_grad for parameter in routed.parameters())
    weight = routed.routers()[2].requires_grad_(True)
    output: RoutedOutput = routed(**collate(SEQUENCES, "last1").inputs(CPU))
    output.routing[:, 2].square().sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


def test_routers_may_run_in_bfloat16(tiny_model: Path) -> None:
    network = stock_network(model_config(tiny_model, "bfloat16"))
    layout = detect(network)
    output = run(RoutedLM(network, layout, layout.layers).attach(), collate(SEQUENCES, "last1"))
    assert output.routing.dtype == output.logits.dtype == torch.float32
    torch.testing.assert_close(output.routing.sum(dim=-1), torch.ones(len(SEQUENCES), 4))
