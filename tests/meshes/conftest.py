"""Whatever these tests compile, XLA must not have to replicate an array to bring it from one layout to another."""

import jax
import pytest

from tests.meshes.rematerialization import check


@pytest.fixture(autouse=True)
def no_involuntary_rematerialization(capfd):
    """Fails a test during which XLA printed its warning; programs kept by earlier runs would be compiled silently."""
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_disable_most_optimizations", True)  # much is compiled here and little computed
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", True)
    check(capfd.readouterr().err)
