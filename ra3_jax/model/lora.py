"""LoRA (Hu et al. 2021, arXiv 2106.09685): in place of a matrix W the model uses W + (alpha / rank) B A; W stays.

An adapter is two more leaves beside its matrix, layers stacked likewise (N layers, rank r):

    layers/wq      [N, out..., in...]
    layers/wq_a    [N, r, in...]      A: normal with variance 1 / fan-in at first
    layers/wq_b    [N, out..., r]     B: zero at first, so that training begins at the model itself

Adapters travel alone (`{"layers": {"wq_a": ..., "wq_b": ...}}`) while they are trained, `join`ed to the frozen weights
where a model is to be run, and `merge`d into them in the end. B A is added to W before W is rounded to the dtype of the
activations: the model that is trained is the merged one to the last rounding, at the price of the product that would be
spared if activations went through A and B alone.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ra3_jax.core.rng import name_hash
from ra3_jax.model.config import LoRAConfig

Params = dict[str, Any]

A, B = "_a", "_b"
N_IN = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
"""Axes of a matrix that are contracted, its last ones."""


def adapted(w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """W + B A of one layer: [out..., in...] + [out..., r] [r, in...]. Float32 to the end, on TPUs too."""
    return w + jnp.tensordot(b, a, axes=1, precision=jax.lax.Precision.HIGHEST)


def abstract_adapters(weights: Params, config: LoRAConfig) -> Params:
    """Shapes and shardings of the adapters of `weights` (arrays or abstract ones, with shardings).

    An axis of an adapter lies like that of its matrix; the one of the rank is whole.
    """
    layers = {}
    for name in config.targets:
        w, n_in = weights["layers"][name], N_IN[name]
        spec = (*w.sharding.spec, *[None] * (w.ndim - len(w.sharding.spec)))
        for suffix, shape, axes in (
            (A, (w.shape[0], config.rank, *w.shape[-n_in:]), (spec[0], None, *spec[-n_in:])),
            (B, (*w.shape[:-n_in], config.rank), (*spec[:-n_in], None)),
        ):
            sharding = NamedSharding(w.sharding.mesh, P(*axes))
            layers[name + suffix] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    return {"layers": layers}


def init_adapters(seed: int, shapes: Params) -> Params:
    """Host arrays of these shapes, a function of the seed alone."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith(B):
            return np.zeros(shape, np.float32)
        rng = np.random.default_rng([seed, name_hash(name)])
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[2:])))

    return {"layers": {name: draw(name, x.shape) for name, x in shapes["layers"].items()}}


def join(frozen: Params, adapters: Params, scale: float | jax.Array) -> Params:
    """The tree that the model takes: frozen weights (no copy) and adapters, with the scale put into B."""
    scaled = {name: x * scale if name.endswith(B) else x for name, x in adapters["layers"].items()}
    return {**frozen, "layers": {**frozen["layers"], **scaled}}


def fold(joined: Params, dtype: Any) -> Params:
    """A joined tree -> one without adapters, the adapted matrices in `dtype`; for use under jit, layer by layer.

    What runs the layers again and again (decoding) adds B A once. A tree without adapters is handed on as it is.
    """
    layers = dict(joined["layers"])
    for name in _names(layers):
        parts = layers[name], layers.pop(name + A), layers.pop(name + B)
        layers[name] = jax.lax.map(lambda wab: adapted(*wab).astype(dtype), parts)
    return {**joined, "layers": layers}


def merge(frozen: Params, adapters: Params, scale: float | jax.Array, *, donate: bool = False) -> Params:
    """Plain weights with the adapters added in, matrix by matrix; what has no adapter is shared with `frozen`.

    With `donate` they take the place of the frozen ones, whose adapted matrices are then gone.
    """
    layers = dict(frozen["layers"])
    for name in _names(adapters["layers"]):
        a, b = (adapters["layers"][name + suffix] for suffix in (A, B))
        layers[name] = _adder(layers[name].sharding, donate)(layers[name], a, b, jnp.float32(scale))
    return {**frozen, "layers": layers}


@functools.cache
def _adder(sharding: NamedSharding, donate: bool):
    def add(w_N: jax.Array, a_N: jax.Array, b_N: jax.Array, scale: jax.Array) -> jax.Array:
        return jax.vmap(adapted)(w_N, a_N, b_N * scale)

    return jax.jit(add, out_shardings=sharding, donate_argnums=0 if donate else ())


def _names(layers: Mapping[str, Any]) -> list[str]:
    """Of the matrices that have adapters."""
    return [name.removesuffix(A) for name in sorted(layers) if name.removesuffix(A) in N_IN and name.endswith(A)]


def stored_config(shapes: Mapping[str, tuple[int, ...]]) -> LoRAConfig | None:
    """Rank and targets of the adapters in a checkpoint (path -> shape); None where it holds plain weights.

    The scale is an array of the checkpoint.
    """
    layers = {name.removeprefix("params.layers."): shape for name, shape in shapes.items()}
    names: Any = tuple(_names(layers))
    return LoRAConfig(rank=layers[names[0] + A][1], targets=names) if names else None
