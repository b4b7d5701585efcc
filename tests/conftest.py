"""Tests run in float64 on eight simulated CPU devices; whoever wants less says so with `jax.enable_x64(False)`."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def quick_compilation():
    """Less of XLA's optimizer: for exact comparisons in float64, whose time is the compiler's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
