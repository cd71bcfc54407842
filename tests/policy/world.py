"""A world small enough to enumerate: ten ids, programs of a few lines, every latent that could be sampled.

The reference is written from the design with plain probabilities (float64 in numpy; the same lines in jnp where a
gradient is needed): an event is log(mass of some ids / mass of the ids that were possible). It shares no code with the
policy room.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.data.codec import EventSets
from ra3_jax.data.trace import Kind, Latent, Program
from ra3_jax.model.config import tiny
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.batch import TokenBatch
from ra3_jax.policy.events import EventLogProbs, Events
from ra3_jax.policy.plan import Plan, Row, make_plan
from ra3_jax.policy.sampler import Samples
from tests.model.small_models import random_params

# "#", "\n", two letters, "##" (also a mark), "\n " (also ends a line), "\r" and an id that the tokenizer lacks
V = 10
BOS, EOS, MARK, NEWLINE, A, B, MARKS, NEWLINE_SPACE, RETURN, MISSING = range(V)


def among(*ids: int) -> np.ndarray:
    return np.isin(np.arange(V), ids)


M_V = among(MARK, MARKS)
N_V = among(NEWLINE, NEWLINE_SPACE)
BANNED_V = among(BOS, EOS, RETURN, MISSING)
ALL_V = np.ones(V, bool)
SETS = EventSets(M_V, N_V, BANNED_V, MARK, NEWLINE, EOS, BOS, EOS)
EVENTS = Events.from_sets(SETS)

MODEL = LanguageModel(tiny(V, d_model=16, n_heads=2, n_layers=1))


def on_one_device():
    """The mesh of conftest, for what runs outside of a test function."""
    return jax.set_mesh(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))


@functools.cache
def params(seed: int = 0) -> Any:
    with on_one_device():
        return jax.tree.map(jnp.asarray, random_params(MODEL.config, seed))


def program(*lines: Sequence[int], prompt: Sequence[int] = (BOS, A), example_id: int = 7) -> Program:
    spans = tuple(np.asarray(line, np.int32) for line in lines)
    return Program(example_id, f"p{example_id}", np.asarray(prompt, np.int32), spans, 3 * len(lines))


TWO = program([A, NEWLINE], [EOS])
THREE = program([B, NEWLINE], [A, B, NEWLINE_SPACE], [EOS], example_id=8)

Z = Latent | None


def thoughts(max_new: int) -> list[Z]:
    """Everything that can stand before a line, thoughts that were cut included."""
    words = [y for y in range(V) if not BANNED_V[y] and not N_V[y]]
    ended = [Latent(ids) for n in range(max_new) for ids in itertools.product(words, repeat=n)]
    cut = [Latent(ids, cut=True) for ids in itertools.product(words, repeat=max_new)]
    return [None, *ended, *cut]


@dataclasses.dataclass(frozen=True)
class Terms:
    """log-probs by line, [R, L]."""

    action: Any
    decision: Any
    rationale: Any
    log_act: Any

    @property
    def latent(self):
        return self.decision + self.rationale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Traces:
    """Traces as rows of T tokens, with each token's events as pairs of sets of ids."""

    tokens_RT: Any
    kinds_RT: Any
    lines_RT: Any
    length_R: Any
    decision: tuple[Any, Any]  # ids that happened, ids that could have: bool [R, T, V]
    token: tuple[Any, Any]
    decides_RT: Any  # bool: act or think was decided here
    thought_RT: Any  # bool: the token belongs to a thought
    think_RL: Any  # 1.0 where a thought stands before the line
    n_lines: int = dataclasses.field(metadata=dict(static=True))

    @property
    def rows(self) -> int:
        return len(self.tokens_RT)

    def batch(self) -> TokenBatch:
        slots_T = np.arange(self.tokens_RT.shape[1], dtype=np.int32)
        inside_RT = (slots_T < self.length_R[:, None]).astype(np.int32)
        return TokenBatch(self.tokens_RT, inside_RT, slots_T * inside_RT, self.kinds_RT, self.lines_RT)

    def logits(self, params: Any, temperature: float = 1.0) -> np.ndarray:
        """float64 [R, T, V]: what predicts the token after each."""
        rows = self.batch()
        logits = full_logits(MODEL, params, rows.tokens_BT, rows.positions_BT, rows.segment_ids_BT)
        return np.asarray(logits, np.float64) / temperature

    def events(self, logits_RTV, xp: Any = np) -> tuple[Any, Any, Any]:
        """(decision, token, log q(act) where it was decided), each [R, T]; 0 where nothing happened."""
        p_RTV = xp.exp(logits_RTV - xp.max(logits_RTV, axis=-1, keepdims=True))
        p_RTV = xp.concatenate([xp.ones_like(p_RTV[:, :1]), p_RTV[:, :-1]], axis=1)  # of token t

        def log_share(happened, possible):
            return xp.log(xp.sum(p_RTV * happened, -1)) - xp.log(xp.sum(p_RTV * possible, -1))

        act = log_share(~M_V, ALL_V) * self.decides_RT
        return log_share(*self.decision), log_share(*self.token), act

    def terms(self, logits_RTV, xp: Any = np) -> Terms:
        decision, token, log_act = self.events(logits_RTV, xp)
        of_line_RTL = xp.asarray(self.lines_RT)[..., None] == xp.arange(1, self.n_lines + 1)

        def by_line(x_RT):
            return xp.sum(x_RT[..., None] * of_line_RTL, axis=1)

        return Terms(
            by_line(token * ~self.thought_RT),
            by_line(decision),
            by_line(token * self.thought_RT),
            by_line(log_act),
        )

    def terms_of(self, params: Any) -> Terms:
        """`terms` as a differentiable function of the weights."""
        rows = self.batch()
        logits = MODEL.logits(params, rows.tokens_BT, rows.positions_BT, rows.segment_ids_BT)
        return self.terms(logits, jnp)

    def lm_log_probs(self, logits_RTV: np.ndarray) -> np.ndarray:
        """[R, T] log-probs of the plain language model, 0 in the prompt and in padding."""
        logp_RTV = logits_RTV - np.log(np.exp(logits_RTV).sum(-1, keepdims=True))
        picked = np.take_along_axis(logp_RTV[:, :-1], self.tokens_RT[:, 1:, None], -1)[..., 0]
        return np.pad(picked, ((0, 0), (1, 0))) * (self.lines_RT > 0)

    def samples(self, q_logits_RTV: np.ndarray) -> Samples:
        """What the sampler would have returned, had it drawn exactly these rows from q."""
        log_probs = EventLogProbs(*(jnp.float32(x) for x in self.events(q_logits_RTV)))
        tokens, kinds, lines, length = map(jnp.asarray, (self.tokens_RT, self.kinds_RT, self.lines_RT, self.length_R))
        return Samples(tokens, kinds, lines, log_probs, length, jnp.int32(0))

    def take(self, rows: np.ndarray) -> "Traces":
        return jax.tree.map(lambda x: x[rows], self)


