"""Eight fake CPU devices for every test process; each test runs inside a one-device mesh unless it sets its own."""

import os
import tempfile

# All of these must stand before jax is imported. Compiled programs are shared by the workers and kept between runs.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "ra3_jax_tests_xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402
import pytest  # noqa: E402

from ra3_jax.core.config import MeshConfig  # noqa: E402
from ra3_jax.core.mesh import make_mesh  # noqa: E402
from tests.bucket import bucket  # noqa: E402, F401  the fixture, for all tests


@pytest.fixture(autouse=True)
def one_device_mesh():
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
