"""Cloze scores equal lm-evaluation-harness's own; the harness runs a base checkpoint with a router file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.made_benchmarks import write_benchmarks
from cli.projects import ROOT, run_command

from roma_ds.errors import UserError

REAL = Path(os.environ.get("ROMA_DS_TEST_DATA") or ROOT.parent / "shared" / "data").resolve()
"""The real benchmarks where they lie there; else made ones of the same form."""
REQUIRED = ("arc_easy", "piqa", "hellaswag", "winogrande", "boolq")
ROWS = int(os.environ.get("ROMA_DS_HARNESS_ROWS", "12"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (extra `eval`)"
    ),
]


@pytest.fixture(scope="module")
def agreement() -> Iterator[Any]:
    """The module that compares, with the rows that it compares."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import harness_agreement

    yield harness_agreement
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (REAL / "tokenizers").exists():
        return REAL
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"), ROWS)


@pytest.fixture(scope="module")
def work(agreement: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness") / "work"
    folder.mkdir()
    agreement.prepare(data, folder, ROWS, agreement.TASKS)
    return folder


def test_every_option_of_every_sample_has_the_harness_s_loglikelihood(agreement: Any, work: Path) -> None:
    mine, results = agreement.ours(work, agreement.TASKS)
    theirs, metrics = agreement.harness(work, agreement.TASKS)
    table = agreement.compared(mine, theirs, results, metrics)
    assert set(REQUIRED) < set(table)
    for task, entry in table.items():
        assert entry["rows"] == ROWS and entry["options"] >= 2 * ROWS
        assert agreement.agrees(entry), (task, entry)
    norms = [table[task]["accuracy_norm"] for task in ("arc_easy", "piqa", "hellaswag")]
    assert None not in norms and table["winogrande"]["accuracy_norm"] is None


@pytest.mark.parametrize("ends_in", ["newline", "token"])
def test_the_harness_agrees_under_a_chat_template(
    agreement: Any, data: Path, tmp_path: Path, ends_in: str
) -> None:
    """`--apply_chat_template --fewshot_as_multiturn`: the same texts, and scores question by question."""
    from roma_ds.data.store import load_samples

    (work := tmp_path / "work").mkdir()
    agreement.prepare(data, work, ROWS, agreement.TASKS, agreement.CHATS[ends_in])
    mine, results = agreement.ours(work, agreement.TASKS, chat=True)
    samples, metrics = agreement.harness_samples(work, agreement.TASKS, chat=True)
    own = load_samples(work / "out" / "data" / "eval.parquet")
    for task, recorded in samples.items():
        asked = [sample for sample in own if sample.task == task]
        assert len(asked) == len(recorded) == ROWS
        for sample, record in zip(asked, recorded, strict=True):
            prompts = sample.contexts or (sample.prompt,) * len(sample.options)
            texts = [tuple(one) for one in record["arguments"]]
            assert texts == list(zip(prompts, sample.options, strict=True))
            # BOS once, and the end of each solved example's answer.
            assert sample.prompt.count("<|endoftext|>") == sample.prompt.count("<|assistant|>")
    relative = ends_in == "newline"
    theirs = {
        task: [[float(one[0][0]) for one in record["resps"]] for record in records]
        for task, records in samples.items()
        # Behind each of its contexts the harness counts the white space anew.
        if not (relative and task == "winogrande")
    }
    table = agreement.compared(mine, theirs, results, metrics, relative)
    assert len(table) == (7 if ends_in == "token" else 6)
    for task, entry in table.items():
        assert entry["options"] >= 2 * ROWS
        assert agreement.agrees(entry), (task, entry)


def test_rows_from_the_hub_become_the_rows_that_were_compared(agreement: Any, data: Path) -> None:
    from roma_ds.data.named import NAMED

    for task in agreement.TASKS:
        convert = NAMED[task.name].convert
        kept = {"question", "choices", "answer", "passage", "subject"}
        for place, row in enumerate(agreement.read(data / task.name / f"{task.split}.jsonl.gz")[:200]):
            made = convert({"id": "x", "answer": row["answer"], **task.columns(row)}, place)
            own = {key: value for key, value in row.items() if key in kept}
            assert {key: value for key, value in made.items() if key in kept} == own, (task.name, row)


@pytest.fixture(scope="module")
def router(work: Path) -> Path:
    """Routers of two layers, unlike those of the base model."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    keys = [f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 2)]
    path = work / "router.safetensors"
    save_file({key: torch.randn(8, 64, generator=generator) for key in keys}, path)
    return path


def test_the_bridge_runs_base_and_router_file(agreement: Any, work: Path, router: Path) -> None:
    import torch

    import roma_ds.evaluation.harness  # noqa: F401  registers the model
    from roma_ds.checkpoint.loading import load_tokenizer
    from roma_ds.checkpoint.router_file import read_router_file
    from roma_ds.comm import World
    from roma_ds.comm.ranks import Ranks
    from roma_ds.config import ModelConfig
    from roma_ds.data.rows import read_rows
    from roma_ds.data.templates import render
    from roma_ds.frozen_pass.frozen_model import FrozenModel
    from roma_ds.sequences.encoding import encode

    (task,) = (task for task in agreement.TASKS if task.name == "arc_easy")
    tuned, _ = agreement.harness(work, [task], model="roma_ds", router=str(router))
    base, _ = agreement.harness(work, [task], model="roma_ds")
    model = ModelConfig(path=str(work / "model"), dtype="float32")
    rows = read_rows(work / "data" / "arc_easy" / "test.jsonl")
    samples = [render(row, "text", "arc_easy", "test", layout="question") for row in rows]
    prompts = encode(samples, load_tokenizer(model), 2048)
    frozen = FrozenModel(World(Ranks(), torch.device("cpu")), model, {"zero_optimization": {"stage": 0}})
    for found, weights in ((base, {}), (tuned, read_router_file(router).by_layer())):
        frozen.use_routers(weights)
        scores = frozen.score(prompts, "last1", 8, "ours")
        assert scores is not None
        for theirs, mine in zip(found["arc_easy"], scores.option_loglikelihoods, strict=True):
            assert mine.tolist() == pytest.approx(theirs, abs=1e-3)
    assert base["arc_easy"][0] != pytest.approx(tuned["arc_easy"][0], abs=1e-2)


def test_the_bridge_takes_a_published_router(
    work: Path, router: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roma_ds.checkpoint.router_file import read_router_file
    from roma_ds.evaluation import harness

    files = {"hub:somebody/routers": router}
    monkeypatch.setattr(harness, "local_router", files.__getitem__)
    model = harness.RoutedHarnessModel(
        str(work / "model"), router="hub:somebody/routers", dtype="float32", device="cpu"
    )
    for key, weight in read_router_file(router).weights.items():
        assert bool((model.model.get_parameter(key) == weight).all())
    info = model.get_model_info()
    assert info["router"] == "hub:somebody/routers"
    assert info["router_sha256"] == hashlib.sha256(router.read_bytes()).hexdigest()


def test_the_bridge_takes_a_chat_template(work: Path, tmp_path: Path) -> None:
    from roma_ds.errors import UserError
    from roma_ds.evaluation.harness import RoutedHarnessModel

    (tmp_path / "own.jinja").write_text("{% for message in messages %}{{ message.content }}|{% endfor %}")
    options = {"pretrained": str(work / "model"), "device": "cpu", "dtype": "float32"}
    model = RoutedHarnessModel(template=str(tmp_path / "own.jinja"), **options)
    assert model.apply_chat_template([{"role": "user", "content": "a"}]) == "a|"
    with pytest.raises(UserError, match="neither a file nor the name"):
        RoutedHarnessModel(template="other", **options)


@pytest.mark.parametrize("model_type", ["gemma4", "mistral4"])
def test_the_bridge_takes_a_text_part_and_a_model_by_its_class(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from safetensors.torch import save_file

    from roma_ds.checkpoint.blueprint import blueprint, check_checkpoint
    from roma_ds.comm import World
    from roma_ds.comm.ranks import Ranks
    from roma_ds.config import ModelConfig
    from roma_ds.evaluation.harness import RoutedHarnessModel
    from roma_ds.testing.tiny_composites import save_composite
    from roma_ds.testing.tiny_models import save_tiny
    from roma_ds.writing.plain import PlainModel

    folder = (save_composite if model_type == "gemma4" else save_tiny)(tmp_path / "model", model_type)
    model = ModelConfig(path=str(folder), dtype="float32")
    key = blueprint(model, check_checkpoint(model)).layout.gate_key(3)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    save_file({key: weight}, tmp_path / "router.safetensors")
    options = {"dtype": "float32", "device": "cpu", "batch_size": 1}
    with caplog.at_level("INFO"):
        base = RoutedHarnessModel(str(folder), **options)
    left = "as the harness itself has them: the language model is a part of a larger one" in caplog.text
    assert left == (base._packed is None) == (model_type == "gemma4")
    tuned = RoutedHarnessModel(str(folder), str(tmp_path / "router.safetensors"), **options)
    plain = PlainModel(World(Ranks(), torch.device("cpu")), model, {})
    plain.use_routers({3: weight})
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        found = [one.model(input_ids=ids).logits for one in (base, tuned)]
    torch.testing.assert_close(found[1], plain.logits(ids, torch.ones_like(ids), torch.arange(17)))
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_the_command_is_lm_eval_with_one_model_more(
    work: Path, router: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Left by a run in this process; accelerate would take it for a launcher's.
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    line = [sys.executable, "-m", "roma_ds.evaluation.harness", "run", "--model", "roma_ds"]
    line += ["--model_args", f"pretrained={work / 'model'},router={router},dtype=float32"]
    line += ["--tasks", "compared_piqa", "--include_path", str(work / "tasks"), "--limit", "3"]
    line += ["--device", "cpu", "--output_path", str(work / "results"), "--log_samples"]
    done = run_command(line, work, 280)
    assert done.code == 0 and "compared_piqa" in done.out, done
    (written,) = (work / "results").rglob("results_*.json")
    config = json.loads(written.read_text())["config"]
    assert config["router"] == str(router) and len(config["router_sha256"]) == 64
    # The same here, where the libraries are imported.
    monkeypatch.setattr(sys, "argv", [word.replace(".safetensors", ".gone") for word in line[2:]])
    with pytest.raises(UserError, match="cannot be read as a router file"):
        runpy.run_module("roma_ds.evaluation.harness", run_name="__main__")


def test_packed_trees_answer_as_the_harness_s_own_class_does(work: Path, router: Path) -> None:
    """Requests with and without a context, equal ones and one too long, rolling ones, and texts."""
    from lm_eval.api.instance import Instance

    from roma_ds.evaluation.harness import RoutedHarnessModel

    def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]

    question = "Question: Which of these is a planet that has rings?\nAnswer:"
    scored = asked(
        "loglikelihood",
        *((question, f" {word}") for word in ("Saturn", "a very small stone", "Saturn", "the moon")),
        ("", "Rings of ice."),
        ("Rings " * 3000, "of ice"),
    )
    rolling = asked("loglikelihood_rolling", ("Saturn has rings. " * 20,), ("Ice.",))
    texts = asked("generate_until", (question, {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}))
    found: dict[str, tuple[Any, ...]] = {}
    for engine in ("hf", "packed"):
        model = RoutedHarnessModel(
            str(work / "model"),
            router=str(router),
            engine=engine,
            device="cpu",
            dtype="float32",
            batch_size=4,
        )
        assert (model._packed is not None) == (engine == "packed")
        assert not model._packed or not any(one.requires_grad for one in model._packed.routed.parameters())
        # The same object writes after it has scored.
        found[engine] = (
            model.loglikelihood(scored),
            model.loglikelihood_rolling(rolling),
            model.generate_until(texts),
        )
    (own, own_rolling, own_texts), (packed, packed_rolling, packed_texts) = found["hf"], found["packed"]
    assert [value for value, _ in packed] == pytest.approx([value for value, _ in own], abs=1e-3)
    assert [greedy for _, greedy in packed] == [greedy for _, greedy in own]
    assert packed[0] == packed[2] and len(packed) == len(scored)
    assert packed_rolling == pytest.approx(own_rolling, abs=1e-3)
    assert packed_texts == own_texts
    with pytest.raises(UserError, match="engine=hg is unknown"):
        RoutedHarnessModel(str(work / "model"), engine="hg", device="cpu")