@functools.partial(jax.jit, static_argnames="model")
def full_logits(model: LanguageModel, params, tokens_BT, positions_BT, segment_ids_BT):
    return model.logits(params, tokens_BT, positions_BT, segment_ids_BT)


def every_latent(
    program: Program, max_new: int, first_line: int = 0, n_lines: int | None = None
) -> list[tuple[Z, ...]]:
    """All choices of a latent before each line of a window (of the program), one per line of the program."""
    n = program.n_lines - first_line if n_lines is None else n_lines
    before, behind = (None,) * first_line, (None,) * (program.n_lines - first_line - n)
    inside = itertools.product(thoughts(max_new), repeat=n)
    return [(*before, *latents, *behind) for latents in inside]


def lay_out(
    program: Program,
    latents: Sequence[Sequence[Z]],
    *,
    length: int = 24,
    first_line: int = 0,
    n_lines: int | None = None,
) -> Traces:
    """The traces of a window of lines (of the whole program); earlier lines belong to the prompt."""
    R, stop = len(latents), program.n_lines if n_lines is None else first_line + n_lines
    tokens, kinds, lines = (np.zeros((R, length), np.int32) for _ in range(3))
    sets = np.ones((4, R, length, V), bool)
    decides, thought = np.zeros((R, length), bool), np.zeros((R, length), bool)
    think, length_R = np.zeros((R, program.n_lines)), np.zeros(R, np.int32)
    earlier = [x for line in program.lines[:first_line] for x in line]
    for r, row in enumerate(latents):
        at = 0

        def put(token, kind, line=0, decision=(ALL_V, ALL_V), event=(ALL_V, ALL_V), r=r):
            nonlocal at
            tokens[r, at], kinds[r, at], lines[r, at] = token, kind, line
            for i, ids in enumerate((*decision, *event)):
                sets[i, r, at] = ids
            at += 1

        for token in [*program.prompt_ids, *earlier]:
            put(token, Kind.PROMPT)
        for t in range(first_line, stop):
            z, first, decision = row[t], Kind.CODE_ACT, (~M_V, ALL_V)
            decides[r, at] = True
            if z is not None:
                think[r, t] = 1.0
                first, decision, begin = Kind.CODE_AFTER, (ALL_V, ALL_V), at
                put(MARK, Kind.MARK, t + 1, decision=(M_V, ALL_V))
                for y in z.ids:
                    put(y, Kind.RATIONALE, t + 1, event=(among(y), ~BANNED_V))
                if z.cut:
                    put(NEWLINE, Kind.END_CUT, t + 1)
                else:
                    put(NEWLINE, Kind.END, t + 1, event=(N_V, ~BANNED_V))
                thought[r, begin:at] = True
            x, *rest = program.lines[t]
            put(x, first, t + 1, decision, event=(among(x), ~M_V))
            for x in rest:
                put(x, Kind.CODE, t + 1, event=(among(x), ALL_V))
        length_R[r] = at
    return Traces(
        tokens, kinds, lines, length_R, (sets[0], sets[1]), (sets[2], sets[3]),
        decides, thought, think, program.n_lines,
    )  # fmt: skip


