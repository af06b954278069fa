"""The rival: the same routers trained by transformers.Trainer under the same DeepSpeed JSON.

Started on every rank by the deepspeed launcher; `prefix_engine.py` does so. Written as a good engineer would:
length-grouped batches without needless padding, the head on the gathered hidden states of the answer
positions (`--full-logits` computes all of them, as users often do), neighbours' routing averaged once, no
logging, evaluation or saving on the way. It needs S and the routing of the training samples as we do, and
collects them with its own engine before the first step.

    deepspeed --num_accelerators 2 benchmarks/rival_trainer.py --config RUN.yaml --out FOLDER
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measured import COMMS_LOGGER, Record
from rival_model import AnswerModel, Targets, collate, collect
from torch import nn

from roma_ds.checkpoint.loading import checkpoint, load_tokenizer
from roma_ds.comm import start_world
from roma_ds.config import RunConfig, load_run_config, resolve_deepspeed
from roma_ds.data.store import load_samples
from roma_ds.families import detect
from roma_ds.frozen_pass.frozen_model import MONITORS
from roma_ds.manifold.loss import manifold_term
from roma_ds.manifold.schedule import lambda_at
from roma_ds.network.release import return_freed_memory
from roma_ds.pipeline.worker import calm_libraries
from roma_ds.sequences.encoding import encode

BY_HIDDEN_SIZE = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
)
"""What the Trainer decides where the JSON says `auto`."""


def load(run: RunConfig, experts: str) -> Any:
    """The causal LM; under ZeRO-3 partitioned, as the training arguments made known to transformers."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(
        checkpoint(run.model),
        dtype=getattr(torch, run.model.dtype),
        **({"experts_implementation": experts} if experts else {}),
    )
    network.config.use_cache = False
    if not network_is_partitioned(network):
        # Weights that are still views of the mapped files keep all pages resident that were ever read.
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.clone()
    return_freed_memory()
    return network.requires_grad_(False)


def make_trainer(
    run: RunConfig,
    model: AnswerModel,
    settings: Any,
    items: Sequence[Any],
    collected: Any,
    record: Record,
    losses: list[Any],
) -> Any:
    """The Trainer; `collected`, called once with the engine before the first step, gives the targets."""
    from transformers import Trainer, TrainerCallback

    state: dict[str, Any] = {}

    class RoutersTrainer(Trainer):
        """Adds the manifold term."""

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            logits, routing = model(inputs["input_ids"], inputs["attention_mask"], inputs["last"])
            task = nn.functional.cross_entropy(logits, inputs["answer"], reduction="none")
            pull = state["targets"].of(inputs["row"])
            manifold = manifold_term(routing, *pull, run.roma.layer_reduction)
            total = self.state.max_steps
            weight = lambda_at(self.state.global_step, total, run.roma.lambda_, run.roma.lambda_warmup)
            loss = (task + weight * manifold).mean()
            losses.append((inputs["row"].tolist(), float(loss.detach()), weight))
            return loss

    class Watch(TrainerCallback):
        """Notes times; a barrier a step makes the ranks' clocks mean the same."""

        def on_train_begin(self, args: Any, state_: Any, control: Any, **others: Any) -> None:
            model.listen()
            state["targets"] = collected(trainer.model_wrapped)
            record.note("collected")
            return_freed_memory()
            record.step_done()

        def on_step_end(self, args: Any, state_: Any, control: Any, **others: Any) -> None:
            record.step_done()
            norm = trainer.model_wrapped.get_global_grad_norm()
            record.facts.setdefault("grad_norms", []).append(None if norm is None else float(norm))

    adamw = torch.optim.AdamW(model.routers(), lr=run.train.lr, weight_decay=run.train.weight_decay)
    trainer = RoutersTrainer(
        model=model,
        args=settings,
        data_collator=collate,
        train_dataset=items,
        optimizers=(adamw, None),
        callbacks=[Watch()],
    )
    return trainer


def network_is_partitioned(network: Any) -> bool:
    """Whether ZeRO-3 holds the weights in shards."""
    return hasattr(next(network.parameters()), "ds_id")


def keep_first_gradients(model: AnswerModel, path: Path) -> None:
    """Save this rank's gradients of the first step, before they are averaged over the ranks."""
    from safetensors.torch import save_file

    found: dict[str, torch.Tensor] = {}

    def hook(layer: int) -> Any:
        def keep(gradient: torch.Tensor) -> None:
            if len(found) < len(model.sites):
                found[str(layer)] = gradient.detach().float().clone()
                if len(found) == len(model.sites):
                    save_file(found, path)

        return keep

    for site, weight in zip(model.sites, model.routers(), strict=True):
        weight.register_hook(hook(site.layer))


