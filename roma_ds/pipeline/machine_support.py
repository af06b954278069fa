"""What a run and its DeepSpeed config need of the machine, looked at before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from roma_ds.errors import EnvironmentFault
from roma_ds.monitor.services import check_services

LATE = {
    "sentence_transformers": "sentence-transformers",
    "tensorboard": "tensorboard",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "math_verify": "math-verify",
}
"""By module, packages of every installation that a later stage is the first to import."""


def check_machine(ds: Mapping[str, Any], writes: bool = True) -> None:
    """Raises EnvironmentFault where packages are missing, or this machine cannot do what a resolved DeepSpeed
    config asks for.

    writes: whether its monitors are written from here, as they are by rank 0 of a run.
    """
    missing = [name for module, name in LATE.items() if find_spec(module) is None]
    if missing:
        raise EnvironmentFault(
            f"not installed, and needed by a later stage: {', '.join(missing)}",
            f"pip install {' '.join(missing)}",
        )
    if writes:
        check_services(ds)
    offload = ds.get("zero_optimization", {}).get("offload_param") or {}
    if offload.get("device") == "nvme" and not has_async_io():
        raise EnvironmentFault(
            "zero_optimization.offload_param.device is nvme, but DeepSpeed's asynchronous reads and writes "
            "need the library libaio with its headers, which are not on this machine",
            "install libaio-dev (Debian, Ubuntu) or libaio-devel (Red Hat), or offload to cpu: "
            "deepspeed=zero3_offload_cpu",
        )


def has_async_io() -> bool:
    """Whether DeepSpeed can build and use its asynchronous input and output: it links a small program."""
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    return builder is not None and bool(builder.is_compatible(verbose=False))
