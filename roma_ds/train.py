"""What the deepspeed launcher starts: `--module roma_ds.train --config RUN.yaml`, or this file."""

import sys
from pathlib import Path

# As a script, Python puts this folder first on the path, where `data` or `index` would hide other packages.
_here = str(Path(__file__).resolve().parent)
sys.path[:] = [entry for entry in sys.path if entry != _here]

from roma_ds.pipeline.worker import main_and_exit  # noqa: E402

if __name__ == "__main__":
    main_and_exit()
