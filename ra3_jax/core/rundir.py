"""A run's directory (local or gs://): what a job writes, and all that a later job needs to read.

    config.json                 resolved config, versions, git revision, device
    checkpoints/<step>/         Orbax: state, data position, seeds (core/checkpoint)
    model.json, tokenizer/      what every checkpoint needs besides, so that post-training,
                                evaluation and export read this directory alone
    metrics.jsonl               the source of truth for curves (core/metrics)
    traces/                     annotated programs
    report.html, summary.json   written at the end

Process 0 writes; the other processes of a multi-host run make the same calls and write nothing.
"""

import dataclasses
import enum
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Collection, Mapping
from typing import Any

import jax
from etils import epath

from ra3_jax.core.checkpoint import list_steps
from ra3_jax.core.paths import is_remote

PACKAGES = (
    *("ra3-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("tokenizers", "transformers", "datasets"),
)


class RunDirError(RuntimeError):
    """A run directory cannot be written, or holds what must not be overwritten or mixed."""


@dataclasses.dataclass(frozen=True)
class RunDir:
    """Names and atomic writes below one path. Making one touches no file; `open_run` does."""

    path: epath.Path

    @classmethod
    def at(cls, path: epath.PathLike) -> "RunDir":
        return cls(epath.Path(path))

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> epath.Path:
        return self.path / "metrics.jsonl"

    @property
    def traces(self) -> epath.Path:
        return self.path / "traces"

    @property
    def report(self) -> epath.Path:
        return self.path / "report.html"

    @property
    def summary(self) -> epath.Path:
        return self.path / "summary.json"

    @property
    def config(self) -> epath.Path:
        return self.path / "config.json"

    def write(self, name: str, content: str | bytes) -> None:
        """Writes one file so that it is seen whole or not at all."""
        write_atomic(self.path / name, content)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(to_json(value), indent=2) + "\n")

    def save_artifacts(self, files: Mapping[str, str | bytes]) -> None:
        """Writes, once, what belongs to all checkpoints (`model.json`, `tokenizer/...`).

        Raises RunDirError when the run has checkpoints and one of these files is another there.
        """
        started = bool(list_steps(self.checkpoints))
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            target = self.path / name
            same = target.exists() and target.read_bytes() == data
            if started and target.exists() and not same:
                raise RunDirError(
                    f"{target} differs from this run's {name}: the checkpoints there belong to "
                    "another model or tokenizer; choose another --out"
                )
            if not same:
                self.write(name, data)

    def artifact(self, name: str) -> bytes:
        """Raises RunDirError when the run has no such file."""
        target = self.path / name
        if not target.exists():
            raise RunDirError(f"{self.path} is no complete run directory: it has no {name}")
        return target.read_bytes()

    def read_config(self) -> dict[str, Any]:
        """The saved config as plain JSON (fields of the config dataclass)."""
        return json.loads(self.artifact("config.json"))["config"]


def open_run(
    path: epath.PathLike,
    config: Any,
    *,
    resume: str = "auto",
    ignore: Collection[str] = (),
    need_bytes: int = 0,
) -> tuple[RunDir, int | None]:
    """Makes a run directory ready: (run, step to restore, or None to start afresh).

    `resume` is "auto" (the latest checkpoint, if any), "never" (refuses a directory that holds
    checkpoints) or a step. A run goes on only under the config it was started with, but for the
    dotted fields in `ignore` (or below them). Checks by writing that the directory is writable, and
    that `need_bytes` fit on a local disk. Raises RunDirError.
    """
    run = RunDir.at(path)
    steps = list_steps(run.checkpoints)
    start = resolve_resume(resume, steps, where=str(run.path))
    if start is not None:
        differences = config_differences(run.read_config(), to_json(config), ignore)
        if differences:
            raise RunDirError(
                f"{run.path} was started with another config (saved -> now):\n  "
                + "\n  ".join(differences)
                + "\nchange it back, or choose another --out"
            )
    probe_write(run.path, need_bytes)
    run.write_json("config.json", {"config": to_json(config)} | environment())
    return run, start


def resolve_resume(resume: str, steps: list[int], *, where: str) -> int | None:
    """The step that `--resume` means, None to start afresh."""
    if resume == "auto":
        return max(steps, default=None)
    if resume == "never":
        if steps:
            raise RunDirError(
                f"{where} holds checkpoints of steps {steps}: --resume never will not overwrite "
                "them; choose another --out, or --resume auto"
            )
        return None
    if not resume.isdigit():
        raise RunDirError(f"--resume {resume!r}: expected auto, never, or the number of a step")
    if int(resume) not in steps:
        raise RunDirError(f"--resume {resume}: {where} has no such checkpoint; it has {steps or 'none'}")
    return int(resume)


def config_differences(saved: Mapping[str, Any], now: Mapping[str, Any], ignore: Collection[str] = ()) -> list[str]:
    """Lines `field: saved -> now` of the dotted fields that differ and are not below `ignore`."""
    a, b = flatten(saved), flatten(now)
    lines = []
    for name in dict.fromkeys([*a, *b]):
        ignored = any(name == i or name.startswith(i + ".") for i in ignore)
        if not ignored and (name not in a or name not in b or a[name] != b[name]):
            old, new = (json.dumps(x[name]) if name in x else "(absent)" for x in (a, b))
            lines.append(f"{name}: {old} -> {new}")
    return lines


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {"a.b": leaf}; lists are leaves."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return out


def to_json(value: Any) -> Any:
    """Dataclasses, enums, paths, tuples -> what `json` can hold. Raises TypeError otherwise."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config cannot hold {value!r} of type {type(value).__name__}")


def environment() -> dict[str, Any]:
    """Versions, git revision (None outside a checkout) and devices of this process."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    device = jax.devices()[0]
    return {
        "versions": versions,
        "git": git_revision(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def git_revision() -> str | None:
    """Commit of the checkout the package lies in, "+changes" if edited; None outside one."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str | None:
        command = ["git", "-C", str(root), *args]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):  # no git on this machine: nothing to record
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None:
        return None
    return revision + ("+changes" if git("status", "--porcelain", "-uno") else "")


def is_main_process() -> bool:
    return jax.process_index() == 0


def write_atomic(target: epath.Path, content: str | bytes) -> None:
    """Temporary file beside the target, flushed, then renamed over it. Only process 0 writes."""
    if not is_main_process():
        return
    data = content.encode() if isinstance(content, str) else content
    temporary = target.parent / f".{target.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(target):
            target.write_bytes(data)  # an object appears only once it is complete
            return
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise RunDirError(f"cannot write {target}: {error}") from error


def probe_write(directory: epath.Path, need_bytes: int = 0) -> None:
    """Raises RunDirError unless `directory` can be written and (local) has `need_bytes` free."""
    if not is_main_process():
        return
    write_atomic(directory / ".probe", b"\0" * 65536)
    (directory / ".probe").unlink()
    if is_remote(directory):
        return
    stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    if free < need_bytes:
        raise RunDirError(
            f"{directory}: about {need_bytes / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free"
        )
