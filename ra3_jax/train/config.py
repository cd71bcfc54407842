"""Settings of the train room. Imports nothing heavy."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Adafactor with a clipped gradient; the schedule runs on the host and never recompiles."""

    kind: Literal["adamw", "adafactor"] = "adamw"
    """adamw: two moments, each as large as the weights. adafactor: no first moment, and of the second the sums over
    rows and columns of each matrix; b1, b2, eps and moment_dtype are Adam's alone."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of Adam's first moment at rest; bfloat16 saves 2 bytes a weight. The second stays float32: its changes are
    smaller than what bfloat16 can tell apart."""
    learning_rate: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warmup: cosine decay; constant and then a linear decay (wsd); or constant."""
    warmup_steps: int = 0
    """Updates of linear warmup."""
    decay_fraction: float = 0.2
    """Share of all updates in the final linear decay (wsd only)."""
    final_fraction: float = 0.1
    """Learning rate at the end, as a share of the peak (cosine and wsd)."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled; not applied to norms and biases."""
    clip_norm: float = 1.0
    """Largest global L2 norm of the gradient."""

    def __post_init__(self):
        if self.learning_rate < 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(f"learning_rate, weight_decay, warmup_steps must not be negative: {self}")
        if not 0 <= self.b1 < 1 or not 0 <= self.b2 < 1:
            raise ValueError(f"b1={self.b1} and b2={self.b2} must lie in [0, 1)")
        if self.eps <= 0 or self.clip_norm <= 0:
            raise ValueError(f"eps={self.eps} and clip_norm={self.clip_norm} must be positive")
        if not 0 <= self.final_fraction <= 1 or not 0 <= self.decay_fraction <= 1:
            raise ValueError(
                f"final_fraction={self.final_fraction} and decay_fraction={self.decay_fraction} must lie in [0, 1]"
            )


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How many rows an update sees, and how often the loop reports and saves."""

    batch_size: int = 32
    """Rows of an update, over all devices and microbatches."""
    accumulate: int = 1
    """Microbatches an update is cut into (less memory, same gradient)."""
    checkpoint_every: int = 0
    """Updates between checkpoints; 0: only at the end."""
    log_every: int = 10
    """Updates between lines of metrics.jsonl."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """On a NaN or infinite gradient: stop with an error, or skip the update and go on."""

    def __post_init__(self):
        if self.batch_size < 1 or self.accumulate < 1 or self.log_every < 1:
            raise ValueError(f"batch_size, accumulate and log_every must be positive: {self}")
        if self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every={self.checkpoint_every} must not be negative")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}")
