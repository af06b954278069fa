"""`lm_eval` with the model `roma_ds`: python -m roma_ds.evaluation.harness run --model roma_ds ..."""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

import roma_ds.evaluation.harness  # noqa: F401  registers the model

if __name__ == "__main__":
    cli_evaluate()
