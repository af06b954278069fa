"""Commands one after the other in one process: huggingface_hub reads where the hub is when it is imported.

Each line of the standard input is a list of variables to set (null: to unset) and of arguments; the last line
of the standard output lists exit code, output and error of each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from cli.projects import roma_ds_here

    finished = []
    for line in sys.stdin:
        variables, arguments = json.loads(line)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        done = roma_ds_here(arguments)
        finished.append([done.code, done.out, done.err])
    print(json.dumps(finished))
