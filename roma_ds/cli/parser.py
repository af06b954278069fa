"""The arguments of `roma-ds`; importing this loads nothing heavy."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from roma_ds import __version__

STAGES = ("data", "embed", "collect", "index", "train", "eval", "export", "report")
_STAGE_HELP = {
    "data": "read, check and render training and evaluation data",
    "embed": "embed the questions by the text-embedding model",
    "collect": "run the pretrained model: routing weights and outcomes",
    "index": "find each sample's successful neighbours",
    "train": "train the routers, and the controls",
    "eval": "measure the base model and every variant",
    "export": "write the router file and its card for publication",
    "report": "write report.json, report.html and the pictures",
}
CHECKS = (
    "DeepSpeed",
    "machine",
    "model",
    "weights",
    "prompts",
    "training data",
    "evaluation data",
    "encoder",
    "index",
    "tokens",
    "evaluation tokens",
    "memory",
)
"""What `check` looks at, in this order."""
LISTS = ("configs", "studies", "variants", "families", "tasks", "runs")


_LAUNCHER_FLAGS = (
    "Flags for the deepspeed launcher go after `--`: --hostfile FILE, --no_ssh, --launcher openmpi, more; "
    "--launcher mpirun does without the deepspeed launcher."
)
_OVERRIDE = re.compile(r"[A-Za-z_][\w.\[\]]*=")


class _Parser(argparse.ArgumentParser):
    """Takes `a.b=c` anywhere, also after options, which argparse alone refuses."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; overrides among the unrecognised arguments are kept."""
        options, extra = self.parse_known_args(args, namespace)
        unknown = [word for word in extra if not _OVERRIDE.match(word) or not hasattr(options, "overrides")]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        if extra:
            options.overrides = [*options.overrides, *extra]
        return options


