"""TensorBoard's page of a run, in a headless browser."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.browser import Page, browser, missing, said_address
from unit.synthetic_run import make_run
from unit.watched_training import watch

from roma_ds.monitor.hyperparameters import flat, write_settings
from roma_ds.monitor.run_folder import read_run
from roma_ds.monitor.tensorboard_results import add_results

pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.skipif(missing() is not None, reason=f"there is no {missing()}"),
]


@pytest.fixture(scope="module")
def page_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    import deepspeed.comm
    from deepspeed.monitor import tensorboard
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    run = make_run(tmp_path_factory.mktemp("runs") / "run", tasks=3, per_task=20, steps=5)
    board = run / "train" / "tensorboard"
    section = {"enabled": True, "output_path": str(board.parent), "job_name": board.name}
    with pytest.MonkeyPatch.context() as patch:
        # There are no ranks here.
        for module in (deepspeed.comm, tensorboard.dist):
            patch.setattr(module, "get_rank", lambda *given: 0)
        monitor = MonitorMaster(get_monitor_config({"tensorboard": section}))
        for step in range(1, 30):
            watch(monitor, step=step, loss=1.0 / step, straggler_gap=0.01 * step)
    settings = flat(read_run(run).config)
    write_settings(board, {**settings, "variant": "roma"}, {"config": "train:\n  lr: 0.00123"})
    add_results(run)
    command = [sys.executable, "-m", "tensorboard.main"]
    server = [*command, "--logdir", str(run), "--port", "0", "--load_fast=false"]
    with said_address(server, r"(http://\S+:\d+)/? ") as address, browser() as page:
        yield page, address.replace("localhost", "127.0.0.1")


def kept(page: Page, name: str, folder: Path) -> None:
    """A picture of the page, where ROMA_DS_SCREENSHOTS says."""
    page.screenshot(Path(os.environ.get("ROMA_DS_SCREENSHOTS", folder)) / f"{name}.png")


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("?tagFilter=train/loss#timeseries", ("train /loss", r"train/tensorboard 0\.0\d+")),
        ("?tagFilter=straggler#timeseries", ("ranks /straggler_gap", r"0\.29 29")),
        ("?tagFilter=eval/average#timeseries", ("base/eval /average", r"eval /average", r"0\.85")),
        ("#hparams", (r"roma\.layers", r"data\.train .*train\.jsonl", r"0\.85")),
        ("#text", ("config", "lr: 0.00123")),
        ("#projector", ("Points: 60", "routing roma|routing base|embeddings", "label")),
    ],
)
def test_the_page_shows(
    place: str, shown: tuple[str, ...], page_of_a_run: tuple[Page, str], tmp_path: Path
) -> None:
    page, address = page_of_a_run
    # From another page: one that differs in what follows the # alone is not loaded anew.
    page.open("about:blank")
    page.open(f"{address}/{place}")
    try:
        for pattern in shown:
            page.wait_for(pattern)
    finally:
        kept(page, re.sub(r"\W", "", place), tmp_path)
