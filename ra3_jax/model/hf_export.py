"""Params -> an HF directory that transformers, vLLM and lm-eval load."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from ra3_jax.model.config import ModelConfig
from ra3_jax.model.hf_config import config_from_hf, config_to_hf, refuse_unexportable
from ra3_jax.model.hf_table import Weight, weight_table
from ra3_jax.model.language_model import Params

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
    directory: str | Path,
    *,
    base: Path | None = None,
    tokenizer: Path | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes an HF directory and returns its path; `dtype` is the weights'.

    `base` is the HF directory that the model came from: its config.json and generation_config.json
    are copied, else both are generated. `tokenizer` is the directory whose tokenizer files are
    copied. The directory appears whole or not at all. Every process must call this (they gather
    what is sharded over them, layer by layer); the first one writes.

    Raises ValueError for what HF cannot express, FileExistsError when the directory exists and is
    not empty.
    """
    refuse_unexportable(config)
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} exists and is not empty")
    config_json = _config_json(config, base, dtype, bos_token_id, eos_token_id)
    writer = jax.process_index() == 0
    partial = directory.with_name(directory.name + ".partial")
    if writer:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _write_weights(params, config, partial if writer else None, dtype, max_shard_bytes)
    if writer:
        _write_json(partial / "config.json", config_json)
        ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        generation = {name: value for name, value in ids.items() if value is not None}
        _write_json(partial / GENERATION_CONFIG, generation)
        if base is not None:
            _copy(base, (GENERATION_CONFIG,), partial)
        if tokenizer is not None:
            _copy(tokenizer, TOKENIZER_FILES, partial)
        if directory.exists():
            directory.rmdir()
        os.replace(partial, directory)
    return directory


def _config_json(
    config: ModelConfig,
    base: Path | None,
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
    params: Params, config: ModelConfig, directory: Path | None, dtype: str, max_shard_bytes: int
) -> None:
    """Fills files up to `max_shard_bytes`, in table order; more than one file gets an index."""
    table = weight_table(config)
    n_files, total = _plan(table, config.n_layers, jnp.dtype(dtype).itemsize, max_shard_bytes)
    shard: dict[str, np.ndarray] = {}
    weight_map: dict[str, str] = {}
    number = 1

    def flush() -> None:
        name = f"model-{number:05d}-of-{n_files:05d}.safetensors"
        name = name if n_files > 1 else "model.safetensors"
        weight_map.update(dict.fromkeys(shard, name))
        if directory is not None:
            save_file(shard, directory / name, metadata={"format": "pt"})

    for key, tensor in _tensors(params, table, config.n_layers, dtype):
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > max_shard_bytes:
            flush()
            shard, number = {}, number + 1
        shard[key] = tensor
    flush()
    if n_files > 1 and directory is not None:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _plan(table: list[Weight], n_layers: int, itemsize: int, limit: int) -> tuple[int, int]:
    """(number of files, bytes of all tensors)."""
    n_files, filled, total = 1, 0, 0
    for weight in table:
        size = int(np.prod(weight.shape)) * itemsize
        for _ in weight.keys(n_layers):
            if filled and filled + size > limit:
                n_files, filled = n_files + 1, 0
            filled, total = filled + size, total + size
    return n_files, total


def _tensors(params: Params, table: list[Weight], n_layers: int, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """(HF key, tensor in `dtype`), one weight after the other on the host."""
    for weight in table:
        value: Any = params
        for name in weight.path:
            value = value[name]
        if value.is_fully_addressable:
            value = np.asarray(value)  # at once, so that no layer costs a compilation
        for i, key in enumerate(weight.keys(n_layers)):
            tensor = value[i] if weight.per_layer else value
            if not isinstance(tensor, np.ndarray):  # shards of other processes
                tensor = multihost_utils.process_allgather(tensor, tiled=True)
            yield key, np.ascontiguousarray(tensor.astype(jnp.dtype(dtype)).reshape(weight.hf_shape))


def _copy(source: Path, names: tuple[str, ...], target: Path) -> None:
    """Those of the files that exist; which ones a tokenizer has differs between families."""
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, target)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
