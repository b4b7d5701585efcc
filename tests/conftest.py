"""Tests run in float64 on eight simulated CPU devices; whoever wants less says so with `jax.enable_x64(False)`.

Most of their time is the compiler's. What one worker, or a script that it calls, has compiled, all take from a cache,
which is new for each run.
"""

import atexit
import contextlib
import gc
import os
import shutil
import tempfile

os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    os.environ["JAX_COMPILATION_CACHE_DIR"] if "PYTEST_XDIST_WORKER" in os.environ else tempfile.mkdtemp()
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

from jaxnorm._lower.platforms import forced

gc.set_threshold(200_000, 50, 1000)  # JAX keeps much alive, which takes long to walk through
if "PYTEST_XDIST_WORKER" not in os.environ:
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_enable_x64", True)


# The sums and passes of every platform, on this machine's backend: a CPU's, a TPU's, a GPU's.
FORMULATIONS = {"here": None, "tpu": "tpu", "gpu": "cuda"}


@pytest.fixture(params=FORMULATIONS.values(), ids=FORMULATIONS)
def formulation(request):
    """Runs a test once for each platform's formulations."""
    with contextlib.nullcontext() if request.param is None else forced(request.param):
        yield request.param


@pytest.fixture
def quick_compilation():
    """Less of XLA's optimizer: for exact comparisons in float64, whose time is the compiler's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
