"""The small base of `--model tiny`: no pretrained weights can be had offline, so it is trained on commented code, once.

It is kept in the cache directory under a hash of everything it depends on: settings, tokenizer, and the very tokens.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.distributed import check_shared
from ra3_jax.core.paths import cache_dir
from ra3_jax.core.rng import named_key
from ra3_jax.core.rundir import to_json
from ra3_jax.data.trace import PackedRows
from ra3_jax.midtrain.config import BaseConfig, MStepConfig
from ra3_jax.midtrain.mstep import NextTokenTrainer
from ra3_jax.model.checkpoint import abstract_params
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.train.config import LoopConfig
from ra3_jax.train.loop import Progress, Stopped


def base_hash(model: LanguageModel, rows: PackedRows, config: BaseConfig, tokenizer_hash: str) -> str:
    """Name of the base in the cache. Gates are judged anew each time and do not count."""
    digest = hashlib.sha256()
    settings = {k: v for k, v in to_json(config).items() if not k.startswith("gate")}
    digest.update(json.dumps([settings, to_json(model.config), tokenizer_hash], sort_keys=True).encode())
    for array in (rows.tokens_RT, rows.kinds_RT, rows.segment_ids_RT):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def load_or_train_base(
    model: LanguageModel,
    rows: PackedRows,
    config: BaseConfig,
    tokenizer_hash: str,
    mesh: Mesh,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
):
    """(params, hash, whether they came from the cache).

    A training that was cut short starts again: the base takes minutes, and only a finished one is kept. Raises Stopped
    when `should_stop()`, InputError where several processes do not share the cache.
    """
    check_shared(cache_dir())
    name = base_hash(model, rows, config, tokenizer_hash)
    abstract = abstract_params(model, mesh)
    checkpoints = Checkpoints(cache_dir() / "base" / name, keep=1)
    if checkpoints.latest_step() is not None:
        state, _ = checkpoints.restore({"params": abstract})
        return state["params"], name, True
    mstep = MStepConfig(loop=LoopConfig(batch_size=config.rows), optimizer=config.optimizer)
    trainer = NextTokenTrainer.create(model, mesh, mstep)
    init = jax.jit(model.init, out_shardings=model.param_shardings(mesh))
    params = init(named_key(jax.random.key(config.seed), "base"))
    state, done = trainer.run(
        trainer.trainable.start(params),
        rows,
        seed=config.seed,
        n_steps=config.steps,
        on_step=on_step,
        should_stop=should_stop,
    )
    if done.step < config.steps:
        raise Stopped(f"stopped after {done.step} of {config.steps} updates of the base, which will begin anew")
    checkpoints.save(config.steps, {"params": state.params}, {"config": dataclasses.asdict(config)})
    checkpoints.close()
    return state.params, name, False