def deepspeed_json(run: RunConfig, ranks: int, auto: bool) -> dict[str, Any]:
    """The run's DeepSpeed JSON without monitors: with our numbers, or with `auto` left to the Trainer.

    The Trainer's own numbers come from the hidden size and are far smaller: less memory, more gathers.
    """
    resolved = resolve_deepspeed(run, ranks)
    zero = resolved["zero_optimization"]
    for key in BY_HIDDEN_SIZE if auto else ():
        zero[key] = "auto"
    return {key: value for key, value in resolved.items() if key not in MONITORS}


def training_arguments(run: RunConfig, ds: dict[str, Any], out: Path) -> Any:
    """What a user would set: nothing on the way but training."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(out / "trainer"),
        deepspeed=ds,
        use_cpu=os.environ.get("DS_ACCELERATOR") == "cpu",
        bf16=run.model.dtype == "bfloat16",
        num_train_epochs=run.train.epochs,
        per_device_train_batch_size=run.train.micro_batch,
        gradient_accumulation_steps=run.train.gradient_accumulation,
        learning_rate=run.train.lr,
        weight_decay=run.train.weight_decay,
        max_grad_norm=run.train.clip,
        lr_scheduler_type=run.train.lr_schedule,
        warmup_steps=run.train.warmup,
        train_sampling_strategy="group_by_length",
        seed=run.train.seed,
        logging_steps=10**9,
        logging_nan_inf_filter=False,
        report_to=[],
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
    )


def train(options: argparse.Namespace) -> None:
    """Load, collect, train, write what was measured."""
    import deepspeed

    run = load_run_config(options.config, options.overrides)
    calm_libraries()
    world = start_world()
    record = Record(world.rank, count_bytes=options.count_bytes)
    record.begin()
    torch.manual_seed(run.train.seed)
    ds = deepspeed_json(run, world.size, options.auto)
    if options.count_bytes:
        ds["comms_logger"] = COMMS_LOGGER
    folder = Path(run.output_dir)
    samples = load_samples(folder / "data" / "samples.parquet")
    prompts = encode(samples, load_tokenizer(run.model), run.data.max_tokens)
    if any(len(prompt.target) != 1 or not prompt.single_token_options for prompt in prompts):
        raise SystemExit("the rival takes lettered options of one token only")
    items = [
        {"input_ids": list(prompt.prompt), "answer": prompt.target[0], "row": prompt.row}
        for prompt in prompts
    ]
    settings = training_arguments(run, ds, options.out)
    network = load(run, options.experts)
    layers = detect(network).choose(run.roma.layers)
    model = AnswerModel(network, layers, options.full_logits)
    for weight in model.routers():
        weight.requires_grad_(True)
    record.note("loaded")

    def collected(engine: Any) -> Targets:
        record.note("engine")
        found = collect(engine, prompts, items, run.eval.batch_size)
        record.facts["successful"] = int(found[0].sum())
        return Targets(run, folder, [sample.prompt for sample in samples], found)

    losses: list[Any] = []
    if options.keep_gradients and not network_is_partitioned(network):
        keep_first_gradients(model, options.out / f"gradients-{world.rank}.safetensors")
    trainer = make_trainer(run, model, settings, items, collected, record, losses)
    if options.steps:
        settings.max_steps = options.steps
    trainer.train()
    record.note("trained")
    engine = trainer.model_wrapped
    with deepspeed.zero.GatheredParameters(model.routers(), enabled=engine.zero_optimization_stage() == 3):
        if world.is_first:
            from safetensors.torch import save_file

            weights = zip(model.sites, model.routers(), strict=True)
            options.out.mkdir(parents=True, exist_ok=True)
            save_file(
                {str(site.layer): weight.detach().float().cpu().clone() for site, weight in weights},
                options.out / "routers.safetensors",
            )
    record.note("done")
    record.facts.update(
        losses=losses,
        steps_per_epoch=math.ceil(len(items) / (run.train.micro_batch * world.size)),
        threads=torch.get_num_threads(),
        experts=network.config._experts_implementation,
        attention=network.config._attn_implementation,
    )
    record.write(options.out)
    world.close()


def build_parser() -> argparse.ArgumentParser:
    """The options of a rank; the launcher appends --local_rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full-logits", action="store_true", help="logits of every position")
    parser.add_argument("--count-bytes", action="store_true", help="switch DeepSpeed's comms logger on")
    parser.add_argument("--keep-gradients", action="store_true", help="save those of step 1, below ZeRO-3")
    parser.add_argument("--auto", action="store_true", help="let the Trainer decide what says auto")
    parser.add_argument("--experts", default="", help="experts_implementation of transformers")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    return parser


if __name__ == "__main__":
    train(build_parser().parse_intermixed_args())
    # Some of the libraries' threads outlive their owner at the end of a process, which then aborts.
    sys.stdout.flush()
    os._exit(0)
