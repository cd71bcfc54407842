"""Is the base fit for an E-step? Checked and printed before the first one, on puzzles, where comments can be judged.

A base without induction fails at everything and looks like a failure of RA3; one that comments rarely or wrongly makes
the plain policy gradient stop thinking, always.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
from jax.sharding import Mesh

from ra3_jax.core.stats import Estimate
from ra3_jax.data.codec import Codec
from ra3_jax.data.puzzles import Puzzle, judge_comment
from ra3_jax.data.trace import Latent, Program
from ra3_jax.midtrain.config import BaseConfig
from ra3_jax.midtrain.rollouts import batches, latents_of_rows, length_buckets, roll_out
from ra3_jax.policy.events import Events
from ra3_jax.policy.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class CommentQuality:
    """How thoughts compare with what a right comment would say."""

    right: float  # share of right ones among the thoughts that stand before a block
    precision: float  # share of the thoughts that stand before a block
    recall: float  # share of the blocks that a thought precedes
    think_rate: float  # thoughts per line
    thoughts: int


def judge_thoughts(puzzles: Sequence[Puzzle], latents: Sequence[Mapping[int, Latent]], codec: Codec) -> CommentQuality:
    """Judges the thoughts of one trace per puzzle; `latents[i]` maps line numbers (1-based) to thoughts."""
    counts: collections.Counter[str] = collections.Counter()
    placed = blocks = lines = 0
    for puzzle, by_line in zip(puzzles, latents, strict=True):
        blocks += len(puzzle.block_starts)
        lines += len(puzzle.lines) + 1  # and end-of-text
        for line, latent in by_line.items():
            counts[judge_comment(puzzle, line - 1, codec.decode(latent.ids).strip())] += 1
            placed += line - 1 in puzzle.block_starts
    thoughts = counts.total()
    return CommentQuality(
        right=counts["right"] / max(1, placed),
        precision=placed / max(1, thoughts),
        recall=placed / max(1, blocks),
        think_rate=thoughts / max(1, lines),
        thoughts=thoughts,
    )


def sampled_comment_quality(
    sampler: Sampler,
    params,
    puzzles: Sequence[Puzzle],
    programs: Sequence[Program],
    codec: Codec,
    events: Events,
    key: jax.Array,
    mesh: Mesh,
    *,
    max_latent_tokens: int,
    batch: int,
) -> CommentQuality:
    """`judge_thoughts` of one rollout of the model itself per puzzle."""
    found: dict[int, dict[int, Latent]] = {}
    for bucket in length_buckets(programs, max_latent_tokens, n_buckets=1):
        for indices in batches(bucket, batch):
            rollouts = roll_out(
                sampler, params, [programs[i] for i in indices], events, key, mesh,
                group=1, max_latent_tokens=max_latent_tokens, batch=batch, slots=bucket.slots, widths=bucket.widths,
            )  # fmt: skip
            found.update(zip(indices, latents_of_rows(rollouts.samples), strict=False))
    return judge_thoughts(puzzles, [found[i] for i in range(len(puzzles))], codec)


@dataclasses.dataclass(frozen=True)
class Gate:
    name: str
    found: float
    least: float

    @property
    def passed(self) -> bool:
        return self.found >= self.least

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"gate {verdict}: {self.name} {self.found:.3f} (at least {self.least:.2f})"


def check_gates(
    one_skill: Estimate,
    comments: CommentQuality,
    config: BaseConfig,
    method: Literal["selection", "policy_gradient"],
) -> list[Gate]:
    """The gates of this E-step method. A failed one does not stop the run; it is what to look at first."""
    gates = [Gate("pass@1 on one-skill tasks", one_skill.mean, config.gate_one_skill)]
    if method == "selection":
        return [*gates, Gate("right comments", comments.right, config.gate_comments)]
    return [
        *gates,
        Gate("right comments", comments.right, config.gate_comments_pg),
        Gate("blocks with a comment", comments.recall, config.gate_recall_pg),
    ]
