"""Texts on the console: facts, aligned lines, tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from roma_ds.monitor import wording
from roma_ds.monitor.console import Banner, log_line, next_commands, summary_table

RECORD = {
    "step": 20,
    "epoch": 0.5,
    "loss": 1.25,
    "task_loss": 1.0,
    "manifold_loss": 0.25,
    "lambda": 1.0,
    "grad_norm_task": 0.1,
    "grad_norm_manifold": 0.02,
    "lr": 1e-3,
    "accuracy": 0.71,
    "tokens_per_second": 12345.6,
}


def _banner(**changes: object) -> Banner:
    facts: dict[str, object] = {
        "model": "some/model",
        "family": "olmoe",
        "moe_layers": 16,
        "experts": 64,
        "trainable": 655_360,
        "total": 6_919_161_856,
        "zero_stage": 3,
        "world_size": 2,
        "dtype": "bfloat16",
        "outputs": Path("runs/olmoe"),
    }
    return Banner(**{**facts, **changes})  # type: ignore[arg-type]


def test_banner_states_every_fact() -> None:
    text = _banner(layers=(11, 12, 13, 14, 15), memory_bytes=3 * 2**30).render()
    for fact in (
        "some/model",
        "olmoe, 16 MoE layers x 64 experts",
        "routers of layers 11-15",
        "trainable params: 655,360 || all params: 6,919,161,856 || trainable%: 0.0095",
        "ZeRO stage 3, 2 ranks, bfloat16",
        "about 3.0 GiB per rank",
        "runs/olmoe",
    ):
        assert fact in text
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in text.splitlines()}
    assert len(starts) == 1


def test_banner_without_estimate_or_layers() -> None:
    text = _banner(world_size=1).render()
    assert "no estimate" in text and "1 rank," in text
    assert "layers 0, 2-3, 5" in _banner(layers=(5, 3, 2, 0)).render()


def test_log_lines_align_and_show_every_term() -> None:
    lines = [
        log_line(RECORD, 1200),
        log_line(
            {**RECORD, "step": 1200, "loss": 12.5, "tokens_per_second": 9.0, "manifold_loss": None}, 1200
        ),
        log_line({"step": 3, "epoch": 2.0}, 1200),
    ]
    assert len({len(line) for line in lines}) == 1
    assert "step   20/1200" in lines[0] and "71.0%" in lines[0] and "12,346" in lines[0]
    assert "–" in lines[1]
    assert log_line({"step": 7}).startswith("step      7")


def test_summary_orders_variants_and_gives_differences() -> None:
    def entry(accuracy: float) -> dict[str, object]:
        task = {"n": 200, "accuracy": accuracy, "stderr": 0.03, "majority_baseline": 0.25}
        return {"tasks": {"arc_easy": task}, "average": accuracy}

    table = summary_table(
        {"roma": entry(0.78), "base": entry(0.75), "oracle": entry(0.9), "random_neighbours": {}}
    )
    lines = table.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "base",
        "RoMA",
        "oracle (uses test labels)",
        "(majority answer)",
    ]
    assert "+3.0" in lines[3] and "78.0 ±3.0" in lines[3] and "25.0" in lines[-1]
    many = {"base": {"tasks": {f"t{n}": {"accuracy": 0.5} for n in range(9)}, "average": 0.5}}
    assert "t0" not in summary_table(many) and "50.0" in summary_table(many)


def test_next_commands_quote_the_folder() -> None:
    text = next_commands(Path("my runs/demo"))
    assert "my runs/demo/report/report.html" in text
    assert "tensorboard --logdir 'my runs/demo'" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.points(0.018), "+1.8"),
        (wording.points(-0.0004), "0.0"),
        (wording.points(-0.02), "−2.0"),
        (wording.points(None), "–"),
        (wording.p_value(0.0004), "< 0.001"),
        (wording.p_value(0.0321), "0.032"),
        (wording.p_value(0.5), "0.50"),
        (wording.byte_size(512), "512 B"),
        (wording.byte_size(5 * 2**40), "5.0 TiB"),
        (wording.duration(4.21), "4.2 s"),
        (wording.duration(59.7), "1 min 00 s"),
        (wording.duration(7290), "2 h 01 min"),
        (wording.count(None), "–"),
        (wording.variant_title("lora_r8"), "lora r8"),
    ],
)
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected
