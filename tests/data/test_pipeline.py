"""The order of rows depends on seed and position alone."""

import numpy as np
import pytest

from ra3_jax.data.pipeline import RowStream
from ra3_jax.data.trace import PackedRows

N_ROWS = 23


def make_rows(n_rows: int = N_ROWS) -> PackedRows:
    """Rows whose first token is their number."""
    numbers = np.arange(n_rows * 4, dtype=np.int32).reshape(n_rows, 4)
    numbers[:, 0] = np.arange(n_rows)
    ones = np.ones((n_rows, 4), np.int32)
    return PackedRows(numbers, ones, numbers + 1, ones.astype(np.int8), ones, numbers + 2)


def stream(batch_size: int, seed: int = 0, **settings) -> RowStream:
    return RowStream(make_rows(), batch_size, seed, **settings)


def numbers(rows: RowStream, n_batches: int, start: int = 0) -> np.ndarray:
    batches = [rows.batch(start + i * rows.batch_size) for i in range(n_batches)]
    return np.concatenate([batch.tokens_RT[:, 0] for batch in batches])


def test_batches_are_whole_rows():
    rows = make_rows()
    batch = stream(6).batch(12)
    which = batch.tokens_RT[:, 0]
    assert batch.tokens_RT.shape == (6, 4) and batch.kinds_RT.dtype == np.int8
    np.testing.assert_array_equal(batch.tokens_RT, rows.tokens_RT[which])
    np.testing.assert_array_equal(batch.positions_RT, rows.positions_RT[which])
    np.testing.assert_array_equal(batch.example_RT, rows.example_RT[which])


def test_each_epoch_is_a_new_permutation_and_batches_may_cross_its_end():
    order = numbers(stream(5), 14)[: 3 * N_ROWS].reshape(3, N_ROWS)
    for epoch in order:
        assert sorted(epoch) == list(range(N_ROWS))
    assert len({tuple(epoch) for epoch in order}) == 3
    assert list(order[0]) != list(range(N_ROWS))


def test_resumes_from_a_position():
    whole = numbers(stream(4), 20)
    fresh = stream(4)
    np.testing.assert_array_equal(numbers(fresh, 9, start=44), whole[44:80])


def test_batch_size_does_not_change_the_order():
    np.testing.assert_array_equal(numbers(stream(4), 30), numbers(stream(12), 10))
    # also when it changes on the way
    both = np.concatenate([numbers(stream(4), 3), numbers(stream(12), 9, start=12)])
    np.testing.assert_array_equal(both, numbers(stream(120), 1))


@pytest.mark.parametrize("n_processes", [2, 3, 4])
def test_processes_share_each_batch(n_processes):
    whole = stream(12)
    parts = [stream(12, process_index=k, process_count=n_processes) for k in range(n_processes)]
    for position in (0, 12, 36):
        slices = [part.batch(position).tokens_RT for part in parts]
        assert all(len(s) == 12 // n_processes for s in slices)
        np.testing.assert_array_equal(np.concatenate(slices), whole.batch(position).tokens_RT)


def test_seeds_give_unrelated_orders():
    orders = [tuple(numbers(stream(N_ROWS, seed), 4)) for seed in (0, 1, 2, -5 % 2**40)]
    epochs = {order[i * N_ROWS : (i + 1) * N_ROWS] for order in orders for i in range(4)}
    assert len(epochs) == 16  # no epoch of a seed is an epoch of its neighbour
    assert tuple(numbers(stream(N_ROWS, 1), 4)) == orders[1]


def test_every_row_comes_first_about_equally_often():
    first = [int(stream(1, seed).indices(0)[0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=N_ROWS)
    expected = 2000 / N_ROWS
    assert ((counts - expected) ** 2 / expected).sum() < 54  # chi-squared(22), p = 0.0002


def test_n_steps_covers_the_epochs():
    assert stream(5).n_steps(1) == 5 and stream(5).n_steps(3) == 14
    assert stream(23).n_steps(2) == 2 and stream(5).n_steps(0.5) == 3
    covered = numbers(stream(5), stream(5).n_steps(2))[: 2 * N_ROWS]
    assert (np.bincount(covered) == 2).all()


def test_refusals():
    with pytest.raises(ValueError, match="batch_size=10 is not a positive multiple"):
        stream(10, process_count=4)
    with pytest.raises(ValueError, match="process_index=4"):
        stream(8, process_index=4, process_count=4)
    with pytest.raises(ValueError, match="no row"):
        RowStream(make_rows(0), 4, 0)
    with pytest.raises(ValueError, match="position=-4"):
        stream(4).batch(-4)
