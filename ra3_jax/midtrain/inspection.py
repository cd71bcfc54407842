"""What a model thinks where, on any code: thoughts sampled along it, and what each of them is worth.

    inspector = Inspector.load("runs/midtrain-tiny")     # or an HF directory or id
    inspector(source)                                    # in a notebook: the code with its thoughts, in colour

The rollouts are those of the E-step and of the bounds: before each line the model decides without having seen it.
"""

import collections
import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import data_parallel_size, make_mesh, to_host
from ra3_jax.core.rng import named_key
from ra3_jax.core.rundir import RunDirError
from ra3_jax.data.codec import Codec
from ra3_jax.data.functions import function_nodes, split_function
from ra3_jax.data.lines import parse, with_final_newline
from ra3_jax.data.trace import Program
from ra3_jax.midtrain.elbo import iwae_bound, log_importance_weights
from ra3_jax.midtrain.evaluate import plain_nll, rollout_gains
from ra3_jax.midtrain.inspection_html import page
from ra3_jax.midtrain.rollouts import Rollouts, latents_of_rows, roll_out
from ra3_jax.model.checkpoint import load_model
from ra3_jax.model.language_model import Params
from ra3_jax.policy.events import Events
from ra3_jax.policy.plan import rollout_row, round_up
from ra3_jax.policy.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Thought:
    """A thought that some of the rollouts wrote before a line."""

    text: str  # without mark and newline; "..." at its end where it was cut at the greatest length
    rollouts: int  # that wrote it
    gain: float  # log-likelihood of the next T lines with it minus without it, all else staying; mean, in nats


@dataclasses.dataclass(frozen=True)
class Line:
    """A logical line of the program, and what was thought before it. The last line is end-of-text: it has no text."""

    text: str
    think: float  # q(think | everything before), mean over the rollouts
    nats: float  # -log p(line | everything before, thoughts too), mean over the rollouts
    thoughts: tuple[Thought, ...]  # the most frequent first


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection:
    """The lines of a program with the thoughts of K rollouts. A notebook shows it in colour."""

    name: str  # of the model
    prompt: str
    lines: tuple[Line, ...]
    samples: int  # K
    horizon: int  # T
    nll: float  # -log p(code) without any thought, nats
    iwae: float  # -L_K: bound on -log p(code) with the thoughts of the K rollouts, nats

    def __repr__(self) -> str:
        n = sum(thought.rollouts for line in self.lines for thought in line.thoughts)
        return f"{self.name}: {n} thoughts in {self.samples} rollouts over {len(self.lines)} lines"

    def _repr_html_(self) -> str:
        return str(page(self))


def inspect_program(
    sampler: Sampler,
    params,
    program: Program,
    codec: Codec,
    events: Events,
    key: jax.Array,
    mesh: Mesh,
    *,
    samples: int,
    horizon: int,
    max_latent_tokens: int,
    name: str = "model",
) -> Inspection:
    """Rolls `samples` times along the program, and scores it without each of the thoughts. Call it under the mesh."""
    batch = samples * data_parallel_size(mesh)  # a whole number of groups on every device
    slots = round_up(rollout_row(program, max_latent_tokens).capacity, 64)  # so that few shapes are compiled
    rollouts = roll_out(
        sampler, params, [program], events, key, mesh,
        group=samples, max_latent_tokens=max_latent_tokens, batch=batch, slots=slots,
    )  # fmt: skip
    gains = rollout_gains(sampler, params, rollouts, events, mesh, horizon=horizon)
    log_w_B, action_BL, log_act_BL = to_host(
        (log_importance_weights(rollouts.terms), rollouts.terms.action, rollouts.terms.log_act)
    )
    # A log-probability that is a difference may round to above 0; and 0.0 - x, as -x may be -0.0.
    think_L = 0.0 - np.expm1(np.minimum(log_act_BL[:samples], 0.0)).mean(axis=0)
    nats_L = -action_BL[:samples].mean(axis=0)
    thoughts = _by_line(rollouts, gains, codec)
    texts = [codec.decode(ids).removesuffix("\n") for ids in program.lines]
    return Inspection(
        name=name,
        prompt=codec.decode(program.prompt_ids),
        lines=tuple(
            Line(text, float(think_L[t]), float(nats_L[t]), thoughts.get(t + 1, ())) for t, text in enumerate(texts)
        ),
        samples=samples,
        horizon=horizon,
        nll=float(plain_nll(sampler, params, [program], events, mesh, rollouts)[0]),
        iwae=-float(iwae_bound(log_w_B[None, :samples])[0]),
    )


