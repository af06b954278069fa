"""The rules that keep the package readable: who imports whom, one door to collectives, nothing swallowed."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from package_sources import ROOT, Source, package_sources

from roma_ds.families.registry import FAMILIES

BOTTOM = ("errors", "storage", "progress", "config", "families", "comm")
LINE = (
    "data",
    "embed",
    "sequences",
    "checkpoint",
    "network",
    "prefix",
    "frozen_pass",
    "collect",
    "index",
    "manifold",
    "training",
    "writing",
    "evaluation",
    "baselines",
    "export",
    "monitor",
)
TOP = ("pipeline", "study", "worker", "train", "cli")
BESIDE = ("planner", "demo", "testing")
MAX_LINES = 320
MODEL_NAMES = re.compile(
    r"olmoe|flex_?olmo|qwen|mi[xs]tral|deepseek|phi-?(3\.5-)?moe|jamba|jetmoe|dbrx|granite|gpt[-_]?oss|minimax"
    r"|llama|glm|ernie|kimi|lfm2|nemotron|hunyuan|exaone|gemma|dots\.?1|dots\.llm|afmoe|trinity|solar",
    re.IGNORECASE,
)
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
HEAVY = ("torch", "transformers", "deepspeed", "faiss", "datasets", "numpy", "pyarrow", "matplotlib")


def may_import(part: str, other: str) -> bool:
    """Whether the part of the package named first may import the one named second."""
    if part == other or part == "testing":
        return other not in TOP or part == other
    if other == "testing":
        return False
    if other == "demo":
        return part == "cli"
    if part in BOTTOM:
        return other in BOTTOM and BOTTOM.index(other) < BOTTOM.index(part)
    if part == "planner":
        return other in BOTTOM and other != "comm"
    if part == "demo":
        return other in BOTTOM or other in LINE
    if part in LINE:
        earlier = LINE[: LINE.index(part)]
        return other in (*BOTTOM, "planner", *earlier)
    if part in TOP:
        return other not in TOP or TOP.index(other) < TOP.index(part)
    return False


def layers(source: Source) -> Iterator[str]:
    for line, name in source.imported():
        parts = name.split(".")
        if parts[0] != "roma_ds" or len(parts) < 2 or parts[1].startswith("__") or source.part == "__init__":
            continue
        if not may_import(source.part, parts[1]):
            yield f"{line}: {source.part} must not import roma_ds.{parts[1]}"


def known_parts(source: Source) -> Iterator[str]:
    if source.part not in (*BOTTOM, *LINE, *TOP, *BESIDE, "__init__", "__main__"):
        yield f"1: roma_ds/{source.part} has no place in the layers"


@cache
def forbidden_names() -> frozenset[str]:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    distributions = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    modules = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in distributions for owner in owners)
    }
    return frozenset(sys.stdlib_module_names | modules | {"mpi4py", "faiss", "evaluate", "datasets"})


def borrowed_name(source: Source) -> Iterator[str]:
    for part in Path(source.path.removesuffix(".py")).parts:
        if part != "__init__" and part != "__main__" and part in forbidden_names():
            yield f"1: {part} is the name of a standard module or a dependency"


def length(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines >= MAX_LINES:
        yield f"{lines}: longer than {MAX_LINES} lines"


def model_names(source: Source) -> Iterator[str]:
    if source.part in ("families", "demo", "testing"):
        return
    documentation = {
        id(node.value)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(source.tree):
        texts: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            texts = [re.sub(r"roma-ds init \w+", "", node.value)]
        elif isinstance(node, ast.Name):
            texts = [node.id]
        elif isinstance(node, ast.Attribute):
            texts = [node.attr]
        elif isinstance(node, ast.alias | ast.FunctionDef | ast.ClassDef):
            texts = [node.name]
        for text in texts:
            if found := MODEL_NAMES.search(text):
                yield f"{getattr(node, 'lineno', 1)}: the model name {found.group()!r} belongs in families/"


def one_door(source: Source) -> Iterator[str]:
    if source.part == "comm":
        return
    doors = ("torch.distributed", "deepspeed.comm", "deepspeed.init_distributed", "mpi4py")
    for line, name in {*source.imported(), *source.dotted_uses()}:
        if any(f"{name}.".startswith(f"{door}.") for door in doors):
            yield f"{line}: {name} outside roma_ds/comm"


def swallowed_errors(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{node.lineno}: bare except"
            if all(
                isinstance(item, ast.Pass | ast.Expr)
                and not isinstance(getattr(item, "value", None), ast.Call)
                for item in node.body
            ):
                yield f"{node.lineno}: except with nothing in it"
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
            broad = {"Exception", "BaseException"} & {ast.unparse(item) for item in node.args}
            if broad:
                yield f"{node.lineno}: suppress({', '.join(broad)})"


def unsafe_loading(source: Source) -> Iterator[str]:
    for line, name in source.imported():
        if name.split(".")[0] in PICKLERS:
            yield f"{line}: {name} executes what it reads"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in ("torch.load", "torch.save"):
            yield f"{node.lineno}: {ast.unparse(node.func)} uses pickle; use safetensors"
        for keyword in node.keywords:
            true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg in ("trust_remote_code", "allow_pickle") and true:
                yield f"{node.lineno}: {keyword.arg}=True"


RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    layers,
    known_parts,
    borrowed_name,
    length,
    model_names,
    one_door,
    swallowed_errors,
    unsafe_loading,
)

# A file that breaks each rule, and how often.
BAD = {
    "layers": [
        Source("data/rows.py", "from roma_ds.training.engine import step\nfrom roma_ds import errors\n"),
        Source("config/loader.py", "def f():\n    import roma_ds.data.rows\n"),
        Source("errors.py", "from roma_ds.storage import atomic\n"),
        Source("pipeline/run.py", "from roma_ds.cli import main\n"),
        Source("evaluation/score.py", "from ..export import merge\n"),
        Source("training/loop.py", "from roma_ds.demo import suite\n"),
        Source("training/loop.py", "from roma_ds.testing import runner\n"),
    ],
    "known_parts": [Source("utils.py", ""), Source("helpers/a.py", "")],
    "borrowed_name": [
        Source("profile.py", ""),
        Source("evaluation/datasets.py", ""),
        Source("queue/a.py", ""),
    ],
    "length": [Source("errors.py", "\n" * MAX_LINES)],
    "model_names": [
        Source("training/loop.py", "if kind == 'olmoe': pass"),
        Source("training/loop.py", "from transformers import Qwen3MoeForCausalLM"),
        Source("checkpoint/loading.py", "model = Mixtral()"),
    ],
    "one_door": [
        Source("training/loop.py", "import torch.distributed as dist"),
        Source("training/loop.py", "from torch import distributed"),
        Source("training/loop.py", "import torch\ntorch.distributed.barrier()"),
        Source("index/sync.py", "from deepspeed import comm"),
        Source("index/sync.py", "from mpi4py import MPI"),
        Source("worker.py", "import deepspeed\ndeepspeed.init_distributed()"),
    ],
    "swallowed_errors": [
        Source("errors.py", "try:\n    f()\nexcept ValueError:\n    pass\n"),
        Source("errors.py", "try:\n    f()\nexcept:\n    g()\n"),
        Source("errors.py", "with contextlib.suppress(Exception):\n    f()\n"),
    ],
    "unsafe_loading": [
        Source("export/files.py", "import pickle"),
        Source("export/files.py", "torch.load(path)"),
        Source("export/files.py", "np.load(path, allow_pickle=True)"),
        Source("export/files.py", "AutoModel.from_pretrained(x, trust_remote_code=True)"),
    ],
}
GOOD = (
    Source(
        "training/loop.py", '"""As in OLMoE."""\nfrom roma_ds.comm import world\nfrom roma_ds.data import a\n'
    ),
    Source("config/loader.py", "FIX = 'see `roma-ds init olmoe`'\nf(trust_remote_code=run.trust)\n"),
    Source(
        "comm/world.py", "import torch.distributed as dist\ntry:\n    f()\nexcept OSError:\n    clean()\n"
    ),
    Source("cli/main.py", "from roma_ds import __version__\nfrom roma_ds.demo import suite\n"),
    Source("families/olmoe.py", "NAMES = ('olmoe',)\n"),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps(rule: Callable[[Source], Iterator[str]]) -> None:
    sources = package_sources()
    assert len(sources) > 10
    broken = [f"roma_ds/{source.path}:{problem}" for source in sources for problem in rule(source)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_can_fail(rule: Callable[[Source], Iterator[str]]) -> None:
    for source in BAD[rule.__name__]:
        assert list(rule(source)), f"{rule.__name__} lets pass: {source}"
    for source in GOOD:
        assert not list(rule(source)), f"{rule.__name__} refuses: {source}"


def test_the_names_grow_with_the_families() -> None:
    found = [name for family in FAMILIES for name in (family.name, *family.model_types)]
    assert not [name for name in found if not MODEL_NAMES.search(name)]


def loaded_by(code: str) -> set[str]:
    """The heavy modules in memory after `code` ran in a fresh interpreter."""
    report = f"\nimport sys; print('\\n' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.rsplit("\n", 2)[-2].split())


HELP = """
import sys
from roma_ds.cli.main import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import roma_ds",
        HELP.format(arguments=["--help"]),
        HELP.format(arguments=["train", "--help"]),
        HELP.format(arguments=["ls", "configs"]),
        HELP.format(arguments=["init", "olmoe"]),
    ],
    ids=["import", "--help", "train --help", "ls configs", "init"],
)
def test_answers_without_heavy_imports(code: str) -> None:
    assert loaded_by(code) == set()


def test_heavy_imports_would_be_seen() -> None:
    assert loaded_by("import numpy") == {"numpy"}
