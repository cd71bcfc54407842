"""HF directory or Hub id -> `ModelConfig` and sharded params, tensor by tensor."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ra3_jax.model.config import ModelConfig
from ra3_jax.model.hf_config import config_from_hf
from ra3_jax.model.hf_table import IGNORED, Weight, weight_table
from ra3_jax.model.language_model import LanguageModel, Params
from ra3_jax.model.safetensors_io import DTYPES, Stored, read_header

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # configs and tokenizer
_LM_HEAD, _EMBED = "lm_head.weight", "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class HFSource:
    """A model in HF format, on disk or in a bucket."""

    directory: epath.Path
    config_json: dict[str, Any]
    """`config.json` as found; export writes it again."""
    repo_id: str | None = None
    revision: str | None = None
    """Commit sha that the Hub resolved; None for a local directory."""

    def model_config(self, **overrides: Any) -> ModelConfig:
        """The architecture; `overrides` set what HF does not know (dtype, remat, scan_layers)."""
        config = config_from_hf(self.config_json, str(self.directory / "config.json"))
        return dataclasses.replace(config, **overrides)


def find_hf(model: epath.PathLike, revision: str | None = None, *, weights: bool = True) -> HFSource:
    """Resolves a directory (local or gs://), or downloads a Hub id (`owner/name`); without `weights`, only
    configs and tokenizer.

    Raises FileNotFoundError when `model` is neither, or has no config.json.
    """
    directory, repo_id, sha = epath.Path(model).expanduser(), None, None
    if not directory.is_dir():
        if not _HUB_ID.fullmatch(str(model)):
            raise FileNotFoundError(f"{model}: no such directory, and not a Hub id (owner/name)")
        from huggingface_hub import snapshot_download  # lazily: only downloads need it

        repo_id = str(model)
        patterns = [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES
        directory = epath.Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=["original/*"])
        )
        sha = directory.name  # .../snapshots/<sha>
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file} is missing: {model} is not a model in HF format")
    return HFSource(directory, json.loads(config_file.read_text()), repo_id, sha)


def load_params(source: HFSource, config: ModelConfig, mesh: Mesh) -> Params:
    """Reads the weights as float32 onto their shardings, one tensor of one layer after the other: of it the host
    holds only what its devices need (from a bucket: all of it).

    Raises ValueError that lists missing and unknown keys, or names the tensor whose shape is not
    what config.json says, before any weight is read.
    """
    stored = _stored_tensors(source.directory)
    table = weight_table(config)
    _check_keys(source.directory, stored, {k for w in table for k in w.keys(config.n_layers)}, config)
    for weight in table:
        for key in weight.keys(config.n_layers):
            _check_tensor(key, stored[key], weight)
    shardings = LanguageModel(config).param_shardings(mesh)
    params: Params = {}
    for weight in table:
        *parents, name = weight.path
        place, into = shardings, params
        for parent in parents:
            place, into = place[parent], into.setdefault(parent, {})
        with jax.set_mesh(mesh):
            into[name] = _load(weight, [stored[key] for key in weight.keys(config.n_layers)], place[name])
    return params


def _load(weight: Weight, tensors: list[Stored], sharding: NamedSharding) -> jax.Array:
    """One of our weights: its only tensor, or those of all layers put into their places in one array."""
    if not weight.per_layer:
        return _place(tensors[0], weight.shape, sharding)
    of_layer = NamedSharding(sharding.mesh, P(*sharding.spec[1:]))
    zeros, put = _stacking((len(tensors), *weight.shape), sharding)
    stacked = zeros()
    for i, tensor in enumerate(tensors):
        layer = _place(tensor, weight.shape, of_layer)
        # Waited for, because what is still under way keeps the host's copy of its layer alive.
        stacked = put(stacked, layer, np.int32(i)).block_until_ready()
    return stacked


def _place(tensor: Stored, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
    """A tensor in our shape and float32 on this process's devices, from which every distinct part is read once."""
    whole, parts = tensor.read().reshape(shape), {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        if (key := str(index)) not in parts:
            parts[key] = np.array(whole[index], np.float32)
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _stacking(shape: tuple[int, ...], sharding: NamedSharding) -> tuple[Callable, Callable]:
    """(zeros(), put(stacked, layer, i)) for the weights of a shape: two small programs for any number of layers."""

    def put(stacked: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stacked, layer, i, 0)

    zeros = jax.jit(functools.partial(jnp.zeros, shape, jnp.float32), out_shardings=sharding)
    return zeros, jax.jit(put, donate_argnums=0, out_shardings=sharding)


def _stored_tensors(directory: epath.Path) -> dict[str, Stored]:
    """HF key -> where its tensor is. Raises FileNotFoundError, or ValueError for a damaged file."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [directory / name for name in names]
    elif single.is_file():
        paths = [single]
    else:
        found = sorted(p.name for p in directory.iterdir())
        raise FileNotFoundError(f"{directory}: expected model.safetensors or {index.name}, found {found}")
    stored: dict[str, Stored] = {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, but {index.name} names it")
        stored |= read_header(path)
    return stored


def _check_keys(directory: epath.Path, stored: dict[str, Stored], expected: set[str], config: ModelConfig) -> None:
    found = {key for key in stored if not IGNORED.fullmatch(key)}
    if config.tie_embeddings and _LM_HEAD in found:  # allowed, if it is what it claims to be
        if _EMBED in found and not _equal(stored[_LM_HEAD], stored[_EMBED]):
            raise ValueError(f"{directory}: tie_word_embeddings is true, but {_LM_HEAD} differs from {_EMBED}")
        found.remove(_LM_HEAD)
    if found != expected:
        missing, unknown = sorted(expected - found), sorted(found - expected)
        raise ValueError(
            f"{directory}: weights do not fit config.json ({config.family});"
            f" missing keys {missing}, unknown keys {unknown}"
        )


def _check_tensor(key: str, tensor: Stored, weight: Weight) -> None:
    if tensor.shape != weight.hf_shape:
        raise ValueError(f"{tensor.path}: {key} has shape {tensor.shape}, expected {weight.hf_shape}")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{tensor.path}: {key} has dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}")


def _equal(a: Stored, b: Stored, rows: int = 4096) -> bool:
    """Whether two matrices hold the same numbers, compared some rows at a time."""
    if a.shape != b.shape:
        return False
    return all(np.array_equal(a.read(i, i + rows), b.read(i, i + rows)) for i in range(0, a.shape[0], rows))
