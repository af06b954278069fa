"""The bridge to lm-evaluation-harness: a base checkpoint with tuned routers as one of its models.

    python -m roma_ds.evaluation.harness run --model roma_ds \
        --model_args pretrained=BASE,router=runs/olmoe/train/router.safetensors --tasks arc_easy

takes all arguments of `lm_eval`, which itself looks for models in its own package alone: its registry has no
entry point. In a program of one's own, importing this registers the model. Needs the extra `eval`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config.chat import ChatConfig
from roma_ds.data.chat.source import chosen_templates
from roma_ds.families import detect
from roma_ds.families.composite import text_network, text_part
from roma_ds.families.library_network import library_class
from roma_ds.families.own_models import register_own_models
from roma_ds.network.router_weights import RouterWeights
from roma_ds.storage import fingerprint


@register_model("roma_ds")
class RoutedHarnessModel(HFLM):
    """The harness's own model of transformers checkpoints, with tuned routers put in place.

    router: a router file of `pretrained`; without one it is the base model. template: the chat template for
    `--apply_chat_template`, as `data.chat.template` names it. Everything else is as for the harness's `hf`:
    dtype, batch_size, max_length, chat_template_args, ...
    """

    def __init__(
        self, pretrained: str, router: str | None = None, template: str | None = None, **options: Any
    ) -> None:
        """Raises UserError where the router file cannot be read or does not fit, and for no such template."""
        register_own_models()
        weights = {} if router is None else read_router_file(Path(router)).by_layer()
        super().__init__(pretrained, **options)
        if template is not None:
            chosen = chosen_templates(self.tokenizer, ChatConfig(template=template))
            self.tokenizer.chat_template = chosen["default"]
        self.router = router
        if weights:
            part = text_network(text_part(self._config))
            sites = detect(self.model if part is None else part.text).sites
            names = {site.layer: f"{site.product}.weight" for site in sites}
            if part is not None:
                names = {layer: part.outer(name) for layer, name in names.items()}
            routers = {layer: self.model.get_parameter(name) for layer, name in names.items()}
            RouterWeights(World(Ranks(), self.device), routers, sites, partitioned=False).use(weights)

    def _create_model(self, pretrained: str, **options: Any) -> None:
        """As the harness's own, by the class of the checkpoint: its table of them lacks some."""
        if self.backend == "causal" and not options.get("trust_remote_code"):
            self.AUTO_MODEL_CLASS = library_class(text_part(self._config))
        super()._create_model(pretrained, **options)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results; also which router file was used."""
        info: dict[str, Any] = super().get_model_info()
        if self.router is not None:
            info |= {"router": self.router, "router_sha256": fingerprint.of_file(Path(self.router))}
        return info
