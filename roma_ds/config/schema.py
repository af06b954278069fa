"""Every key of a run's YAML file, its type, default and meaning.

A field whose name ends in `_` is written without it (`lambda_` is the key `lambda`). Relative paths are
relative to the config file; `load_run_config` makes them absolute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from roma_ds.config.chat import ChatConfig
from roma_ds.config.constraints import (
    Count,
    Distinct,
    Layers,
    NotEmpty,
    NotNegative,
    Positive,
    Range,
    Share,
    Text,
)
from roma_ds.config.frozen_models import CollectConfig, EmbedConfig
from roma_ds.config.optimisation import GuardsConfig, TrainConfig
from roma_ds.config.sources import ColumnsConfig, DatasetConfig, Paths, hub_problems

Scoring = Literal["letter", "cloze", "generate"]
Answers = Literal["roma", "strict-match", "flexible-extract"]
Control = Literal["router_tuning", "random_neighbours"]


@dataclass(frozen=True)
class ModelConfig:
    """The mixture-of-experts language model whose routers are trained."""

    path: Text
    """Folder with config.json and safetensors files, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the default branch."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the frozen weights and of the forward pass; routers keep float32 masters either way."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint."""
    frozen: Literal["auto", "stored", "decoded"] = "auto"
    """What training and the zero3 engine hold of experts that the checkpoint stores in codes. stored: the
    codes, decoded expert by expert at each use; an error where that cannot be done. auto: the codes where
    that can be done and saves memory. Numbers are the same."""
    decoded_cache: NotNegative = 0.0
    """GiB a rank in which experts stay decoded that are held in codes, those used first."""


@dataclass(frozen=True)
class DataConfig:
    """What the routers are trained on."""

    train: Annotated[tuple[DatasetConfig, ...], NotEmpty()]
    """The mixture."""
    exclude: Annotated[tuple[str, ...], Distinct()] = ()
    """Names of datasets that must never be trained on; naming one in data.train is an error."""
    decontaminate: Count | Literal["off"] = 13
    """Words in a row that, in common with an evaluated sample, drop a training sample; off drops none."""
    max_tokens: Count = 1024
    """Longest prompt in tokens, where the model's own context is not shorter still."""
    long_prompts: Literal["cut", "refuse"] = "cut"
    """What becomes of a longer prompt. cut: it loses its middle and is counted. refuse: an error names it."""
    data_root: Text | None = None
    """Folder with NAME/SPLIT.jsonl, or another kind of file, used for named datasets in place of the hub."""
    turns: Literal["last", "all"] = "last"
    """Which assistant turns of a conversation are answers: the last, or each in a sample of its own."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """What a malformed row of any data file does. refuse: it ends the run. skip: it is left out, counted and
    named."""
    template: Literal["plain", "chat", "auto"] = "plain"
    """How prompts are written, also of evaluation. plain: as text. chat: by the tokenizer's chat template.
    auto: by the chat template where there is one."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """How the chat template is used."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        if self.template == "plain" and self.chat != ChatConfig():
            yield "chat", "is of no use under data.template=plain; set data.template to chat or auto"
        seen: dict[tuple[str, str], DatasetConfig] = {}
        for place, dataset in enumerate(self.train):
            if dataset.label in self.exclude:
                yield f"train.{place}", f"{dataset.label!r} is in data.exclude, which forbids training on it"
            earlier = seen.setdefault((dataset.label, dataset.split), dataset)
            if earlier is not dataset:
                yield f"train.{place}", _listed_twice(earlier, dataset)


def _listed_twice(one: DatasetConfig, other: DatasetConfig) -> str:
    if (one.name, one.path) == (other.name, other.path):
        return f"{other.path or other.label!r} split {other.split!r} is listed twice"
    return (
        f"{one.path or one.name!r} and {other.path or other.name!r} are both called {other.label!r} split"
        f" {other.split!r}, by which samples are told apart; give one another split, like {other.split}2"
    )


@dataclass(frozen=True)
class RomaConfig:
    """The method: which routing weights are aligned with which neighbours, and how strongly."""

    layers: Annotated[str | tuple[int, ...], Layers()] = "last5"
    """MoE layers whose routers learn: lastN, firstN, middleN, all, or a list of layer numbers from 0."""
    tokens: Literal["last1", "last3", "first1", "first3", "middle1", "middle3", "user1"] = "last1"
    """Prompt tokens whose routing weights make up r; the weights of three tokens are averaged. user1: the
    last token of what the user says, before the chat template ends the turn."""
    neighbours: Count = 3
    """k of k-NN; not used when epsilon is set."""
    epsilon: Annotated[float, Range(above=0, at_most=1)] | None = None
    """Least similarity of a neighbour (the epsilon-ball); null uses k-NN."""
    sigma: Positive | Literal["median"] = 0.4
    """Width of the similarity kernel; median takes the median embedding distance."""
    lambda_: NotNegative = 1.0
    """Weight of the manifold term; 0 is plain router tuning."""
    lambda_warmup: Share = 0.1
    """Fraction of the steps over which lambda rises linearly from 0."""
    layer_reduction: Literal["sum", "mean"] = "sum"
    """Whether a sample's manifold term is the sum or the mean of its layers' terms."""
    refresh: Count | Literal["never", "epoch"] = "never"
    """When S and its routing weights follow training: never, at the end of every epoch, or every so many
    steps (and at an epoch's end)."""