class _Command(argparse.ArgumentParser):
    """Options must be spelled out: a new one could change what an abbreviation means."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, "allow_abbrev": False})


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="the run's config")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values in place of the config's")
    parser.add_argument(
        "--ranks",
        type=int,
        default=None,
        metavar="N",
        help="ranks on each host (default: one a device, or the slots of a hostfile)",
    )
    parser.add_argument(
        "--ds",
        "--deepspeed_config",
        dest="ds",
        metavar="FILE",
        help="DeepSpeed JSON in place of the config's",
    )


def _add_init(commands: Any) -> None:
    init = commands.add_parser(
        "init", help="print a packaged, commented config, or one made from data of your own"
    )
    init.add_argument(
        "name",
        metavar="NAME",
        help="one that `roma-ds ls configs` or `ls studies` lists; with --data the model, a folder or hub id",
    )
    init.add_argument("overrides", nargs="*", metavar="a.b=c", help="with --data: values in place of its own")
    init.add_argument(
        "--data",
        action="append",
        metavar="FILE",
        help="file, folder or pattern to train on; may be given several times",
    )
    init.add_argument("--test", action="append", metavar="FILE", help="the same to evaluate on")


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="what a model will need: memory, traffic, disk, time; no weights")
    plan.add_argument("model", metavar="MODEL", help="config.json, its folder, a hub id or a packaged name")
    plan.add_argument("--world-size", type=int, default=8, metavar="N", help="ranks, one a device (8)")
    plan.add_argument("--device-memory", default="80GiB", metavar="SIZE", help="of one device (80GiB)")
    plan.add_argument("--layers", default="last5", help="as roma.layers (last5); numbers as 11,12")
    plan.add_argument(
        "--tokens", type=int, default=7_350_000, metavar="N", help="of all training samples (7350000)"
    )
    plan.add_argument("--length", type=int, default=150, metavar="N", help="tokens of one sample (150)")
    plan.add_argument("--micro-batch", type=int, default=8, metavar="N", help="samples a rank and pass (8)")
    plan.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")
    plan.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what the ranks run on")
    plan.add_argument(
        "--activation-memory", default="4GiB", metavar="SIZE", help="as collect.activation_memory (4GiB)"
    )
    plan.add_argument(
        "--matrix-rate", metavar="RATE", help="operations a second of a rank, or `measure` to time some here"
    )
    plan.add_argument("--link-rate", metavar="RATE", help="bytes a second that a rank gathers")
    plan.add_argument("--disk-rate", metavar="RATE", help="bytes a second from the checkpoint's disk")
    plan.add_argument("--json", action="store_true", help="as JSON")


def _add_router_arguments(command: argparse.ArgumentParser, stage: str) -> None:
    """What `eval` and `export` take of router files trained elsewhere, or published."""
    if stage == "eval":
        command.add_argument(
            "--router", metavar="ROUTER", help="this router file alone, or hub:OWNER/NAME; nothing is trained"
        )
    if stage == "export":
        command.add_argument(
            "--push", metavar="OWNER/NAME", help="upload router file and card to that repository on the hub"
        )
        command.add_argument("--public", action="store_true", help="with --push: for everybody to read")
        command.add_argument(
            "--dry-run", action="store_true", help="with --push: show what would be uploaded, and the card"
        )


def _add_merge(commands: Any) -> None:
    merge = commands.add_parser(
        "merge", help="base checkpoint or GGUF file with the routers of a router file"
    )
    merge.add_argument(
        "model", metavar="MODEL", help="folder of the base checkpoint, a .gguf file of it, or `demo`"
    )
    merge.add_argument("router", metavar="ROUTER", help="router.safetensors, or hub:OWNER/NAME")
    merge.add_argument(
        "--out", type=Path, required=True, help="new folder for the merged checkpoint, or new .gguf file"
    )
    merge.add_argument(
        "--gate-dtype",
        choices=("stored", "float32"),
        help="type of the merged routers: float32 (the default, but for routers that are in codes), or as "
        "the base has them, bfloat16 for codes (a .gguf file always keeps its own; float32 refuses one "
        "that rounds)",
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="roma-ds",
        allow_abbrev=False,
        description="Router-only training of Mixture-of-Experts models by Routing Manifold Alignment (RoMA).",
    )
    parser.add_argument("--version", action="version", version=f"roma-ds {__version__}")
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="COMMAND",
        parser_class=_Command,
    )

    demo = commands.add_parser("demo", help="the whole pipeline on the packaged tiny model, offline")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all files (runs/demo)")
    demo.add_argument("--ranks", type=int, metavar="N", help="ranks (2, or 1 where one device is visible)")
    demo.add_argument("--zero-stage", type=int, choices=range(4), default=3, help="ZeRO stage (3)")
    demo.add_argument("--seed", type=int, default=0, help="seed of data and training (0)")
    demo.add_argument("overrides", nargs="*", metavar="a.b=c", help="values in place of the demo config's")

    _add_init(commands)

    listing = commands.add_parser("ls", help="list what there is")
    listing.add_argument("what", choices=LISTS)
    listing.add_argument("--under", type=Path, metavar="DIR", help="where `ls runs` looks (runs)")

    check = commands.add_parser(
        "check", help=f"look at {', '.join(CHECKS)}; loads no weights and needs no GPU"
    )
    _add_run_arguments(check)
    check.add_argument(
        "--world-size",
        type=int,
        default=None,
        metavar="N",
        help="ranks that the run will have, on all hosts together (--ranks, or 1)",
    )

    _add_plan(commands)

    run = commands.add_parser("run", help="all stages")
    run.epilog = _LAUNCHER_FLAGS
    _add_run_arguments(run)
    for stage in STAGES:
        command = commands.add_parser(stage, help=_STAGE_HELP[stage])
        _add_run_arguments(command)
        if stage in ("train", "eval"):
            command.add_argument("--variant", metavar="NAME", help="this variant alone")
        _add_router_arguments(command, stage)
        command.epilog = _LAUNCHER_FLAGS
        if stage == "report":
            command.epilog = (
                f"With folders of runs in place of a config: one table of all of them. {_LAUNCHER_FLAGS}"
            )

    study = commands.add_parser(
        "study", help="variants, seeds and settings over one set of caches; one table"
    )
    study.add_argument("config", type=Path, metavar="STUDY.yaml", help="the study's config")
    study.add_argument("overrides", nargs="*", metavar="a.b=c", help="values in place of the study's")
    study.add_argument(
        "--ranks", type=int, default=None, metavar="N", help="ranks on this host (default: one a device)"
    )

    _add_merge(commands)

    doctor = commands.add_parser("doctor", help="what this machine has and lacks")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    return parser


def split_launcher_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments before `--`, and the launcher flags after it."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]
