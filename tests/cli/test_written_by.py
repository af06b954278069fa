"""A run says where its answers are written by the library's own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.projects import make_project, roma_ds_here

from roma_ds.storage.atomic import read_parquet


@pytest.mark.parametrize(("model_type", "by_library"), [("qwen3_next", True), ("gpt_oss", False)])
def test_a_family_whose_layers_mix_tokens_otherwise_is_named(
    model_type: str, by_library: bool, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", model_type)
    words = ("eval.scoring=generate", "eval.max_new_tokens=4")
    done = roma_ds_here(project.arguments("eval", "--variant=base", *words, ranks=1))
    assert done.code == 0, done
    assert ("write: by the library's own forward pass" in done.out) == by_library
    texts = read_parquet(project.out / "eval" / "base.samples.parquet")["generated"]
    assert len(texts) == 24 and all(text is not None for text in texts)
