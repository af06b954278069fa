"""What the frozen pass finds for each sequence, as arrays: small to keep, to send and to put in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from roma_ds.errors import UserError
from roma_ds.storage.atomic import writing

Record = tuple[int, int, float, bool, float, NDArray[np.float32] | None, NDArray[np.float16]]
"""(row, option, loglikelihood, greedy, margin, options, routing) of one sequence."""

# Of each field: its type and its number of dimensions.
COLUMNS = {
    "row": (np.dtype(np.int64), 1),
    "option": (np.dtype(np.int64), 1),
    "loglikelihood": (np.dtype(np.float32), 1),
    "greedy": (np.dtype(np.bool_), 1),
    "margin": (np.dtype(np.float32), 1),
    "options": (np.dtype(np.float32), 1),
    "option_counts": (np.dtype(np.int64), 1),
    "routing": (np.dtype(np.float16), 3),
}


@dataclass(frozen=True)
class Found:
    """Results of n sequences, in any order. Raises ValueError where types or lengths do not fit together."""

    row: NDArray[np.int64]
    """[n], number of the sequence's prompt"""
    option: NDArray[np.int64]
    """[n], number of the option that was scored; -1 where the sequence scores the target or all options"""
    loglikelihood: NDArray[np.float32]
    """[n], sum of the continuation's token log-probabilities in nats"""
    greedy: NDArray[np.bool_]
    """[n], greedy decoding yields the continuation"""
    margin: NDArray[np.float32]
    """[n], least lead of a continuation token over the best other token, in nats"""
    options: NDArray[np.float32]
    """[sum of option_counts], the options' log-likelihoods of one sequence after the other"""
    option_counts: NDArray[np.int64]
    """[n], how many of `options` a sequence has; 0 where it does not score all options at once"""
    routing: NDArray[np.float16]
    """[n, MoE layers, experts]"""

    def __post_init__(self) -> None:
        for name, (dtype, dimensions) in COLUMNS.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.ndim != dimensions:
                raise ValueError(
                    f"{name} is {column.dtype} with {column.ndim} dimensions, not {dtype} with {dimensions}"
                )
            if name != "options" and len(column) != len(self.row):
                raise ValueError(f"{name} has {len(column)} entries, row has {len(self.row)}")
        if (self.option_counts < 0).any() or self.option_counts.sum() != len(self.options):
            raise ValueError("option_counts do not add up to the length of options")

    def __len__(self) -> int:
        return len(self.row)

    @staticmethod
    def from_records(records: Iterable[Record], layers: int, experts: int) -> Found:
        """From one tuple a sequence, each with routing [layers, experts].

        The shape is asked for because no records are records too.
        """
        listed = list(records)
        options = [np.zeros(0, np.float32) if record[5] is None else record[5] for record in listed]
        routing = np.empty((len(listed), layers, experts), np.float16)
        for place, record in enumerate(listed):
            if record[6].shape != (layers, experts):
                raise ValueError(f"routing has shape {record[6].shape}, not {(layers, experts)}")
            routing[place] = record[6]
        return Found(
            row=np.array([record[0] for record in listed], np.int64),
            option=np.array([record[1] for record in listed], np.int64),
            loglikelihood=np.array([record[2] for record in listed], np.float32),
            greedy=np.array([record[3] for record in listed], np.bool_),
            margin=np.array([record[4] for record in listed], np.float32),
            options=np.concatenate([np.zeros(0, np.float32), *options]).astype(np.float32),
            option_counts=np.array([len(values) for values in options], np.int64),
            routing=routing,
        )

    def records(self) -> Iterator[Record]:
        """One tuple a sequence, as `Scores.assemble` takes them; its arrays are views of these."""
        ends = np.cumsum(self.option_counts)
        for place in range(len(self)):
            count, end = int(self.option_counts[place]), int(ends[place])
            yield (
                int(self.row[place]),
                int(self.option[place]),
                float(self.loglikelihood[place]),
                bool(self.greedy[place]),
                float(self.margin[place]),
                self.options[end - count : end] if count else None,
                self.routing[place],
            )

    @staticmethod
    def concatenate(parts: Sequence[Found]) -> Found:
        """The sequences of all parts, in their order; at least one part."""
        return Found(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; the same results give the same bytes.

        Raises OSError where the disk does not take it.
        """
        # safetensors writes the memory as it lies.
        columns = {name: np.ascontiguousarray(getattr(self, name)) for name in COLUMNS}
        with writing(path) as temporary:
            try:
                save_file(columns, temporary)
            except SafetensorError as error:
                raise OSError(f"cannot write {path}: {error}") from error

    @staticmethod
    def load(path: Path) -> Found:
        """What `save` wrote. Raises UserError where the file is absent, damaged or of another kind."""
        try:
            columns: dict[str, Any] = load_file(path)
            return Found(**columns)
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist", "run the stage that makes it") from error
        except (SafetensorError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged: {error}", "delete it and rerun") from error
