"""The run config: what is accepted, and that every mistake is named with its place and its mending."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from roma_ds.config import (
    RunConfig,
    config_hash,
    deepspeed_file,
    load_run_config,
    preset_names,
    preset_text,
    resolve_deepspeed,
    to_dict,
    to_yaml,
)
from roma_ds.config.loader import usable_part
from roma_ds.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = """\
model: {path: owner/model}
data: {train: [{name: openbookqa}]}
eval: {tasks: [arc_easy]}
output_dir: runs/x
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def failure(path: Path, *overrides: str) -> str:
    """The message of the UserError that loading ends with."""
    with pytest.raises(UserError) as caught:
        load_run_config(path, overrides)
    assert caught.value.exit_code == 2
    assert "\n  fix: " in str(caught.value)
    return caught.value.message


def test_defaults_are_those_of_the_method(write: Write) -> None:
    run = load_run_config(write(MINIMAL))
    assert (run.roma.layers, run.roma.tokens, run.roma.neighbours) == ("last5", "last1", 3)
    assert (run.roma.epsilon, run.roma.sigma, run.roma.lambda_) == (None, 0.4, 1.0)
    assert (run.train.epochs, run.train.micro_batch, run.train.lr) == (3, 8, 1e-3)
    assert run.controls == ("router_tuning",)
    assert run.model.dtype == "bfloat16"


def test_relative_paths_are_relative_to_the_config_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    run = load_run_config(
        write(
            """\
model: {path: checkpoint}
embed: {model: owner/embedder}
data: {train: [{path: train.jsonl}], data_root: ../data}
eval: {tasks: [{name: mine, path: sub/test.jsonl}], data_root: data}
output_dir: runs/x
deepspeed: my.json
"""
        )
    )
    assert run.model.path == str(tmp_path / "checkpoint")
    assert run.embed.model == "owner/embedder"
    assert run.data.train[0].path == str(tmp_path / "train.jsonl")
    assert run.data.data_root == str(tmp_path.parent / "data")
    assert run.eval.tasks[0].path == str(tmp_path / "sub" / "test.jsonl")
    assert run.eval.data_root == str(tmp_path / "data")
    assert run.output_dir == str(tmp_path / "runs" / "x")
    assert run.deepspeed == str(tmp_path / "my.json")
    assert run.source == tmp_path / "run.yaml"


