"""HF import and export, against committed checkpoints and torch numbers (made by
`make_hf_fixtures`).
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.model.hf_export import export_hf
from ra3_jax.model.hf_import import find_hf, load_params
from ra3_jax.model.language_model import LanguageModel
from tests.model.make_hf_fixtures import FIXTURES, PROMPT
from tests.model.small_models import SMALL, compiled, one_segment, random_params
from tests.model.test_language_model import value_and_grad

FAMILIES = ("llama", "qwen2", "qwen3")
ALL = pytest.mark.parametrize("family", FAMILIES)


def load(directory: epath.PathLike):
    """(config, params) on the mesh of the test."""
    source = find_hf(directory)
    config = source.model_config()
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return config, load_params(source, config, mesh)


@ALL
def test_logits_loss_and_gradient_equal_torch(family):
    config, params = load(FIXTURES / family)
    expected = np.load(FIXTURES / family / "reference.npz")
    batch = one_segment(expected["tokens_BT"])
    (loss, logits_BTV), grads = value_and_grad(LanguageModel(config), params, batch)
    assert np.abs(logits_BTV - expected["logits_BTV"]).max() < 1e-4
    assert abs(loss - expected["loss"]) < 1e-4
    assert abs(optax.tree.norm(grads) / expected["grad_norm"] - 1) < 1e-4


@ALL
def test_greedy_generation_equals_torch(family):
    config, params = load(FIXTURES / family)
    greedy_BT = np.load(FIXTURES / family / "reference.npz")["greedy_BT"]
    functions = compiled(config)
    rows, length = greedy_BT.shape
    cache = functions.model.init_cache(rows, length)
    tokens_BP, lengths_B = greedy_BT[:, :PROMPT], np.full(rows, PROMPT, np.int32)
    hidden_BPD, cache = functions.prefill(params, tokens_BP, lengths_B, cache)
    hidden_BD = hidden_BPD[:, -1]
    for t in range(PROMPT, length):
        next_B = functions.model.unembed(params, hidden_BD).argmax(-1).astype(jnp.int32)
        assert next_B.tolist() == greedy_BT[:, t].tolist(), f"token {t}"
        ones_B = np.ones(rows, np.int32)
        hidden_BWD, cache = functions.decode(params, next_B[:, None], ones_B, cache)
        hidden_BD = hidden_BWD[:, 0]


def tensors_of(directory: epath.PathLike) -> dict[str, np.ndarray]:
    files = Path(directory).glob("*.safetensors")
    return {key: value for file in files for key, value in load_file(file).items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        np.testing.assert_array_equal(a[key], b[key], key)


@ALL
def test_export_writes_what_was_imported(family, tmp_path):
    """Bitwise, with the original config; qwen2 goes through several files in both directions."""
    config, params = load(FIXTURES / family)
    limit = 30_000 if family == "qwen2" else 10**9
    base = FIXTURES / family
    out = export_hf(params, config, tmp_path / "out", base=base, max_shard_bytes=limit)
    assert_same(tensors_of(out), tensors_of(FIXTURES / family))
    index = out / "model.safetensors.index.json"
    if family == "qwen2":
        weight_map = json.loads(index.read_text())["weight_map"]
        assert len(set(weight_map.values())) == len(list(out.glob("*.safetensors"))) > 2
        for key, name in weight_map.items():
            with safe_open(out / name, framework="numpy") as tensors:
                assert key in tensors.keys()
        assert json.loads(index.read_text())["metadata"]["total_size"] == 4 * config.n_params
    else:
        assert not index.exists() and (out / "model.safetensors").is_file()
    again_config, again = load(out)
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again, params)
    for name in ("config.json", "generation_config.json"):
        original = json.loads((FIXTURES / family / name).read_text())
        assert original.items() <= json.loads((out / name).read_text()).items()


def test_export_of_a_model_of_our_own(tmp_path):
    """No original config: one is generated. The tokenizer is copied; nothing else is."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "merges.txt", "secrets.txt"):
        (tokenizer / name).write_text(name)
    config, params = SMALL["qwen3"], random_params(SMALL["qwen3"])
    out = export_hf(params, config, tmp_path / "out", tokenizer=tokenizer, bos_token_id=0, eos_token_id=1)
    names = {"config.json", "generation_config.json", "model.safetensors"}
    assert {p.name for p in out.iterdir()} == names | {"tokenizer.json", "merges.txt"}
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1
    source = find_hf(out)
    assert source.model_config() == config and source.revision is None
    _, again = load(out)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_bfloat16_files(tmp_path):
    config, params = load(FIXTURES / "llama")
    base = FIXTURES / "llama"
    out = export_hf(params, config, tmp_path / "half", base=base, dtype="bfloat16")
    assert {t.dtype for t in tensors_of(out).values()} == {jnp.dtype("bfloat16")}
    config_json = json.loads((out / "config.json").read_text())
    assert config_json["dtype"] == config_json["torch_dtype"] == "bfloat16"
    _, rounded = load(out)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype("float32")),
        rounded,
        params,
    )
    again = export_hf(rounded, config, tmp_path / "again", base=base, dtype="bfloat16")
    assert_same(tensors_of(again), tensors_of(out))


