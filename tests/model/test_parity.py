"""Live comparison with torch: fresh random models both ways. The committed numbers are in test_hf."""

import importlib.util
from typing import Any

import jax
import numpy as np
import pytest

from ra3_jax.model.hf_export import export_hf
from ra3_jax.model.hf_import import find_hf
from tests.model.make_hf_fixtures import COMMON, FIXTURES, make_model, reference
from tests.model.small_models import SMALL, compiled, one_segment, random_params
from tests.model.test_hf import FAMILIES, load

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_committed_numbers_are_torchs(family):
    committed = np.load(FIXTURES / family / "reference.npz")
    for name, value in reference(make_model(family)).items():
        np.testing.assert_allclose(committed[name], value, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_our_export(family, tmp_path):
    """The original config for one family, a generated one for the others."""
    import torch
    from transformers import AutoModelForCausalLM

    if family == "llama":
        config, params = load(FIXTURES / family)
        out = export_hf(params, config, tmp_path / "out", base=FIXTURES / family)
    else:
        config, params = SMALL[family], random_params(SMALL[family])
        out = export_hf(params, config, tmp_path / "out", bos_token_id=0, eos_token_id=1)
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens_BT = np.random.default_rng(1).integers(0, config.vocab_size, (2, 40)).astype(np.int32)
    with torch.no_grad():
        expected_BTV = model(torch.from_numpy(tokens_BT).long()).logits.numpy()
    logits_BTV = compiled(config).logits(params, *one_segment(tokens_BT))
    assert np.abs(logits_BTV - expected_BTV).max() < 1e-4
    assert model.generation_config.eos_token_id == 1


def test_import_of_what_transformers_saves_in_bfloat16(tmp_path):
    import torch

    model = make_model("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half", max_shard_size="20KB")
    config, params = load(tmp_path / "half")
    expected = model.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(params["embed"], expected)
    assert all(w.dtype == np.float32 for w in jax.tree.leaves(params))
    assert find_hf(tmp_path / "half").config_json["vocab_size"] == COMMON["vocab_size"]
    assert config.qkv_bias
