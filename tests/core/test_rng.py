import jax
import jax.numpy as jnp
import numpy as np

from ra3_jax.core.rng import name_hash, named_key, row_keys

KEY = jax.random.key(0)


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_names_hash_the_same_for_ever():
    assert name_hash("estep") == 0xCB96C16B


def test_parts_and_their_order_make_the_key():
    keys = [
        named_key(KEY),
        named_key(KEY, "a"),
        named_key(KEY, "b"),
        named_key(KEY, "a", "b"),
        named_key(KEY, "b", "a"),
        named_key(KEY, "a", 1),
        named_key(KEY, 1, "a"),
        named_key(KEY, "a", 2**32 - 1),
    ]
    assert len({tuple(data(k)) for k in keys}) == len(keys)
    np.testing.assert_array_equal(data(keys[5]), data(named_key(named_key(KEY, "a"), 1)))


def test_traced_numbers_give_the_same_key():
    traced = jax.jit(lambda step: named_key(KEY, "a", step))(jnp.int32(7))
    np.testing.assert_array_equal(data(traced), data(named_key(KEY, "a", 7)))


def test_row_keys_do_not_depend_on_the_batch():
    examples, samples = np.array([5, 2**31 - 1, 5, 9]), np.array([0, 0, 1, 3])
    keys = data(row_keys(KEY, examples, samples))
    assert len({tuple(k) for k in keys}) == 4
    order = np.array([2, 0, 3])
    np.testing.assert_array_equal(data(row_keys(KEY, examples[order], samples[order])), keys[order])
    np.testing.assert_array_equal(data(named_key(KEY, 5, 1)), keys[2])
