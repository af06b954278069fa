"""The memory of one rank of a run, as `roma-ds check` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from roma_ds.pipeline.memory_estimate import setting_of
from roma_ds.planner.frozen_pass import GIB
from roma_ds.planner.memory import RankBytes, Setting, frozen_pass_bytes, stream_bytes, training_bytes
from roma_ds.planner.model_sizes import sizes_of
from roma_ds.planner.size_text import gibibytes

if TYPE_CHECKING:
    from roma_ds.cli.subject import Subject


def memory_lines(subject: Subject) -> Iterator[str]:
    """Training with and without prefix cache, and the frozen pass by each engine; estimates."""
    import torch

    from roma_ds.frozen_pass.frozen_model import is_zero3
    from roma_ds.frozen_pass.kept_codes import kept_bytes

    run = subject.run
    longest = max(prompt_tokens(prompt) for prompt in subject.prompts)
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"

    def setting(samples: int) -> Setting:
        return setting_of(run, subject.ds, subject.world_size, samples * longest, device)

    zero3 = subject.ds if is_zero3(subject.ds) else None
    kept = kept_bytes(run.model, zero3, torch.device(device))
    sizes = sizes_of(subject.network, subject.layout, kept)
    if kept:
        yield f"experts are held in codes: {gibibytes(sum(kept.values()))} of the whole model (model.frozen)"
    marked, first = sizes.training(subject.layers), min(subject.layers)
    yield f"estimates of one rank on {device}, for prompts of {longest} tokens"
    training = setting(run.train.split(subject.world_size).micro_batch)
    scoring = setting(run.eval.batch_size)
    if first and run.train.prefix_cache != "off":
        yield _line("training with the prefix cache", training_bytes(marked.suffix(first), training))
    if not first or run.train.prefix_cache != "on":
        yield _line("training without prefix cache", training_bytes(marked, training))
    if run.collect.engine != "stream":
        yield _line("frozen pass, engine zero3", frozen_pass_bytes(sizes, scoring))
    if run.collect.engine != "zero3":
        states = (
            subject.trained[1]
            * longest
            * max(sizes.entering_bytes(layer, scoring.itemsize) for layer in range(sizes.layers))
        )
        held = min(int(run.collect.activation_memory * GIB), states)
        yield _line("frozen pass, engine stream, at most", stream_bytes(sizes, scoring, held))


def prompt_tokens(prompt: Any) -> int:
    """Tokens that the network reads of a sample with its longest option."""
    return (
        len(prompt.prompt) + max((len(option) for option in (*prompt.options, prompt.target)), default=1) - 1
    )


def _line(title: str, memory: RankBytes) -> str:
    parts = {
        "weights": memory.weights,
        "gathered": memory.gathered,
        "routers": memory.routers,
        "activations": memory.activations,
    }
    shown = ", ".join(f"{name} {gibibytes(size)}" for name, size in parts.items() if size)
    return f"  {title}: {gibibytes(memory.peak)} ({shown})"