def test_the_packaged_models_are_not_mistaken_for_a_folder(write: Write, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    run = load_run_config(write(MINIMAL), ["model.path=demo", "embed.model=demo"])
    assert (run.model.path, run.embed.model) == ("demo", "demo")


@pytest.mark.parametrize(
    "written", ["zero2", "zero2.json", "ds_configs/zero2.json", "./ds_configs/zero2.json"]
)
def test_packaged_deepspeed_json_stands_in_for_an_absent_file(write: Write, written: str) -> None:
    run = load_run_config(write(MINIMAL), [f"deepspeed={written}"])
    assert run.deepspeed == "zero2"
    assert resolve_deepspeed(run, 1)["zero_optimization"]["stage"] == 2


def test_a_deepspeed_json_of_ones_own_wins_over_the_packaged_one(write: Write, tmp_path: Path) -> None:
    (tmp_path / "ds_configs").mkdir()
    own = tmp_path / "ds_configs" / "zero2.json"
    own.write_text('{"zero_optimization": {"stage": 1}}')
    run = load_run_config(write(MINIMAL), ["deepspeed=ds_configs/zero2.json"])
    assert deepspeed_file(run.deepspeed) == own


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("roma.neigbours=3", "roma.neigbours: unknown key; did you mean 'neighbours'?"),
        ("roma.lamda=1", "roma.lamda: unknown key; did you mean 'lambda'?"),
        ("rmoa.lambda=1", "rmoa: unknown key; did you mean 'roma'?"),
        ("roma.lambda_=1", "roma.lambda_: unknown key; did you mean 'lambda'?"),
        ("source=x", "source: unknown key"),
        ("train.epochs=three", "train.epochs: expected a whole number, got 'three'"),
        ("train.epochs=1.5", "train.epochs: expected a whole number, got 1.5"),
        ("train.epochs=true", "train.epochs: expected a whole number, got true"),
        ("train.epochs=null", "train.epochs: expected a whole number, got null"),
        ("train.task_loss=1", "train.task_loss: expected true or false, got 1"),
        ("train.task_loss=yes", "train.task_loss: expected true or false, got 'yes'"),
        ("model.path=7", "model.path: expected text, got 7; put it in quotes"),
        ("model.revision=12", "model.revision: expected text or null, got 12; put it in quotes"),
        (
            "model=x",
            "model: expected a section with the keys path, revision, dtype, trust_remote_code, frozen, "
            "decoded_cache, got 'x'",
        ),
        ("controls=router_tuning", "controls: expected a list of 'router_tuning' or 'random_neighbours'"),
        ("controls=[routing]", "controls.0: must be router_tuning or random_neighbours, got 'routing'"),
        ("controls=[router_tuning, router_tuning]", "controls: names router_tuning more than once"),
        ("model.dtype=float16", "model.dtype: must be float32 or bfloat16, got 'float16'; did you mean"),
        ("train.lr=0", "train.lr: must be greater than 0, got 0.0"),
        ("train.lr=.nan", "train.lr: must be a finite number, got nan"),
        ("train.lr=.inf", "train.lr: must be a finite number, got inf"),
        ("train.warmup=1", "train.warmup: must be at least 0 and less than 1, got 1.0"),
        ("train.seed=-1", "train.seed: must be at least 0 and less than"),
        ("train.clip=-1", "train.clip: must be at least 0, got -1.0"),
        ("train.micro_batch=0", "train.micro_batch: must be at least 1, got 0"),
        ("data.train.0.limit=0", "data.train.0.limit: must be at least 1, got 0"),
        ("data.train=[]", "data.train: must not be empty"),
        ("data.train=[{split: train}]", "data.train.0: give name, path or both"),
        ("data.train=[{path: [a, b]}]", "data.train.0.path: several paths need a name for their rows"),
        ("data.train=[{name: a, subset: b}]", "data.train.0.subset: goes with a name like OWNER/NAME alone"),
        ("eval.tasks=[{name: a, revision: b}]", "eval.tasks.0.revision: goes with a name like OWNER/NAME"),
        ("data.train=[{path: a, columns: {frage: b}}]", "data.train.0.columns.frage: unknown key"),
        ("data.train=[{name: a}, {name: a}]", "data.train.1: 'a' split 'train' is listed twice"),
        ("data.train=[{path: a.jsonl}, {path: a.jsonl}]", "'a.jsonl' split 'train' is listed twice"),
        (
            "data.train=[{path: a/rows.jsonl}, {path: b/rows.jsonl.gz}]",
            "data.train.1: 'a/rows.jsonl' and 'b/rows.jsonl.gz' are both called 'rows' split 'train', by"
            " which samples are told apart; give one another split, like train2",
        ),
        (
            "data.train=[{name: a}, {path: b/a.jsonl}]",
            "'a' and 'b/a.jsonl' are both called 'a' split 'train'",
        ),
        ("roma.sigma=-1", "roma.sigma: must be greater than 0, got -1.0"),
        ("roma.sigma=medain", "roma.sigma: expected a number or 'median', got 'medain'"),
        ("roma.epsilon=0", "roma.epsilon: must be greater than 0 and at most 1, got 0.0"),
        ("roma.epsilon=1.5", "roma.epsilon: must be greater than 0 and at most 1, got 1.5"),
        ("roma.lambda=-0.1", "roma.lambda: must be at least 0, got -0.1"),
        ("roma.lambda_warmup=1.0", "roma.lambda_warmup: must be at least 0 and less than 1"),
        ("roma.layers=last", "roma.layers: 'last' is none of lastN, firstN, middleN"),
        ("roma.layers=last0", "roma.layers: 'last0' is none of"),
        ("roma.layers=5", "roma.layers: expected text or a list of whole numbers, got 5"),
        ("roma.layers=[]", "roma.layers: must name at least one layer"),
        ("roma.layers=[1, -2]", "roma.layers: layer numbers start at 0, got -2"),
        ("roma.layers=[3, 3]", "roma.layers: names 3 more than once"),
        ("roma.layers=[a]", "roma.layers: expected text or a list of whole numbers, got ['a']"),
        (
            "roma.tokens=last2",
            "roma.tokens: must be last1, last3, first1, first3, middle1, middle3 or user1, got 'last2'",
        ),
        ("roma.refresh=epochs", "roma.refresh: expected a whole number or 'never' or 'epoch', got 'epochs'"),
        ("roma.refresh=0", "roma.refresh: must be at least 1, got 0"),
        ("eval.shots=-1", "eval.shots: must be at least 0, got -1"),
        (
            "train={batch: 32, gradient_accumulation: 4}",
            "train.gradient_accumulation: is 4, but follows from train.batch 32, train.micro_batch and the",
        ),
        ("train.batch=0", "train.batch: must be at least 1, got 0"),
        ("eval.tasks=[a, a]", "eval.tasks: names a more than once"),
        ("eval.tasks=[{path: x}]", "eval.tasks.0.name: missing; it takes text"),
        ("eval.tasks.0.splt=test", "eval.tasks.0.splt: unknown key; did you mean 'split'?"),
        ("eval.tasks.3=arc_easy", "eval.tasks holds nothing that eval.tasks.3 could set"),
        ("deepspeed.stage=3", "deepspeed holds nothing that deepspeed.stage could set"),
        ("eval.tasks=[a", "'[a' is not YAML"),
        ("output_dir=", "output_dir: expected text, got null"),
    ],
)
def test_a_wrong_override_is_named_with_its_key(write: Write, override: str, message: str) -> None:
    text = MINIMAL + "deepspeed: zero3\n"
    found = failure(write(text), override)
    assert found.startswith(f"override {override}: ")
    assert message in found


