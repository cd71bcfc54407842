"""HF directory or Hub id -> `ModelConfig` and sharded params, tensor by tensor."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  teaches numpy, and so safetensors, what bfloat16 is
import numpy as np
from jax.sharding import Mesh
from safetensors import safe_open

from ra3_jax.model.config import ModelConfig
from ra3_jax.model.hf_config import config_from_hf
from ra3_jax.model.hf_table import IGNORED, Weight, weight_table
from ra3_jax.model.language_model import LanguageModel, Params

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # configs and tokenizer
_LM_HEAD, _EMBED = "lm_head.weight", "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class HFSource:
    """A model in HF format, on disk."""

    directory: Path
    config_json: dict[str, Any]
    """`config.json` as found; export writes it again."""
    repo_id: str | None = None
    revision: str | None = None
    """Commit sha that the Hub resolved; None for a local directory."""

    def model_config(self, **overrides: Any) -> ModelConfig:
        """The architecture; `overrides` set what HF does not know (dtype, remat, scan_layers)."""
        config = config_from_hf(self.config_json, str(self.directory / "config.json"))
        return dataclasses.replace(config, **overrides)


def find_hf(model: str | Path, revision: str | None = None, *, weights: bool = True) -> HFSource:
    """Resolves a directory, or downloads a Hub id (`owner/name`); without `weights`, only configs
    and tokenizer.

    Raises FileNotFoundError when `model` is neither, or has no config.json.
    """
    directory, repo_id, sha = Path(model).expanduser(), None, None
    if not directory.is_dir():
        if not _HUB_ID.fullmatch(str(model)):
            raise FileNotFoundError(f"{model}: no such directory, and not a Hub id (owner/name)")
        from huggingface_hub import snapshot_download  # lazily: only downloads need it

        repo_id = str(model)
        patterns = [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES
        directory = Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=["original/*"])
        )
        sha = directory.name  # .../snapshots/<sha>
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file} is missing: {model} is not a model in HF format")
    return HFSource(directory, json.loads(config_file.read_text()), repo_id, sha)


def load_params(source: HFSource, config: ModelConfig, mesh: Mesh) -> Params:
    """Reads the weights as float32 onto their shardings; the host holds one stacked weight at a
    time.

    Raises ValueError that lists missing and unknown keys, or names the tensor whose shape is not
    what config.json says.
    """
    files = _files_of_keys(source.directory)
    table = weight_table(config)
    _check_keys(source.directory, files, {k for w in table for k in w.keys(config.n_layers)}, config)
    shardings = LanguageModel(config).param_shardings(mesh)
    params: Params = {}
    for weight in table:
        stacked = _read(weight, config.n_layers, files)
        *parents, name = weight.path
        place, into = shardings, params
        for parent in parents:
            place, into = place[parent], into.setdefault(parent, {})
        into[name] = jax.make_array_from_callback(
            stacked.shape, place[name], lambda index, stacked=stacked: stacked[index]
        )
    return params


def _files_of_keys(directory: Path) -> dict[str, Path]:
    """HF key -> the file that holds it."""
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
    files = {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, but {index.name} names it")
        with safe_open(path, framework="numpy") as tensors:
            files |= dict.fromkeys(tensors.keys(), path)
    return files


def _check_keys(directory: Path, files: dict[str, Path], expected: set[str], config: ModelConfig):
    found = {key for key in files if not IGNORED.fullmatch(key)}
    if config.tie_embeddings and _LM_HEAD in found:  # allowed, if it is what it claims to be
        head, embed = (_tensor(files, key) for key in (_LM_HEAD, _EMBED))
        if not np.array_equal(head, embed):
            raise ValueError(f"{directory}: tie_word_embeddings is true, but {_LM_HEAD} differs from {_EMBED}")
        found.remove(_LM_HEAD)
    if found != expected:
        missing, unknown = sorted(expected - found), sorted(found - expected)
        raise ValueError(
            f"{directory}: weights do not fit config.json ({config.family});"
            f" missing keys {missing}, unknown keys {unknown}"
        )


def _read(weight: Weight, n_layers: int, files: dict[str, Path]) -> np.ndarray:
    """One of our weights, float32, layers stacked."""
    layers = []
    for key in weight.keys(n_layers):
        tensor = _tensor(files, key)
        if tensor.shape != weight.hf_shape:
            raise ValueError(f"{files[key]}: {key} has shape {tensor.shape}, expected {weight.hf_shape}")
        layers.append(tensor.reshape(weight.shape).astype(np.float32))
    return np.stack(layers) if weight.per_layer else layers[0]


def _tensor(files: dict[str, Path], key: str) -> np.ndarray:
    with safe_open(files[key], framework="numpy") as tensors:
        return tensors.get_tensor(key)