def _by_line(rollouts: Rollouts, gains: list[dict[int, float]], codec: Codec) -> dict[int, tuple[Thought, ...]]:
    """The thoughts before each line (1-based) that has any; rollouts that wrote the same text are taken together."""
    found: dict[int, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for row, worth in zip(latents_of_rows(rollouts.samples), gains, strict=False):  # rows beyond K only fill the batch
        for line, latent in row.items():
            text = codec.decode(latent.ids).strip() + ("..." if latent.cut else "")
            found[line][text].append(worth[line])
    return {
        line: tuple(
            Thought(text, len(worth), float(np.mean(worth)))
            for text, worth in sorted(texts.items(), key=lambda item: -len(item[1]))
        )
        for line, texts in found.items()
    }


def read_source(source: str, codec: Codec) -> Program:
    """A program of pasted code: of a function alone the signature and docstring are the prompt, else there is none.

    Full-line comments are dropped. Raises DataError where it is not Python, or has no line of code.
    """
    source = with_final_newline(source.strip("\n"))
    tree = parse(source, "<code>")
    functions = [node for _, node in function_nodes(tree)]
    prompt, code = "", source
    if len(tree.body) == 1 and tree.body == functions:
        prompt, code = split_function(source.split("\n"), functions[0], "<code>")
    return codec.program(prompt, code, "<code>")


@dataclasses.dataclass(frozen=True)
class Inspector:
    """A loaded model with all that `inspect_program` needs: `inspector(source)` for one piece of code after another."""

    name: str
    sampler: Sampler
    params: Params
    codec: Codec
    events: Events
    mesh: Mesh

    @classmethod
    def load(cls, model: str, mesh: Mesh | None = None) -> "Inspector":
        """`model`: a run directory, an HF directory or a Hub id. Raises InputError or CheckpointError."""
        mesh = mesh or make_mesh()
        with jax.set_mesh(mesh):
            try:
                loaded = load_model(model, mesh)
            except (ValueError, OSError, RunDirError) as error:
                raise InputError(str(error)) from error
            codec = Codec(loaded.tokenizer, loaded.model.config.vocab_size)
            sampler = Sampler(loaded.model, window=4)
            return cls(loaded.origin, sampler, loaded.params, codec, Events.from_sets(codec.sets), mesh)

    def __call__(
        self, source: str, *, samples: int = 16, horizon: int = 3, max_latent_tokens: int = 8, seed: int = 0
    ) -> Inspection:
        """`samples` rollouts along `source`; `horizon` and `max_latent_tokens` as in the training of the model.

        Raises InputError where the code is not Python or too long for the model.
        """
        try:
            program = read_source(source, self.codec)
        except ValueError as error:
            raise InputError(str(error)) from error
        needed, limit = rollout_row(program, max_latent_tokens).capacity, self.sampler.model.config.max_positions
        if needed > limit:
            raise InputError(f"the code may need {needed} tokens with its thoughts, the model has room for {limit}")
        with jax.set_mesh(self.mesh):
            return inspect_program(
                self.sampler, self.params, program, self.codec, self.events, named_key(jax.random.key(seed), "inspect"),
                self.mesh, samples=samples, horizon=horizon, max_latent_tokens=max_latent_tokens, name=self.name,
            )  # fmt: skip
