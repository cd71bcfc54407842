"""The same seeds draw the same tokens on every mesh: rollouts and annotation (`Sampler.run`), lanes, greedy decoding.

Meshes add up in other orders, so a draw may fall the other way where the two best choices all but tie. Such a flip is
allowed below TIE, measured on what decided the draw: logits plus noise of the allowed ids, or act against think.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.rng import row_keys
from ra3_jax.data.trace import Kind
from ra3_jax.policy.batch import place
from ra3_jax.policy.events import decision_log_probs
from ra3_jax.policy.generate import Prompt, generate
from ra3_jax.policy.plan import Row, Sample, make_plan, rollout_row
from ra3_jax.policy.sampler import Sampler, to_host
from tests.meshes.bench import MESHES, MODELS, PROGRAMS, events, mesh_of, params
from tests.policy.world import on_one_device

TIE = 1e-4
NAME, KEY, BATCH, SLOTS = "odd", jax.random.key(8), 16, 128
LANES = [Row(p.prompt_ids, [Sample("eos", 20)], p.example_id, k) for p in PROGRAMS for k in range(2)]
GROUPS = [rollout_row(p, 4, sample_index=g) for p in PROGRAMS[:6] for g in range(2)] + LANES[12:14]  # and an empty one


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Rows as they were drawn; numpy."""

    rows: list[Row]
    tokens_BS: Any
    kinds_BS: Any
    logp_BS: Any
    length_B: Any


@functools.cache
def run(shape: tuple[int, int, int], temperature: float) -> Drawn:
    """Rollouts in groups of two that share a prefill, and plain text."""
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        plan = place(make_plan(GROUPS, batch=BATCH, slots=SLOTS), mesh)
        weights = jax.device_put(params(NAME), MODELS[NAME].param_shardings(mesh))
        out = to_host(Sampler(MODELS[NAME], 4, temperature).run(weights, plan, events(NAME), KEY, group=2))
    return Drawn(GROUPS, out.tokens_BS, out.kinds_BS, out.log_probs.token + out.log_probs.decision, out.length_B)


@functools.cache
def lanes(shape: tuple[int, int, int]) -> Drawn:
    """Sixteen completions in eight lanes, so that some lanes get a second prompt."""
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        weights = jax.device_put(params(NAME), MODELS[NAME].param_shardings(mesh))
        prompts = [Prompt(p.prompt_ids, p.example_id) for p in PROGRAMS]
        found = generate(
            Sampler(MODELS[NAME]), weights, prompts, events(NAME), KEY, mesh, samples=2, max_new=20, batch=8
        )
    tokens_BS, kinds_BS = np.zeros((2, BATCH, SLOTS), np.int32)
    logp_BS, length_B = np.zeros((BATCH, SLOTS), np.float32), np.zeros(BATCH, np.int32)
    for b, completion in enumerate(completion for of_prompt in found for completion in of_prompt):
        prompt = LANES[b].prompt_ids
        start, length_B[b] = len(prompt), len(prompt) + len(completion.tokens)
        new = slice(start, length_B[b])
        tokens_BS[b, :start], tokens_BS[b, new] = prompt, completion.tokens
        kinds_BS[b, :start], kinds_BS[b, new] = Kind.PROMPT, Kind.GENERATED
        logp_BS[b, new] = completion.token_logps
    return Drawn(LANES, tokens_BS, kinds_BS, logp_BS, length_B)


DRAWS = {
    "run": functools.partial(run, temperature=1.0),
    "run, greedy": functools.partial(run, temperature=0.0),
    "lanes": lanes,
}


@functools.cache
def draws_of(way: str) -> tuple[np.ndarray, np.ndarray]:
    """(id or decision that wins, its lead over the second) [B, S] of each draw on one device; elsewhere inf.

    Computed again from the rows, in one forward pass. Decisions are 1 for think and 0 for act.
    """
    drawn, ev, temperature = DRAWS[way]((1, 1, 1)), events(NAME), 0.0 if way == "run, greedy" else 1.0
    rows = [*drawn.rows, *[Row([], [], 0)] * (BATCH - len(drawn.rows))]
    example_B, sample_B = (np.array([getattr(row, f) for row in rows]) for f in ("example_id", "sample_index"))

    @jax.jit
    def find(weights):
        slots_S = jnp.arange(SLOTS)
        inside_BS = (slots_S < drawn.length_B[:, None]).astype(jnp.int32)
        logits_BSV = MODELS[NAME].logits(weights, drawn.tokens_BS, slots_S * inside_BS, inside_BS)
        logits_BSV = jnp.pad(logits_BSV[:, :-1], ((0, 0), (1, 0), (0, 0)))  # that predict the token of a slot
        at_slots = jax.vmap(jax.random.fold_in, (None, 0))
        keys_BS = jax.vmap(lambda key: at_slots(key, slots_S))(row_keys(KEY, example_B, sample_B))
        draw = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits_BSV.shape[-1:])))
        noise_BSV = draw(keys_BS) * bool(temperature)
        rationale_BS1 = (drawn.kinds_BS != Kind.GENERATED)[..., None]
        perturbed_BSV = jnp.where(rationale_BS1 & ev.banned_V, -jnp.inf, logits_BSV + noise_BSV)
        best_BS2, ids_BS2 = jax.lax.top_k(perturbed_BSV, 2)
        act_BS, think_BS = decision_log_probs(logits_BSV, ev)
        lead_BS = think_BS + noise_BSV[..., 0] - act_BS - noise_BSV[..., 1]
        return ids_BS2[..., 0], best_BS2[..., 0] - best_BS2[..., 1], lead_BS

    with on_one_device():
        ids_BS, gap_BS, lead_BS = map(np.array, find(params(NAME)))
    decides_BS = np.isin(drawn.kinds_BS, (Kind.MARK, Kind.CODE_ACT))
    samples_BS = np.isin(drawn.kinds_BS, (Kind.RATIONALE, Kind.END, Kind.GENERATED))
    winner_BS = np.where(decides_BS, lead_BS > 0, ids_BS)
    return winner_BS, np.where(decides_BS, np.abs(lead_BS), np.where(samples_BS, gap_BS, np.inf))