def test_an_excluded_dataset_is_not_trained_on(write: Write) -> None:
    found = failure(write(MINIMAL), "data.exclude=[openbookqa]")
    assert "data.train.0: 'openbookqa' is in data.exclude, which forbids training on it" in found
    found = failure(write(MINIMAL), "data.train=[{path: some/boolq.jsonl.gz}]", "data.exclude=[boolq]")
    assert "data.train.0: 'boolq' is in data.exclude" in found


@pytest.mark.parametrize("text", ["epochs", "=3", "train.=3", ".train=3", "train..epochs=3", ""])
def test_an_override_without_key_and_value_is_refused(write: Write, text: str) -> None:
    assert "has not the form key.key=value" in failure(write(MINIMAL), text)


def test_overrides_are_laid_over_in_order(write: Write) -> None:
    run = load_run_config(
        write(MINIMAL),
        [
            "roma.lambda=0.5",
            "roma.lambda=0",
            "roma.layers=[7, 3]",
            "train.lr=1e-3",
            "data.train.0.limit=9",
            "eval.tasks.0.limit=4",
            "eval.tasks.0.split=validation",
            "model.revision='2024-01-01'",
            "index.backend=torch",
        ],
    )
    assert run.roma.lambda_ == 0.0
    assert run.roma.layers == (7, 3)
    assert run.train.lr == 1e-3
    assert run.data.train[0].limit == 9
    assert (run.eval.tasks[0].name, run.eval.tasks[0].limit, run.eval.tasks[0].split) == (
        "arc_easy",
        4,
        "validation",
    )
    assert run.model.revision == "2024-01-01"
    assert run.index.backend == "torch"


def test_problems_in_the_file_are_named_with_file_and_key_all_at_once(write: Write) -> None:
    found = failure(
        write(MINIMAL + "roma: {neigbours: 3, sigma: wide}\ntrain: {epochs: 0}\nextra: 1\n"), "train.lr=x"
    )
    assert "run.yaml: 5 problems:" in found
    assert "run.yaml: roma.neigbours: unknown key; did you mean 'neighbours'?" in found
    assert "run.yaml: roma.sigma: expected a number or 'median', got 'wide'" in found
    assert "run.yaml: train.epochs: must be at least 1, got 0" in found
    assert "run.yaml: extra: unknown key" in found
    assert "override train.lr=x: train.lr: expected a number, got 'x'" in found


def test_missing_keys_are_named(write: Write) -> None:
    found = failure(write("roma: {lambda: 1}\n"))
    for key in ("model", "data", "eval", "output_dir"):
        assert f"run.yaml: {key}: missing" in found


@pytest.mark.parametrize("text", ["", "# nothing\n", "just text", "[1, 2]", "3"])
def test_a_file_that_holds_no_sections_is_refused(write: Write, text: str) -> None:
    found = failure(write(text))
    assert "missing" in found or "the file: expected a section with the keys model, data" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {path: a}\nmodel: {path: b}\n",
            "run.yaml:2: not valid YAML: 'model' is already given in line 1",
        ),
        (
            "roma:\n  lambda: 1\n  lambda: 2\n",
            "run.yaml:3: not valid YAML: 'lambda' is already given in line 2",
        ),
        ("model: [a\nroma: 1\n", "run.yaml:2: not valid YAML"),
        ("model:\n\tpath: x\n", "run.yaml:2: not valid YAML"),
        ("a: *nowhere\n", "run.yaml:1: not valid YAML"),
        ("a: !!python/object:os.system x\n", "run.yaml:1: not valid YAML"),
        ("a: 1\nb: \x07\n", "run.yaml:2: not valid YAML"),
        ("? [a]\n: 1\n", "run.yaml:1: not valid YAML"),
    ],
)
def test_yaml_mistakes_are_named_with_their_line(write: Write, text: str, message: str) -> None:
    assert message in failure(write(text))


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    assert "absent.yaml does not exist" in failure(tmp_path / "absent.yaml")
    assert "cannot be read" in failure(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    assert "not UTF-8" in failure(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1E3", 1000.0), ("5", 5.0), (".5", 0.5), ("1.", 1.0), ("+2.5e-4", 2.5e-4)],
)
def test_numbers_as_people_write_them(write: Write, written: str, value: float) -> None:
    assert load_run_config(write(MINIMAL + f"train: {{lr: {written}}}\n")).train.lr == value


def test_empty_sections_take_their_defaults(write: Write) -> None:
    assert load_run_config(write(MINIMAL + "roma:\ntrain: {}\n")).roma.neighbours == 3


def test_yaml_merge_keys_work(write: Write) -> None:
    merged = "eval:\n  tasks:\n  - &a {name: x, path: x.jsonl, limit: 3}\n  - {<<: *a, name: y}\n"
    run = load_run_config(write(MINIMAL.replace("eval: {tasks: [arc_easy]}\n", merged)))
    assert [(task.name, task.limit) for task in run.eval.tasks] == [("x", 3), ("y", 3)]


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("roma_ds/config/presets/*")))
def test_packaged_configs_load_and_resolve(name: str, write: Write) -> None:
    run = load_run_config(write(preset_text(name)))
    assert run.train.batch == {"demo": 48, "olmoe": 32, "real_data": 16}[name]
    for ranks in (1, 2, 4):
        assert resolve_deepspeed(run, ranks)["train_batch_size"] == run.train.batch


