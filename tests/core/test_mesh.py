"""Sizes of a mesh: one of them may be left to the number of devices."""

import pytest

from ra3_jax.core.config import MeshConfig
from ra3_jax.core.errors import InputError
from ra3_jax.core.mesh import mesh_shape


def test_one_size_is_what_is_left():
    assert mesh_shape(MeshConfig(), 8) == (1, 8, 1)
    assert mesh_shape(MeshConfig(-1, 2, 2), 8) == (2, 2, 2)
    assert mesh_shape(MeshConfig(2, 2, -1), 4) == (2, 2, 1)
    assert mesh_shape(MeshConfig(1, 4, 2), 8) == (1, 4, 2)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (-1, 2, -1), (-1, -1, -1), (0, -1, 1), (1, -2, 1)])
def test_sizes_that_mean_nothing(sizes: tuple[int, int, int]):
    with pytest.raises(ValueError, match="sizes must be positive, and at most one of the three may be -1"):
        MeshConfig(*sizes)


def test_sizes_that_the_devices_do_not_have():
    with pytest.raises(InputError, match=r"--mesh data=3,fsdp=-1,model=1: 8 devices cannot be divided by 3"):
        mesh_shape(MeshConfig(3, -1, 1), 8)
    with pytest.raises(InputError, match=r"asks for 4 devices, 8 found; make one axis -1"):
        mesh_shape(MeshConfig(2, 2, 1), 8)
