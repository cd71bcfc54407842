import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from ra3_jax.model.config import tiny
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.train.config import LoopConfig, OptimizerConfig
from ra3_jax.train.optimizer import decay_mask, make_schedule


def values(n_steps, **fields):
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, **fields), n_steps)
    return [schedule(step) for step in range(n_steps)]


def test_cosine():
    lr = values(9, schedule="cosine", warmup_steps=4, final_fraction=0.1)
    assert lr[:4] == [0.5, 1.0, 1.5, 2.0]
    assert lr[4] == 2.0
    assert lr[6] == pytest.approx(2 * (0.1 + 0.9 * 0.5))  # half way
    assert lr[5] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert lr[8] == pytest.approx(0.2)


def test_wsd():
    lr = values(11, schedule="wsd", warmup_steps=2, decay_fraction=0.4, final_fraction=0.2)
    assert lr[:2] == [1.0, 2.0]
    assert lr[2:7] == [2.0] * 5
    assert lr[7:] == pytest.approx([1.6, 1.2, 0.8, 0.4])  # four steps down to a fifth


def test_constant():
    assert values(4, schedule="constant", warmup_steps=1) == [2.0] * 4


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("n_steps,warmup", [(1, 0), (1, 1), (2, 1), (3, 3), (100, 10)])
def test_every_schedule_stays_between_its_ends(name, n_steps, warmup):
    lr = values(n_steps, schedule=name, warmup_steps=warmup, decay_fraction=1.0)
    assert all(0 < x <= 2.0 for x in lr)
    assert lr[warmup:] == sorted(lr[warmup:], reverse=True)
    last = make_schedule(OptimizerConfig(learning_rate=2.0, schedule=name, warmup_steps=warmup), n_steps)
    assert last(n_steps + 5) == last(n_steps + 50)  # beyond the end: the last value


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=5 exceeds the 4 updates"):
        values(4, warmup_steps=5)


def test_decay_mask_of_every_parameter_of_the_model():
    """Names are the rule, so a parameter with a new kind of name must fail here."""
    config = tiny(112)
    config = dataclasses.replace(config, family="qwen3", qkv_bias=True, qk_norm=True, tie_embeddings=False)
    params = jax.eval_shape(LanguageModel(config).init, jax.random.key(0))
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    decayed = {jax.tree_util.keystr(path[-1:], simple=True) for path, decays in mask if decays}
    spared = {jax.tree_util.keystr(path[-1:], simple=True) for path, decays in mask if not decays}
    assert spared == {"attn_norm", "mlp_norm", "q_norm", "k_norm", "final_norm", "bq", "bk", "bv"}
    matrices = {"wq", "wk", "wk_shift", "wv", "wo", "w_gate", "w_up", "w_down"}
    assert decayed == matrices | {"embed", "lm_head"}


def test_vectors_do_not_decay():
    assert decay_mask({"gain": jnp.ones(3), "w": jnp.ones((3, 3))}) == {"gain": False, "w": True}


@pytest.mark.parametrize("fields", [{"learning_rate": -1.0}, {"b2": 1.0}, {"clip_norm": 0.0}, {"final_fraction": 2.0}])
def test_impossible_optimizers_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        OptimizerConfig(**fields)


@pytest.mark.parametrize("fields", [{"batch_size": 0}, {"batch_size": 10, "accumulate": 4}, {"checkpoint_every": -1}])
def test_impossible_loops_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LoopConfig(**fields)
