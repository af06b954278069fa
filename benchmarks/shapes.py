"""Checkpoints of any shape with random weights, questions of random words, and the run config around them.

    python benchmarks/shapes.py runs/shape --layers 48 --hidden 256 --experts 16 --samples 480

Files are written shard by shard, so a checkpoint far larger than memory can be made: at most one decoder
layer, the embedding and the head are held at once.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from roma_ds.families import family_of, published
from roma_ds.testing.tiny_models import save_tokenizer

OVERHEAD_TOKENS = 14
"""Of a prompt, beside its question: four options and `Answer:`."""
ROUTER_SPREAD = 1.5
"""Standard deviation of a router's logits: expert choices differ from token to token."""
PERIODS = {"qwen3_next": 4}
"""After how many layers the kinds of layers come again, by model type; 1 for others."""
_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


@dataclass(frozen=True)
class Shape:
    """What decides the size of a Mixture-of-Experts language model."""

    model_type: str = "qwen3_moe"
    """A transformers config name of a family that roma_ds knows."""
    layers: int = 48
    hidden: int = 256
    experts: int = 16
    top_k: int = 8
    expert_width: int = 128
    """Intermediate size of one expert."""
    heads: int = 4
    key_value_heads: int = 4
    head_width: int = 64
    vocabulary: int = 50304
    dtype: str = "float32"
    max_positions: int = 8192
    published: str = ""
    """A published model that roma_ds knows, whose config then is this one's; as `of_published` makes it."""

    @classmethod
    def of_published(cls, name: str, dtype: str = "bfloat16") -> Shape:
        """That of a published model whose layers are all alike."""
        config = published.config(name)
        return cls(
            model_type=config.model_type,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            expert_width=getattr(config, "moe_intermediate_size", config.intermediate_size),
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            dtype=dtype,
            max_positions=config.max_position_embeddings,
            published=name,
        )

    def config(self, layers: int | None = None) -> Any:
        """The transformers config, of another depth where `layers` is given."""
        from transformers import AutoConfig

        if self.published:
            # The tokens of the tokenizer that is written beside it.
            config = published.config(self.published)
            config.update({"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, "dtype": self.dtype})
            config.num_hidden_layers = self.layers if layers is None else layers
            return config
        return AutoConfig.for_model(
            self.model_type,
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            # Which of the two an expert's width is called depends on the family.
            intermediate_size=self.expert_width,
            moe_intermediate_size=self.expert_width,
            num_hidden_layers=self.layers if layers is None else layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.head_width,
            num_experts=self.experts,
            num_experts_per_tok=self.top_k,
            max_position_embeddings=self.max_positions,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
            dtype=self.dtype,
            **self._hybrid(),
        )

    @property
    def period(self) -> int:
        """After how many layers the kinds of layers come again."""
        return PERIODS.get(self.model_type, 1)

    def _hybrid(self) -> dict[str, int]:
        """What some types need beside: how their experts are counted, or sizes of linear attention.

        That is in three of four layers, in the proportions of Qwen3-Next.
        """
        if self.model_type == "gpt_oss":
            return {"num_local_experts": self.experts}
        if self.model_type != "qwen3_next":
            return {}
        return {
            "linear_num_value_heads": 2 * self.heads,
            "linear_num_key_heads": self.heads,
            "linear_key_head_dim": self.head_width // 2,
            "linear_value_head_dim": self.head_width // 2,
            "shared_expert_intermediate_size": self.expert_width,
            "full_attention_interval": self.period,
        }


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint."""

    key: str
    shape: tuple[int, ...]
    nbytes: int


def template(shape: Shape) -> list[Entry]:
    """The tensors that transformers saves for a model of one decoder layer of each kind, by saving one."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, shape.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config(layers=shape.period), dtype=dtype)
    model.to_empty(device="cpu")
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, framework="pt") as handle:
                for key in handle.keys():  # noqa: SIM118 - not a mapping
                    size = tuple(handle.get_slice(key).get_shape())
                    entries.append(Entry(key, size, math.prod(size) * dtype.itemsize))
    return entries


def entries_of(shape: Shape) -> Iterator[list[Entry]]:
    """All tensors of a checkpoint in groups that belong together: outside the layers, then layer by layer."""
    known = template(shape)
    of_layer: dict[int, list[Entry]] = {}
    outside = []
    for entry in known:
        found = _LAYER.search(entry.key)
        (of_layer.setdefault(int(found[0]), []) if found else outside).append(entry)
    yield outside
    for layer in range(shape.layers):
        like = of_layer[layer % shape.period]
        yield [Entry(_LAYER.sub(str(layer), e.key, count=1), e.shape, e.nbytes) for e in like]


def checkpoint_bytes(shape: Shape) -> int:
    """Bytes of all weights."""
    return sum(entry.nbytes for group in entries_of(shape) for entry in group)


def _values(entry: Entry, shape: Shape, routers: frozenset[str], generator: Any) -> Any:
    import torch

    dtype = getattr(torch, shape.dtype)
    if len(entry.shape) == 1:
        return (torch.zeros if entry.key.endswith("bias") else torch.ones)(entry.shape, dtype=dtype)
    deviation = ROUTER_SPREAD / math.sqrt(shape.hidden) if entry.key in routers else 0.02
    return torch.empty(entry.shape, dtype=dtype).normal_(0.0, deviation, generator=generator)


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0, shard_bytes: int = 2**29) -> Path:
    """Write config, tokenizer and shards of at most `shard_bytes`, or of one layer; returns `folder`."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    config = shape.config()
    architecture = _architecture(config)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    gate = family_of(config).gate_key
    routers = frozenset(gate.format(layer=layer) for layer in range(shape.layers))
    shards: list[list[Entry]] = [[]]
    for group in entries_of(shape):
        filled = sum(entry.nbytes for entry in shards[-1])
        if filled and filled + sum(entry.nbytes for entry in group) > shard_bytes:
            shards.append([])
        shards[-1].extend(group)
    places = {}
    generator = torch.Generator().manual_seed(seed)
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {entry.key: _values(entry, shape, routers, generator) for entry in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        del tensors
    total = sum(entry.nbytes for shard in shards for entry in shard)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def _architecture(config: Any) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config)).__name__


@dataclass(frozen=True)
class Questions:
    """Random questions with four lettered options, whose prompts vary in length."""

    samples: int = 256
    tokens: int = 128
    """Mean length of a prompt."""
    spread: float = 0.5
    """Lengths are uniform over tokens * (1 - spread) to tokens * (1 + spread)."""
    seed: int = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a sample, in the form that `data.train` takes."""
        source = random.Random(self.seed)
        low, high = (round(self.tokens * (1 + sign * self.spread)) for sign in (-1, 1))
        for number in range(self.samples):
            count = max(1, source.randint(low, high) - OVERHEAD_TOKENS)
            yield {
                "id": f"q{number}",
                "question": " ".join(f"w{source.randrange(180)}" for _ in range(count)),
                "choices": [f"w{word}" for word in source.sample(range(180), 4)],
                "answer": source.randrange(4),
            }