@dataclass(frozen=True)
class IndexConfig:
    """The nearest-neighbour index over the embeddings of the successful samples."""

    backend: Literal["faiss", "torch"] = "faiss"
    """Library that searches; both give the same neighbours."""
    placement: Literal["replicated", "sharded"] = "replicated"
    """replicated: every rank holds the whole index. sharded: each holds a part, and queries travel."""
    transport: Literal["torch", "mpi"] = "torch"
    """What carries the index between ranks: torch.distributed, or MPI through mpi4py."""
    factory: Text = "Flat"
    """FAISS index type. Flat is exact; for large sets one with lists, like `IVF4096,Flat`, whose recall is
    measured and printed."""
    max_neighbours: Count = 64
    """Most members of an epsilon-ball; the most similar are kept."""
    candidates: Count = 64
    """Nearest samples that are kept for each sample where roma.refresh is on: a step takes its neighbours
    from them, and searches only where too few of them are in S."""
    payload: Literal["float32", "bfloat16"] = "float32"
    """Type in which routing weights are held where roma.refresh is on."""
    check_every: Count = 100
    """Steps between comparisons of the index over the ranks, where roma.refresh is on."""
    on_mismatch: Literal["stop", "repair"] = "stop"
    """What follows when a rank's index is not what it must be: stop, or copy it from a sound rank."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        if self.placement == "sharded" and self.on_mismatch == "repair":
            yield "on_mismatch", "a sharded index has no second copy to repair from; set it to stop"
        if self.backend == "torch" and self.factory != "Flat":
            yield "factory", f"the torch backend is exact and takes Flat only, got {self.factory!r}"


@dataclass(frozen=True)
class TaskConfig:
    """One evaluation task. In YAML a plain name stands for {name: NAME}."""

    shorthand: ClassVar[str] = "name"

    name: Text
    """A known task (`roma-ds ls tasks`), OWNER/NAME on the hub, or with path any name for the report."""
    path: Paths | None = None
    """Files to evaluate on in place of a known task, as in data.train[].path."""
    split: Text | None = None
    """Split of a known task; null is the one that papers report."""
    subset: Text | None = None
    """Configuration of an OWNER/NAME, where it has several."""
    revision: Text | None = None
    """Branch, tag or commit of an OWNER/NAME; null is the default branch."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Our names of columns to yours, as in data.train[].columns."""
    limit: Count | None = None
    """Use this many samples, the same for every seed; null takes eval.limit."""
    scoring: Scoring | None = None
    """How this task is scored; null takes eval.scoring."""
    shots: Annotated[int, Range(at_least=0)] | None = None
    """Solved examples before each of its questions; null takes eval.shots."""
    shots_path: Text | None = None
    """A file that solved examples come from."""
    shots_split: Text | None = None
    """Split of a known task that solved examples come from; null is the task's own choice."""
    plain: bool = field(default=False, metadata={"key": False})
    """Whether its prompts are plain text whatever data.template says; no key, for text of a study."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        yield from hub_problems(self.name, self.path, self.subset, self.revision)


@dataclass(frozen=True)
class EvalConfig:
    """What the base model and every variant are measured on."""

    tasks: tuple[TaskConfig, ...]
    """Tasks, each by name or as {name, path, split, limit, scoring, shots ...}. An empty list evaluates
    nothing."""
    limit: Count | None = None
    """Samples per task where the task sets none; null takes all."""
    shots: Annotated[int, Range(at_least=0)] = 0
    """Solved examples before each question, the same for all questions of a task (of mmlu: of a subject)."""
    seed: Annotated[int, Range(at_least=0, below=2**32)] = 0
    """Chooses the solved examples."""
    scoring: Scoring = "letter"
    """letter: the most likely option letter. cloze: the most likely option text. generate: what the model
    writes, by greedy decoding; the only one for answers without options, such as those of gsm8k."""
    max_new_tokens: Count = 512
    """Longest generated answer."""
    stop: tuple[Text, ...] = ()
    """Texts at which a generated answer ends once it has begun, also in the collection; none takes those of
    the task."""
    answers: Answers = "roma"
    """How generated answers are read: roma, any notation; the others, lm-evaluation-harness' filters."""
    data_root: Text | None = None
    """Folder with TASK/SPLIT.jsonl, or another kind of file, used in place of the hub."""
    batch_size: Count = 16
    """Samples per rank and forward pass, also in the collection, if they are the longest; of shorter ones up
    to as many tokens, and up to four times as many samples."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        names = tuple(task.name for task in self.tasks)
        if twice := Distinct().problem(names):
            yield "tasks", twice


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, as one YAML file describes it."""

    model: ModelConfig
    """The model."""
    data: DataConfig
    """The training data."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """The embedding model."""
    roma: RomaConfig = field(default_factory=RomaConfig)
    """The method."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """The frozen pass, and the answers that are generated for S."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """The neighbour index."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The optimisation."""
    eval: EvalConfig
    """The evaluation."""
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    """What ends a run early, or does not let it begin."""
    controls: Annotated[tuple[Control, ...], Distinct()] = ("router_tuning",)
    """Runs beside RoMA on the same data, steps and layers: router_tuning (lambda 0), random_neighbours."""
    deepspeed: Text = "ds_configs/zero3.json"
    """DeepSpeed JSON; where no such file exists, `ds_configs/NAME.json` or `NAME` is a packaged one."""
    output_dir: Text
    """Folder of everything the run writes."""
    source: Path = field(default=Path("run.yaml"), compare=False, metadata={"key": False})
    """The file that the config was read from; no key of it."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the sections contradict together."""
        if self.roma.tokens == "user1" and self.data.template == "plain":
            yield (
                "roma.tokens",
                "user1 is a place in a chat, which data.template=plain does not make of prompts",
            )
