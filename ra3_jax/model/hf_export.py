"""Params -> an HF directory that transformers, vLLM and lm-eval load."""

import collections
import json
import math
import os
import shutil
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ra3_jax.core.distributed import from_main
from ra3_jax.core.mesh import to_host
from ra3_jax.core.paths import is_remote
from ra3_jax.model.config import ModelConfig
from ra3_jax.model.hf_config import config_from_hf, config_to_hf, refuse_unexportable
from ra3_jax.model.hf_table import Weight, weight_table
from ra3_jax.model.language_model import Params
from ra3_jax.model.safetensors_io import write_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
GENERATION_CONFIG = "generation_config.json"


def export_hf(
    params: Params,
    config: ModelConfig,
    directory: epath.PathLike,
    *,
    base: epath.PathLike | None = None,
    tokenizer: epath.PathLike | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_bytes: int = 5 * 10**9,
) -> epath.Path:
    """Writes an HF directory (local or gs://) and returns its path; `dtype` is the weights'.

    `base` is the HF directory that the model came from: its config.json and generation_config.json
    are copied, else both are generated. `tokenizer` is the directory whose tokenizer files are
    copied. A local directory appears whole or not at all; one in a bucket gets its config.json last, without which
    nothing loads it. Every process must call this (they gather what is sharded over them, one tensor of one layer
    at a time, and the host never holds more); the first one writes.

    Raises ValueError for what HF cannot express, FileExistsError when the directory exists and is
    not empty.
    """
    refuse_unexportable(config)
    directory = epath.Path(directory)
    if from_main(lambda: directory.exists() and any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty")
    base = None if base is None else epath.Path(base)
    config_json = _config_json(config, base, dtype, bos_token_id, eos_token_id)
    if jax.process_index() != 0:
        _write_weights(params, config, None, dtype, max_shard_bytes)
        return directory
    partial = directory if is_remote(directory) else directory.with_name(directory.name + ".partial")
    if partial != directory:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    _write_weights(params, config, partial, dtype, max_shard_bytes)
    ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
    generation = {name: value for name, value in ids.items() if value is not None}
    _write_json(partial / GENERATION_CONFIG, generation)
    if base is not None:
        _copy(base, (GENERATION_CONFIG,), partial)
    if tokenizer is not None:
        _copy(epath.Path(tokenizer), TOKENIZER_FILES, partial)
    _write_json(partial / "config.json", config_json)
    if partial != directory:
        if directory.exists():
            directory.rmdir()
        os.replace(partial, directory)
    return directory


def _config_json(
    config: ModelConfig,
    base: epath.Path | None,
    dtype: str,
    bos_token_id: int | None,
    eos_token_id: int | None,
) -> dict[str, Any]:
    """The original config with our dtype, after a check that it still describes the model; else a
    generated one.
    """
    if base is None:
        data = config_to_hf(config, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
    else:
        file = base / "config.json"
        data = json.loads(file.read_text())
        was, now = config_from_hf(data, str(file)).to_json(), config.to_json()
        ours_alone = {"dtype", "attention", "remat", "scan_layers", "embed_init_std"}
        changed = {f: (was[f], now[f]) for f in was if was[f] != now[f] and f not in ours_alone}
        if changed:
            raise ValueError(f"{file} does not describe this model; (file, model): {changed}")
    data.pop("torch_dtype", None)
    return data | {"dtype": dtype, "torch_dtype": dtype}  # transformers 5, and before


def _write_weights(
    params: Params, config: ModelConfig, directory: epath.Path | None, dtype: str, max_shard_bytes: int
) -> None:
    """Files of up to `max_shard_bytes`, in table order; more than one get an index. Without a directory (on all but
    one process) this only takes part in the gathering."""
    as_stored = jnp.dtype(dtype)
    files = _plan(weight_table(config), config.n_layers, as_stored.itemsize, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        weight_map.update(dict.fromkeys(tensors, name))
        on_host = (_tensor(params, *tensors[key]).astype(as_stored) for key in sorted(tensors))
        if directory is None:
            collections.deque(on_host, maxlen=0)
        else:
            shapes = {key: weight.hf_shape for key, (weight, _) in tensors.items()}
            write_file(directory / name, shapes, as_stored, on_host)
    if len(files) > 1 and directory is not None:
        total = sum(math.prod(w.hf_shape) * as_stored.itemsize for tensors in files for w, _ in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _plan(table: list[Weight], n_layers: int, itemsize: int, limit: int) -> list[dict[str, tuple[Weight, int]]]:
    """For each file its HF keys, each with the weight and layer it is of."""
    files: list[dict[str, tuple[Weight, int]]] = [{}]
    filled = 0
    for weight in table:
        size = math.prod(weight.shape) * itemsize
        for i, key in enumerate(weight.keys(n_layers)):
            if filled and filled + size > limit:
                files.append({})
                filled = 0
            files[-1][key] = (weight, i)
            filled += size
    return files


def _tensor(params: Params, weight: Weight, i: int) -> np.ndarray:
    """One HF tensor on the host."""
    value: Any = params
    for name in weight.path:
        value = value[name]
    return to_host(_take(value, np.int32(i) if weight.per_layer else None)).reshape(weight.hf_shape)


@jax.jit
def _take(value: jax.Array, i: jax.Array | None) -> jax.Array:
    """A layer of stacked weights, or a copy of all (`to_host` would tie its host array to the original)."""
    return jnp.copy(value) if i is None else jax.lax.dynamic_index_in_dim(value, i, 0, keepdims=False)


def _copy(source: epath.Path, names: tuple[str, ...], target: epath.Path) -> None:
    """Those of the files that exist; which ones a tokenizer has differs between families."""
    for name in names:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


def _write_json(path: epath.Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
