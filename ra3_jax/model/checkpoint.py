"""What one stage hands to the next: a run directory with weights, model config and tokenizer, or an
HF model.

    <run>/model.json            ModelConfig
    <run>/tokenizer/            the tokenizer's own files
    <run>/hf/                   config.json and generation_config.json of the HF model it came from,
    if any
    <run>/checkpoints/<step>/   Orbax; `params` of its state, or `frozen` weights and the adapters in
    `params` that were trained beside them (train/trainable.py): they are merged here

Post-training, evaluation and export read this and nothing else of a run.
"""

import dataclasses
import json
from typing import Any, Literal

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from ra3_jax.core.checkpoint import Checkpoints
from ra3_jax.core.mesh import replicated
from ra3_jax.core.rundir import RunDir
from ra3_jax.data.tokenizer import Tokenizer, load_tokenizer
from ra3_jax.model.config import ModelConfig, Remat
from ra3_jax.model.hf_import import find_hf, load_params
from ra3_jax.model.language_model import ABSTRACT_KEY, LanguageModel, Params
from ra3_jax.model.lora import abstract_adapters, merge, stored_config

HF_FILES = ("config.json", "generation_config.json")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, and where it came from."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    origin: str  # "run DIR step N", "hf ID at SHA" or "hf DIR"
    hf_files: dict[str, bytes]  # HF_FILES as found; empty for a model that HF never had


def load_model(
    source: str,
    mesh: Mesh,
    *,
    step: int | None = None,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    remat: Remat | None = None,
) -> LoadedModel:
    """Loads a run directory (its latest or given step), an HF directory, or a Hub id.

    `dtype` is that of the activations (None: as saved, or float32); `remat` what training computes again (None: as
    saved, or everything: models in HF format are large). Raises FileNotFoundError, ValueError, RunDirError or
    CheckpointError, each naming what is missing or does not fit, before anything is compiled.
    """
    overrides: dict[str, Any] = {"dtype": dtype, "remat": remat}
    overrides = {name: value for name, value in overrides.items() if value}
    if (epath.Path(source) / "model.json").exists():
        return _load_run(RunDir.at(source), mesh, step, overrides)
    found = find_hf(source, revision)
    config = found.model_config(**{"remat": "full", **overrides})
    tokenizer = load_tokenizer(found.directory)
    params = load_params(found, config, mesh)
    origin = f"hf {found.repo_id} at {found.revision}" if found.repo_id else f"hf {source}"
    files = {name: found.directory / name for name in HF_FILES}
    return LoadedModel(
        LanguageModel(config),
        params,
        tokenizer,
        origin,
        {name: path.read_bytes() for name, path in files.items() if path.is_file()},
    )


def _load_run(run: RunDir, mesh: Mesh, step: int | None, overrides: dict[str, Any]) -> LoadedModel:
    saved = ModelConfig.from_json(json.loads(run.artifact("model.json")))
    config = dataclasses.replace(saved, **overrides)
    model = LanguageModel(config)
    tokenizer = load_tokenizer(run.path / "tokenizer")
    abstract = abstract_params(model, mesh)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        lora = stored_config(checkpoints.shapes(step))
        wanted: dict[str, Any] = {"params": abstract}
        if lora:
            scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
            wanted = {"params": abstract_adapters(abstract, lora), "frozen": abstract, "lora_scale": scale}
        state, _ = checkpoints.restore_part(wanted, step)
        step = checkpoints.latest_step() if step is None else step
    params = merge(state["frozen"], state["params"], state["lora_scale"], donate=True) if lora else state["params"]
    hf = {name: run.path / "hf" / name for name in HF_FILES}
    return LoadedModel(
        model,
        params,
        tokenizer,
        f"run {run.path} step {step}",
        {name: path.read_bytes() for name, path in hf.items() if path.exists()},
    )


def abstract_params(model: LanguageModel, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of a model's weights."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(model.init, ABSTRACT_KEY),
        model.param_shardings(mesh),
    )


def save_model_artifacts(
    run: RunDir, config: ModelConfig, tokenizer: Tokenizer, hf_files: dict[str, bytes] | None = None
) -> None:
    """Writes, once, what makes the run's checkpoints self-contained."""
    files = {f"tokenizer/{name}": data for name, data in tokenizer.files.items()}
    files |= {f"hf/{name}": data for name, data in (hf_files or {}).items()}
    run.save_artifacts({"model.json": json.dumps(config.to_json(), indent=2) + "\n", **files})
