"""Random programs of calls of a transport, of which every rank can tell what must come back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.comm.transport import Transport

DTYPES = (
    "bool",
    "uint8",
    "int16",
    "float16",
    "float32",
    "int64",
    "float64",
    "complex128",
    ">i4",
    "S3",
    "<U2",
)
ROWS: tuple[tuple[int, ...], ...] = ((), (3,), (2, 5), (0,), (4, 0))


def same(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Whether dtype, shape and every element agree."""
    return found.dtype == wanted.dtype and found.shape == wanted.shape and bool((found == wanted).all())


def run_program(transport: Transport, seed: int) -> int:
    """Make the calls drawn from `seed` and check each answer; returns how many calls there were."""
    source = np.random.default_rng(seed)
    me, size = transport.rank, transport.size
    calls = int(source.integers(1, 8))
    for call in range(calls):
        kind = str(source.choice(["gather", "exchange", "reduce"]))
        dtype, row = str(source.choice(DTYPES)), ROWS[source.integers(len(ROWS))]
        # Half of the parts are empty; all ranks draw what all of them bring.
        counts = source.integers(0, 5, (size, size)) * source.integers(0, 2, (size, size))
        brought = [
            [source.integers(0, 100, (counts[a, b], *row)).astype(dtype) for b in range(size)]
            for a in range(size)
        ]
        if kind == "gather":
            found, wanted = transport.gather(brought[me][0]), [parts[0] for parts in brought]
        elif kind == "exchange":
            found, wanted = transport.exchange(brought[me]), [parts[me] for parts in brought]
        else:
            values = source.integers(-9, 9, (size, *row)).astype(source.choice(["int8", "float32", "int64"]))
            found = [transport.reduce(values[me], "sum"), transport.reduce(values[me], "min")]
            found.append(transport.reduce(values[me], "max"))
            wanted = [values.sum(axis=0, dtype=values.dtype), values.min(axis=0), values.max(axis=0)]
        if len(found) != len(wanted) or not all(map(same, found, wanted)):
            raise AssertionError(f"seed {seed}, call {call}, {kind} of {dtype} {row}: {found}, not {wanted}")
        for part in found:
            # A transport that kept a hold of what it gave out would send these zeros later.
            part[...] = np.zeros((), part.dtype)
    return calls
