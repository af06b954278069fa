"""Is the rival sound? Its first loss and gradient against an independent computation, and its learning.

    python benchmarks/rival_check.py --config RUN.yaml --out FOLDER

The independent side uses plain transformers: one prompt at a time, no padding, the model's own full logits,
equation 7 as it is written, autograd. Costs a forward pass over all training samples; use a small shape.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from launched import launch
from safetensors.torch import load_file

from roma_ds.checkpoint.loading import checkpoint, load_tokenizer
from roma_ds.config import load_run_config
from roma_ds.data.store import load_samples
from roma_ds.families import detect
from roma_ds.index.neighbourhood import prompt_groups
from roma_ds.index.shard import Shard
from roma_ds.manifold.kernel import similarity
from roma_ds.manifold.loss import manifold_by_pairs
from roma_ds.manifold.weights import row_weights
from roma_ds.sequences.encoding import encode


class Plain:
    """The model without DeepSpeed, padding or gathering."""

    def __init__(self, run: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.network = AutoModelForCausalLM.from_pretrained(
            checkpoint(run.model), dtype=torch.float32, experts_implementation="eager"
        ).eval()
        self.network.requires_grad_(False)
        layout = detect(self.network)
        self.layers = layout.choose(run.roma.layers)
        names = [site.module for site in layout.sites if site.layer in self.layers]
        self.routers = [self.network.get_submodule(name) for name in names]

    def run(self, prompt: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [V] after the prompt, and routing [M, E] as softmax(W h) of the router's own input."""
        inputs: list[torch.Tensor] = []
        hooks = [
            router.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
            for router in self.routers
        ]
        logits = self.network(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        rows = [hidden.reshape(-1, hidden.shape[-1])[-1] for hidden in inputs]
        weights = [
            torch.softmax(router.weight @ row, -1) for router, row in zip(self.routers, rows, strict=True)
        ]
        return logits, torch.stack(weights)


def expected(run: Any, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Losses of the first step by rank, and the gradient's norm, computed plainly."""
    folder = Path(run.output_dir)
    samples = load_samples(folder / "data" / "samples.parquet")
    prompts = encode(samples, load_tokenizer(run.model), run.data.max_tokens)
    plain = Plain(run)
    with torch.no_grad():
        pretrained = [plain.run(prompt.prompt) for prompt in prompts]
    options = [[option[0] for option in prompt.options] for prompt in prompts]
    right = np.array(
        [int(pretrained[p.row][0][options[p.row]].argmax()) == p.answer for p in prompts], np.bool_
    )
    embeddings = np.load(folder / "embed" / "embeddings.npy")
    groups = prompt_groups([sample.prompt for sample in samples])
    found = Shard.of_successful(embeddings, right, groups, "torch").nearest(
        embeddings, groups, run.roma.neighbours
    )
    weights = row_weights(similarity(found.inner_products, run.roma.sigma), found.present)
    for router in plain.routers:
        router.weight.requires_grad_(True)
    losses, whole = [], torch.zeros(())
    for record in records:
        rows, _, weight = record["losses"][0]
        total = torch.zeros(())
        for row in rows:
            logits, routing = plain.run(prompts[row].prompt)
            task = torch.nn.functional.cross_entropy(logits[None], torch.tensor(prompts[row].target))
            near = torch.stack([pretrained[max(0, other)][1] for other in found.ids[row]])
            term = manifold_by_pairs(
                routing[None], near[None], torch.from_numpy(weights[row])[None], run.roma.layer_reduction
            )
            total = total + task + weight * term[0]
        losses.append(float(total.detach()) / len(rows))
        whole = whole + total / len(rows) / len(records)
    whole.backward()
    gradients = {
        str(layer): router.weight.grad for layer, router in zip(plain.layers, plain.routers, strict=True)
    }
    norm = torch.linalg.vector_norm(torch.cat([value.flatten() for value in gradients.values()]))
    return {
        "successful": int(right.sum()),
        "losses": losses,
        "gradient_norm": float(norm),
        "gradients": gradients,
    }


def check(config: Path, out: Path, ranks: int, overrides: list[str]) -> dict[str, Any]:
    """Run the rival for its epochs and compare."""
    run = load_run_config(config, overrides)
    records = launch(
        "rival_trainer.py", ranks, ["--config", str(config), "--keep-gradients", *overrides], out / "rival"
    )
    wanted = expected(run, records)
    first = [record["losses"][0][1] for record in records]
    gradients = [load_file(path) for path in sorted((out / "rival").glob("gradients-*.safetensors"))]
    steps = records[0]["steps_per_epoch"]
    values = np.array([[loss for _, loss, _ in record["losses"]] for record in records]).mean(axis=0)
    result: dict[str, Any] = {
        "successful": [records[0]["successful"], wanted["successful"]],
        "first_losses": first,
        "first_losses_expected": wanted["losses"],
        "largest_difference": max(abs(a - b) for a, b in zip(first, wanted["losses"], strict=True)),
        "gradient_norm_expected": wanted["gradient_norm"],
        "gradient_norm": records[0]["grad_norms"][0],
        "loss_of_first_epoch": float(values[:steps].mean()),
        "loss_of_last_epoch": float(values[-steps:].mean()),
    }
    if gradients:
        mean = {key: sum(part[key] for part in gradients) / len(gradients) for key in gradients[0]}
        result["gradient_norm"] = float(torch.cat([value.flatten() for value in mean.values()]).norm())
        result["gradient_relative_difference"] = max(
            float((mean[key] - wanted["gradients"][key]).norm() / wanted["gradients"][key].norm())
            for key in mean
        )
    result["sound"] = (
        result["largest_difference"] < 1e-3
        and abs(result["gradient_norm"] / wanted["gradient_norm"] - 1) < 1e-2
        and result["loss_of_last_epoch"] < result["loss_of_first_epoch"]
    )
    (out / "rival_check.json").write_text(json.dumps(result, indent=2))
    return result


def main() -> None:
    """Check and say so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="its data and embed stages are done")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    arguments = parser.parse_intermixed_args()
    result = check(arguments.config, arguments.out, arguments.ranks, arguments.overrides)
    print(json.dumps(result, indent=2))
    raise SystemExit(0 if result["sound"] else 1)


if __name__ == "__main__":
    main()
