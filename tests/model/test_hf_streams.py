"""Import and export hold a tensor on the host, not a file; several processes write what one does; damaged files."""

import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from ra3_jax.data.tokenizer import load_tokenizer
from ra3_jax.model.hf_import import find_hf, load_params
from ra3_jax.model.safetensors_io import read_header, write_file
from tests.model.hf_memory import FILE
from tests.model.make_hf_fixtures import FIXTURES
from tests.processes import ROOT, environment, has_gloo, start_hosts, wait


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_less_than_one_and_a_half_files_beside_the_weights(tmp_path):
    """Before, whole weights of all layers were on the host: 7.8 files to load, 17 to export, by the same measure."""
    # What is freed goes back to the system at once, so that a later peak is not hidden in memory that was kept.
    env = environment(devices=8, cache=tmp_path / "cache", MALLOC_MMAP_THRESHOLD_="65536", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "tests.model.hf_memory", str(tmp_path / "hf")]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    files = [p.stat().st_size for p in (tmp_path / "hf").glob("*.safetensors")]
    assert len(files) == 9 and 0.9 * FILE < max(files) < 1.01 * FILE
    beyond = json.loads(done.stdout)
    assert beyond.keys() == {"export", "8 devices", "1 device"}
    assert all(found < 1.5 * max(files) for found in beyond.values()), beyond


@pytest.mark.skipif(not has_gloo(), reason="this jaxlib has no gloo: CPU processes cannot join")
def test_two_processes_load_and_export(tmp_path):
    """Weights cut over the devices of both; the files are those that went in."""
    source, out = tmp_path / "hf", tmp_path / "out"
    shutil.copytree(FIXTURES / "qwen2", source)
    load_tokenizer("puzzles").save(source)
    flags = ["--model", str(source), "--dtype", "float32", "--out", str(out)]
    hosts = start_hosts(["-m", "experiments.export", *flags], tmp_path, n=2, devices=4, cache=tmp_path / "cache")
    statuses = wait(hosts, 600)
    said = [(tmp_path / f"host-{i}.txt").read_text() for i in range(2)]
    assert statuses == [0, 0], "\n=== host 1\n".join(said)
    assert f"wrote {out}" in said[0] and "wrote" not in said[1]
    expected = {k: v for path in (FIXTURES / "qwen2").glob("*.safetensors") for k, v in load_file(path).items()}
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, key)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_files_are_those_of_the_library(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.w": rng.normal(size=(3, i + 1)).astype(dtype) for i in (10, 2, 1)}
    tensors["a"] = np.array([0.0, -0.0, np.inf, np.nan, 1e-40]).astype(dtype)
    save_file(tensors, tmp_path / "library.safetensors", metadata={"format": "pt"})
    ours = epath.Path(tmp_path / "ours.safetensors")
    shapes = {key: value.shape for key, value in tensors.items()}
    write_file(ours, shapes, np.dtype(dtype), (tensors[key] for key in sorted(tensors)))
    assert ours.read_bytes() == (tmp_path / "library.safetensors").read_bytes()
    stored = read_header(ours)
    for key, value in tensors.items():
        assert stored[key].read().tobytes() == value.tobytes()
        assert stored[key].read(1, 3).tobytes() == value[1:3].tobytes()


def damaged(tmp_path, change) -> epath.Path:
    path = epath.Path(tmp_path / "model.safetensors")
    data = bytearray((FIXTURES / "llama" / "model.safetensors").read_bytes())
    path.write_bytes(bytes(change(data)))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"\d+ bytes, but by its header \d+: damaged or incomplete"),
        (lambda data: data[:100], "not the header of a safetensors file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1", "not the header of a safetensors file"),
        (lambda data: b"", "not the header of a safetensors file"),
        (lambda data: data.replace(b'"F32"', b'"F16"', 1), r"has \d+ bytes, expected float16"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"model.safetensors: .*{message}"):
        read_header(damaged(tmp_path, change))


def test_quantised_weights_are_refused(tmp_path, one_device_mesh):
    """Numbers without their scales would load as nonsense."""
    source = find_hf(FIXTURES / "llama")
    tensors = load_file(FIXTURES / "llama" / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    tensors[key] = tensors[key].astype(np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(source.config_json))
    with pytest.raises(ValueError, match=f"{key} has dtype I8, expected one of F64, F32, F16, BF16"):
        load_params(find_hf(tmp_path), source.model_config(), one_device_mesh)


def test_float16_and_float64_files_are_read_as_float32(tmp_path, one_device_mesh):
    source = find_hf(FIXTURES / "llama")
    (tmp_path / "config.json").write_text(json.dumps(source.config_json))
    tensors = load_file(FIXTURES / "llama" / "model.safetensors")
    for dtype in (np.float16, np.float64):
        save_file({k: v.astype(dtype) for k, v in tensors.items()}, tmp_path / "model.safetensors")
        params = load_params(find_hf(tmp_path), source.model_config(), one_device_mesh)
        expected = tensors["model.layers.1.mlp.up_proj.weight"].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(params["layers"]["w_up"][1], expected)
        os.remove(tmp_path / "model.safetensors")
