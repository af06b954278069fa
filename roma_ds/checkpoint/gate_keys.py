"""Which stored tensors are the routers' weights, in checkpoints whose keys are not those of the family."""

from __future__ import annotations

import re
from dataclasses import replace

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.families import MoELayout


def stored_layout(layout: MoELayout, files: CheckpointFiles) -> MoELayout:
    """`layout` with the gate keys of the files, where these have others than the family says.

    Those of a text part lie under the name that it has in its checkpoint. Taken is only what is called alike
    in all layers and has the layer's own number, so that a wrong rule of renaming shows in `check_loaded`.
    """
    if all(layout.gate_key(layer) in files.keys for layer in layout.layers):
        return layout
    weights = {f"{site.product}.weight": site.layer for site in layout.sites}
    found = {key: weights.get(files.conversion.name_of(key)) for key in files.keys}
    stored = {layer: key for key, layer in found.items() if layer is not None}
    patterns = {re.sub(rf"\.{layer}\.", ".{layer}.", key, count=1) for layer, key in stored.items()}
    if len(patterns) != 1 or stored.keys() != set(layout.layers):
        return layout
    (pattern,) = patterns
    if any(pattern.format(layer=layer) != key for layer, key in stored.items()):
        return layout
    return replace(layout, family=replace(layout.family, gate_key=pattern))