def write_questions(path: Path, questions: Questions) -> Path:
    """Write the rows as JSON lines; returns `path`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in questions.rows()))
    return path


def run_text(settings: dict[str, Any]) -> str:
    """The YAML of a run on `model`, `train.jsonl` and `eval.jsonl` beside it.

    Nothing is logged or saved on the way, since both cost time.
    settings: epochs, micro_batch, layers, deepspeed, dtype, max_tokens, output_dir.
    """
    return f"""\
model: {{path: model, dtype: {settings["dtype"]}}}
data: {{train: [{{path: train.jsonl}}], max_tokens: {settings["max_tokens"]}}}
embed: {{model: demo}}
roma: {{layers: {settings["layers"]}}}
train:
  epochs: {settings["epochs"]}
  micro_batch: {settings["micro_batch"]}
  lr: 1.0e-3
  log_every: 1000000
  save_every: 1000000
eval: {{tasks: [{{name: words, path: eval.jsonl}}], batch_size: {settings["micro_batch"]}}}
controls: []
deepspeed: {settings["deepspeed"]}
output_dir: {settings["output_dir"]}
"""


def write_project(
    folder: Path,
    shape: Shape,
    questions: Questions,
    deepspeed: str = "zero0",
    epochs: int = 3,
    micro_batch: int = 8,
    layers: str = "last5",
    shard_bytes: int = 2**29,
) -> Path:
    """Write checkpoint, data and run config into `folder`; returns the config.

    A checkpoint of the same shape that is there is kept. The evaluation file holds a handful of rows, since
    no benchmark measures evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "shape.json"
    wanted = json.dumps(asdict(shape))
    if not written.exists() or written.read_text() != wanted:
        write_checkpoint(folder / "model", shape, shard_bytes=shard_bytes)
        written.write_text(wanted)
    write_questions(folder / "train.jsonl", questions)
    write_questions(folder / "eval.jsonl", Questions(samples=8, tokens=questions.tokens, seed=10**6))
    path = folder / f"{deepspeed}.yaml"
    settings = {
        "epochs": epochs,
        "micro_batch": micro_batch,
        "layers": layers,
        "deepspeed": deepspeed,
        "dtype": shape.dtype,
        "max_tokens": max(8, 4 * questions.tokens),
        "output_dir": f"out-{deepspeed}",
    }
    path.write_text(run_text(settings))
    return path


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """An option a field of a dataclass, with its default."""
    for field in fields(kind):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)


def from_options(arguments: argparse.Namespace, kind: type) -> Any:
    """The dataclass that the options of `add_options` describe."""
    return kind(**{field.name: getattr(arguments, field.name) for field in fields(kind)})


def main() -> None:
    """Write a project."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    add_options(parser, Shape)
    add_options(parser, Questions)
    parser.add_argument("--deepspeed", default="zero0")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=8)
    arguments = parser.parse_args()
    name = arguments.published
    shape = Shape.of_published(name, arguments.dtype) if name else from_options(arguments, Shape)
    questions = from_options(arguments, Questions)
    config = write_project(
        arguments.folder, shape, questions, arguments.deepspeed, arguments.epochs, arguments.micro_batch
    )
    print(config)
    print(f"{checkpoint_bytes(shape) / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
