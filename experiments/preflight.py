"""Will a job fit? `python -m experiments.preflight --preset NAME --topology v5e:4x4 --mesh fsdp=16 [flags]`.

Compiles every program of the preset's mid-training and RLVR jobs for a slice of TPUs that need not be here (libtpu is
the compiler; `pip install libtpu`), and prints what each takes of a device's memory, its FLOPs, and the least time that
the chip's peaks allow. What does not fit is shown with the compiler's words, and the setting at which it does is looked
for. Exits with status 0 when all fits as configured, 3 when only with other settings, 4 when something does not at all.
"""

import dataclasses
import os
import sys
import time
from typing import Literal

from experiments.cli import parse
from experiments.presets import ARCHITECTURES
from experiments.presets import PRESETS as MIDTRAIN
from experiments.rlvr_presets import PRESETS as RLVR
from ra3_jax.core.config import MeshConfig
from ra3_jax.midtrain.config import MidTrainConfig
from ra3_jax.rlvr.config import RLVRConfig

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class PreflightConfig:
    """What is compiled, for what."""

    topology: str = "v5e:4x4"
    """Slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x1, tpu7x:2x2x1 (chips along each axis); cpu, cpu:8 or gpu."""
    mesh: MeshConfig = MeshConfig()
    jobs: tuple[Literal["midtrain", "rlvr"], ...] = ("midtrain", "rlvr")
    """Whose programs."""
    steps: tuple[str, ...] = ()
    """Only steps whose name contains one of these; (): all."""
    model: str | None = None
    """Architecture instead of the preset's: llama3.2-1b, llama3.1-8b, qwen2.5-0.5b, qwen2.5-1.5b or qwen3-0.6b."""
    rows: int | None = None
    """Rows that a device learns from at once, instead of what the batch and `accumulate` of the jobs come to."""
    sequence_length: int | None = None
    """Tokens of a packed row (midtrain.data.sequence_length)."""
    prompt_tokens: int = 1024
    """RLVR: longest prompt."""
    line_tokens: int = 10
    """Tokens of a line of code: how many lines, and so thoughts, a program that fills a row has."""
    attention: Literal["auto", "einsum", "splash", "cudnn"] = "auto"
    """As in the model: auto takes the kernel on TPUs."""
    search: bool = True
    """Look for the setting that fits where the configured one does not."""
    out: str | None = None
    """Append the table to this Markdown file."""
    midtrain: MidTrainConfig = MidTrainConfig()
    rlvr: RLVRConfig = RLVRConfig()


PRESETS = {
    name: PreflightConfig(
        mesh=MIDTRAIN[name].mesh, midtrain=MIDTRAIN[name], rlvr=RLVR[name], model=ARCHITECTURES.get(name)
    )
    for name in MIDTRAIN
    if name in RLVR
}


def prepare_environment(topology: str) -> None:
    """Before JAX is imported: which devices it has, and that several processes may load the TPU compiler at once."""
    platform, _, count = topology.partition(":")
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # Of no effect on a described slice, but without them the library warns that it does not know its machine.
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    }
    if platform != "gpu":
        settings["JAX_PLATFORMS"] = "cpu"
    if platform == "cpu" and count:
        settings["JAX_NUM_CPU_DEVICES"] = count
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def main(argv: list[str] | None = None) -> int:
    started = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    preset, config, dry_run = parse(
        PreflightConfig, PRESETS, default="llama3.1-8b", description=__doc__ or "", argv=argv
    )
    from experiments.cli import explain_errors

    with explain_errors():
        prepare_environment(config.topology)
        from experiments.preflight_table import check, print_report

        report = check(preset, config, compile_programs=not dry_run)
        print_report(report, config, ["--preset", preset] if not argv else argv)
    if not dry_run:
        print(f"done in {time.monotonic() - started:.0f} s")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
