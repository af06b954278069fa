"""One command of whichever version is on the path, and what it took: see earlier_version.py."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path


def resident(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> int:
    """Run `roma-ds COMMAND CONFIG --ranks 1` and print what was measured as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", help="of roma-ds")
    parser.add_argument("config", help="of a run")
    options = parser.parse_args()
    # Both versions import these sooner or later.
    import deepspeed  # noqa: F401
    import faiss  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import roma_ds
    from roma_ds.cli.main import main as roma_ds_main

    Path("/proc/self/clear_refs").write_text("5")
    before, started = resident("VmRSS"), time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        code = roma_ds_main([options.command, options.config, "--ranks", "1"])
    package = str(Path(roma_ds.__file__ or "").parent)
    found = {"memory": resident("VmHWM") - before, "processor": time.process_time() - started}
    print(json.dumps({**found, "package": package}))
    return code


if __name__ == "__main__":
    sys.exit(main())
