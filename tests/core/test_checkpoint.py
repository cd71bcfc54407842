import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ra3_jax.core.checkpoint import CheckpointError, Checkpoints, list_steps
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh, sharding


def make_state(fill: float, width: int = 8):
    """Like a TrainState: nested dicts, a chain of optax states with empty ones, a scalar."""
    params = {"layers": {"up": jnp.full((2, 8, width), fill), "norm": jnp.arange(8.0) + fill}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    return {"params": params, "opt_state": tx.init(params), "step": jnp.int32(fill)}


def abstract(state, where=None):
    where = where or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 5):
        checkpoints.save(step, make_state(step), {"position": 10 * step, "phase": "mstep"})
    checkpoints.close()
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert reader.steps() == [2, 5] and reader.latest_step() == 5
    state, meta = reader.restore(abstract(make_state(0)))
    assert_same(state, make_state(5))
    assert meta == {"position": 50, "phase": "mstep"}
    assert_same(reader.restore(abstract(make_state(0)), 2)[0], make_state(2))
    assert reader.read_meta(2)["position"] == 20
    assert reader.shapes()["params.layers.up"] == (2, 8, 8)
    with pytest.raises(CheckpointError, match="reading only"):
        reader.save(6, make_state(6), {})


def test_part_of_a_state_on_another_mesh(tmp_path):
    """What a later stage does: weights alone, laid out for its own devices."""
    eight, two = make_mesh(MeshConfig(1, 4, 2)), make_mesh(MeshConfig(1, 1, 2), jax.devices()[:2])
    state = make_state(3)
    up = jax.device_put(state["params"]["layers"]["up"], sharding(eight, None, "embed", "mlp"))
    state["params"]["layers"]["up"] = up
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    target = {"params": abstract(state["params"], sharding(two))}
    target["params"]["layers"]["up"] = jax.ShapeDtypeStruct(
        up.shape, up.dtype, sharding=sharding(two, None, None, "mlp")
    )
    part, _ = Checkpoints(tmp_path, read_only=True).restore_part(target)
    assert_same(part["params"], make_state(3)["params"])
    assert part["params"]["layers"]["up"].sharding == sharding(two, None, None, "mlp")
    assert set(part) == {"params"}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "saved")
    checkpoints.save(1, make_state(1), {"x": 1})
    checkpoints.close()
    return tmp_path / "saved"


def test_another_architecture_names_the_first_array(saved):
    reader = Checkpoints(saved, read_only=True)
    wider = abstract(make_state(0, width=16))
    with pytest.raises(CheckpointError, match=r"layers\.up is \(2, 8, 8\) there, \(2, 8, 16\)"):
        reader.restore(wider)
    with pytest.raises(CheckpointError, match=r"layers\.up is \(2, 8, 8\) there, \(2, 8, 16\)"):
        reader.restore_part({"params": wider["params"]})
    more = abstract(make_state(0))
    more["params"]["bias"] = more["step"]
    with pytest.raises(CheckpointError, match=r"params\.bias \(\) is expected, the checkpoint has"):
        reader.restore(more)
    fewer = abstract(make_state(0))
    del fewer["params"]["layers"]["norm"]
    with pytest.raises(CheckpointError, match=r"holds params\.layers\.norm \(8,\), which is not"):
        reader.restore(fewer)


def test_missing_checkpoints_are_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists() and list_steps(tmp_path / "nowhere") == []
    with pytest.raises(CheckpointError, match=r"no step 7; it has \[1\]"):
        Checkpoints(saved, read_only=True).read_meta(7)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        Checkpoints(tmp_path / "empty").read_meta()


def test_killed_save_leaves_the_previous_step(saved):
    """A kill during a save leaves `<step>.orbax-checkpoint-tmp`."""
    leftover = saved / "2.orbax-checkpoint-tmp"
    shutil.copytree(saved / "1", leftover)
    shutil.rmtree(leftover / "meta")
    reader = Checkpoints(saved, read_only=True)
    assert reader.latest_step() == 1
    assert_same(reader.restore(abstract(make_state(0)))[0], make_state(1))
    assert leftover.exists()  # a reader may look while the writer is writing
    writer = Checkpoints(saved)
    writer.save(2, make_state(2), {})
    writer.close()
    assert not leftover.exists() and writer.steps() == [1, 2]
    assert_same(writer.restore(abstract(make_state(0)))[0], make_state(2))


def test_rewind_allows_to_go_on_from_an_earlier_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=None)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), {})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="step 2 was not saved"):
        checkpoints.save(2, make_state(7), {})
    checkpoints.rewind(1)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, make_state(7), {})
    checkpoints.close()
    assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(7))


FULL_DISK = """
import os, resource, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import numpy as np
from ra3_jax.core.checkpoint import CheckpointError, Checkpoints
checkpoints = Checkpoints(sys.argv[1])
noise = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)  # 1 MiB
checkpoints.save(1, {"w": noise[:10]}, {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, {"w": noise}, {})
    checkpoints.wait()
except CheckpointError as error:
    print(error)
    print("latest", checkpoints.latest_step())
    sys.exit(7)
"""


def test_full_disk_is_an_error_and_spares_the_previous_step(tmp_path):
    """No file may grow beyond 128 KiB: the writes fail as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert f"{tmp_path}" in done.stdout and "complete steps there: [1]" in done.stdout
    assert "latest 1" in done.stdout
    reader = Checkpoints(tmp_path, read_only=True)
    w = jax.ShapeDtypeStruct((10,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert reader.restore({"w": w})[0]["w"].shape == (10,)