def test_import_and_export_on_a_mesh(tmp_path):
    """Weights go straight to their shards, and come back whole."""
    source = find_hf(FIXTURES / "llama")
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        config = source.model_config()
        params = load_params(source, config, mesh)
        shardings = LanguageModel(config).param_shardings(mesh)
        same = jax.tree.map(lambda w, s: w.sharding == s, params, shardings)
        assert all(jax.tree.leaves(same))
        out = export_hf(params, config, tmp_path / "out", base=source.directory)
    assert_same(tensors_of(out), tensors_of(FIXTURES / "llama"))


def edit(tmp_path: Path, family: str, change) -> Path:
    """A copy of a fixture whose tensors `change` has edited in place."""
    directory = tmp_path / "edited"
    directory.mkdir()
    shutil.copy(FIXTURES / family / "config.json", directory)
    tensors = tensors_of(FIXTURES / family)
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_missing_and_unknown_keys_are_listed(tmp_path):
    def rename(tensors):
        tensors["model.layers.1.mlp.up.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    with pytest.raises(ValueError) as error:
        load(edit(tmp_path, "llama", rename))
    assert "missing keys ['model.layers.1.mlp.up_proj.weight']" in str(error.value)
    assert "unknown keys ['model.layers.1.mlp.up.weight']" in str(error.value)


def test_wrong_shape_is_named(tmp_path):
    def cut(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:5]

    with pytest.raises(ValueError, match=r"model.norm.weight has shape \(5,\), expected \(32,\)"):
        load(edit(tmp_path, "llama", cut))


def test_old_rotary_buffers_are_ignored(tmp_path):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        tensors["model.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    _, params = load(edit(tmp_path, "llama", add))
    assert set(params) == {"embed", "layers", "final_norm", "lm_head"}


def test_head_of_a_tied_model_must_be_the_embedding(tmp_path):
    def add(tensors, offset=0.0):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(offset)

    _, params = load(edit(tmp_path, "qwen3", add))
    assert "lm_head" not in params
    shutil.rmtree(tmp_path / "edited")
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head.weight differs"):
        load(edit(tmp_path, "qwen3", lambda tensors: add(tensors, 1.0)))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory, and not a Hub id"):
        find_hf(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        find_hf(tmp_path)
    shutil.copy(FIXTURES / "llama" / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected model.safetensors or .*found \['config"):
        load(tmp_path)
    shutil.copytree(FIXTURES / "qwen2", tmp_path / "qwen2")
    (tmp_path / "qwen2" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002.safetensors is missing, but .* names it"):
        load(tmp_path / "qwen2")


def test_hub_ids_are_resolved_and_the_sha_recorded(tmp_path, monkeypatch):
    import huggingface_hub

    sha = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / sha
    shutil.copytree(FIXTURES / "llama", snapshot)
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = find_hf("meta-llama/Llama-3.2-1B", revision="main", weights=False)
    assert (source.repo_id, source.revision) == ("meta-llama/Llama-3.2-1B", sha)
    assert calls[0][1]["revision"] == "main"
    assert "*.safetensors" not in calls[0][1]["allow_patterns"]
    find_hf("meta-llama/Llama-3.2-1B")
    assert "*.safetensors" in calls[1][1]["allow_patterns"]


def test_export_refusals(tmp_path):
    with pytest.raises(ValueError, match="cannot be exported to HF: key_shift=True"):
        shifted = SMALL["key_shift"]
        export_hf(random_params(shifted), shifted, tmp_path / "out")
    config, params = load(FIXTURES / "llama")
    with pytest.raises(ValueError, match=r"does not describe this model.*'family'"):
        export_hf(params, config, tmp_path / "out", base=FIXTURES / "qwen3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("work")
    with pytest.raises(FileExistsError, match="full exists and is not empty"):
        export_hf(params, config, tmp_path / "full")
    assert not (tmp_path / "out").exists()
