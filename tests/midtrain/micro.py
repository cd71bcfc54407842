"""A bench small enough for tests: 16-wide model, a handful of puzzles, every phase in seconds."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.presets import MICRO
from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.metrics import MetricsWriter
from ra3_jax.core.rundir import RunDir
from ra3_jax.data import puzzles
from ra3_jax.data.codec import Codec
from ra3_jax.data.config import DataConfig
from ra3_jax.data.programs import puzzle_programs
from ra3_jax.data.tokenizer import load_tokenizer
from ra3_jax.midtrain.config import EMConfig, MidTrainConfig, MStepConfig
from ra3_jax.midtrain.em import EM, Bench, Position
from ra3_jax.model.config import tiny
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.events import Events
from ra3_jax.train.config import LoopConfig

CODEC = Codec(load_tokenizer("puzzles"))
MODEL = LanguageModel(tiny(CODEC.tokenizer.size, d_model=16, n_layers=1, n_heads=2))
PROGRAMS = tuple(puzzle_programs(puzzles.generate("mid", 16, 0, ks={1: 1.0}), CODEC))


def micro_config(method: str = "selection", **em) -> MidTrainConfig:
    """Two rounds, a checkpoint after every update."""
    loop = LoopConfig(batch_size=2, checkpoint_every=1, log_every=1)
    return dataclasses.replace(
        MICRO,
        data=DataConfig(sequence_length=128),
        em=EMConfig(rounds=2, **em),
        estep=dataclasses.replace(MICRO.estep, method=method, updates=2, programs_per_update=4),
        mstep=MStepConfig(epochs=1, loop=loop, optimizer=MICRO.mstep.optimizer),
        rollout_batch=32,
    )


def thinking_params(seed: int = 0):
    """Random weights that think now and then: the mark's embedding is pulled towards what precedes it."""
    params = jax.jit(MODEL.init)(jax.random.key(seed))
    embed = np.asarray(params["embed"]).copy()
    embed[CODEC.sets.mark_id] = embed[CODEC.sets.newline_id] * 4
    return {**params, "embed": jax.numpy.asarray(embed)}


@functools.cache
def make_bench(config: MidTrainConfig, mesh: Mesh) -> Bench:
    """One bench, and so one compilation, for all runs under a config."""
    return Bench.create(MODEL, Events.from_sets(CODEC.sets), mesh, config)


def make_em(config: MidTrainConfig, out: Path, mesh: Mesh, *, start: int | None = None, metrics=None) -> EM:
    """An EM over PROGRAMS that writes below `out`."""
    base = thinking_params()
    bench = make_bench(config, mesh)
    run = RunDir.at(out)
    metrics = metrics or MetricsWriter(run.metrics, resume_step=start)
    return EM(bench, PROGRAMS, base, run, Checkpoints(run.checkpoints, keep=None), metrics)


def finish(config: MidTrainConfig, out: Path, mesh: Mesh, start: int | None = None):
    """Runs to the end from `start`; (weights as numpy, position)."""
    em = make_em(config, out, mesh, start=start)
    params, position = em.train(start)
    em.checkpoints.close()
    em.metrics.close()
    return jax.tree.map(np.asarray, params), position


__all__ = ["CODEC", "MODEL", "PROGRAMS", "Position", "finish", "make_em", "micro_config", "thinking_params"]
