"""A toy regression model: two stacked layers, a norm and a bias."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.mesh import sharding

D, F, N = 8, 16, 2


def init_params(key: jax.Array) -> dict:
    up, down = jax.random.split(key)
    return {
        "layers": {
            "up": 0.3 * jax.random.normal(up, (N, D, F)),
            "down": 0.3 * jax.random.normal(down, (N, F, D)),
            "norm": jnp.ones((N, D)),
        },
        "bias": jnp.zeros((D,)),
    }


def param_shardings(mesh: Mesh) -> dict:
    return {
        "layers": {
            "up": sharding(mesh, "layers", "embed", "mlp"),
            "down": sharding(mesh, "layers", "mlp", "embed"),
            "norm": sharding(mesh, "layers", None),
        },
        "bias": sharding(mesh, "embed"),
    }


def predict(params: dict, x_BD: jax.Array) -> jax.Array:
    def layer(x_BD, p):
        return x_BD + jnp.tanh(x_BD * p["norm"] @ p["up"]) @ p["down"], None

    return jax.lax.scan(layer, x_BD, params["layers"])[0] + params["bias"]


def loss_fn(params: dict, batch: dict):
    """Weighted squared error; rows of weight 0 do not count."""
    error_B = jnp.square(predict(params, batch["x_BD"]) - batch["y_BD"]).sum(-1)
    weight = batch["weight_B"].sum()
    loss = (error_B * batch["weight_B"]).sum()
    return (
        loss,
        weight,
        {"error": (loss, weight), "weighted_rows": (weight, batch["weight_B"].size)},
    )


def make_batch(position: int, rows: int) -> dict:
    """A function of the data position alone."""
    rng = np.random.default_rng(position)
    x_BD = rng.normal(size=(rows, D)).astype(np.float32)
    return {
        "x_BD": x_BD,
        "y_BD": np.roll(x_BD, 1, axis=1),
        "weight_B": rng.uniform(0.0, 2.0, rows).astype(np.float32),
    }
