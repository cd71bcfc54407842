"""Peak memory of export and import, measured in a process of its own: `python -m tests.model.hf_memory DIRECTORY`.

Writes a random checkpoint of 8 files, reads it again, and prints as JSON how far the resident memory (mapped pages of
files included) rose above the weights, in bytes. To the CPU backend devices are host memory too: what lies there beside
the weights counts.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
from jax.sharding import Mesh

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.model.config import ModelConfig
from ra3_jax.model.hf_export import export_hf
from ra3_jax.model.hf_import import find_hf, load_params
from ra3_jax.model.language_model import LanguageModel

CONFIG = ModelConfig(
    family="llama", vocab_size=4096, d_model=768, n_layers=24, n_heads=12, n_kv_heads=4, head_dim=64, d_ff=2048,
    rope_theta=1e4, norm_eps=1e-5, tie_embeddings=False, max_positions=64,
)  # fmt: skip
WEIGHTS = 4 * CONFIG.n_params  # bytes, float32
FILE = 38 * 10**6


def status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def rise(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result of `work`, and how far the resident memory ever was above its beginning."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    return work(), status("VmHWM") - before


def export(directory: str, mesh: Mesh) -> int:
    """Bytes beyond the weights, which are random and cut over the mesh."""
    with jax.set_mesh(mesh):
        model = LanguageModel(CONFIG)
        init = jax.jit(model.init, out_shardings=model.param_shardings(mesh))
        params, born = rise(lambda: jax.block_until_ready(init(jax.random.key(0))))
        assert born > 0.9 * WEIGHTS, f"the measure does not see the weights: {born}"
        return rise(lambda: export_hf(params, CONFIG, directory, dtype="bfloat16", max_shard_bytes=FILE))[1]


def load(directory: str, mesh: Mesh) -> int:
    """Bytes beyond the weights that are there in the end."""
    with jax.set_mesh(mesh):
        params, rose = rise(lambda: jax.block_until_ready(load_params(find_hf(directory), CONFIG, mesh)))
        assert sum(w.nbytes for w in jax.tree.leaves(params)) == WEIGHTS
    return rose - WEIGHTS


def main(directory: str) -> None:
    eight, one = make_mesh(MeshConfig(1, 8, 1)), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    found = {"export": export(directory, eight), "8 devices": load(directory, eight), "1 device": load(directory, one)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
