"""Estimates with their uncertainty, on the host in numpy."""

import dataclasses
import statistics

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over `n` independent units (tasks, programs) and its standard error, NaN for n = 1."""

    mean: float
    se: float
    n: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Normal interval mean +- z * se."""
        z = _z(confidence)
        return self.mean - z * self.se, self.mean + z * self.se

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.se:.2g} (n={self.n})"


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def mean_se(x: ArrayLike) -> Estimate:
    """Mean and standard error (unbiased variance) of independent values, at least one."""
    x = np.asarray(x, np.float64).ravel()
    if not x.size:
        raise ValueError("no values to average")
    se = float(x.std(ddof=1) / np.sqrt(x.size)) if x.size > 1 else float("nan")
    return Estimate(float(x.mean()), se, x.size)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Mean and standard error of a - b over the same units, whose difficulty cancels."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values need one shape, found {a.shape} and {b.shape}")
    return mean_se(a - b)


def pass_at_k_per_task(n: ArrayLike, c: ArrayLike, k: int) -> np.ndarray:
    """Unbiased pass@k of each task, c of its n samples being right (Chen et al., 2021).

    1 - C(n - c, k) / C(n, k), computed as 1 - prod_{i=n-c+1}^{n} (1 - k / i), which never forms a
    large binomial. Raises ValueError when a task has fewer than k samples: the estimator does not
    exist there.
    """
    n, c = np.broadcast_arrays(np.asarray(n, np.int64), np.asarray(c, np.int64))
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples of every task, found {n.min()}")
    if (c < 0).any() or (c > n).any():
        raise ValueError("the number of right samples must lie between 0 and the number of samples")

    def one(n: int, c: int) -> float:
        if n - c < k:
            return 1.0
        return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))

    return np.array([one(*nc) for nc in zip(n.ravel(), c.ravel(), strict=True)]).reshape(n.shape)


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Estimate:
    """Mean of the tasks' unbiased pass@k and its standard error over tasks."""
    return mean_se(pass_at_k_per_task(n, c, k))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion of independent trials; inside [0, 1] and good near its ends."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    z, p = _z(confidence), successes / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At p = 0 and p = 1 the bound is exactly p; rounding would put it a hair outside.
    low = 0.0 if successes == 0 else float(center - half)
    return low, 1.0 if successes == n else float(center + half)


def bootstrap_interval(
    x: ArrayLike, confidence: float = 0.95, *, n_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of independent units (first axis), by resampling them."""
    _z(confidence)
    x = np.asarray(x, np.float64).ravel()
    if not x.size:
        raise ValueError("no values to resample")
    rng = np.random.default_rng(seed)
    means = np.array([x[rng.integers(x.size, size=x.size)].mean() for _ in range(n_resamples)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def logmeanexp(x: ArrayLike, axis: int = -1) -> np.ndarray:
    """log mean exp(x) without overflow; -inf where all of x is -inf."""
    x = np.asarray(x, np.float64)
    top = x.max(axis, keepdims=True)
    finite_top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - finite_top).mean(axis)) + finite_top.squeeze(axis)