def flips(found: Drawn, expected: Drawn, gap_BS: np.ndarray) -> int:
    """Rows that part ways, each at a draw that is all but a tie; what comes before has the same log-probs."""
    count = 0
    for b in range(BATCH):
        pairs = ((found.tokens_BS, expected.tokens_BS), (found.kinds_BS, expected.kinds_BS))
        differs_S = np.logical_or(*(x[b] != y[b] for x, y in pairs))
        first = int(np.argmax(differs_S)) if differs_S.any() else SLOTS
        if first < SLOTS:
            assert gap_BS[b, first] < TIE, f"row {b}, slot {first}: lead {gap_BS[b, first]}"
            count += 1
        else:
            assert found.length_B[b] == expected.length_B[b]
        np.testing.assert_allclose(found.logp_BS[b, :first], expected.logp_BS[b, :first], rtol=1e-5, atol=1e-5)
    return count


@pytest.mark.parametrize("way", DRAWS)
def test_the_gap_is_of_what_decides(way: str):
    """Every draw on one device is the winner of what the gap is measured on, and all kinds of draws are among them."""
    drawn, ev = DRAWS[way]((1, 1, 1)), events(NAME)
    winner_BS, gap_BS = draws_of(way)
    kinds_BS = drawn.kinds_BS
    np.testing.assert_array_equal(
        kinds_BS[kinds_BS == Kind.MARK], np.where(winner_BS, Kind.MARK, 0)[kinds_BS == Kind.MARK]
    )
    assert not winner_BS[kinds_BS == Kind.CODE_ACT].any()
    assert np.asarray(ev.newline_V)[winner_BS[kinds_BS == Kind.END]].all()
    written_BS = np.isin(kinds_BS, (Kind.RATIONALE, Kind.GENERATED))
    np.testing.assert_array_equal(winner_BS[written_BS], drawn.tokens_BS[written_BS])
    n = {kind: int((kinds_BS == kind).sum()) for kind in (Kind.MARK, Kind.CODE_ACT, Kind.RATIONALE, Kind.GENERATED)}
    assert n[Kind.GENERATED] > 20 and np.isfinite(gap_BS).sum() >= sum(n.values())
    if way == "run":
        assert min(n.values()) > 5, n


@pytest.mark.parametrize("shape", MESHES[1:])
@pytest.mark.parametrize("way", DRAWS)
def test_every_mesh_draws_the_same(way: str, shape: tuple[int, int, int]):
    assert flips(DRAWS[way](shape), DRAWS[way]((1, 1, 1)), draws_of(way)[1]) <= 1


def test_a_flip_that_rounding_does_not_explain_is_refused():
    expected, gap_BS = run((1, 1, 1), 1.0), draws_of("run")[1]
    b, s = np.argwhere((expected.kinds_BS == Kind.RATIONALE) & (gap_BS > TIE))[0]
    tokens_BS = expected.tokens_BS.copy()
    tokens_BS[b, s] += 1
    other = dataclasses.replace(expected, tokens_BS=tokens_BS)
    with pytest.raises(AssertionError, match=f"row {b}, slot {s}: lead"):
        flips(other, expected, gap_BS)
    tie_BS = gap_BS.copy()
    tie_BS[b, s] = TIE / 2
    assert flips(other, expected, tie_BS) == 1
    forced = np.argwhere(expected.kinds_BS == Kind.CODE)[0]
    tokens_BS = expected.tokens_BS.copy()
    tokens_BS[tuple(forced)] += 1
    with pytest.raises(AssertionError, match="lead inf"):
        flips(dataclasses.replace(expected, tokens_BS=tokens_BS), expected, gap_BS)
