"""One compiled update from a loss that returns sums: the only optimiser step of the project.

The contract with every algorithm (NTP, M-step, E-step, GRPO):

    loss_fn(params, batch) -> (loss_sum, weight_sum, {name: (sum, weight)})

with every leaf of `batch` [rows, ...] (and weights that are not trained as a third argument, where
there are such). Sums, not means, so that cutting a batch into microbatches or over devices changes
nothing but rounding:

    loss = loss_sum / weight_sum        gradient = (d loss_sum / d params) / weight_sum

over the whole batch. `weight_sum` must not depend on `params`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ra3_jax.core import masked
from ra3_jax.core.mesh import RULES, batch_sharding, data_parallel_size, replicated, to_devices
from ra3_jax.train.state import TrainState

Batch = Any
Params = Any
Metrics = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[..., tuple[jax.Array, jax.Array, Metrics]]
StepFn = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    *,
    accumulate: int = 1,
    frozen_shardings: Any = None,
    name: str = "train_step",
) -> StepFn:
    """Compiled `step(state, batch, lr) -> (state, metrics)`, for use inside `jax.set_mesh(mesh)`.

    With `frozen_shardings`, those of weights that are not trained: `step(state, batch, lr, frozen)`, where the loss is
    `loss_fn(params, batch, frozen)`. They are read and left to the caller.

    `state` is donated. `lr` is a traced float32 scalar: params <- params - lr * tx(gradient).
    `metrics` are float32 scalars: the means of the loss's own metrics (NaN over no weight) and

        loss, grad_norm (before clipping), weight (the loss's weight_sum),
        nonfinite  1 when the loss or the gradient is NaN or infinite,
        skipped    1 when params and moments were left alone: nonfinite, or a batch of no weight.

    `step` counts the skipped ones too. Raises ValueError when the rows cannot be cut into
    `accumulate` microbatches over the mesh.
    """

    def update(state: TrainState, batch: Batch, lr: jax.Array, *frozen: Params):
        n_shards = data_parallel_size(mesh)
        check_rows(batch, accumulate, n_shards)

        def loss(params: Params, batch: Batch):
            return loss_fn(params, batch, *frozen)

        with jax.named_scope("loss_and_grad"):
            grads, loss_sum, weight, sums = _summed_grads(loss, state.params, batch, accumulate, shardings.params)
        scale = jnp.where(weight > 0, weight, 1.0)
        grads = jax.tree.map(lambda g: g / scale, grads)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)
        ok = finite & (weight > 0)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        # A select per array costs no memory (the old state is donated) and needs no branch.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics = {k: masked.ratio(s, w) for k, (s, w) in sums.items()}
        metrics |= {
            "loss": masked.ratio(loss_sum, weight),
            "grad_norm": grad_norm,
            "weight": weight,
            "nonfinite": 1.0 - finite.astype(jnp.float32),
            "skipped": 1.0 - ok.astype(jnp.float32),
        }
        return TrainState(params, opt_state, state.step + 1), metrics

    update.__name__ = update.__qualname__ = name
    return jax.jit(
        update,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), *frozen_args(frozen_shardings)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _summed_grads(
    loss_fn: LossFn, params: Params, batch: Batch, accumulate: int, param_shardings: Any
) -> tuple[Params, jax.Array, jax.Array, Metrics]:
    """(d loss_sum, loss_sum, weight_sum, metric sums) over the whole batch, all in float32."""

    def of_microbatch(batch: Batch):
        def loss(params: Params):
            loss_sum, weight, metrics = loss_fn(params, batch)
            return loss_sum.astype(jnp.float32), (weight, metrics)

        (loss_sum, (weight, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        # Unless told, the compiler may keep a gradient (the embedding's) whole on every device.
        grads = jax.lax.with_sharding_constraint(grads, param_shardings)
        sums = (grads, loss_sum, weight, metrics)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums)

    if accumulate == 1:
        return of_microbatch(batch)
    micro = jax.tree.map(lambda x: _split_rows(x, accumulate), batch)
    shapes = jax.eval_shape(of_microbatch, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total, batch):
        return jax.tree.map(jnp.add, total, of_microbatch(batch)), None

    return jax.lax.scan(add, zeros, micro)[0]


def _split_rows(x: jax.Array, n: int) -> jax.Array:
    """[B, ...] -> [n, B/n, ...]: microbatch i is rows i, i + n, ...: no row leaves its device."""
    x = jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1)
    return jax.lax.with_sharding_constraint(x, P(None, RULES.batch))


def check_rows(batch: Batch, accumulate: int, n_shards: int) -> None:
    """Raises ValueError unless all leaves have one number of rows that can be cut up."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError("the batch has no arrays")
    first, rows = jax.tree_util.keystr(leaves[0][0]), np.shape(leaves[0][1])[:1]
    for path, x in leaves:
        if np.shape(x)[:1] != rows or not rows:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {np.shape(x)}; every leaf needs a "
                f"first axis of rows, as many as batch{first} of shape {np.shape(leaves[0][1])}"
            )
    if rows[0] % (accumulate * n_shards):
        raise ValueError(
            f"a batch of {rows[0]} rows cannot be cut into accumulate={accumulate} microbatches "
            f"over {n_shards} data-parallel devices: make it a multiple of {accumulate * n_shards}"
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Host arrays (the whole batch, on every process) -> device arrays with rows over the data-parallel devices.

    Raises ValueError when the rows cannot be cut over the devices.
    """
    check_rows(batch, 1, data_parallel_size(mesh))
    return to_devices(batch, batch_sharding(mesh))


def put_scalar(x: float, mesh: Mesh) -> jax.Array:
    """A float32 scalar on every device."""
    return to_devices(np.float32(x), replicated(mesh))


def frozen_args(frozen: Params | None) -> tuple[Params, ...]:
    """The last argument of a step that takes one: `step(state, batch, lr, *frozen_args(frozen))`."""
    return () if frozen is None else (frozen,)


def compile_count(step: Callable) -> int:
    """Programs a jitted function holds; more than 1 after some steps: a shape changed."""
    return step._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
