"""Modules whose parts are run or not, or several times, by what tokens there are.

Under ZeRO-3 the ranks gather weights together, module after module, in the order in which they run. Each of
these is one module there, with all its weights: else ranks with other tokens would wait for each other.
Found by running every Mixture-of-Experts type of transformers 5.23 on texts of many lengths.
"""

from __future__ import annotations

from typing import Any

CLASSES = {
    "DbrxExperts": "runs a module for each expert that is chosen",
    "DeepseekV4CSACompressor": "norms what it has made of some tokens at a time, once there are as many",
    "DeepseekV4HCACompressor": "norms what it has made of some tokens at a time, once there are as many",
    "Qwen4ExpTextQSAIndexer": "norms keys block by block",
}
"""Class names, each with the reason."""


def gather_whole(network: Any) -> None:
    """Mark these modules of a network for DeepSpeed, before it takes the network."""
    from deepspeed.utils import set_z3_leaf_module

    for module in network.modules():
        if type(module).__name__ in CLASSES:
            set_z3_leaf_module(module, True)
