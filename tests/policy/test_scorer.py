"""The scorer on packed rows, in chunks, at any temperature: always the trace policy of the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.data.packing import pack
from ra3_jax.data.trace import annotate
from ra3_jax.policy import scorer
from ra3_jax.policy.batch import TokenBatch, place
from ra3_jax.policy.scorer import in_parts, over_time, score, score_plain
from tests.policy import world
from tests.policy.world import EVENTS, MARK, MODEL, NEWLINE, THREE, TWO, quick_compile

__all__ = ["quick_compile"]

LENGTH = 48
CASES = [(TWO, world.every_latent(TWO, 2)[::47]), (THREE, world.every_latent(THREE, 1)[::19])]
FIELDS = ("decision", "token", "log_act")


def packed():
    """Rows of several traces each; `example_RT` counts through CASES."""
    traces = [annotate(p, z, mark_id=MARK, newline_id=NEWLINE) for p, rows in CASES for z in rows]
    rows, dropped = pack(traces, LENGTH)
    assert not dropped and len(rows) == 7
    assert rows.segment_ids_RT.max() >= 3 and rows.fill < 1
    return rows


@functools.partial(jax.jit, static_argnames=("temperature", "chunk"))
def scored(params, batch, temperature=1.0, chunk=None):
    return score(MODEL, params, batch, EVENTS, temperature=temperature, chunk=chunk)


@functools.partial(jax.jit, static_argnames="chunk")
def scored_plain(params, batch, chunk=None):
    return score_plain(MODEL, params, batch, chunk=chunk)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_packed_rows_are_scored_as_if_alone(temperature):
    params = world.params(0)
    rows, example = packed(), -1
    found = scored(params, TokenBatch.from_rows(rows), temperature)
    plain = np.asarray(scored_plain(params, TokenBatch.from_rows(rows)))
    for p, latents in CASES:
        traces = world.lay_out(p, latents)
        expected = traces.events(traces.logits(params, temperature))
        plain_RT = traces.lm_log_probs(traces.logits(params))
        for r in range(len(latents)):
            example += 1
            where = rows.example_RT == example
            n = traces.length_R[r]
            assert where.sum() == n
            for name, reference in zip(FIELDS, expected, strict=True):
                np.testing.assert_allclose(np.asarray(getattr(found, name))[where], reference[r, :n], atol=1e-5)
            prompt = len(p.prompt_ids)  # of which score_plain scores all but the first token
            np.testing.assert_allclose(plain[where][prompt:], plain_RT[r, prompt:n], atol=1e-5)
            assert plain[where][0] == 0 and (plain[where][1:prompt] < 0).all()
    padding = rows.segment_ids_RT == 0
    for x in (*jax.tree.leaves(found), plain):
        assert not np.asarray(x)[padding].any()


def test_chunks_change_nothing():
    """Neither values nor gradients."""
    batch = TokenBatch.from_rows(packed())

    @functools.partial(jax.jit, static_argnames="chunk")
    def sums(params, chunk=None):
        def total(params):
            out = score(MODEL, params, batch, EVENTS, chunk=chunk)
            plain = score_plain(MODEL, params, batch, chunk=chunk)
            return jnp.sum(out.decision + 2 * out.token) + 3 * jnp.sum(plain), (out, plain)

        return jax.value_and_grad(total, has_aux=True)(params)

    whole, parts = sums(world.params(0)), sums(world.params(0), 16)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4)
    for a, b in zip(jax.tree.leaves(parts[0][1]), jax.tree.leaves(whole[0][1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_over_time_keeps_the_order():
    x_BTD = jnp.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    y_BT = jnp.arange(12).reshape(2, 6)

    def f(x_BXD, y_BX):
        return {"x": 2 * x_BXD, "y": y_BX + 1}

    for chunk in (None, 1, 2, 4, 5, 6, 100):  # whole chunks or not
        out = over_time(f, chunk, x_BTD, y_BT)
        np.testing.assert_array_equal(out["x"], 2 * x_BTD)
        np.testing.assert_array_equal(out["y"], y_BT + 1)


@pytest.mark.parametrize("devices", [1, 2])
def test_parts_of_a_batch_keep_its_order(devices: int, monkeypatch):
    """Rows in parts of one or two a device give what all at once give, each in its place."""
    rows = jax.tree.map(lambda x: x[:6], TokenBatch.from_rows(packed()))
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:devices])):
        rows = jax.tree.map(jnp.asarray, rows)

        def numbers(part: TokenBatch) -> dict:
            assert part.tokens_BT.shape[0] < 6 or scorer.SCORED_AT_ONCE > LENGTH
            return {"tokens": part.tokens_BT * 2, "first": part.positions_BT[:, 0] + part.kinds_BT[:, 1]}

        whole = jax.jit(lambda rows: in_parts(numbers, None, rows))
        monkeypatch.setattr(scorer, "SCORED_AT_ONCE", 10**6)
        expected = whole(rows)
        monkeypatch.setattr(scorer, "SCORED_AT_ONCE", LENGTH)
        found = jax.jit(lambda rows: in_parts(numbers, 64, rows))(rows)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_place_wants_rows_for_every_device():
    batch = TokenBatch.from_rows(packed())
    mesh = make_mesh(devices=jax.devices()[:2])
    with pytest.raises(ValueError, match="batch of 7 rows cannot be cut over 2 data-parallel devices"):
        place(batch, mesh)
    placed = place(jax.tree.map(lambda x: x[:6], batch), mesh)
    assert {len(x.addressable_shards[0].data) for x in jax.tree.leaves(placed)} == {3}
