"""Preflight's work: compile each program, look for what fits, put it into a table."""

import dataclasses
import shlex
import time
from collections.abc import Sequence

import jax
from etils import epath
from jax.sharding import Mesh

from experiments.aot import (
    Compiled,
    Memory,
    Program,
    TooLarge,
    bytes_per_device,
    compile_lowered,
    devices_of,
    memory_limit,
)
from experiments.preflight import GIB, PreflightConfig
from experiments.programs import Programs, Shapes, Step
from ra3_jax.core.console import print_table, say
from ra3_jax.core.errors import InputError
from ra3_jax.core.flops import jaxpr_dot_flops
from ra3_jax.core.hardware import Chip, chip_of
from ra3_jax.core.mesh import data_parallel_size, make_mesh
from ra3_jax.midtrain.config import check_config as check_midtrain
from ra3_jax.model.config import PRESETS as MODELS
from ra3_jax.model.config import ModelConfig, tiny
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.rlvr.job import check_config as check_rlvr


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One program at one value of its knob."""

    value: int
    program: Program
    compiled: Compiled
    limit: int | None

    @property
    def problem(self) -> str | None:
        """Why it does not fit; None where it does."""
        result, limit = self.compiled.result, self.limit
        if isinstance(result, TooLarge):
            return result.words
        if limit is not None and result.total + self.program.beside > limit:
            return (
                f"{result.total / GIB:.2f} GiB, and {self.program.beside / GIB:.2f} GiB of the job's other arrays "
                f"beside it, exceed the device's {limit / GIB:.2f} GiB"
            )
        return None


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a step: the attempts, from the configured value on; the last one fits if any does."""

    step: Step
    attempts: tuple[Attempt, ...]
    flops: float
    """Of a unit of the last attempt, over all devices."""

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    @property
    def fits(self) -> bool:
        return self.last.problem is None


@dataclasses.dataclass(frozen=True)
class Report:
    preset: str
    model: ModelConfig
    mesh: Mesh
    chip: Chip | None
    limit: int | None
    findings: tuple[Finding, ...]

    @property
    def status(self) -> int:
        if all(finding.fits for finding in self.findings):
            return 3 if any(len(finding.attempts) > 1 for finding in self.findings) else 0
        return 4


def check(preset: str, config: PreflightConfig, *, compile_programs: bool = True) -> Report:
    """Compiles everything that `config` asks for. Raises InputError for what no job would accept."""
    mesh = _mesh(config)
    model = _model(preset, config)
    with jax.set_mesh(mesh):
        programs = Programs(mesh, *_jobs(config, mesh), Shapes(config.line_tokens, config.prompt_tokens))
        try:
            model.param_shardings(mesh)
            steps = [step for step in programs.steps() if step.job in config.jobs and _chosen(step, config.steps)]
        except ValueError as error:
            raise InputError(str(error)) from error
        if not steps:
            raise InputError(f"--steps {' '.join(config.steps)}: no step has such a name")
        limit = memory_limit(mesh)
        chip = chip_of(mesh.devices.flat[0].device_kind)
        findings = []
        if compile_programs:
            for number, step in enumerate(steps, 1):
                say(f"[{number}/{len(steps)}] {step.job}: {step.name}, {step.rows(step.choices[0])} rows a device")
                findings.append(find_fit(step, model, limit, search=config.search))
        else:
            for step in steps:
                say(f"{step.job}: {step.name}, {step.rows(step.choices[0])} rows a device, --{step.knob}")
    return Report(preset, model.config, mesh, chip, limit, tuple(findings))


def find_fit(step: Step, model: LanguageModel, limit: int | None, *, search: bool) -> Finding:
    """The configured program, then, where it does not fit, smaller ones until one does.

    A program that is too large fails before code is generated, in seconds, so this goes from large to small.
    """
    attempts: list[Attempt] = []
    for value in step.choices if search else step.choices[:1]:
        program = step.build(model, value)
        compiled = compile_lowered(program.work.lower())
        attempt = Attempt(value, program, compiled, limit)
        attempts.append(attempt)
        if isinstance(compiled.result, Memory):
            check_donation(step, program, compiled.result)
        say(f"      --{step.knob} {value}: {attempt.problem or 'fits'} ({compiled.seconds:.0f} s)")
        if attempt.problem is None:
            break
    # The kernel says nothing of its FLOPs; the same function with an einsum of the same causal blocks does.
    plain = LanguageModel(dataclasses.replace(model.config, attention="einsum"))
    flops = jaxpr_dot_flops(step.build(plain, attempts[-1].value).unit.jaxpr())
    return Finding(step, tuple(attempts), flops)


