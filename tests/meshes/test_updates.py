"""The same recorded batch gives the same losses, gradients and weights on every mesh, whatever is learned from it."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from ra3_jax.train.step import put_batch, put_scalar
from tests.meshes.bench import MESHES, RATE, UPDATES, mesh_of

STEPS = 3
CASES = [("M-step", "odd"), ("E-step", "odd"), ("GRPO", "even")]
TOLERANCE = 1e-5
"""Of losses and metrics, relative to 1 or to their size if larger; of arrays, relative to their largest entry."""


@functools.cache
def descend(job: str, name: str, shape: tuple[int, int, int], accumulate: int) -> tuple[list[dict], Any, Any]:
    """(metrics of each step, gradient of the first, weights after the last) of plain gradient descent on one batch."""
    make, record = UPDATES[job]
    batch, mesh = record(name), mesh_of(shape)
    history: list[dict] = []
    gradient = None
    with jax.set_mesh(mesh):
        update = make(name, mesh, accumulate)
        state = update.state
        for _ in range(STEPS):
            state, metrics = update.step_fn(state, put_batch(batch, mesh), put_scalar(RATE, mesh))
            history.append({key: float(value) for key, value in jax.device_get(metrics).items()})
            gradient = gradient or jax.tree.map(np.array, state.opt_state[1].mu)  # b1 is 0
    return history, gradient, jax.tree.map(np.array, state.params)


def deviation(found: Any, expected: Any) -> dict[str, float]:
    """Largest difference in each array, relative to its largest entry."""
    out = {}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        out[jax.tree_util.keystr(path)] = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    return out


@pytest.mark.parametrize("shape", MESHES[1:])
@pytest.mark.parametrize(("job", "name"), CASES)
def test_every_mesh_learns_the_same(job: str, name: str, shape: tuple[int, int, int]):
    """As one device does with the whole batch at once; on two of the meshes in two microbatches."""
    accumulate = 1 if shape == (2, 2, 2) else 2
    history, gradient, params = descend(job, name, shape, accumulate)
    expected_history, expected_gradient, expected_params = descend(job, name, (1, 1, 1), 1)
    assert all(values["skipped"] == 0 and values["weight"] > 0 for values in history)
    off = {
        f"{key}, step {i + 1}": abs(values[key] - expected[key]) / max(1.0, abs(expected[key]))
        for i, (values, expected) in enumerate(zip(history, expected_history, strict=True))
        for key in expected
    }
    off |= {f"gradient{key}": x for key, x in deviation(gradient, expected_gradient).items()}
    off |= {f"weights{key}": x for key, x in deviation(params, expected_params).items()}
    worst = max(off, key=lambda key: off[key])
    assert off[worst] < TOLERANCE, (worst, off[worst])


@pytest.mark.parametrize(("job", "name"), CASES)
def test_the_comparison_is_not_empty(job: str, name: str):
    """Every array has a gradient, every array moves, and the last loss is another than the first."""
    history, gradient, params = descend(job, name, (1, 1, 1), 1)
    make, record = UPDATES[job]
    assert min(float(np.abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-6
    before = make(name, mesh_of((1, 1, 1)), 1).state.params
    assert min(deviation(params, jax.device_get(before)).values()) > 1e-4
    assert abs(history[-1]["loss"] - history[0]["loss"]) > 1e-4
    rows = record(name).rows if job != "M-step" else record(name)
    assert rows.tokens_BT.shape[0] == 16 and len({row.tobytes() for row in rows.tokens_BT}) > 12
