"""`roma-ds merge`: a router file into the checkpoint, or GGUF file, of its base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from roma_ds.errors import UserError

if TYPE_CHECKING:
    from roma_ds.export.merge import GateDtype


def merge_router(options: argparse.Namespace) -> int:
    """Merge, and say what was done."""
    from roma_ds.storage.published_router import local_router

    base = Path(options.model)
    if options.model.startswith("hub:"):
        raise UserError(
            f"MODEL is {options.model}, a base model is merged from its files",
            "download it first, as `hf download OWNER/NAME --local-dir FOLDER` does, and give that folder",
        )
    router = local_router(options.router)
    if base.suffix.lower() == ".gguf":
        return _into_gguf(base, router, options.out, options.gate_dtype)
    return _into_checkpoint(base, router, options.out, options.gate_dtype)


def _into_checkpoint(base: Path, router: Path, out: Path, gate_dtype: GateDtype | None) -> int:
    from roma_ds.checkpoint.loading import PACKAGED
    from roma_ds.export.merge import merge

    facts = merge(PACKAGED if str(base) == "demo" else base, router, out, gate_dtype)
    _say(
        f"merged {facts['routers']} routers into {out}; {facts['tensors']} tensors verified, "
        f"{facts['shards_rewritten']} files rewritten"
    )
    if facts["copies"]:
        _say(f"the same routers were put into the second copy of the weights: {', '.join(facts['copies'])}")
    if facts["linked"]:
        _say(
            f"{facts['linked']} unchanged weight files are hard links to those of the base, which "
            "must not be changed in place; all other files are copies"
        )
    return 0


def _into_gguf(base: Path, router: Path, out: Path, gate_dtype: str | None) -> int:
    from roma_ds.export.merge_gguf import merge_gguf
    from roma_ds.families.llama_cpp import routing_line

    facts = merge_gguf(base, router, out, exact=gate_dtype == "float32")
    files = facts["files"]
    rest = f" and {len(files) - 1} further parts" if len(files) > 1 else ""
    _say(
        f"merged {facts['routers']} routers into {files[0]}{rest}; {facts['tensors']} tensors verified, all "
        "others byte for byte those of the base"
    )
    if facts["kind"] != "F32":
        _say(f"the file has its gates in {facts['kind']}, to which the router file's float32 was rounded")
    if facts["compared"] is not None:
        _say(f"shapes and layers alone were compared with the base, not its gates: {facts['compared']}")
    _say(routing_line(facts["architecture"]))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