def check_donation(step: Step, program: Program, memory: Memory) -> None:
    """Raises RuntimeError where the state is held twice: a fault of ours, not of the user's settings."""
    state = bytes_per_device(program.donated)
    if memory.donated < state:
        raise RuntimeError(
            f"{step.name}: donation was lost, {memory.donated} of the state's {state} bytes were taken over"
        )


def _chosen(step: Step, names: Sequence[str]) -> bool:
    return not names or any(name.lower() in f"{step.job} {step.name}".lower() for name in names)


def _mesh(config: PreflightConfig) -> Mesh:
    devices = devices_of(config.topology)
    try:
        return make_mesh(config.mesh, devices)
    except ValueError as error:
        raise InputError(f"{config.topology} has {len(devices)} devices; {error}") from error


def _model(preset: str, config: PreflightConfig) -> LanguageModel:
    name = config.model or preset
    if name in MODELS:
        found = MODELS[name]
    elif config.model is None and config.midtrain.model == "tiny":
        from ra3_jax.data.tokenizer import load_tokenizer

        base = config.midtrain.base
        size = load_tokenizer(config.midtrain.tokenizer).size
        found = tiny(size, d_model=base.d_model, n_layers=base.n_layers, n_heads=base.n_heads)
    else:
        raise InputError(f"--model {name}: expected one of {', '.join(MODELS)}")
    midtrain = config.midtrain
    found = dataclasses.replace(found, remat=midtrain.remat or found.remat)
    return LanguageModel(dataclasses.replace(found, dtype=midtrain.dtype, attention=config.attention))


def _jobs(config: PreflightConfig, mesh: Mesh):
    """The jobs' settings with the short flags of preflight put in. Raises InputError as the jobs would."""
    midtrain, rlvr = config.midtrain, config.rlvr
    if config.sequence_length:
        data = dataclasses.replace(midtrain.data, sequence_length=config.sequence_length)
        midtrain = dataclasses.replace(midtrain, data=data)
    shards = data_parallel_size(mesh)
    if config.rows:
        loop, estep = midtrain.mstep.loop, midtrain.estep
        samples = rlvr.minibatch or rlvr.rollout.prompts * rlvr.rollout.samples
        loop = dataclasses.replace(
            loop, accumulate=_accumulate("mstep.loop.batch_size", loop.batch_size, config, shards)
        )
        batch = estep.programs_per_update * estep.group
        estep = dataclasses.replace(estep, accumulate=_accumulate("rows of the E-step", batch, config, shards))
        midtrain = dataclasses.replace(midtrain, mstep=dataclasses.replace(midtrain.mstep, loop=loop), estep=estep)
        rlvr = dataclasses.replace(rlvr, accumulate=_accumulate("samples of an RLVR update", samples, config, shards))
    try:
        check_midtrain(midtrain, shards)
        check_rlvr(rlvr, mesh)
    except ValueError as error:
        raise InputError(str(error)) from error
    return midtrain, rlvr


def _accumulate(name: str, batch: int, config: PreflightConfig, shards: int) -> int:
    """Microbatches of an update that has --rows rows on each device at once."""
    assert config.rows
    if batch % (config.rows * shards):
        raise InputError(f"--rows {config.rows}: {name}, {batch}, is no multiple of {config.rows} x {shards} devices")
    return batch // (config.rows * shards)


# --- the table

COLUMNS = (
    "step", "rows a device", "arguments", "temporaries", "total", "beside", "limit", "donated", "FLOPs", "at least",
    "at most", "compiled in",
)  # fmt: skip


