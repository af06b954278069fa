"""What stock transformers gives for each prompt alone, to hold our own results against.

Shapes: T tokens, V vocabulary, M MoE layers, E entries of r.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.families import MoELayout, RouterSite
from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.sequences.encoding import Prompt


class StockAlone:
    """A checkpoint as transformers itself loads it."""

    def __init__(self, folder: Path, dtype: torch.dtype | None = torch.float32) -> None:
        """dtype: None for the config's own. Raises RuntimeError where tensors are missing or left over."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        # Some types have a class of their own and no entry under which AutoModelForCausalLM finds it.
        self.network, report = causal_lm_class(type(config)).from_pretrained(
            folder, dtype=dtype or "auto", output_loading_info=True
        )
        self.network.eval().requires_grad_(False)
        faults = {name: sorted(map(str, found)) for name, found in report.items() if found}
        if faults:
            raise RuntimeError(f"transformers does not read the checkpoint whole: {faults}")

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """float32 [T, V]."""
        with torch.no_grad():
            found: torch.Tensor = self.network(input_ids=torch.tensor([tokens]), use_cache=False).logits
        return found[0].float()

    def loglikelihood(self, prompt: Sequence[int], continuation: Sequence[int]) -> float:
        """Of a continuation behind a prompt, in nats."""
        logits = self.logits([*prompt, *continuation[:-1]])[len(prompt) - 1 :]
        chosen = torch.tensor(continuation)[:, None]
        return float(torch.log_softmax(logits, dim=-1).gather(1, chosen).sum())

    def options(self, prompt: Prompt) -> list[float]:
        """Log-likelihoods of a prompt's options."""
        if prompt.single_token_options:
            logprobs = torch.log_softmax(self.logits(prompt.prompt)[-1], dim=-1)
            return [float(logprobs[option[0]]) for option in prompt.options]
        return [
            self.loglikelihood(prompt.before(number), option) for number, option in enumerate(prompt.options)
        ]

    def routing(self, tokens: Sequence[int], layout: MoELayout) -> NDArray[np.float64]:
        """r [M, E] at the last token, by hand: the score of what the router's weight makes of its input."""
        seen: dict[int, torch.Tensor] = {}
        hooks = [
            self.network.get_submodule(site.source).register_forward_pre_hook(self._keeper(seen, site.layer))
            for site in layout.sites
        ]
        self.logits(tokens)
        for hook in hooks:
            hook.remove()
        return np.stack([self._r(seen[site.layer], site, layout) for site in layout.sites])

    @staticmethod
    def _keeper(seen: dict[int, torch.Tensor], layer: int) -> Any:
        def keep(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[layer] = inputs[0].reshape(-1, inputs[0].shape[-1])[-1]

        return keep

    def _r(self, hidden: torch.Tensor, site: RouterSite, layout: MoELayout) -> NDArray[np.float64]:
        owner = self.network.get_submodule(site.product)
        product = owner.weight.double() @ hidden.double()
        bias = getattr(owner, "bias", None)
        if isinstance(bias, torch.Tensor):
            product = product + bias.double()
        logits = product[: site.experts]
        if layout.family.scoring == "softmax":
            scores = (logits - logits.max()).exp()
        elif layout.family.scoring == "sigmoid":
            scores = 1 / (1 + (-logits).exp())
        else:
            scores = (1 + logits.exp()).log().sqrt()
        found: NDArray[np.float64] = (scores / scores.sum()).numpy()
        return found
