import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3_jax.core import stats


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_against_every_subset(n):
    """The estimator is the share of k-subsets of the n samples that hold a right one."""
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [i < c for i in range(n)]
        subsets = list(itertools.combinations(right, k))
        expected = sum(map(any, subsets)) / len(subsets)
        assert stats.pass_at_k_per_task(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased():
    """Over all outcomes of n trials at p, its mean is 1 - (1 - p)^k."""
    n, p = 6, 0.3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in (1, 3, 6):
        mean = np.dot(weights, stats.pass_at_k_per_task(n, np.arange(n + 1), k))
        assert mean == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_over_tasks():
    estimate = stats.pass_at_k([4, 4, 8], [0, 4, 4], 1)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.se == pytest.approx(np.std([0, 1, 0.5], ddof=1) / math.sqrt(3))
    assert estimate.n == 3
    exact = 1 - Fraction(math.comb(995, 100), math.comb(1000, 100))  # floats overflow on the way
    assert stats.pass_at_k([1000], [5], 100).mean == pytest.approx(float(exact))


@pytest.mark.parametrize("n,c,k", [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError):
        stats.pass_at_k([8, n], [1, c], k)


def test_mean_and_paired_difference():
    x = np.array([1.0, 2.0, 4.0])
    estimate = stats.mean_se(x)
    assert (estimate.mean, estimate.se) == pytest.approx((7 / 3, 0.8819171)) and estimate.n == 3
    difference = stats.paired_difference(x + 10, x)
    assert (difference.mean, difference.se) == (10.0, 0.0)
    assert math.isnan(stats.mean_se([1.0]).se)
    low, high = stats.mean_se(x).interval()
    assert (high + low) / 2 == pytest.approx(7 / 3)
    assert high - low == pytest.approx(2 * 1.959964 * 0.8819171)
    with pytest.raises(ValueError, match="no values"):
        stats.mean_se([])
    with pytest.raises(ValueError, match="one shape"):
        stats.paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="confidence"):
        stats.mean_se(x).interval(95)


def test_wilson_interval():
    low, high = stats.wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.49016, abs=1e-5), pytest.approx(0.94331, abs=1e-5))
    for successes, n in ((0, 5), (5, 5), (1, 2)):
        # The bounds are the proportions p whose score test just rejects: |p^ - p| = z sd(p).
        for p in stats.wilson_interval(successes, n):
            if 0 < p < 1:
                z = abs(successes / n - p) / math.sqrt(p * (1 - p) / n)
                assert z == pytest.approx(1.959964, abs=1e-5)
    assert stats.wilson_interval(0, 5)[0] == 0.0 and stats.wilson_interval(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="3 successes of 2"):
        stats.wilson_interval(3, 2)


def test_bootstrap_interval_agrees_with_the_normal_one_on_many_values():
    x = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = stats.bootstrap_interval(x, n_resamples=4000)
    normal = stats.mean_se(x).interval()
    np.testing.assert_allclose((low, high), normal, atol=0.03)
    assert stats.bootstrap_interval(x, n_resamples=50) == stats.bootstrap_interval(x, n_resamples=50)
    assert stats.bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_logmeanexp(x, shift):
    expected = math.log(math.fsum(map(math.exp, x)) / len(x))
    assert stats.logmeanexp(np.array(x)) == pytest.approx(expected, abs=1e-9)
    shifted = stats.logmeanexp(np.array(x) + shift)  # where exp itself would overflow
    assert shifted == pytest.approx(expected + shift, abs=1e-6)


def test_logmeanexp_of_impossible_events():
    x = np.array([[-np.inf, -np.inf], [-np.inf, 0.0]])
    np.testing.assert_allclose(stats.logmeanexp(x, axis=1), [-np.inf, math.log(0.5)])
    np.testing.assert_allclose(stats.logmeanexp(x, axis=0), [-np.inf, math.log(0.5)])
