"""The bridge to lm-evaluation-harness: a base checkpoint with tuned routers as one of its models.

    python -m roma_ds.evaluation.harness run --model roma_ds \
        --model_args pretrained=BASE,router=runs/olmoe/train/router.safetensors --tasks arc_easy

takes all arguments of `lm_eval`, which itself looks for models in its own package alone: its registry has no
entry point. In a program of one's own, importing this registers the model. Needs the extra `eval`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text

from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config.chat import ChatConfig
from roma_ds.data.chat.source import chosen_templates
from roma_ds.errors import UserError
from roma_ds.evaluation.harness.packed_scoring import PackedScoring
from roma_ds.evaluation.harness.packed_writing import Ending, PackedWriting
from roma_ds.families import detect
from roma_ds.families.composite import text_network, text_part
from roma_ds.families.library_network import library_class
from roma_ds.families.own_models import register_own_models
from roma_ds.network.router_weights import RouterWeights
from roma_ds.progress import Progress
from roma_ds.storage import fingerprint
from roma_ds.storage.published_router import local_router

ENGINES = ("packed", "hf")
AUTO = 32
"""Sequences of the longest length whose tokens make a batch under `--batch_size auto`."""
CPU_AUTO = 8
"""The harness's own batch size under `--batch_size auto` on a CPU."""
eval_logger = logging.getLogger(__name__)


