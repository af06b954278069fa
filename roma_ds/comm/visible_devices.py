"""The devices that variables such as CUDA_VISIBLE_DEVICES choose, where a command is typed and in its ranks.

Names come from deepspeed's accelerator. Its launcher writes numbers of its own into the variable in every
rank, from 0, or those of --include in rising order, and knows no ids (deepspeed's launcher/launch.py).
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.storage import CARRIED_DEVICES

BESIDE = {"cuda": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "hpu": ("HABANA_VISIBLE_MODULES",)}
"""By accelerator, those that choose as well, of which deepspeed says and writes nothing; the first counts."""
NONE_LEFT = ("", "-1", "NoDevFiles")
"""Values that leave no device; the last is Slurm's."""
_ID = re.compile(r"(GPU|MIG)-[\w./-]+|\d+(\.\d+)*", re.ASCII)


@dataclass(frozen=True)
class Devices:
    """What the ranks of this host may take."""

    kind: str
    """Deepspeed's name of the accelerator."""
    count: int
    """Devices that deepspeed's accelerator sees."""
    written: str
    """The variable that the launcher writes into every rank."""
    variable: str = ""
    """The one that chooses here; it may be another than `written`."""
    chosen: tuple[str, ...] | None = None
    """Its entries: numbers or ids. None where nothing is chosen."""
    value: str | None = None
    """Of `written`, as it is set here."""

    @property
    def on_cpu(self) -> bool:
        """Ranks on CPU take no device, so that there is room for any number of them."""
        return self.kind == "cpu"

    @property
    def words(self) -> str:
        """How a message names the choice."""
        return f"{self.variable}={','.join(self.chosen or ())}"


def accelerator() -> Any:
    """Deepspeed's. Raises EnvironmentFault where the one that DS_ACCELERATOR names cannot be had."""
    # Without any device it says so, which is no news here.
    logging.disable(logging.WARNING)
    try:
        from deepspeed.accelerator import get_accelerator

        return get_accelerator()
    except (ValueError, ImportError, RuntimeError) as error:
        named = os.environ.get("DS_ACCELERATOR")
        raise EnvironmentFault(
            f"deepspeed finds no accelerator{f' by DS_ACCELERATOR={named}' if named else ''}: {error}",
            "unset DS_ACCELERATOR to let it look, or DS_ACCELERATOR=cpu",
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def find_devices(here: bool = True, environment: Mapping[str, str] = os.environ) -> Devices:
    """Ask deepspeed's accelerator.

    here: whether ranks run on this host. Raises UserError where variables contradict each other, or choose
    what is not there, and EnvironmentFault where there is no device.
    """
    asked = accelerator()
    kind: str = asked.device_name()
    written: str = asked.visible_devices_envs()[0]
    beside = BESIDE.get(kind, ()) if kind != "cuda" or _is_rocm() else ()
    value = environment.get(written)
    given = {name: environment[name] for name in (*beside, written) if name in environment}
    variable = next(iter(given), "")
    chosen = _entries(variable, given[variable]) if variable else None
    if kind == "cuda" and beside:
        _refuse_contradictions_of_rocm(given)
    count: int = asked.device_count()
    if not chosen and kind != "cpu" and count:
        chosen = None
    devices = Devices(kind, count, written, variable, chosen, value)
    return _there(devices, environment) if here else devices


def _is_rocm() -> bool:
    import torch

    return torch.version.hip is not None


def _refuse_contradictions_of_rocm(given: Mapping[str, str]) -> None:
    """HIP reads HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES, and counts what ROCR_VISIBLE_DEVICES leaves."""
    entries = {name: _entries(name, value) for name, value in given.items()}
    hip, rocr, cuda = (entries.get(f"{name}_VISIBLE_DEVICES") for name in ("HIP", "ROCR", "CUDA"))
    words = " and ".join(f"{name}={value}" for name, value in given.items())
    if hip is not None and cuda is not None and hip != cuda:
        raise UserError(f"{words} contradict each other", "set one of them")
    on_top = next((some for some in (hip, cuda) if some is not None), ())
    if rocr is not None and any(entry.isdigit() and int(entry) >= len(rocr) for entry in on_top):
        raise UserError(
            f"{words} contradict each other: the others count what ROCR_VISIBLE_DEVICES leaves, from 0",
            "set one of them",
        )


def _there(devices: Devices, environment: Mapping[str, str]) -> Devices:
    """Raises where ranks would find fewer devices than they are to take."""
    files = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if devices.on_cpu and not (devices.chosen and files and "DS_ACCELERATOR" not in environment):
        return devices
    if not devices.count and not devices.on_cpu:
        otherwise = devices.variable and f"unset {devices.variable}={devices.value or ''}, or "
        raise EnvironmentFault(
            f"no device is visible to deepspeed's {devices.kind} accelerator",
            f"{otherwise}DS_ACCELERATOR=cpu for ranks on CPU; `roma-ds doctor` looks at the machine",
        )
    chosen = devices.chosen or ()
    if chosen and chosen[0].startswith("MIG-") and devices.count:
        # Of several, CUDA shows a process the first alone.
        return devices
    count = files if devices.on_cpu else devices.count
    if devices.on_cpu or count < len(chosen):
        raise UserError(
            f"{devices.words} chooses devices that are not there: of {len(chosen)}, this machine has {count}",
            "`nvidia-smi -L`, or the like, lists them; numbers count from 0",
        )
    return devices


def _entries(name: str, value: str) -> tuple[str, ...]:
    """The devices that a variable's value lists, in its order; what follows -1 does not count."""
    words = [word.strip() for word in value.split(",")]
    if words[0] in NONE_LEFT and not any(words[1:]):
        return ()
    found = [word for word in itertools.takewhile(lambda word: word != "-1", words) if word]
    found = [str(int(word)) if word.isdecimal() and word.isascii() else word for word in found]
    wrong = next((word for word in found if not _ID.fullmatch(word)), None)
    if wrong is not None:
        raise UserError(
            f"{name}={value} is no list of devices: {wrong!r}", f"numbers or ids with commas, as {name}=2,3"
        )
    if len(set(found)) < len(found):
        raise UserError(f"{name}={value} names a device twice", "name each device once: a rank takes one")
    return tuple(found)


def adopt_visible_devices(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variable s that CARRIED_DEVICES holds; to be called before a device is touched.

    deepspeed's launcher writes numbers from 0, or those of --include in rising order, and knows no ids.
    """
    for word in filter(None, environment.get(CARRIED_DEVICES, "").split(":")):
        name, chosen, value = word.partition("=")
        if chosen:
            environment[name] = value
        else:
            environment.pop(name, None)
