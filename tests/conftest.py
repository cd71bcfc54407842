"""Eight fake CPU devices for every test process; each test runs inside a one-device mesh unless it sets its own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)

import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh


@pytest.fixture(autouse=True)
def one_device_mesh():
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
