"""Packed rows -> batches, by position.

The order of rows is a function of (seed, position) alone: an endless stream, each epoch a new
permutation. A checkpoint needs to keep one integer, and neither batch size nor number of processes
changes which row is the n-th.
"""

import math
from typing import Any

import grain
import numpy as np

from ra3_jax.data.packing import take_rows
from ra3_jax.data.trace import PackedRows


def epoch_order(n: int, seed: int) -> Any:
    """The endless order of n things (a grain MapDataset: `order[position]`), a new permutation every epoch."""
    # grain shuffles epoch e with seed + e: unmixed, epoch 1 of seed 0 is epoch 0 of seed 1
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(n).shuffle(seed=mixed).repeat()


class RowStream:
    """An endless shuffled stream of rows.

    `batch_size` is global, in rows; process k of n gets the k-th of n equal slices of each batch.
    """

    def __init__(
        self,
        rows: PackedRows,
        batch_size: int,
        seed: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if not len(rows):
            raise ValueError("there is no row to make batches of")
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size={batch_size} is not a positive multiple of the number of processes, {process_count}"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index={process_index} is not one of {process_count}")
        self.rows = rows
        self.batch_size = batch_size
        self.process_index = process_index
        self.process_count = process_count
        self._order = epoch_order(len(rows), seed)

    def indices(self, position: int) -> np.ndarray:
        """Row numbers [B / processes] of this process in the batch that starts at `position`."""
        if position < 0:
            raise ValueError(f"position={position} is negative")
        n = self.batch_size // self.process_count
        start = position + self.process_index * n
        return np.asarray([self._order[i] for i in range(start, start + n)], np.int64)

    def batch(self, position: int) -> PackedRows:
        """This process's slice of the batch that starts at row `position` of the stream.

        `position` is what was consumed before, in rows over all processes: 0, batch_size,
        2 * batch_size, ... A batch may lie across the end of an epoch.
        """
        return take_rows(self.rows, self.indices(position))

    def n_steps(self, epochs: float) -> int:
        """Batches that cover `epochs` passes over the rows; the last may run into the next."""
        return math.ceil(epochs * len(self.rows) / self.batch_size)