@register_model("roma_ds")
class RoutedHarnessModel(HFLM):
    """The harness's own model of transformers checkpoints, with tuned routers put in place.

    router: a router file of `pretrained`, or hub:OWNER/NAME of a published one; without one it is the base
    model. template: the chat template for `--apply_chat_template`, as `data.chat.template` names it. engine:
    `packed` (default) answers requests for log-likelihoods and greedy texts by packed trees, where the
    model's family allows it; `hf` as the harness itself does. Everything else is as for the harness's `hf`:
    dtype, batch_size, max_length, chat_template_args, ...
    """

    def __init__(
        self,
        pretrained: str,
        router: str | None = None,
        template: str | None = None,
        engine: str = "packed",
        **options: Any,
    ) -> None:
        """Raises UserError for another engine or template, and for a router file that does not fit."""
        if engine not in ENGINES:
            raise UserError(f"engine={engine} is unknown", f"set engine to {' or '.join(ENGINES)}")
        register_own_models()
        file = None if router is None else local_router(router)
        weights = {} if file is None else read_router_file(file).by_layer()
        super().__init__(pretrained, **options)
        if template is not None:
            chosen = chosen_templates(self.tokenizer, ChatConfig(template=template))
            self.tokenizer.chat_template = chosen["default"]
        self.router, self._router_file = router, file
        if weights:
            part = text_network(text_part(self._config))
            sites = detect(self.model if part is None else part.text).sites
            names = {site.layer: f"{site.product}.weight" for site in sites}
            if part is not None:
                names = {layer: part.outer(name) for layer, name in names.items()}
            routers = {layer: self.model.get_parameter(name) for layer, name in names.items()}
            RouterWeights(World(Ranks(), self.device), routers, sites, partitioned=False).use(weights)

        self._packed = self._packed_scoring() if engine == "packed" else None
        self._writing = None
        if self._packed is not None:
            network, device = self._packed.routed, self._packed.device
            self._writing = PackedWriting(network, device, self.tokenizer, self.world_size)
            if self._writing.unusual:
                settings = ", ".join(self._writing.unusual)
                eval_logger.info(f"texts as the harness itself has them: the model sets {settings}")
                self._writing = None

    def _packed_scoring(self) -> PackedScoring | None:
        """Where the model's network can answer by packed trees; else None, and the log says why."""
        try:
            if (reason := self._left_to_the_harness()) is not None:
                raise UserError(reason, "set engine=hf")
            return PackedScoring(self.model)
        except UserError as error:
            eval_logger.info(f"log-likelihoods and texts as the harness itself has them: {error.message}")
            return None

    def _left_to_the_harness(self) -> str | None:
        if self.backend != "causal":
            return f"the backend is {self.backend}, and causal models alone are packed"
        if self.mixed_precision_dtype is not None:
            return f"mixed_precision_dtype={self.mixed_precision_dtype} runs in two types"
        # `cuda` of the harness is `cuda:0` of the weights: what counts is that they lie in one place.
        devices = {str(weight.device) for weight in self.model.parameters()}
        if len(devices) != 1:
            return f"the weights lie on {', '.join(sorted(devices))}"
        if text_network(text_part(self._config)) is not None:
            return "the language model is a part of a larger one"
        return None

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of each continuation; too long a context loses its beginning."""
        if self._packed is None:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return found
        pairs = []
        for _, context, continuation in requests:
            kept = max(1, self.max_length + 1 - len(continuation))
            pairs.append((context[-kept:], continuation))
        size = override_bs or (AUTO if self.batch_size == "auto" else self.batch_size)
        with Progress(len(pairs), "score", enabled=not disable_tqdm and self.rank == 0) as progress:
            scores = self._packed.loglikelihoods(pairs, size, progress.advance)
        for (texts, *_), score in zip(requests, scores, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A text for each request: up to its first stop sequence, an end token, or its most new tokens.

        Requests for more than the likeliest tokens are left to the harness's own class.
        """
        prompts, groups = self._prompts(requests)
        texts: dict[int, str] = {}
        shown = not disable_tqdm and self.rank == 0 and bool(prompts)
        with Progress(len(prompts), "write", enabled=shown) as progress:
            for ending, numbers in groups.items():
                assert self._writing is not None
                asked = [prompts[number] for number in numbers]
                for number, tokens in zip(
                    numbers, self._writing.write(asked, ending, progress.advance), strict=True
                ):
                    texts[number] = self._text(tokens, ending)
                    self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        left = [number for number in range(len(requests)) if number not in texts]
        if left:
            if self._writing is not None:
                eval_logger.info(f"{len(left)} of {len(requests)} texts as the harness itself has them")
            others = super().generate_until([requests[number] for number in left], disable_tqdm=disable_tqdm)
            texts.update(zip(left, others, strict=True))
        return [texts[number] for number in range(len(requests))]

    def _prompts(self, requests: Sequence[Instance]) -> tuple[dict[int, list[int]], dict[Ending, list[int]]]:
        """Token ids by request that is written here, and these requests by where their texts end."""
        prompts: dict[int, list[int]] = {}
        groups: dict[Ending, list[int]] = {}
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        if self._writing is None:
            return prompts, groups
        for number, request in enumerate(requests):
            context, settings = request.args
            ending = Ending.of(settings, self.max_gen_toks)
            if ending is None or self.max_length <= ending.limit:
                continue
            ids, _ = self.tok_batch_encode(
                [context], left_truncate_len=self.max_length - ending.limit, truncation=self.truncation
            )
            ending = replace(ending, until=tuple(handle_stop_sequences(list(ending.until), eos=eos)))
            if self._writing.fits(ids[0], ending):
                prompts[number] = ids[0].tolist()
                groups.setdefault(ending, []).append(number)
        return prompts, groups

    def _text(self, tokens: list[int], ending: Ending) -> str:
        """What new tokens say outside of their thinking, up to the first stop sequence."""
        end = self.think_end_token
        if isinstance(end, int) and end in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
        text: str = self.tok_decode(tokens)
        if isinstance(end, int):
            text = text.lstrip()
        stated = end if isinstance(end, str) else None
        return str(postprocess_generated_text(text, list(ending.until), think_end_token=stated))

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """As the harness's own, by trying larger batches until memory is too small; not on a CPU.

        There nothing is raised that could be caught: the system ends the process.
        """
        if self.device.type == "cpu":
            return CPU_AUTO
        size: int = super()._detect_batch_size(requests, pos)
        return size

    def _create_model(self, pretrained: str, **options: Any) -> None:
        """As the harness's own, by the class of the checkpoint: its table of them lacks some."""
        if self.backend == "causal" and not options.get("trust_remote_code"):
            self.AUTO_MODEL_CLASS = library_class(text_part(self._config))
        super()._create_model(pretrained, **options)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results; also which router file was used."""
        info: dict[str, Any] = super().get_model_info()
        if self._router_file is not None:
            info |= {"router": self.router, "router_sha256": fingerprint.of_file(self._router_file)}
        return info
