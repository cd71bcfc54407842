"""What the tests of meshes share: four meshes, two models, and batches recorded once on one device.

`odd` has a vocabulary that no mesh divides (365 ids), one embedding table for input and output, scanned layers and
rematerialization; `even` has 368 ids, two tables and one layer. Both have two key/value heads for four query heads.
Trained is by plain gradient descent: Adam without memory (its first moment *is* the gradient) and with an eps beside
which any second moment is nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.data import puzzles
from ra3_jax.data.codec import Codec
from ra3_jax.data.programs import puzzle_programs
from ra3_jax.data.tokenizer import load_tokenizer
from ra3_jax.data.trace import Latent, annotate
from ra3_jax.midtrain.config import EStepConfig, MStepConfig
from ra3_jax.midtrain.estep import PolicyGradientEStep
from ra3_jax.midtrain.mstep import NextTokenTrainer, mstep_rows
from ra3_jax.model.config import ModelConfig
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.events import Events
from ra3_jax.policy.losses import PolicyGradientBatch
from ra3_jax.policy.sampler import Sampler
from ra3_jax.rlvr.config import GRPOConfig, RLVRConfig, RolloutConfig
from ra3_jax.rlvr.learner import Learner
from ra3_jax.rlvr.objective import SampleBatch
from ra3_jax.train.config import LoopConfig, OptimizerConfig
from ra3_jax.train.state import TrainState
from tests.model.small_models import random_params
from tests.policy.world import on_one_device
from tests.rlvr import micro

MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2))
TOKENIZER = load_tokenizer("puzzles")
CODECS = {"odd": Codec(TOKENIZER), "even": Codec(TOKENIZER, 368)}
assert TOKENIZER.size == 365
MODELS = {
    name: LanguageModel(
        ModelConfig(
            family="llama", vocab_size=len(codec.sets.mark_V), d_model=32, n_layers=2 if name == "odd" else 1,
            n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, rope_theta=1000.0, norm_eps=1e-5, max_positions=512,
            tie_embeddings=name == "odd", scan_layers=name == "odd", remat="full" if name == "odd" else "none",
        )
    )
    for name, codec in CODECS.items()
}  # fmt: skip
PROGRAMS = tuple(puzzle_programs(puzzles.generate("mid", 8, 0, ks={1: 1.0}), CODECS["odd"]))
ROWS, LENGTH, CHUNK = 16, 128, 96  # rows of an update; tokens of a row; tokens of a device in the vocabulary at once
SGD = OptimizerConfig(
    learning_rate=1e7, schedule="constant", b1=0.0, b2=0.0, eps=1e8, weight_decay=0.0, clip_norm=1e6,
)  # fmt: skip
RATE = SGD.learning_rate


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def events(name: str) -> Events:
    return Events.from_sets(CODECS[name].sets)


@functools.cache
def params(name: str, seed: int = 0) -> Any:
    """Random weights as numpy, that think now and then, end their thoughts and end their completions."""
    sets = CODECS[name].sets
    with on_one_device():
        weights = jax.tree.map(np.array, random_params(MODELS[name].config, seed))
    weights["embed"][:, 0] = 0.5  # a direction in which all hidden states point a little
    out = weights.get("lm_head", weights["embed"])
    out[[sets.eos_id, sets.newline_id], 0] = 2.0
    out[sets.mark_id] = 4 * weights["embed"][sets.newline_id]  # what follows a newline
    return {**weights, "final_norm": 0.4 * weights["final_norm"]}  # or every token would follow itself


# --- updates ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Update:
    """A compiled step of one of the jobs, and a fresh state for it."""

    step_fn: Any
    state: TrainState


def mstep(name: str, mesh: Mesh, accumulate: int) -> Update:
    config = MStepConfig(loop=LoopConfig(batch_size=ROWS, accumulate=accumulate), optimizer=SGD, rationale_weight=0.5)
    trainer = NextTokenTrainer.create(MODELS[name], mesh, config, chunk=CHUNK)
    return Update(trainer.step_fn, trainer.trainable.start(params(name)))


def estep(name: str, mesh: Mesh, accumulate: int) -> Update:
    step = _policy_gradient(name, mesh, accumulate)
    return Update(step.step_fn, step.trainable.start(params(name, 1)))


def grpo(name: str, mesh: Mesh, accumulate: int) -> Update:
    learner = _learner(name, mesh, accumulate)
    return Update(learner.step_fn, learner.trainable.start(params(name)))


def _policy_gradient(name: str, mesh: Mesh, accumulate: int = 1) -> PolicyGradientEStep:
    config = EStepConfig(
        method="policy_gradient", group=4, programs_per_update=ROWS // 4, updates=1, max_latent_tokens=4, c=0.05,
        window_lines=4, entropy_coef=0.01, kl_coef=0.1, accumulate=accumulate, optimizer=SGD,
    )  # fmt: skip
    sampler = Sampler(MODELS[name], 4, vocab_chunk=CHUNK)
    return PolicyGradientEStep.create(MODELS[name], sampler, events(name), mesh, config, chunk=CHUNK)


GRPO = RLVRConfig(
    rollout=RolloutConfig(prompts=4, samples=4, max_new=32, lanes=8),
    grpo=GRPOConfig(beta=0.1, mask_truncated=False),
    optimizer=SGD,
    vocab_chunk=CHUNK,
)


def _learner(name: str, mesh: Mesh, accumulate: int = 1) -> Learner:
    elsewhere: Any = None  # what the compiled parts do not read
    config = dataclasses.replace(GRPO, accumulate=accumulate)
    return Learner(config, MODELS[name], mesh, elsewhere, elsewhere, elsewhere, elsewhere)


# --- what was recorded --------------------------------------------------------------------------------


@functools.cache
def annotated_rows(name: str) -> TokenBatch:
    """Packed programs with thoughts before some lines."""
    sets, rng = CODECS[name].sets, np.random.default_rng(0)
    words = np.flatnonzero(~sets.banned_V & ~sets.newline_V & ~sets.mark_V)

    def thought() -> Latent | None:
        return Latent(tuple(map(int, rng.choice(words, 3)))) if rng.random() < 0.4 else None

    traces = [
        annotate(p, [thought() for _ in p.lines], mark_id=sets.mark_id, newline_id=sets.newline_id)
        for p in PROGRAMS * 5
    ]
    rows = TokenBatch.from_rows(mstep_rows(traces, LENGTH)[0])
    return jax.tree.map(lambda x: x[:ROWS], rows)


@functools.cache
def rollouts_with_returns(name: str) -> PolicyGradientBatch:
    """Sampled under other weights than those that learn from them, and scored under pi."""
    found = []

    def keep(q: TrainState, batch: PolicyGradientBatch, lr: Any) -> tuple[TrainState, dict]:
        found.append(jax.tree.map(np.array, batch))
        return q, {}

    with on_one_device():
        step = dataclasses.replace(_policy_gradient(name, mesh_of((1, 1, 1))), step_fn=keep)
        q = step.trainable.start(params(name, 2))
        step.run(params(name), q, PROGRAMS, jax.random.key(5), 0, lambda i: 0.0)
    return found[0]


@functools.cache
def judged_samples(name: str) -> SampleBatch:
    """Completions of puzzles, rewarded by a rule; their log-probs and those of the start policy."""
    with on_one_device():
        mesh = mesh_of((1, 1, 1))
        sampler = Sampler(MODELS[name])
        rollout = micro.roll(mesh, GRPO, params=params(name), sampler=sampler, events=events(name))
        batch, _ = _learner(name, mesh)._batch(params(name), rollout, params(name, 1))
    return jax.tree.map(np.array, batch)


UPDATES: dict[str, tuple[Callable[[str, Mesh, int], Update], Callable[[str], Any]]] = {
    "M-step": (mstep, annotated_rows),
    "E-step": (estep, rollouts_with_returns),
    "GRPO": (grpo, judged_samples),
}
