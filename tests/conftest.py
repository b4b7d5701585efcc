"""Tests run in float64 on eight simulated CPU devices; whoever wants less says so with `jax.enable_x64(False)`."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax

jax.config.update("jax_enable_x64", True)
