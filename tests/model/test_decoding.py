"""Cached decoding must be the full forward pass, for any window and any mixture of valid tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.model.cache import write_window
from tests.model.small_models import (
    SMALL,
    V,
    compiled,
    one_segment,
    random_params,
    random_tokens,
)

B, T = 6, 16
SHIFT, EVERYTHING = SMALL["key_shift"], SMALL["everything"]
LENGTHS_B = np.array([0, 1, 3, 7, 8, 5], np.int32)


def setup(config):
    """(jitted functions, params, an empty cache for B rows)."""
    functions = compiled(config)
    return functions, random_params(config), functions.model.init_cache(B, T)


def full_hidden(functions, params, tokens_BT):
    return np.asarray(functions.hidden(params, *one_segment(tokens_BT)))


def decode_randomly(functions, params, tokens_BT, cache, cursor_B, window: int, seed: int):
    """Feeds each row its own tokens, a random 0..W at a time, junk in the invalid slots; yields
    (cursor, n, hidden).
    """
    rng = np.random.default_rng(seed)
    rows, length = tokens_BT.shape
    cursor_B = np.array(cursor_B)
    while (cursor_B < length).any():
        n_valid_B = np.minimum(rng.integers(0, window + 1, rows), length - cursor_B)
        tokens_BW = rng.integers(0, V, (rows, window)).astype(np.int32)
        for b in range(rows):
            tokens_BW[b, : n_valid_B[b]] = tokens_BT[b, cursor_B[b] : cursor_B[b] + n_valid_B[b]]
        hidden_BWD, cache = functions.decode(params, tokens_BW, n_valid_B.astype(np.int32), cache)
        hidden_BWD = np.asarray(hidden_BWD)
        for b in range(rows):
            for w in range(n_valid_B[b]):
                yield b, cursor_B[b] + w, hidden_BWD[b, w]
        cursor_B += n_valid_B
        assert cursor_B.tolist() == cache.cursor_B.tolist()


@pytest.mark.parametrize("window", [1, 4, 8])
def test_cached_decode_equals_full_forward(window):
    functions, params, cache = setup(EVERYTHING)
    tokens_BT = random_tokens((B, T))
    expected_BTD = full_hidden(functions, params, tokens_BT)
    seen_BT = np.zeros((B, T), int)
    rows = decode_randomly(functions, params, tokens_BT, cache, [0] * B, window, seed=window)
    for b, t, hidden_D in rows:
        np.testing.assert_allclose(hidden_D, expected_BTD[b, t], atol=3e-5)
        seen_BT[b, t] += 1
    assert (seen_BT == 1).all()


@pytest.mark.parametrize("config", [SHIFT, EVERYTHING])
def test_prefill_then_decode_equals_full_forward(config):
    functions, params, cache = setup(config)
    tokens_BT = random_tokens((B, T))
    expected_BTD = full_hidden(functions, params, tokens_BT)
    hidden_BPD, cache = functions.prefill(params, tokens_BT[:, :8], LENGTHS_B, cache)
    for b, n in enumerate(LENGTHS_B):
        np.testing.assert_allclose(hidden_BPD[b, :n], expected_BTD[b, :n], atol=3e-5)
    for b, t, hidden_D in decode_randomly(functions, params, tokens_BT, cache, LENGTHS_B, 4, 0):
        np.testing.assert_allclose(hidden_D, expected_BTD[b, t], atol=3e-5)


def test_prefill_equals_decode():
    """The caches agree wherever a slot holds a valid token, and so does the shift state."""
    functions, params, cache = setup(EVERYTHING)
    tokens_BP = random_tokens((B, 8))
    _, filled = functions.prefill(params, tokens_BP, LENGTHS_B, cache)
    _, decoded = functions.decode(params, tokens_BP, LENGTHS_B, cache)
    assert filled.cursor_B.tolist() == decoded.cursor_B.tolist() == LENGTHS_B.tolist()
    valid_BKSE = (np.arange(cache.slots) < LENGTHS_B[:, None])[:, None, :, None]
    for a, b in zip(filled.layers, decoded.layers, strict=True):
        for x, y in ((a.k_BKSE, b.k_BKSE), (a.v_BKSE, b.v_BKSE)):
            np.testing.assert_allclose(x * valid_BKSE, y * valid_BKSE, atol=3e-5)
        np.testing.assert_allclose(a.shift_BD, b.shift_BD, atol=3e-5)


def test_invalid_window_slots_do_not_matter():
    """Exactly: the valid hidden states and all later ones are bitwise the same for any junk."""
    functions, params, cache = setup(EVERYTHING)
    tokens_BW, n_valid_B = random_tokens((B, 4)), np.array([0, 1, 2, 3, 4, 1], np.int32)
    valid_BW1 = (np.arange(4) < n_valid_B[:, None])[..., None]
    results = []
    for seed in (1, 2):
        junk_BW = np.where(valid_BW1[..., 0], tokens_BW, random_tokens((B, 4), seed))
        hidden_BWD, after = functions.decode(params, junk_BW, n_valid_B, cache)
        later_BWD, _ = functions.decode(params, tokens_BW, np.full(B, 4, np.int32), after)
        results.append((np.asarray(hidden_BWD) * valid_BW1, np.asarray(later_BWD)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_a_full_row_may_still_be_stepped():
    """Rows that are done ride along with n_valid 0; the slack keeps their window off the valid
    slots.
    """
    functions, params, _ = setup(SHIFT)
    cache = functions.model.init_cache(B, 8)
    full_B, zeros_B = np.full(B, 8, np.int32), np.zeros(B, np.int32)
    _, cache = functions.prefill(params, random_tokens((B, 8)), full_B, cache)
    _, after = functions.decode(params, random_tokens((B, 8), 1), zeros_B, cache)
    for a, b in zip(cache.layers, after.layers, strict=True):
        np.testing.assert_array_equal(a.k_BKSE[:, :, :8], b.k_BKSE[:, :, :8])
        np.testing.assert_array_equal(a.v_BKSE[:, :, :8], b.v_BKSE[:, :, :8])
        np.testing.assert_array_equal(a.shift_BD, b.shift_BD)
    assert after.cursor_B.tolist() == [8] * B


def test_take_reindexes_every_row_state():
    functions, params, cache = setup(EVERYTHING)
    tokens_BT = random_tokens((B, T))
    expected_BTD = full_hidden(functions, params, tokens_BT)
    _, cache = functions.prefill(params, tokens_BT[:, :8], LENGTHS_B, cache)
    indices_B = np.array([2, 4, 4, 1, 2, 3])  # one prefix, several rows
    taken = cache.take(jnp.asarray(indices_B))
    lengths_B = LENGTHS_B[indices_B]
    assert taken.cursor_B.tolist() == lengths_B.tolist()
    rows = decode_randomly(functions, params, tokens_BT[indices_B], taken, lengths_B, 4, seed=0)
    for b, t, hidden_D in rows:
        np.testing.assert_allclose(hidden_D, expected_BTD[indices_B[b], t], atol=3e-5)
    assert cache.take(jnp.array([3])).cursor_B.tolist() == [7]


def test_rows_that_fill_their_cache():
    """The last window of a full row must fit, whatever length was asked for."""
    length = 90
    functions, params, _ = setup(EVERYTHING)
    tokens_BT = random_tokens((2, length))
    expected_BTD = full_hidden(functions, params, tokens_BT)
    lengths_B = np.array([length - 8, length - 5], np.int32)
    cache = functions.model.init_cache(2, length)
    assert cache.slots >= length + 4
    _, cache = functions.prefill(params, tokens_BT, lengths_B, cache)
    for b, t, hidden_D in decode_randomly(functions, params, tokens_BT, cache, lengths_B, 4, 0):
        np.testing.assert_allclose(hidden_D, expected_BTD[b, t], atol=3e-5)


def test_write_window_against_a_loop():
    rng = np.random.default_rng(0)
    slots, window = rng.normal(size=(4, 2, 9, 3)), rng.normal(size=(4, 2, 3, 3))
    cursor_B = np.array([0, 5, 6, 2])
    expected = slots.copy()
    for b, c in enumerate(cursor_B):
        expected[b, :, c : c + 3] = window[b]
    found = write_window(jnp.asarray(slots), jnp.asarray(window), jnp.asarray(cursor_B))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_prefill_checks_its_width():
    functions, params, _ = setup(SHIFT)
    cache = functions.model.init_cache(B, 8)
    with pytest.raises(ValueError, match="prompts are 80 wide, the cache has 16 slots"):
        functions.prefill(params, random_tokens((B, 80)), LENGTHS_B, cache)


def test_decode_refuses_a_window_beyond_the_slack():
    functions, params, _ = setup(SHIFT)
    cache = functions.model.init_cache(B, 8, window=2)
    with pytest.raises(ValueError, match="window of 3 tokens.*made for at most 2"):
        functions.decode(params, random_tokens((B, 3)), LENGTHS_B, cache)
