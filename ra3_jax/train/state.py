"""What training carries from step to step, and how it is laid out over the mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from ra3_jax.core.mesh import replicated

Params = Any
Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Weights, optimizer moments, number of updates. Donated to every step: keep no reference."""

    params: Params
    opt_state: Tree  # whatever `tx.init` makes
    step: jax.Array  # int32 scalar

    @classmethod
    def create(cls, params: Params, tx: optax.GradientTransformation) -> "TrainState":
        return cls(params, tx.init(params), jnp.zeros((), jnp.int32))


def state_shardings(params: Params, tx: optax.GradientTransformation, param_shardings: Tree, mesh: Mesh) -> TrainState:
    """NamedShardings of a TrainState: moments lie like the weights, all else is replicated.

    `params` may be abstract (`jax.eval_shape`). What is a tree like `params` in the optimizer state holds something for
    each weight: a moment if it has the weight's shape, else what Adafactor has in its place, sums over an axis.
    """
    structure = jax.tree.structure(params)

    def per_weight(x: Tree) -> bool:
        return jax.tree.structure(x) == structure

    def like(x: jax.ShapeDtypeStruct, weight: Any, sharding: NamedSharding) -> NamedSharding:
        return sharding if x.shape == weight.shape else replicated(mesh)

    opt_state = jax.tree.map(
        lambda x: jax.tree.map(like, x, params, param_shardings) if per_weight(x) else replicated(mesh),
        jax.eval_shape(tx.init, params),
        is_leaf=per_weight,
    )
    return TrainState(param_shardings, opt_state, step=replicated(mesh))  # pyright: ignore[reportArgumentType]


def init_state(
    init_params: Callable[[jax.Array], Params],
    key: jax.Array,
    tx: optax.GradientTransformation,
    shardings: TrainState,
) -> TrainState:
    """A fresh state from random weights; every array is born sharded, none is ever whole."""

    def init(key: jax.Array) -> TrainState:
        return TrainState.create(init_params(key), tx)

    return jax.jit(init, out_shardings=shardings)(key)


def state_from_params(params: Params, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """A fresh state (step 0, zero moments) around a *copy* of `params`, numpy or on any mesh.

    `device_put` and jit hand arrays on that are in place already: without an explicit copy the
    first step would donate, and so destroy, the caller's weights. Runs array by array, so that a
    new optimizer every round compiles nothing new.
    """
    placed = jax.device_put(params, shardings.params)
    state = TrainState.create(jax.tree.map(jnp.copy, placed), tx)
    return jax.device_put(state, shardings)


def abstract_state(params: Params, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a TrainState, for restoring one. `params` may be abstract."""
    state = jax.eval_shape(lambda p: TrainState.create(p, tx), params)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
