"""The valid project of which each mutation changes a copy."""

from __future__ import annotations

import json
import random
from pathlib import Path

import mutated_configs
import mutated_launches
import mutated_models
import mutated_routers
from asked import ask

RUN = """\
model: {path: model, dtype: float32}
data: {train: [{path: train.jsonl}], max_tokens: 160}
embed: {model: demo}
roma: {layers: last2}
train: {epochs: 2, micro_batch: 8, lr: 1.0e-2}
eval: {tasks: [{name: words, path: test.jsonl}]}
controls: []
deepspeed: ds.json
output_dir: out
"""


def make_base(folder: Path) -> Path:
    """A valid project: config, DeepSpeed JSON, rows, model, further model configs, router file, hostfile."""
    from safetensors.numpy import load_file, save_file

    from roma_ds.config.packaged import deepspeed_file
    from roma_ds.testing.tiny_models import save_tiny, tiny_config

    save_tiny(folder / "model", "olmoe", shard_size="200KB")
    for family in mutated_models.FAMILIES[1:]:
        tiny_config(family, 192).save_pretrained(folder / "configs" / family)
    routers = {
        key: value + 0.5
        for shard in sorted((folder / "model").glob("*.safetensors"))
        for key, value in load_file(shard).items()
        if key.endswith(("2.mlp.gate.weight", "3.mlp.gate.weight"))
    }
    save_file(routers, folder / mutated_routers.ROUTER, metadata={"format": "pt", "method": "roma"})
    rng = random.Random(0)
    for name, first, count in (("train", 0, 24), ("test", 1000, 12)):
        rows = [
            {
                "id": f"r{first + place}",
                "question": " ".join(f"w{rng.randrange(60)}" for _ in range(rng.randrange(6, 12))),
                "choices": [f"w{60 + number}" for number in rng.sample(range(50), 4)],
                "answer": rng.randrange(4),
            }
            for place in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / mutated_configs.CONFIG).write_text(RUN)
    (folder / mutated_launches.DS).write_bytes(deepspeed_file("zero3").read_bytes())
    (folder / mutated_launches.SLOTS).write_text("worker-0 slots=4\nworker-1 slots=4\n")
    ended = ask(["data", str(folder / mutated_configs.CONFIG)], None)
    if ended.code:
        raise SystemExit(f"the project without any change is refused\n{ended.said}")
    return folder
