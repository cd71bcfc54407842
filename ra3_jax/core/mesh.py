"""The device mesh and the one table that maps logical axis names to mesh axes.

Arrays name their axes ("batch", "vocab", ...); `ShardingRules` says which mesh axes those are cut over. Every jitted
function of the project runs inside `jax.set_mesh(make_mesh(...))`; on one device the mesh is 1 x 1 x 1 and
everything below still runs, so the sharded path is the only path.

With several processes (hosts) every one computes the same host arrays from the same seeds. `to_devices` and `to_host`
are the two ways between host and mesh: nothing else may read an array that lies on other hosts too.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.errors import InputError

T = TypeVar("T")

AXES = ("data", "fsdp", "model")


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axes. `spec` looks names up as attributes, so a misspelt name raises."""

    batch: tuple[str, ...] | None = ("data", "fsdp")
    length: str | None = None
    act_embed: str | None = None  # width of activations
    embed: str | None = "fsdp"  # width of weights
    mlp: str | None = "model"
    heads: str | None = "model"
    kv_heads: str | None = "model"
    head_dim: str | None = None
    vocab: str | None = "model"
    layers: str | None = None
    # Around the embedding table, where `fsdp` cuts what would be too large whole, and so cannot cut the rows.
    outer_batch: str | None = "data"
    all_vocab: tuple[str, ...] | None = ("model", "fsdp")

    def spec(self, *names: str | None) -> P:
        return P(*[None if name is None else getattr(self, name) for name in names])


RULES = ShardingRules()


def mesh_shape(config: MeshConfig, n_devices: int) -> tuple[int, int, int]:
    """Resolves the one allowed -1 of (data, fsdp, model). Raises InputError when the product is not `n_devices`."""
    shape = [config.data, config.fsdp, config.model]
    known = math.prod(n for n in shape if n != -1)
    if -1 in shape:
        if n_devices % known:
            raise InputError(f"--mesh {config}: {n_devices} devices cannot be divided by {known}")
        shape[shape.index(-1)] = n_devices // known
    elif known != n_devices:
        raise InputError(
            f"--mesh {config} asks for {known} devices, {n_devices} found; make one axis -1 to use all of them"
        )
    return shape[0], shape[1], shape[2]


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh with Auto axes ("data", "fsdp", "model"): neighbours on an axis are neighbours on the wires."""
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config or MeshConfig(), len(devices))
    # An axis may take part of a physical one: with that, (8, 2) fits a slice of 4 x 4 chips and (4, 1) one of 2 x 2.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins the layout of an intermediate array; the mesh comes from `jax.set_mesh`."""
    return jax.lax.with_sharding_constraint(x, RULES.spec(*names))


def pin_rows(tree: T) -> T:
    """`constrain` for a pytree of rows: first axes over the data-parallel devices, further ones whole."""
    return jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)) if x.ndim else x, tree)


def sharding(mesh: Mesh, *names: str | None) -> NamedSharding:
    """The sharding of an array whose axes have these logical names."""
    return NamedSharding(mesh, RULES.spec(*names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over all data-parallel devices; further axes are whole. Also right for any pytree of rows."""
    return NamedSharding(mesh, P(RULES.batch))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def data_parallel_size(mesh: Mesh) -> int:
    """Number of shards that a batch is cut into; every batch size must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def to_devices(tree: Any, target: NamedSharding) -> Any:
    """Host arrays, the same on every process, laid out as `target`; each process copies only the parts of its devices.

    (`jax.device_put` would first compare whole arrays between the processes, at the price of a collective for each.)
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, target)

    def put(x: Any) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, target, lambda index: whole[index])

    return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
    """The same tree as whole numpy arrays, on every process.

    With several processes this is a collective: all of them must call it with the same arrays in the same order.
    """
    leaves, structure = jax.tree.flatten(tree)
    far = [i for i, x in enumerate(leaves) if _is_far(x)]
    if far:
        gather = jax.jit(_itself, out_shardings=replicated(leaves[far[0]].sharding.mesh))
        for i, whole in zip(far, gather([leaves[i] for i in far]), strict=True):
            leaves[i] = whole
    return jax.tree.unflatten(structure, [np.asarray(x) for x in leaves])


def _is_far(x: Any) -> bool:
    """Whether parts of an array lie on other hosts alone."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _itself(xs: list[jax.Array]) -> list[jax.Array]:
    return xs
