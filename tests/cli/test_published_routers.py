"""Routers go to the hub with their card, and are merged and evaluated from there; no token is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli.hub_stand_in import OWNER, TOKEN, Hub, Repository, hub_stand_in
from cli.projects import Finished, Project, make_project, roma_ds_here
from safetensors.torch import load_file

from roma_ds.storage.atomic import read_json, read_parquet
from roma_ds.training.stage import write_router_file

NAME = f"{OWNER}/routers"
SCRIPT = Path(__file__).with_name("hub_commands.py")
LOGIN = {"HF_TOKEN": TOKEN}
NO_LOGIN: dict[str, str | None] = {"HF_TOKEN": None}


@dataclass(frozen=True)
class Published:
    """What a hub was asked by commands, one after the other, and how these ended."""

    project: Project
    hub: Hub
    done: dict[str, Finished]
    folder: Path
    early: dict[str, Any]
    """Results of a router file whose layer lies before those that the run trains."""


def commands(project: Project, folder: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """By title: variables and arguments."""
    export = project.arguments("export", ranks=1)
    evaluate = project.arguments("eval", ranks=1)
    model = str(project.folder / "model")

    def merge(router: str, out: str) -> list[str]:
        return ["merge", model, router, "--out", str(folder / out)]

    return {
        "dry run": (NO_LOGIN, [*export, "--push", NAME, "--dry-run"]),
        "no login": (NO_LOGIN, [*export, "--push", NAME]),
        "wrong login": ({"HF_TOKEN": "hf_wrong"}, [*export, "--push", NAME]),
        "another's name": (LOGIN, [*export, "--push", "stranger/routers"]),
        "no name": (LOGIN, [*export, "--push", "routers"]),
        "push": (LOGIN, [*export, "--push", NAME]),
        "again": (LOGIN, [*export, "--push", NAME]),
        "into a public one": (LOGIN, [*export, "--push", f"{OWNER}/open"]),
        "public": (LOGIN, [*export, "--push", f"{OWNER}/open", "--public"]),
        "merge": (LOGIN, merge(f"hub:{NAME}", "merged")),
        "merge a revision": (LOGIN, merge(f"hub:{NAME}@main", "revision")),
        "merge unseen": (NO_LOGIN, merge("hub:somebody/unseen", "unseen")),
        "merge no revision": (LOGIN, merge(f"hub:{NAME}@v9", "no-revision")),
        "merge no routers": (LOGIN, merge(f"hub:{OWNER}/empty", "empty")),
        "merge no name": (LOGIN, merge("hub:routers", "no-name")),
        "merge onto the hub": (LOGIN, ["merge", "hub:a/b", f"hub:{NAME}", "--out", str(folder / "x")]),
        "eval": (LOGIN, [*evaluate, "--router", f"hub:{NAME}"]),
    }


def evaluated_early(project: Project, router: Path) -> dict[str, Any]:
    """The gate of layer 0 with its rows turned about: other experts are chosen there."""
    key = "model.layers.0.mlp.gate.weight"
    files = map(load_file, (project.folder / "model").glob("*.safetensors"))
    own = next(file[key] for file in files if key in file)
    write_router_file(router, {0: own.flip(0)}, {0: key}, {})
    done = project.run("eval", f"--router={router}", ranks=1)
    assert done.code == 0, done
    found: dict[str, Any] = read_json(project.out / "eval" / "given.json")
    losses = read_parquet(project.out / "eval" / "given.samples.parquet")["option_loglikelihoods"]
    return {**found, "option_loglikelihoods": losses}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    project = make_project(folder / "project", rows=32, epochs=1)
    (project.folder / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n")
    for command in ("train", "eval"):
        done = project.run(command, ranks=1)
        assert done.code == 0, done
    early = evaluated_early(project, folder / "early.safetensors")
    lines = commands(project, folder)
    with hub_stand_in() as hub:
        hub.repositories[f"{OWNER}/open"] = Repository(private=False)
        hub.repositories[f"{OWNER}/unseen"] = Repository(private=True)
        hub.repositories[f"{OWNER}/empty"] = Repository(private=True)
        variables = {
            **{key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")},
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        ended = subprocess.run(
            [sys.executable, str(SCRIPT)],
            input="".join(json.dumps(line) + "\n" for line in lines.values()),
            env=variables,
            cwd=project.folder,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        (folder / "said.txt").write_text(ended.stdout + ended.stderr)
        finished = [Finished(*one) for one in json.loads(ended.stdout.splitlines()[-1])]
        yield Published(project, hub, dict(zip(lines, finished, strict=True)), folder, early)


def card(published: Published) -> str:
    return published.hub.repositories[NAME].files["README.md"].decode()


def test_a_dry_run_shows_everything_and_uploads_nothing(published: Published) -> None:
    done = published.done["dry run"]
    assert done.code == 0, done
    for line in (
        f"push: to {NAME} on the hub, private",
        "push: files: router.safetensors, README.md",
        "names its base model by its path on this machine",
        "# Routers for model",
        "push: a dry run, nothing was uploaded",
    ):
        assert line in done.out


REFUSED = {
    "no login": "--push needs a login to the hub, and there is none",
    "wrong login": "the hub refuses the login: 401",
    "another's name": "the login is that of somebody, which is no member of stranger",
    "no name": "--push routers names no repository",
    "into a public one": "somebody/open is public, and --push keeps to itself",
    "merge unseen": "there is no hub:somebody/unseen, or it may not be read",
    "merge no revision": "hub:somebody/routers@v9: there is no such revision",
    "merge no routers": "hub:somebody/empty holds no router.safetensors",
    "merge no name": "hub:routers names no repository",
    "merge onto the hub": "MODEL is hub:a/b, a base model is merged from its files",
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_cannot_be_is_one_message(published: Published, title: str) -> None:
    done = published.done[title]
    assert done.code == 2 and REFUSED[title] in done.err and "fix: " in done.err, done
    assert "Traceback" not in done.err
    assert "export:" not in done.out and "push:" not in done.out, "before anything is written"


def test_router_and_card_are_uploaded_into_a_private_repository(published: Published) -> None:
    for title in ("push", "again"):
        done = published.done[title]
        assert done.code == 0 and "/commit/" in done.out, done
    found = published.hub.repositories[NAME]
    assert found.private and sorted(found.files) == ["README.md", "router.safetensors"]
    for name, content in found.files.items():
        assert (published.project.out / "export" / name).read_bytes() == content
    asked = published.hub.asked
    assert f"POST /{NAME}.git/info/lfs/objects/batch" in asked
    assert "POST /api/repos/create" in asked


def test_everybody_reads_only_what_was_to_be_public(published: Published) -> None:
    done = published.done["public"]
    assert done.code == 0, done
    assert sorted(published.hub.repositories[f"{OWNER}/open"].files) == ["README.md", "router.safetensors"]


def test_the_card_says_what_the_hub_and_people_look_for(published: Published) -> None:
    text = card(published)
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "roma_ds"
    assert "base_model" not in front, "a folder is no name on the hub"
    for part in (
        "2 routers (512 weights, float32), layers 2,3, trained by roma",
        "- licence of the base model: apache-2.0",
        "- trained on: train (train)",
        "| base |",
        "| roma |",
        "words: 24 questions",
        "Measured in float32",
    ):
        assert part in text
    assert str(published.folder) not in text, "no path of this machine"


def test_routers_are_merged_from_the_hub(published: Published) -> None:
    trained = load_file(published.project.out / "train" / "router.safetensors")
    for title, folder in (("merge", "merged"), ("merge a revision", "revision")):
        assert published.done[title].code == 0, published.done[title]
        merged = {
            key: value
            for path in (published.folder / folder).glob("*.safetensors")
            for key, value in load_file(path).items()
        }
        assert all(bool((merged[key] == value).all()) for key, value in trained.items())
    assert not [path for path in published.folder.iterdir() if path.name in ("unseen", "empty", "x")]


def test_routers_are_evaluated_from_the_hub_as_where_they_were_trained(published: Published) -> None:
    done = published.done["eval"]
    assert done.code == 0 and "train" not in done.out.replace("training", ""), done
    results = published.project.out / "eval"
    given, trained = (read_json(results / f"{name}.json") for name in ("given", "roma"))
    assert given["tasks"]["words"]["accuracy"] == trained["tasks"]["words"]["accuracy"]
    assert given["tasks"]["words"]["predicted"] == trained["tasks"]["words"]["predicted"]
    assert given["variant"] == "given"
    files = [results / f"{name}.samples.parquet" for name in ("given", "roma")]
    own, theirs = (np.array(read_parquet(path)["option_loglikelihoods"]) for path in files)
    assert np.abs(own - theirs).max() < 1e-5


def test_routers_of_layers_before_the_cache_are_evaluated_too(published: Published) -> None:
    assert published.early["tasks"]["words"]["n"] == 24
    base = read_parquet(published.project.out / "eval" / "base.samples.parquet")["option_loglikelihoods"]
    assert published.early["option_loglikelihoods"] != base, "the router is in place"


def test_no_token_is_in_any_file_or_line(published: Published) -> None:
    said = [done.out + done.err for done in published.done.values()]
    assert not [text for text in said if TOKEN in text or "hf_wrong" in text]
    files = [path for path in published.folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--public"], "--public goes with --push alone"),
        (["--dry-run"], "--dry-run goes with --push alone"),
        (["--push", NAME], "--push needs the hub, and it is not to be had: HF_HUB_OFFLINE is set"),
    ],
)
def test_push_without_what_it_needs(tmp_path: Path, words: list[str], message: str) -> None:
    project = make_project(tmp_path, rows=8)
    done = roma_ds_here([*project.arguments("export", ranks=1), *words])
    assert done.code == 2 and message in done.err, done
    assert not project.out.exists()


def test_a_router_given_to_an_evaluation_must_be_one(tmp_path: Path) -> None:
    project = make_project(tmp_path, rows=8)
    evaluate = project.arguments("eval", ranks=1)
    done = roma_ds_here([*evaluate, "--router", "nowhere.safetensors"])
    assert done.code == 2 and "nowhere.safetensors cannot be read as a router file" in done.err
    done = roma_ds_here([*evaluate, "--router", "nowhere", "--variant", "roma"])
    assert done.code == 2 and "exclude each other" in done.err
    done = roma_ds_here([*evaluate, "--router", "hub:somebody/routers"])
    assert done.code == 2 and "is not in the hub's cache, and cannot be fetched: HF_HUB_OFFLINE" in done.err
    assert not project.out.exists()
