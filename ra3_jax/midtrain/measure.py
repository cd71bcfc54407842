"""One row of the final table: what a checkpoint scores on the data that no method has seen."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from ra3_jax.core.console import Progress as Bar
from ra3_jax.core.rng import named_key
from ra3_jax.core.rundir import to_json
from ra3_jax.core.stats import Estimate
from ra3_jax.data.codec import Codec
from ra3_jax.data.trace import Program
from ra3_jax.midtrain.config import EvaluationConfig
from ra3_jax.midtrain.em import Compute, Params
from ra3_jax.midtrain.evaluate import Bounds, PassRates, evaluate_bounds, evaluate_pass
from ra3_jax.policy.events import Events
from ra3_jax.policy.sampler import Sampler
from ra3_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Row:
    """A checkpoint and its scores."""

    name: str
    updates: int  # next-token updates since the base
    compute: Compute  # since the base
    bounds: Bounds
    passes: PassRates | None  # None where the corpus has no tasks
    note: str = ""  # the learning rate that was chosen, and among which

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> "Row":
        bounds: dict[str, Any] = {k: Estimate(**v) if isinstance(v, dict) else v for k, v in d["bounds"].items()}
        passes = d["passes"] and PassRates(
            **{
                **d["passes"],
                "pass_at": {int(k): Estimate(**v) for k, v in d["passes"]["pass_at"].items()},
                "examples": tuple(d["passes"]["examples"]),
            }
        )
        return cls(d["name"], d["updates"], Compute(**d["compute"]), Bounds(**bounds), passes, d["note"])


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """Fixed data and fixed randomness, the same for every checkpoint that is compared: rows are paired."""

    sampler: Sampler
    codec: Codec
    events: Events
    mesh: Mesh
    config: EvaluationConfig
    max_latent_tokens: int
    programs: tuple[Program, ...]
    tasks: tuple[Task, ...]
    seed: int = 9001

    def measure(self, name: str, params: Params, updates: int, compute: Compute, note: str = "") -> Row:
        return Row(name, updates, compute, self.bounds(name, params), self.passes(name, params), note)

    def bounds(self, name: str, params: Params) -> Bounds:
        key = named_key(jax.random.key(self.seed), "bounds")
        with Bar(f"{name}: bounds", len(self.programs), unit="program") as bar:
            return evaluate_bounds(
                self.sampler, params, self.programs, self.events, key, self.mesh,
                self.config, self.max_latent_tokens, counter(bar),
            )  # fmt: skip

    def passes(self, name: str, params: Params) -> PassRates | None:
        if not self.tasks:
            return None
        key = named_key(jax.random.key(self.seed), "pass")
        with Bar(f"{name}: pass@k", len(self.tasks), unit="task") as bar:
            return evaluate_pass(
                self.sampler, params, self.tasks, self.codec, self.events, key, self.mesh, self.config, counter(bar)
            )


def counter(bar: Bar):
    """A callback that adds to a progress bar."""
    done = 0

    def add(n: int) -> None:
        nonlocal done
        done += n
        bar.update(done)

    return add


TABLE_COLUMNS = (
    "model", "updates", "M units", "NLL/tok", "ELBO/tok", "IWAE/tok", "best/tok", "nats/byte",
    "think rate", "mean len", "pass@1", "pass@k", "tokens/sample",
)  # fmt: skip


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Cells of the final table. NLL is of the code without thoughts; the IWAE bound is comparable across rows."""

    def estimate(e: Estimate, digits: int) -> str:
        return f"{e.mean:.{digits}f} ± {e.se:.{digits}f}"

    table = []
    for row in rows:
        b, p = row.bounds, row.passes
        k = max(p.pass_at) if p else 0
        table.append([
            row.name,
            str(row.updates),
            f"{row.compute.units / 1e6:.2f}",
            estimate(b.nll, 4),
            estimate(b.elbo, 4),
            f"{estimate(b.iwae, 4)} (K={b.samples})",
            estimate(b.best, 4),
            f"{b.best_per_byte:.4f}",
            f"{b.think_rate:.3f}",
            f"{b.mean_len:.1f}",
            estimate(p.pass_at[1], 3) if p else "-",
            f"{estimate(p.pass_at[k], 3)} (k={k})" if p else "-",
            f"{p.tokens_per_sample:.0f}" if p else "-",
        ])  # fmt: skip
    return table
