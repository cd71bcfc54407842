"""Write a run's model as an HF directory: `python -m experiments.export --model RUN --out DIR`.

transformers, vLLM and evaluation harnesses load it. A model that HF cannot express (the tiny base's key shift) is
refused with the reason.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """`python -m experiments.export`."""

    model: str
    """Run directory (or HF id or directory, to convert its dtype); directories may be gs://."""
    out: str
    """Directory to write (may be gs://); must not exist or be empty."""
    step: int | None = None
    """Checkpoint to take (none: the latest)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the written weights."""


def main(argv: list[str] | None = None) -> int:
    config = tyro.cli(ExportConfig, args=argv, description=__doc__)
    from experiments.cli import explain_errors, set_up_jax

    with explain_errors():
        set_up_jax()
        export(config)
    return 0


def export(config: ExportConfig) -> None:
    """Raises InputError where the model cannot be read or written."""
    import jax

    from ra3_jax.core.config import MeshConfig
    from ra3_jax.core.console import say
    from ra3_jax.core.errors import InputError
    from ra3_jax.core.mesh import make_mesh
    from ra3_jax.model.checkpoint import load_model
    from ra3_jax.model.hf_export import export_hf

    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as scratch:
        try:
            loaded = load_model(config.model, mesh, step=config.step)
            base = Path(scratch)
            for name, data in {**loaded.hf_files, **loaded.tokenizer.files}.items():
                (base / name).write_bytes(data)
            export_hf(
                loaded.params,
                loaded.model.config,
                config.out,
                base=base if loaded.hf_files else None,
                tokenizer=base,
                bos_token_id=loaded.tokenizer.bos_id,
                eos_token_id=loaded.tokenizer.eos_id,
                dtype=config.dtype,
            )
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
    say(f"wrote {config.out}")


if __name__ == "__main__":
    sys.exit(main())
