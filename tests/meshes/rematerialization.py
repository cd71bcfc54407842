"""The warning of XLA's partitioner, on stderr, when it knows no better way between two layouts than the whole array."""

import dataclasses

import jax
from jax.sharding import Mesh

from experiments.presets import PRESETS
from experiments.programs import Programs, Shapes
from experiments.rlvr_presets import PRESETS as RLVR_PRESETS
from ra3_jax.model.language_model import LanguageModel

WARNING = "Involuntary full rematerialization"


def check(printed: str) -> None:
    """Raises AssertionError with the warning, which names the operation and both layouts."""
    lines = [line for line in printed.splitlines() if WARNING in line]
    assert not lines, "\n".join(lines)


def compile_programs(model: LanguageModel, mesh: Mesh, name: str = "") -> list[str]:
    """Compiles the programs of both jobs whose name contains `name`, for rows of 64 tokens, and returns their names.

    The jobs are the llama3.2-1b ones with 16 rows, two microbatches, and the vocabulary in chunks.
    """
    base = PRESETS["llama3.2-1b"]
    loop = dataclasses.replace(base.mstep.loop, batch_size=16, accumulate=2)
    midtrain = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, sequence_length=64),
        mstep=dataclasses.replace(base.mstep, loop=loop),
        estep=dataclasses.replace(
            base.estep, group=2, programs_per_update=8, rollout_batch=8, accumulate=2, window_lines=8,
            max_latent_tokens=4,
        ),
        rollout_batch=16,
        vocab_chunk=64,
    )  # fmt: skip
    base = RLVR_PRESETS["llama3.2-1b"]
    rollout = dataclasses.replace(base.rollout, prompts=8, samples=2, max_new=64, lanes=16)
    rlvr = dataclasses.replace(base, rollout=rollout, accumulate=2, vocab_chunk=64)
    with jax.set_mesh(mesh):
        steps = [s for s in Programs(mesh, midtrain, rlvr, Shapes(prompt=64)).steps() if name in s.name]
        for step in steps:
            step.build(model, step.choices[0]).work.lower().compile()
    return [step.name for step in steps]