def test_all_packaged_configs_are_tested() -> None:
    files = [path for path in ROOT.glob("roma_ds/config/presets/**/*") if path.is_file()]
    assert len(files) == 3
    assert preset_names() == ("demo", "olmoe", "real_data")


def test_the_large_preset_explains_every_key() -> None:
    written = preset_text("olmoe")
    run_keys = {
        key for section in to_dict(_any_run()).values() if isinstance(section, dict) for key in section
    }
    missing = [key for key in run_keys if f"{key}:" not in written]
    assert not missing


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'real_data'"):
        preset_text("real-data")


def test_yaml_of_a_run_reads_back_to_the_same_run(write: Write, tmp_path: Path) -> None:
    for name in preset_names():
        run = load_run_config(write(preset_text(name)))
        other = tmp_path / "elsewhere"
        other.mkdir(exist_ok=True)
        (other / "config.resolved.yaml").write_text(to_yaml(run))
        assert load_run_config(other / "config.resolved.yaml") == run


def test_the_hash_ignores_where_the_run_is_written_and_nothing_else(write: Write) -> None:
    run = load_run_config(write(MINIMAL))
    assert len(config_hash(run)) == 16
    assert config_hash(replace(run, output_dir="/elsewhere", source=Path("/other.yaml"))) == config_hash(run)
    assert config_hash(replace(run, roma=replace(run.roma, lambda_=0.5))) != config_hash(run)
    assert config_hash(replace(run, deepspeed="zero0")) != config_hash(run)


def test_yaml_keys_are_those_of_the_contract(write: Write) -> None:
    values = to_dict(load_run_config(write(MINIMAL)))
    assert list(values) == [
        "model", "data", "embed", "roma", "collect", "index", "train", "eval", "guards", "controls",
        "deepspeed", "output_dir",
    ]  # fmt: skip
    assert values["roma"]["lambda"] == 1.0
    keys = ("path", "split", "subset", "revision", "limit", "scoring", "shots", "shots_path", "shots_split")
    assert values["eval"]["tasks"] == [{"name": "arc_easy", "columns": {}, **dict.fromkeys(keys)}]


def test_importing_the_config_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'deepspeed', 'numpy', 'transformers'}"
    code = f"import sys, roma_ds.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def _any_run() -> RunConfig:
    from roma_ds.config import parse_run_config

    return parse_run_config(MINIMAL, Path("/nowhere/run.yaml"))


def test_what_is_wrong_is_left_out_of_the_usable_part(write: Write) -> None:
    path = write(MINIMAL + "roma: {neighbours: 5, lamda: 1, epsilon: x}\ntrain: {epochs: -1, lr: 0.5}\n")
    changes = ["data.train.0.limt=3", "data.train.1.name=[]", "eval.batch_size=9", "nothing"]
    with pytest.raises(UserError):
        load_run_config(path, changes)
    run = usable_part(path, changes)
    assert run is not None
    assert (run.roma.neighbours, run.roma.epsilon, run.train.epochs, run.train.lr) == (5, None, 3, 0.5)
    assert run.eval.batch_size == 9 and [item.name for item in run.data.train] == ["openbookqa"]


def test_a_config_without_anything_wrong_is_its_own_usable_part(write: Write) -> None:
    path = write(MINIMAL)
    assert usable_part(path, ["roma.lambda=2"]) == load_run_config(path, ["roma.lambda=2"])


@pytest.mark.parametrize("text", ["", "model: [", "- 1", "data: {train: [{name: openbookqa}]}", MINIMAL[8:]])
def test_where_no_run_is_left_there_is_no_usable_part(write: Write, text: str) -> None:
    assert usable_part(write(text)) is None
