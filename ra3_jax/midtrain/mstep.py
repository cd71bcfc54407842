"""Next-token training on packed traces: the M-step on annotated programs, the NTP baseline on plain ones, the base.

One function for all three, so that they differ in their data and schedule only.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from ra3_jax.data.packing import pack
from ra3_jax.data.pipeline import RowStream
from ra3_jax.data.trace import AnnotatedTrace, PackedRows, plain
from ra3_jax.midtrain.config import MStepConfig
from ra3_jax.model.language_model import LanguageModel, Params
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.losses import kind_weights, next_token_loss
from ra3_jax.train.loop import Progress, train
from ra3_jax.train.optimizer import make_schedule
from ra3_jax.train.state import TrainState
from ra3_jax.train.step import StepFn
from ra3_jax.train.trainable import Trainable


@dataclasses.dataclass(frozen=True)
class NextTokenTrainer:
    """The compiled next-token step of one model on one mesh; serves any data of the same row length."""

    model: LanguageModel
    mesh: Mesh
    config: MStepConfig
    trainable: Trainable
    step_fn: StepFn

    @classmethod
    def create(
        cls, model: LanguageModel, mesh: Mesh, config: MStepConfig, *, chunk: int | None = None
    ) -> "NextTokenTrainer":
        """`chunk`: tokens whose logits are held at once (None: a whole row)."""
        trainable = Trainable.create(model, mesh, config.optimizer, config.lora)
        weights = kind_weights(config.code_weight, config.decision_weight, config.rationale_weight)
        loss_fn = next_token_loss(model, weights, chunk=chunk)
        step_fn = trainable.compile(loss_fn, accumulate=config.loop.accumulate, name="next_token_step")
        return cls(model, mesh, config, trainable, step_fn)

    def n_steps(self, rows: PackedRows, epochs: float | None = None) -> int:
        """Updates that `epochs` passes over the rows take (the config's by default)."""
        epochs = self.config.epochs if epochs is None else epochs
        return max(1, round(epochs * len(rows) / self.config.loop.batch_size))

    def run(
        self,
        state: TrainState,
        rows: PackedRows,
        frozen: Params | None = None,
        *,
        seed: int,
        n_steps: int,
        learning_rate: float | None = None,
        progress: Progress | None = None,
        on_step: Callable[[Progress, dict[str, float]], None] | None = None,
        on_log: Callable[[Progress, dict[str, float]], None] | None = None,
        on_checkpoint: Callable[[TrainState, Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[TrainState, Progress]:
        """Trains for `n_steps` updates with one schedule; `state` is consumed. See `train` for the callbacks.

        `frozen`: the weights beside which adapters are trained (`trainable.frozen`).
        """
        optimizer, loop = self.config.optimizer, self.config.loop
        if learning_rate is not None:
            optimizer = dataclasses.replace(optimizer, learning_rate=learning_rate)
        optimizer = dataclasses.replace(optimizer, warmup_steps=min(optimizer.warmup_steps, n_steps))
        stream = RowStream(rows, loop.batch_size, seed)
        return train(
            self.step_fn,
            state,
            lambda position: TokenBatch.from_rows(stream.batch(position)),
            make_schedule(optimizer, n_steps),
            n_steps,
            mesh=self.mesh,
            batch_size=loop.batch_size,
            frozen=frozen,
            progress=progress or Progress(),
            log_every=loop.log_every,
            checkpoint_every=loop.checkpoint_every,
            nonfinite=loop.nonfinite,
            count_tokens=lambda batch: int(np.count_nonzero(batch.segment_ids_BT)),
            on_step=on_step,
            on_log=on_log,
            on_checkpoint=on_checkpoint,
            should_stop=should_stop,
        )


def mstep_rows(
    traces: Sequence[AnnotatedTrace], length: int, *, ntp_lambda: float = 0.0, seed: int = 0
) -> tuple[PackedRows, int]:
    """Packs annotated traces, with an `ntp_lambda` share of the programs once more as plain code.

    Returns the rows and the number of traces that were longer than a row and so left out.
    """
    n_plain = round(ntp_lambda * len(traces))
    order = np.random.default_rng(seed).permutation(len(traces))[:n_plain]
    return pack([*traces, *(plain(traces[i].program) for i in sorted(order))], length)


def trained_tokens(rows: PackedRows, n_steps: int, batch_size: int) -> int:
    """Tokens (padding left out) that `n_steps` updates see, on average."""
    return round(n_steps * batch_size * rows.tokens_RT.shape[1] * rows.fill)
