"""One of two processes, of four devices each: values and gradients over all eight equal those of one device.

    python tests/two_processes.py ADDRESS INDEX

`test_devices.py` starts both.
"""

import sys
from pathlib import Path

import jax

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

from devices import join_processes  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
join_processes(sys.argv[1], int(sys.argv[2]), processes=2, devices=8)

from jax.experimental.multihost_utils import process_allgather  # noqa: E402
from parallel import SHARED, by_jit, by_shard_map, problem  # noqa: E402
from support import assert_close  # noqa: E402

assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 4, 8)
names = [case.name for case in SHARED]
for name in ("batch_norm", "layer_norm", "linear_softmax_cross_entropy", "conv"):
    p = problem(names.index(name))
    for got in (by_shard_map(p, True, "inside"), by_shard_map(p, False, "outside"), by_jit(p, "batch and features")):
        assert_close(process_allgather(got, tiled=True), p.wanted)
