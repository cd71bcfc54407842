"""Installs what this checkout needs beside the JAX that is there: `python -m experiments.install [--dry-run]`.

For notebooks on hosted machines, whose JAX fits their accelerator and must stay as it is. Nothing that the running
process has imported is touched either, so that no restart is needed. What is there and new enough stays.
"""

import argparse
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
KEPT = ("jax", "jaxlib", "libtpu")
PLUGINS = {"libtpu": "tpu", "jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13"}  # package: extra of jax


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print what is missing, and stop")
    install(parser.parse_args(argv).dry_run)
    return 0


def install(dry_run: bool = False) -> None:
    """Raises SystemExit, with the one command to run, where JAX is too old; and where pip finds nothing that fits."""
    try:
        missing = plan(requirements())
    except TooOld as error:
        raise SystemExit(str(error)) from None
    for name in KEPT:
        print(name, installed(name) or "is not installed")
    print(f"missing or too old: {', '.join(missing)}" if missing else "all that is needed is there")
    if missing and not dry_run:
        pip(missing, constraints())


class TooOld(Exception):
    """Something that must not be replaced here is too old; the message has the one command to run."""


def requirements() -> list[Requirement]:
    """The dependencies in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


def plan(wanted: Iterable[Requirement]) -> list[str]:
    """The requirements that are not met. Raises TooOld where JAX is there, but older than needed."""
    missing = []
    for requirement in wanted:
        version = installed(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            continue
        if requirement.name == "jax" and version is not None:
            raise TooOld(
                f"jax {version} is installed, ra3_jax needs jax{requirement.specifier}. Run this, restart the runtime, "
                f"and begin again:\n    pip install -U '{with_plugin()}{requirement.specifier}'"
            )
        missing.append(str(requirement))
    return missing


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def with_plugin() -> str:
    """jax with the extra of the accelerator that it is installed for."""
    extras = [extra for package, extra in PLUGINS.items() if installed(package)]
    return f"jax[{extras[0]}]" if extras else "jax"


def constraints() -> list[str]:
    """`name==version` of JAX and of every package that this process has imported."""
    owners = importlib.metadata.packages_distributions()
    loaded = {name for module in set(owners) & set(sys.modules) for name in owners[module]}
    versions = {name: installed(name) for name in {*KEPT, *loaded}}
    return sorted(f"{name}=={version}" for name, version in versions.items() if version)


def pip(missing: list[str], kept: list[str]) -> None:
    """Raises SystemExit where pip finds no versions that go with what has to stay."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "constraints.txt")
        file.write_text("\n".join(kept) + "\n")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", os.fspath(file), *missing]
        if subprocess.run(command).returncode:
            raise SystemExit(f"pip found no versions that go with {', '.join(kept)}; its own words are above")
    importlib.invalidate_caches()


if __name__ == "__main__":
    sys.exit(main())
