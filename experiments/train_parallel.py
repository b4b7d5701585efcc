#!/usr/bin/env python
"""Trains the network of `train_digits.py` data-parallel, with synced batch norm, on several devices and processes.

Every device has the parameters whole and its part of each minibatch. `shard_map` runs the very steps of one device on
them, with a name for the axis that they share: batch norm merges its statistics over it, the loss is the mean over it,
and gradients of the parameters come out summed. So the run takes the steps of one device, which is checked first.

    python experiments/train_parallel.py --devices 8
    python experiments/train_parallel.py --processes 2

Without accelerators the devices are simulated: they share the processor's cores, so their times measure no speed.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from common import positive_int
from devices import Collective, collectives, join_processes, run_processes, simulate_devices
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from train_digits import (
    Config,
    Data,
    Result,
    State,
    add_run_options,
    check_batch_size,
    first_steps,
    step_losses,
    summary,
    train,
    train_steps,
)

AXIS = "devices"
DEVICES = 8
CHECKED_STEPS = 20
TOLERANCE = 1e-4


class ParallelResult(NamedTuple):
    """One run, and how it compares with one device."""

    result: Result
    difference: float  # the largest one between the losses of the first steps and those of one device
    sent: list[Collective]  # in one step


def parallel_steps(
    mesh: Mesh, config: Config, steps_per_epoch: int, state: State, data: Data, batches: jax.Array
) -> tuple[State, jax.Array]:
    """`train_steps` with each minibatch split over the mesh; state and data are whole on every device."""
    steps = partial(train_steps, config._replace(axis_name=AXIS), steps_per_epoch)
    return jax.shard_map(steps, mesh=mesh, in_specs=(P(), P(), P(None, AXIS)), out_specs=P())(state, data, batches)


def run(config: Config, mesh: Mesh, console: Console) -> ParallelResult:
    """Compares the first steps with one device's, reads what each of them sent, then trains."""
    steps, everywhere = partial(parallel_steps, mesh), NamedSharding(mesh, P())
    steps_per_epoch, *arrays = first_steps(config, CHECKED_STEPS)
    arrays = jax.device_put(arrays, everywhere)
    program = jax.jit(steps, static_argnums=(0, 1)).lower(config, steps_per_epoch, *arrays).compile()
    difference = float(np.max(np.abs(np.asarray(program(*arrays)[1]) - step_losses(config, CHECKED_STEPS))))
    if not difference <= TOLERANCE:
        sys.exit(f"error: in {CHECKED_STEPS} steps the losses differ from one device's by up to {difference:.2e}")
    # The steps are the body of a loop, which the text of the program has once.
    sent = collectives(program.as_text() or "")
    return ParallelResult(train(config, console, steps, everywhere), difference, sent)


def report(console: Console, mesh: Mesh, outcome: ParallelResult) -> None:
    """The table at the end."""
    table = summary(outcome.result)
    kinds = ", ".join(sorted({c.kind for c in outcome.sent})) or "none"
    table.add_row("devices", f"{mesh.size} in {jax.process_count()} process(es)")
    table.add_row(f"loss against one device, {CHECKED_STEPS} steps", f"differs by at most {outcome.difference:.1e}")
    table.add_row("collectives per step", f"{len(outcome.sent)} ({kinds})")
    table.add_row("their bytes, on each device", f"{sum(c.bytes for c in outcome.sent):,}")
    console.print(table)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train the network of train_digits.py on several devices, with synced batch norm.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    devices_help = (
        f"of all processes together, simulated on a CPU (default: {DEVICES}, or one in each of several processes)"
    )
    parser.add_argument("--devices", type=positive_int, default=argparse.SUPPRESS, help=devices_help)
    processes_help = "processes that share them; started on this machine"
    parser.add_argument("--processes", type=positive_int, default=1, help=processes_help)
    add_run_options(parser)
    # How this program starts itself as one of several processes.
    parser.add_argument("--join", nargs=2, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> ParallelResult | None:
    """Runs the command line `argv` (default: the program's own); what was measured, if it was in this process."""
    parser = make_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(argv)
    processes = options.processes
    devices = getattr(options, "devices", DEVICES if processes == 1 else processes)
    config = Config(epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)
    if devices % processes:
        parser.error(f"argument --processes: {devices} devices cannot be split evenly over {processes} processes")
    if config.batch_size % devices:
        parser.error(f"argument --batch-size: {config.batch_size} images cannot be split evenly over {devices} devices")
    if processes > 1 and options.join is None:
        try:
            run_processes([sys.executable, __file__, *argv, "--join"], processes)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        return None
    if options.join is None:
        simulate_devices(devices)
    else:
        join_processes(options.join[0], int(options.join[1]), processes, devices)
    check_batch_size(parser, config)
    if jax.device_count() < devices:
        parser.error(f"argument --devices: there are {jax.device_count()} ({jax.default_backend()}), got {devices}")
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    console = Console(quiet=jax.process_index() > 0)
    outcome = run(config, mesh, console)
    report(console, mesh, outcome)
    return outcome


if __name__ == "__main__":
    main()
