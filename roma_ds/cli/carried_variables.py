"""Environment variables that ranks on other hosts get, beside those that the deepspeed launcher carries."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from roma_ds.cli.text_file import lines_of
from roma_ds.errors import UserError
from roma_ds.storage import CARRIED_DEVICES, TYPED

NAMES = (
    "PATH",
    "PYTHONPATH",
    "DS_ACCELERATOR",
    "TORCH_EXTENSIONS_DIR",
    "GLIBC_TUNABLES",
    "OMP_NUM_THREADS",
    "GLOO_SOCKET_IFNAME",
    # Rank 0 may ask Slurm to queue the job again; a lock knows its job.
    "SLURM_JOB_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_RESTART_COUNT",
    "SLURM_CONF",
    TYPED,
    CARRIED_DEVICES,
)
STARTS = ("NCCL_", "HF_")
ENV_FILE = "DS_ENV_FILE"
"""Variable with the name or path of the file that the deepspeed launcher reads."""
USER_FILE = ".deepspeed_env"
_READ_BY_SHELL, _ESCAPED = re.compile(r'([$`"\\])'), r"\\\1"
_PLAIN = re.compile(r"[\w@%+=:,./-]*")


def carried(environment: Mapping[str, str], folders: Sequence[Path] | None = None) -> dict[str, str]:
    """Values by name: those of this process, then the lines of the user's .deepspeed_env, which win.

    folders: where such a file is looked for (default: home, then here; the later wins). Raises UserError on
    a line that is not NAME=VALUE.
    """
    found = {name: environment[name] for name in NAMES if name in environment}
    found |= {name: value for name, value in environment.items() if name.startswith(STARTS)}
    for folder in folders if folders is not None else (Path.home(), Path()):
        path = folder / environment.get(ENV_FILE, USER_FILE)
        if not path.is_file():
            continue
        for number, line in enumerate(lines_of(path), 1):
            name, equals, value = line.partition("=")
            if line.strip() and not line.startswith("#"):
                if not equals:
                    raise UserError(f"{path}:{number}: {line!r} is not NAME=VALUE", "one variable a line")
                found[name.strip()] = value.strip()
    return found


def left_out(variables: Mapping[str, str], through_shell: bool) -> list[str]:
    """Names of those that `write_env_file` cannot write."""
    return [
        name
        for name, value in variables.items()
        if "\n" in value or not (through_shell or _PLAIN.fullmatch(value))
    ]


def warning_of(kind: str, names: Sequence[str]) -> str | None:
    """What a user is told of variables left out with the launcher `kind`; None where that is nothing.

    Some of these launchers pass on the environment by other ways; deepspeed, for its part, passes some names
    with quotes around the value.
    """
    told = [name for name in names if name != TYPED]
    if not told:
        return None
    return (
        f"roma-ds: warning: with --launcher {kind} other hosts may not get {', '.join(told)} as set here, "
        "for special characters in the value; --launcher mpirun carries them"
    )


def write_env_file(variables: Mapping[str, str], through_shell: bool) -> Path:
    """A file for DS_ENV_FILE, to be deleted by the caller.

    through_shell: the launcher's line goes through a shell on the other host, which takes off the quotes that
    the launcher puts around values with special characters. Without one the quotes would stay, so such values
    are left out.
    """
    absent = left_out(variables, through_shell)
    lines = []
    for name, value in variables.items():
        if name not in absent:
            plain = _PLAIN.fullmatch(value)
            lines.append(f"{name}={value if plain else _READ_BY_SHELL.sub(_ESCAPED, value)}\n")
    handle, path = tempfile.mkstemp(prefix="roma_ds_env_")
    with os.fdopen(handle, "w") as file:
        file.writelines(lines)
    return Path(path)