class Case:
    """All traces of a program (or of a window of it) with their log-probs under pi = params(0) and q = params(1)."""

    def __init__(self, program: Program, max_new: int, first_line: int = 0, n_lines: int | None = None):
        self.program = program
        self.latents = every_latent(program, max_new, first_line, n_lines)
        self.traces = lay_out(program, self.latents, first_line=first_line, n_lines=n_lines)
        with on_one_device():
            self.pi_logits, self.q_logits = self.traces.logits(params(0)), self.traces.logits(params(1))
        self.pi, self.q = self.traces.terms(self.pi_logits), self.traces.terms(self.q_logits)
        self.p_R = np.exp(self.pi.latent.sum(1))  # of the latents, the code being forced
        self.q_R = np.exp(self.q.latent.sum(1))
        self.w_R = np.exp(self.pi.action.sum(1))
        self.code = float(np.sum(self.p_R * self.w_R))  # p(code), the sum over all latents
        self.line_length_L = np.array([len(line) for line in program.lines], float)

    @property
    def nothing(self) -> int:
        """The trace without any thought."""
        return self.latents.index((None,) * self.program.n_lines)


def even_plan(rows: Sequence[Row], *, batch: int = 8, slots: int = 96) -> Plan:
    """`make_plan`, with every array widened to one size, so that the tests share compiled programs."""
    plan = make_plan(rows, batch=batch, slots=slots)

    def widen(table, width: int) -> np.ndarray:
        return np.pad(np.asarray(table), ((0, 0), (0, width - table.shape[1])))

    return dataclasses.replace(
        plan,
        prompt_BP=widen(plan.prompt_BP, 32),
        ids_BF=widen(plan.ids_BF, 64),
        kind_BN=widen(plan.kind_BN, 16),
        start_BN=widen(plan.start_BN, 16),
        size_BN=widen(plan.size_BN, 16),
        line_BN=widen(plan.line_BN, 16),
    )


@pytest.fixture(autouse=True)
def quick_compile():
    """These tests compile much and compute little. (Import it to use it.)"""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# --- a language model that is a table: logits of the next token depend on the last one alone ------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoCache:
    rows_B: jax.Array

    def take(self, indices_B: jax.Array) -> "NoCache":
        return NoCache(self.rows_B[indices_B])


@dataclasses.dataclass(frozen=True)
class Bigram:
    """What the policy room uses of a LanguageModel; its weights are the table logits_VV."""

    def hidden(self, params, tokens_BT, positions_BT, segment_ids_BT):
        return jax.nn.one_hot(tokens_BT, V)

    def unembed(self, params, hidden_XD):
        return hidden_XD @ params

    def folded(self, params):
        return params

    def init_cache(self, batch: int, length: int, window: int) -> NoCache:
        return NoCache(jnp.zeros(batch))

    def prefill(self, params, tokens_BP, lengths_B, cache):
        return jax.nn.one_hot(tokens_BP, V), cache

    def decode(self, params, tokens_BW, n_valid_B, cache):
        return jax.nn.one_hot(tokens_BW, V), cache


BIGRAM: Any = Bigram()


def table(default: float = 0.0, **rows: dict[int, float]) -> jax.Array:
    """Logits by the last token: `table(MARK={A: 5.0})`, keys being the names above; `default` elsewhere."""
    logits_VV = np.full((V, V), default, np.float32)
    for name, row in rows.items():
        for token, value in row.items():
            logits_VV[globals()[name], token] = value
    return jnp.asarray(logits_VV)
