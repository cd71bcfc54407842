"""What a job trains of a model: all of its weights, or LoRA adapters beside weights that stay as they are.

Both are a TrainState; with adapters it holds these alone, and the frozen weights travel beside it:

    trained            state.params        frozen      what the model takes
    all                the weights         None        state.params
    adapters           A and B             weights     join(frozen, A, B): no copy

As in a checkpoint ("params" is what is trained, so nobody takes frozen weights for the trained ones by mistake):

    params, opt_state, step                            all
    params, opt_state, step, frozen, lora_scale        adapters; `model.checkpoint.load_model` merges them
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ra3_jax.core.checkpoint import Checkpoints, Meta
from ra3_jax.core.mesh import replicated, to_devices
from ra3_jax.model.checkpoint import abstract_params
from ra3_jax.model.config import LoRAConfig
from ra3_jax.model.language_model import LanguageModel, Params
from ra3_jax.model.lora import abstract_adapters, init_adapters, join, merge
from ra3_jax.train.config import OptimizerConfig
from ra3_jax.train.optimizer import make_optimizer
from ra3_jax.train.state import TrainState, abstract_state, state_from_params, state_shardings
from ra3_jax.train.step import Batch, LossFn, StepFn, make_train_step


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A model, what of it is trained, by which optimizer, where."""

    model: LanguageModel
    mesh: Mesh
    tx: optax.GradientTransformation
    lora: LoRAConfig
    shardings: TrainState

    @classmethod
    def create(cls, model: LanguageModel, mesh: Mesh, optimizer: OptimizerConfig, lora: LoRAConfig) -> "Trainable":
        tx, shapes = make_optimizer(optimizer), _trained(model, mesh, lora)
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        return cls(model, mesh, tx, lora, state_shardings(shapes, tx, shardings, mesh))

    def start(self, params: Params, seed: int = 0) -> TrainState:
        """A fresh optimizer around a copy of `params`, or around fresh adapters, whose A is a function of the seed."""
        if self.lora.rank:
            params = init_adapters(seed, _trained(self.model, self.mesh, self.lora))
        return state_from_params(params, self.tx, self.shardings)

    def frozen(self, params: Params) -> Params | None:
        """The weights to keep beside the state that starts from `params`: those very arrays, or None."""
        return jax.device_put(params, self.model.param_shardings(self.mesh)) if self.lora.rank else None

    def abstract(self) -> TrainState:
        """Shapes and shardings of the TrainState."""
        return abstract_state(_trained(self.model, self.mesh, self.lora), self.tx, self.shardings)

    def abstract_frozen(self) -> Params | None:
        return abstract_params(self.model, self.mesh) if self.lora.rank else None

    def compile(self, loss_fn: LossFn, *, accumulate: int = 1, name: str = "train_step") -> StepFn:
        """The step of `make_train_step`; with adapters it takes the frozen weights as a last argument.

        `loss_fn(params, batch)` gets what the model takes in both cases.
        """
        if not self.lora.rank:
            return make_train_step(loss_fn, self.tx, self.mesh, self.shardings, accumulate=accumulate, name=name)

        def joined_loss(adapters: Params, batch: Batch, frozen: Params):
            return loss_fn(join(frozen, adapters, self.lora.scale), batch)

        return make_train_step(
            joined_loss, self.tx, self.mesh, self.shardings, accumulate=accumulate,
            frozen_shardings=self.model.param_shardings(self.mesh), name=name,
        )  # fmt: skip

    def weights(self, trained: Params, frozen: Params | None) -> Params:
        """What the model takes, for sampling and scoring. It goes with the state: keep it no longer."""
        return trained if frozen is None else join(frozen, trained, self.lora.scale)

    def plain(self, trained: Params, frozen: Params | None, *, donate: bool = False) -> Params:
        """The trained weights without adapters. `donate`: they may take the place of the frozen ones."""
        return trained if frozen is None else merge(frozen, trained, self.lora.scale, donate=donate)

    # --- checkpoints

    def tree(self, state: TrainState, frozen: Params | None) -> dict[str, Any]:
        """How state and frozen weights lie in a checkpoint."""
        tree = {"params": state.params, "opt_state": state.opt_state, "step": state.step}
        if frozen is not None:
            tree |= {"frozen": frozen, "lora_scale": to_devices(np.float32(self.lora.scale), replicated(self.mesh))}
        return tree

    def restore(
        self, checkpoints: Checkpoints, step: int, extra: dict[str, Any] | None = None
    ) -> tuple[TrainState, Params | None, dict[str, Any], Meta]:
        """(state, frozen, tree, meta) of a checkpoint that holds `tree` and `extra` (abstract) besides.

        Raises CheckpointError.
        """
        abstract = self.abstract()
        wanted: dict[str, Any] = {"params": abstract.params, "opt_state": abstract.opt_state, "step": abstract.step}
        if self.lora.rank:
            scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(self.mesh))
            wanted |= {"frozen": self.abstract_frozen(), "lora_scale": scale}
        tree, meta = checkpoints.restore(wanted | (extra or {}), step)
        return TrainState(tree["params"], tree["opt_state"], tree["step"]), tree.get("frozen"), tree, meta


def _trained(model: LanguageModel, mesh: Mesh, lora: LoRAConfig) -> Params:
    """Shapes and shardings of what is trained."""
    weights = abstract_params(model, mesh)
    return abstract_adapters(weights, lora) if lora.rank else weights
