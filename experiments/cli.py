"""What every command shares: presets and flags, JAX's set-up, errors that a user can act on. Imports nothing heavy."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import TypeVar

import tyro

C = TypeVar("C")


# Short forms of flags that everybody needs.
SHORT = {"--estep": "--estep.method", "--corpus": "--data.corpus"}


def expand(argv: list[str]) -> list[str]:
    """Short forms -> full flags: those of SHORT, and `--mesh data=2,fsdp=-1` for `--mesh.data 2 --mesh.fsdp -1`."""
    out: list[str] = []
    words = iter(word for arg in argv for word in (arg.split("=", 1) if arg.startswith("--mesh=") else [arg]))
    for word in words:
        if word == "--mesh":
            for part in next(words, "").split(","):
                name, _, size = part.partition("=")
                out += [f"--mesh.{name}", size]
        else:
            flag, equals, value = word.partition("=")
            out.append(SHORT.get(flag, flag) + equals + value)
    return out


def parse(
    cls: type[C], presets: Mapping[str, C], *, default: str, description: str, argv: list[str] | None = None
) -> tuple[str, C, bool]:
    """(preset, config, dry run) of a command line: `--preset NAME` picks the defaults, the other flags override them.

    Exits with status 2 and a message on an unknown preset, flag or value; with 0 after `--help`.
    """
    argv = expand(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=default)
    first.add_argument("--dry-run", action="store_true")
    known, rest = first.parse_known_args(argv)
    if known.preset not in presets:
        print(f"error: --preset {known.preset}: expected one of {', '.join(presets)}", file=sys.stderr)
        raise SystemExit(2)
    heading = (
        f"{description.strip()}\n\n--preset {{{','.join(presets)}}}: defaults to start from (now: {known.preset}).\n"
        "--dry-run: print the plan (steps, tokens, FLOPs, memory, files) and stop.\n"
        "Short forms: --estep METHOD, --corpus CORPUS, --mesh data=1,fsdp=-1,model=1."
    )
    config = tyro.cli(cls, default=presets[known.preset], args=rest, description=heading)
    return known.preset, config, known.dry_run


def use_huge_pages() -> None:
    """Starts the process anew with glibc asking for huge pages: a third off a small train step on a CPU.

    XLA maps and unmaps the memory of its temporaries all the time, and each first touch of a 4 KiB page is a fault.
    Nothing happens off Linux, or where GLIBC_TUNABLES is set already (to anything).
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def set_up_jax() -> None:
    """Joins the other hosts, if there are any, and keeps compiled programs between runs. Before any device is used."""
    from ra3_jax.core import console, watchdog
    from ra3_jax.core.distributed import join_hosts
    from ra3_jax.core.rundir import is_main_process

    watchdog.start()
    _keep_compiled_programs()
    join_hosts()
    console.mute(not is_main_process())


def set_up_notebook() -> str:
    """`set_up_jax` for a process that a person talks to, which joins no others. What JAX computes on, in words.

    Falls back to the CPU where an accelerator is asked for ($JAX_PLATFORMS) and none can be used.
    """
    import jax

    _keep_compiled_programs()
    why = "no accelerator found"
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where the platform asked for has no plugin here
        why = str(error).partition("\n")[0] or f"no plugin for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}"
        jax.config.update("jax_platforms", "cpu")
    found = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{why}: running on the CPU" if jax.default_backend() == "cpu" else f"running on {found}"


def _keep_compiled_programs() -> None:
    import jax

    from ra3_jax.core.paths import cache_dir

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# By name: importing them all would load JAX and Orbax into commands that need neither.
ACTIONABLE = {
    "ra3_jax.core.checkpoint.CheckpointError",
    "ra3_jax.core.errors.InputError",
    "ra3_jax.core.rundir.RunDirError",
    "ra3_jax.sandbox.level.IsolationError",
    "ra3_jax.train.loop.NonFiniteError",
}


STOPPED = "ra3_jax.train.loop.Stopped"
EX_TEMPFAIL = 75
"""Status of a run that was stopped (SIGTERM, the notice of a preemption) with all saved: start it again."""


@contextlib.contextmanager
def explain_errors() -> Iterator[None]:
    """What a user can act on ends with one message and status 1; anything unexpected keeps its traceback.

    A run that was stopped ends with status 75. With several processes, one that fails ends at once, without the
    farewell that JAX would wait for: the others, which may be in a collective with it, then end too.
    """
    try:
        yield
    except Exception as error:
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
        if STOPPED in kinds:
            print(f"{error}; all of it is saved, and the same command goes on from there", file=sys.stderr)
            raise SystemExit(EX_TEMPFAIL) from error
        # ImportError itself: a package that is only needed for this (gs:// needs gcsfs), with the words to install it.
        known = bool(kinds & ACTIONABLE) or type(error) is ImportError
        if known:
            print(f"error: {error}", file=sys.stderr)
        if _one_of_many():
            if not known:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        if not known:
            raise
        raise SystemExit(1) from error


def _one_of_many() -> bool:
    """Whether this process has joined others. Loads no JAX to find out."""
    distributed = sys.modules.get("jax.distributed")
    return distributed is not None and distributed.is_initialized()
