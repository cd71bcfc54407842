"""AdamW and Adafactor without their learning rate, and learning-rate schedules evaluated on the host.

The learning rate is an input of the compiled step, so runs that differ in schedule or length share
one program.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from ra3_jax.train.config import OptimizerConfig

Params = Any
Schedule = Callable[[int], float]

NO_DECAY = re.compile(r"norm|bias|^b[a-z]?$")  # bq, bk, bv: the biases of q, k, v


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """clip -> Adam or Adafactor -> decoupled weight decay: `optax.adamw`, say, once the step multiplies by -lr."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moment_dtype)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        adam if config.kind == "adamw" else adafactor(),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    )


def adafactor() -> optax.GradientTransformation:
    """Adafactor's direction (Shazeer & Stern, arXiv 1804.04235): gradient over root mean square, itself of RMS <= 1.

    Its second moment of an [n, m] matrix is the outer product of n row means and m column means over the mean of all,
    with decay 1 - t^-0.8. No first moment, and no step size relative to the weights' own: updates are then about as
    large as Adam's, and the same learning rates serve.

    A weight of more than two axes is factored over its two largest if the smaller of them has at least 128 entries, all
    others kept: the stacked feed-forward matrices [layer, d_ff, d_model] layer by layer, those of the heads
    [layer, head, head_dim, d_model] head by head, and with head_dim 64 not at all. What is not factored has a second
    moment of its own size. The RMS that is clipped is that of the whole array, all layers together.
    """
    return optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=128), optax.clip_by_block_rms(1.0))


def decay_mask(params: Params) -> Params:
    """True where weights decay: matrices and embeddings, not norms, biases and other vectors.

    Norms and biases are known by their name: layers are stacked at rest, so a norm's scale is
    [layer, width] and its rank says nothing. Embeddings decay, as in the GPT and Llama recipes.
    """

    def decays(path: tuple[Any, ...], x: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return x.ndim > 1 and not NO_DECAY.search(name)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_schedule(config: OptimizerConfig, n_steps: int) -> Schedule:
    """Learning rate of updates 0, 1, ..., n_steps - 1; later ones keep the last value.

    Warmup: peak (step + 1) / warmup_steps, so that no update is spent at zero. After it, with
    f = final_fraction and u going from 0 to 1 in equal steps up to the last update,

        cosine    peak (f + (1 - f) (1 + cos pi u) / 2)      u starts at the end of the warmup
        wsd       peak (1 - (1 - f) u)                       u starts decay_fraction n_steps before
                                                             the last update; peak until then
        constant  peak

    Raises ValueError when the warmup is longer than the run.
    """
    peak, final, warmup = config.learning_rate, config.final_fraction, config.warmup_steps
    if warmup > n_steps:
        raise ValueError(f"warmup_steps={warmup} exceeds the {n_steps} updates of the run")
    last = n_steps - 1
    n_decay = max(1, round(config.decay_fraction * n_steps))
    begin = warmup if config.schedule == "cosine" else max(warmup, last - n_decay)

    def schedule(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if config.schedule == "constant":
            return peak
        u = min(1.0, max(0.0, (step - begin) / max(1, last - begin)))
        shape = (1 + math.cos(math.pi * u)) / 2 if config.schedule == "cosine" else 1 - u
        return peak * (final + (1 - final) * shape)

    return schedule