def row(finding: Finding, report: Report) -> list[str]:
    """The cells of one step. Memory in GiB on each device, FLOPs over all devices."""
    step, last = finding.step, finding.last
    name = f"{step.job}: {step.name}"
    rows = str(step.rows(last.value))
    if len(finding.attempts) > 1:
        rows = f"{step.rows(step.choices[0])} do not fit" + (f", {rows} do" if finding.fits else "")
    result = last.compiled.result
    limit = f"{report.limit / GIB:.2f}" if report.limit else "unknown"
    if isinstance(result, TooLarge):
        return [name, rows, "-", "-", "too large", "-", limit, "-", f"{finding.flops:.2e}", "-", "-", "-"]
    floor, rate = _bounds(finding, report)
    return [
        name, rows,
        *(f"{size / GIB:.2f}" for size in (result.arguments, result.temporaries, result.total, last.program.beside)),
        limit, f"{result.donated / GIB:.2f}", f"{finding.flops:.2e}", floor, rate, f"{last.compiled.seconds:.0f} s",
    ]  # fmt: skip


def _bounds(finding: Finding, report: Report) -> tuple[str, str]:
    """(least time of a unit and what decides it, most tokens a second)."""
    if report.chip is None:
        return "unknown", "unknown"
    program, each = finding.last.program, finding.flops / report.mesh.devices.size
    seconds = report.chip.floor_seconds(each, program.moved)
    by = report.chip.bound_by(each, program.moved)
    shown = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
    return f"{shown} / {finding.step.unit} ({by})", f"{program.tokens / seconds:.3g} tok/s"


def notes(report: Report) -> list[str]:
    """What did not fit and what to do about it."""
    found = []
    for finding in report.findings:
        first, last, step = finding.attempts[0], finding.last, finding.step
        if first.problem is None:
            continue
        found.append(f"{step.job}: {step.name}, {step.rows(first.value)} rows a device: {first.problem}")
        if finding.fits:
            found.append(f"    fits with {step.rows(last.value)} rows a device: --{step.knob} {last.value}")
        elif len(finding.attempts) > 1:
            found.append(f"    nor does it with {step.rows(last.value)}: {last.problem}; more devices or another mesh")
    return found


LEGEND = (
    "Memory: GiB on each device, as the compiler says; total = arguments + outputs - donated + temporaries + code. "
    "beside: other arrays of the job that lie on the device meanwhile. FLOPs: matrix products of all devices, counted "
    "on the traced program with its recomputation. at least, at most: BOUNDS from the chip's peaks, without "
    "communication; nothing here was measured."
)


def print_report(report: Report, config: PreflightConfig, argv: Sequence[str]) -> None:
    """The table, what to change, the verdict; also to the file of --out."""
    if not report.findings:
        return
    device = report.mesh.devices.flat[0]
    sizes = ",".join(f"{name}={size}" for name, size in report.mesh.shape.items())
    title = (
        f"{config.model or report.preset} ({report.model.n_params / 1e9:.2f} B weights) on {config.topology}: "
        f"{report.mesh.devices.size} x {device.device_kind}, mesh {sizes}"
    )
    rows = [row(finding, report) for finding in report.findings]
    print_table(title, COLUMNS, rows)
    for line in notes(report):
        say(line)
    say(LEGEND)
    say({0: "everything fits as configured", 3: "everything fits, with the flags above", 4: "NOT everything fits"}[
        report.status
    ])  # fmt: skip
    if config.out:
        append_markdown(config.out, title, rows, notes(report), argv)


def append_markdown(path: str, title: str, rows: Sequence[Sequence[str]], lines: Sequence[str], argv: Sequence[str]):
    command = shlex.join(["python", "-m", "experiments.preflight", *_without_out(argv)])
    text = [f"### {title}", "", f"`{command}`", f"({time.strftime('%Y-%m-%d')}, {versions()})", ""]
    text += ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    text += ["| " + " | ".join(cells) + " |" for cells in rows]
    text += ["", *(f"- {line.strip()}" for line in lines), ""]
    place = epath.Path(path)
    before = place.read_text() if place.exists() else ""  # a bucket cannot append
    place.write_text(before + "\n".join(text) + "\n")


def _without_out(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in argv:
        if not skip and word != "--out" and not word.startswith("--out="):
            kept.append(word)
        skip = word == "--out"
    return kept


def versions() -> str:
    """Of what decides the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        compiler = f"libtpu {version('libtpu')}"
    except PackageNotFoundError:
        compiler = f"jaxlib {version('jaxlib')}"
    return f"jax {jax.__version__}, {compiler}"
