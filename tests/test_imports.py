"""The import order of the rooms, read from the code; and what must stay out of a process that only prints help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVEL = {
    "core": 0, "sandbox": 0, "data": 1, "tasks": 1, "model": 2, "policy": 3, "train": 3,
    "midtrain": 4, "rlvr": 4, "evals": 4, "theory": 4,
}  # fmt: skip
SIBLINGS_APART = {"midtrain", "rlvr", "evals", "theory"}  # what passes between them is a checkpoint


def imported_modules(path: Path) -> list[str]:
    """Absolute names of everything that a file imports, lazy imports included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(room: str, modules: list[str]) -> list[str]:
    bad = []
    for module in modules:
        parts = module.split(".")
        if parts[0] in ("experiments", "tests"):
            bad.append(module)
        if parts[0] != "ra3_jax" or len(parts) < 2 or parts[1] == room or parts[1] not in LEVEL:
            continue
        other = parts[1]
        apart = room in SIBLINGS_APART and other in SIBLINGS_APART
        if LEVEL[other] > LEVEL[room] or apart:
            bad.append(module)
    return bad


def test_violations_are_found():
    assert violations("core", ["ra3_jax.data.codec"]) == ["ra3_jax.data.codec"]
    assert violations("midtrain", ["ra3_jax.evals.harness", "ra3_jax.policy.plan"]) == ["ra3_jax.evals.harness"]
    assert violations("policy", ["experiments.cli"]) == ["experiments.cli"]
    assert violations("model", ["ra3_jax.data.codec", "jax.numpy"]) == []


def test_rooms_import_downwards_only():
    files = sorted((ROOT / "ra3_jax").rglob("*.py"))
    assert len(files) > 40
    found = {}
    for path in files:
        room = path.relative_to(ROOT / "ra3_jax").parts[0]
        if room in LEVEL and (bad := violations(room, imported_modules(path))):
            found[str(path.relative_to(ROOT))] = bad
    assert not found


def test_no_nnx_no_pjit_no_pickle_and_linen_only_in_model():
    for path in [*(ROOT / "ra3_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for module in imported_modules(path):
            assert "nnx" not in module and "pjit" not in module, f"{path}: {module}"
            assert module.split(".")[0] not in ("pickle", "cPickle", "dill"), f"{path}: {module}"
            if module.startswith("flax"):
                assert path.parent.name == "model", f"{path}: {module}"


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *((name, "--out") for name in ("midtrain", "export", "evaluate", "rlvr")),
        ("doctor", "--level"),
        ("canonical", "--data-dir"),
    ],
)
def test_help_is_light(command: str, flag: str):
    """`--help` leaves the heavy packages alone, exits with 0 and names the settings."""
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('experiments.{command}', run_name='__main__')\n"
        "except SystemExit as e:\n"
        "    assert not e.code, e.code\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'transformers', 'datasets', 'torch', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert flag in done.stdout


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--preset", "tinny"], "expected one of micro, tiny"),
        (["--estep", "magic"], "policy_gradient"),
        (["--mesh", "fdsp=2"], "fdsp"),
        (["--mesh", "data=-1,fsdp=-1"], "--mesh data=-1,fsdp=-1,model=1: sizes must be positive"),
        (["--not-a-flag", "3"], "not-a-flag"),
        (["--estep.method", "magic"], "selection"),
        (["--estep.horizon", "three"], "horizon"),
    ],
)
def test_wrong_flags_fail_with_a_message(argv: list[str], expected: str):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.midtrain", *argv], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_short_flags():
    from experiments.cli import parse
    from experiments.presets import PRESETS
    from ra3_jax.core.config import MeshConfig
    from ra3_jax.midtrain.config import MidTrainConfig

    argv = [
        "--preset",
        "micro",
        "--dry-run",
        "--estep",
        "policy_gradient",
        "--corpus=stdlib",
        "--mesh",
        "data=2,fsdp=-1",
    ]
    preset, config, dry_run = parse(MidTrainConfig, PRESETS, default="tiny", description="", argv=argv)
    assert preset == "micro" and dry_run
    assert config.estep.method == "policy_gradient" and config.data.corpus == "stdlib"
    assert config.mesh == MeshConfig(data=2, fsdp=-1, model=1)
    assert config.puzzles == PRESETS["micro"].puzzles
