import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core import masked

X = np.array([[1.0, 2.0, np.nan, 4.0], [np.inf, 5.0, 5.0, 9.0], [np.nan] * 4], np.float32)
MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [0] * 4], bool)


def rows(f):
    """f of the selected values of each row, NaN over none."""
    return np.array([f(x[m]) if m.any() else np.nan for x, m in zip(X, MASK, strict=True)])


def test_total_is_of_selected_values_only():
    total, weight = masked.total(X, MASK, axis=1)
    np.testing.assert_allclose(total, [7, 19, 0])
    np.testing.assert_allclose(weight, [3, 3, 0])
    total, weight = masked.total(X, 0.5 * MASK)
    assert (float(total), float(weight)) == (13.0, 3.0)


def test_row_statistics_against_numpy():
    np.testing.assert_allclose(masked.mean(X, MASK, 1), rows(np.mean), rtol=1e-6)
    np.testing.assert_allclose(masked.std(X, MASK, 1), rows(np.std), rtol=1e-6)
    np.testing.assert_allclose(masked.maximum(X, MASK, 1), [4, 9, -np.inf])
    unbiased = masked.std(X, MASK, 1, ddof=1, empty=-1.0)
    np.testing.assert_allclose(unbiased[:2], rows(lambda x: x.std(ddof=1))[:2], rtol=1e-6)
    assert unbiased[2] == -1.0
    assert float(masked.mean(X, MASK)) == pytest.approx(26 / 6)


def test_empty_selections_take_the_value_asked_for():
    nothing = np.zeros(3, bool)
    x = np.full(3, np.nan, np.float32)
    assert np.isnan(masked.mean(x, nothing))
    assert masked.mean(x, nothing, empty=0.0) == 0.0
    assert masked.std(x, nothing, empty=0.0) == 0.0
    assert masked.maximum(x, nothing, empty=-7.0) == -7.0
    one = np.array([True, False, False])
    assert masked.std(np.array([3.0, np.nan, np.nan]), one, ddof=1, empty=2.0) == 2.0
    assert masked.std(np.array([3.0, np.nan, np.nan]), one) == 0.0


@pytest.mark.parametrize("reduce", [masked.mean, masked.std, masked.maximum])
def test_gradients_ignore_what_is_masked(reduce):
    def loss(x):
        return reduce(jnp.log(x), MASK, 1, empty=0.0).sum()

    x = jnp.where(MASK, 2.0 + np.arange(12.0).reshape(3, 4), 0.0)  # log 0 where masked
    gradient = np.asarray(jax.grad(lambda x: loss(jnp.where(MASK, x, 1.0)))(x))
    assert np.isfinite(gradient).all() and not gradient[~MASK].any() and gradient[MASK].any()


def test_std_of_equal_values_has_a_gradient():
    gradient = jax.grad(lambda x: masked.std(x, jnp.ones(3)))(jnp.full(3, 2.0))
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_sums_are_float32():
    total, weight = masked.total(jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16))
    assert total.dtype == weight.dtype == jnp.float32
    assert float(total) == float(weight) == 1000.0  # bfloat16 would stop at 256


def test_sums_add_up_over_microbatches():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(8, 5)).astype(np.float32), rng.random((8, 5)) < 0.4
    parts = [masked.total(x[i : i + 2], mask[i : i + 2]) for i in range(0, 8, 2)]
    total, weight = map(sum, zip(*parts, strict=True))
    np.testing.assert_allclose(masked.ratio(total, weight), x[mask].mean(), rtol=1e-5)
