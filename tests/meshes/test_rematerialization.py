"""What is compiled in this folder is compiled without XLA's warning (conftest.py); here what no other test compiles.

All steps of both jobs, whatever the model: `for mesh in MESHES: compile_programs(model, mesh_of(mesh))`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ra3_jax.core.mesh import data_parallel_size
from ra3_jax.midtrain import rollouts
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.policy.batch import place
from tests.meshes.bench import MESHES, MODELS, mesh_of
from tests.meshes.rematerialization import WARNING, check, compile_programs


def test_the_warning_is_seen(capfd):
    """A lookup in a table that `fsdp` cuts, of tokens that it cuts as well: what the model takes care to avoid."""
    mesh = mesh_of((2, 2, 2))
    table_VD = jax.ShapeDtypeStruct((128, 32), jnp.float32, sharding=NamedSharding(mesh, P("model", "fsdp")))
    by_rows = NamedSharding(mesh, P(("data", "fsdp")))
    tokens_BT = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=by_rows)

    def look_up(table_VD, tokens_BT):
        return jax.lax.with_sharding_constraint(table_VD[tokens_BT], by_rows)

    with jax.set_mesh(mesh):
        jax.jit(look_up).lower(table_VD, tokens_BT).compile()
    with pytest.raises(AssertionError, match=f"{WARNING}.*gather"):
        check(capfd.readouterr().err)


@pytest.mark.parametrize("shape", MESHES[1:])
def test_scorers_in_bfloat16(shape: tuple[int, int, int]):
    """Of both jobs. The other programs run in the other tests of this folder."""
    model = LanguageModel(dataclasses.replace(MODELS["odd"].config, dtype="bfloat16"))
    assert compile_programs(model, mesh_of(shape), "scorer") == ["scorer", "scorer"]


@pytest.mark.parametrize("shape", MESHES[1:])
def test_batches_of_rollouts_are_joined_in_place(shape: tuple[int, int, int]):
    parts = [np.arange(i, i + 8 * 32, dtype=np.int32).reshape(8, 32) for i in (0, 1000)]
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        joined = rollouts._join_rows([place(part, mesh) for part in parts])
    np.testing.assert_array_equal(joined, np.concatenate(parts))
    assert {x.data.shape for x in joined.addressable_shards} == {(16 // data_parallel_size(mesh), 32)}
