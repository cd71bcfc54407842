"""Compiling for machines that are not here: devices by the name of their topology, and what the compiler says.

The TPU compiler is a library (`libtpu` on PyPI) that needs no TPU: it takes a described slice of one and tells the
memory of a program or why the program cannot be. Nothing is ever executed, and no time it predicts is used.
"""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import AXES, sharding

FORMS = """expected one of
  v5e:1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16        v6e: the same        (chips along each axis)
  v5p:1x1x1 2x2x1 2x2x2 2x2x4 4x4x4 ...         v4: 2x2x1 and larger
  tpu7x:2x2x1 2x2x2 2x4x4 ...                   (two JAX devices a chip)
  cpu, cpu:N (N fake devices), gpu (those of this machine)"""
TPU_NAME = re.compile(r"(?P<chip>v4|v5e|v5p|v6e|tpu7x):\d+x\d+(x\d+)?")
CLOUD_NAME = re.compile(r"(?P<chip>v\w+?)(pod|lite|litepod)?-(?P<n>\d+)")
LIBTPU = "compiling for TPUs needs the libtpu package: pip install libtpu (Linux on x86, no TPU needed)"


def devices_of(topology: str) -> Sequence[Any]:
    """The devices of a slice: described ones for a TPU, else those of this machine. Raises InputError."""
    platform, _, count = topology.partition(":")
    if platform in ("cpu", "gpu"):
        return _local_devices(topology, platform, count)
    match = TPU_NAME.fullmatch(topology)
    if not match:
        cloud = CLOUD_NAME.fullmatch(topology)
        hint = " (that is a name of Google Cloud: here the form of the slice is asked for)" if cloud else ""
        raise InputError(f"--topology {topology}{hint}: {FORMS}")
    # As JAX finds a v4 on a TPU VM: the two cores of a chip are one device.
    options = {"chip_config_name": "megacore"} if match["chip"] == "v4" else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        try:
            import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError(f"--topology {topology}: {LIBTPU}") from error
        raise InputError(f"--topology {topology}: the TPU compiler says: {error}; {FORMS}") from error


def _local_devices(topology: str, platform: str, count: str) -> Sequence[Any]:
    try:
        wanted = int(count or 0)
        devices = jax.devices(platform)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--topology {topology}: {error}") from error
    if len(devices) < wanted:
        raise InputError(f"--topology {topology}: this process has {len(devices)} such devices")
    return devices[:wanted] if wanted else devices


@dataclasses.dataclass(frozen=True)
class Work:
    """A jitted function with abstract arguments, for counting or compiling."""

    function: Any
    args: tuple

    def lower(self) -> jax.stages.Lowered:
        return self.function.lower(*self.args)

    def jaxpr(self) -> Any:
        return self.function.trace(*self.args).jaxpr.jaxpr


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled, and what of it a bound on its time is made of."""

    work: Work
    donated: Any
    """Arguments whose memory the results must take over."""
    beside: int
    """Bytes on each device that belong to the job and are no argument: other weights, moments."""
    unit: Work
    """What FLOPs are counted of: the whole, or one iteration of a loop whose length is not known."""
    moved: int
    """Bytes that a device cannot avoid to read or write in a unit: weights once, caches once, the new state."""
    tokens: int
    """Tokens of a unit, over all devices."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the compiler says about one program; bytes on each device."""

    arguments: int
    outputs: int
    donated: int
    """Part of the outputs that lies where arguments lay."""
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.donated + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler refused; its first sentence."""

    words: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The outcome of one compilation."""

    result: Memory | TooLarge
    seconds: float
    """Wall time of the compilation on this machine."""


def compile_lowered(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles and throws the program away. Errors other than a lack of memory pass through."""
    began = time.monotonic()
    try:
        stats = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(TooLarge(first_sentence(str(error))), time.monotonic() - began)
    assert stats is not None
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )
    return Compiled(memory, time.monotonic() - began)


def first_sentence(words: str) -> str:
    """The reason in a compiler's message, without the list of buffers and the link that follow it."""
    words = " ".join(words.split())
    return re.split(r"(?<=[a-z)])\. (?=[A-Z])| HLO module| See https?:| Program hbm requirement", words)[0]


def memory_limit(mesh: Mesh) -> int | None:
    """Bytes that a program may use on one device; None where no compiler says so (CPUs).

    For a TPU the compiler is asked for a program that cannot be, in under a second, and its answer is read.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return None
    if device.platform != "tpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    a_tebibyte_each = (mesh.devices.size, 2**20, 2**18)
    x = jax.ShapeDtypeStruct(a_tebibyte_each, jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(AXES)))
    words = compile_lowered(jax.jit(lambda x: jnp.sin(x) * 2).lower(x)).result
    assert isinstance(words, TooLarge), "a program of a tebibyte compiled"
    found = re.search(r"(?:exceeds available HBM|of) \(?([\d.]+)G", words.words)
    assert found, words.words
    return int(float(found[1]) * 2**30)


def abstract(tree: Any, mesh: Mesh, *names: str | None) -> Any:
    """Arrays (or abstract ones) -> abstract ones that all lie on the mesh as `names` say; shorter ranks take fewer."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh, *names[: len(x.shape)]))

    return jax.tree.map(one, tree)


def bytes_per_device(tree: Any) -> int:
    """Of a pytree of abstract arrays with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
