"""The digits network on eight devices, each of which holds an eighth of Adam's moments (ZeRO-1).

The batch is split over the devices, the parameters are replicated, the optimizer's state is split
with `adamx.zero_sharding`. The devices are virtual ones of the CPU. With --processes N the same
program runs as N processes of 8 / N devices each, connected by `jax.distributed` as on N machines:
only the address of the first one would be another. With --checkpoint FOLDER all processes save
their parts there together; started again, with any number of processes, it continues from them.
The network and the data are those of train_digits.py.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adamx

DEVICES = 8
BATCH = 128


def make_step(tx: optax.GradientTransformation, mesh: Mesh, params: common.Params) -> Any:
    """The compiled step, and the shardings of the parameters and of the state."""
    replicated = NamedSharding(mesh, PartitionSpec())
    param_shardings = jax.tree.map(lambda _: replicated, params)
    state_shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    grad_shardings: Any = adamx.zero_sharding(params, mesh, "data")

    def local(params: common.Params, batch: common.Data) -> Any:
        """On each device: the loss of its part of the batch, and its part of the gradients."""
        params = jax.lax.pcast(params, "data", to="varying")
        value, grads = jax.value_and_grad(common.loss)(params, batch)
        return jax.lax.pmean(value, "data"), adamx.reduce_scatter(grads, grad_shardings, "data")

    value_and_grad = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=(PartitionSpec(), jax.tree.map(lambda s: s.spec, grad_shardings)),
    )

    def step(params: common.Params, state: optax.OptState, batch: common.Data) -> Any:
        value, grads = value_and_grad(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    # The parameters come back whole on each device, the state in parts: without `out_shardings`
    # the compiler would choose.
    shardings = (param_shardings, state_shardings)
    return jax.jit(step, out_shardings=(*shardings, replicated), donate_argnums=(0, 1)), shardings


def batch_of(data: common.Data, mesh: Mesh, seed: int, t: int) -> common.Data:
    """The batch of step t; each process gives the rows of its own devices."""
    rows = np.random.default_rng((seed, t)).choice(data.digits.size, BATCH, replace=False)
    mine = np.array_split(rows, jax.process_count())[jax.process_index()]
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    parts = (np.asarray(data.images)[mine], np.asarray(data.digits)[mine])
    return common.Data(*(jax.make_array_from_process_local_data(sharding, part) for part in parts))


def train(options: argparse.Namespace) -> None:
    """The run of one process; the first one prints."""
    first = jax.process_index() == 0
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    data, test = common.load_data(options.seed)
    tx = adamx.adamw(optax.cosine_decay_schedule(3e-3, options.steps))
    params = common.init_params(jax.random.key(options.seed))
    step, (param_shardings, state_shardings) = make_step(tx, mesh, params)

    params = jax.device_put(jax.tree.map(np.asarray, params), param_shardings)
    state = jax.jit(tx.init, out_shardings=state_shardings)(params)
    if first:
        print(f"{jax.device_count()} devices of {jax.process_count()} processes")
        whole = sum(x.nbytes for x in jax.tree.leaves(state))
        print(f"state, replicated: each device would hold {whole:,} bytes\nstate, split:")
        adamx.describe_sharding(state)

    begin, checkpointer = 0, ocp.StandardCheckpointer()
    settings = {"seed": options.seed, "steps": options.steps}
    if options.checkpoint is not None and options.checkpoint.exists():
        # What was saved comes back as parts of the size that this run's devices hold.
        wanted = {"params": params, "state": state, "step": 0, "settings": settings}
        restored = checkpointer.restore(options.checkpoint, wanted)
        if restored["settings"] != settings:  # another schedule, or tested on what was trained on
            raise SystemExit(
                f"{options.checkpoint}: expected the settings of this run, {settings}; found "
                f"{restored['settings']}. Give those, or another folder (--checkpoint)."
            )
        params, state, begin = restored["params"], restored["state"], restored["step"]
    losses = []
    start = time.perf_counter()
    end = max(begin, options.steps if options.stop_at is None else options.stop_at)
    for t in range(begin, end):
        params, state, value = step(params, state, batch_of(data, mesh, options.seed, t))
        losses.append(float(value))
        if first and ((t + 1) % 50 == 0 or t + 1 == end):
            print(f"step {t + 1}: loss {losses[-1]:.4f}", flush=True)
    seconds = time.perf_counter() - start
    if options.checkpoint is not None:
        tree = {"params": params, "state": state, "step": end, "settings": settings}
        checkpointer.save(options.checkpoint, tree, force=True)
        checkpointer.wait_until_finished()
    local = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), params)
    if first:
        accuracy = float(common.evaluate(local, test)[1])
        print(f"held-out accuracy: {accuracy:.2%}, {seconds:.1f} s")
        path = options.out / "data_parallel.npz"
        np.savez(path, losses=np.asarray(losses), **common.name_arrays(local))
        print(f"the losses and the parameters are in {path}")


def start_processes(options: argparse.Namespace, arguments: list[str]) -> int:
    """Run this program as several processes; stop all of them if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *arguments, "--coordinator", address, "--process-id"]
    processes: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` is reached
    try:
        for i in range(options.processes):
            processes.append(subprocess.Popen([*command, str(i)]))
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    return max(abs(process.wait()) for process in processes)


def main() -> None:
    parser = common.make_parser(__doc__, out=True, steps=300, seed=0)
    parser.add_argument("--stop-at", type=int, help="the step to stop after (default: the last)")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 4, 8))
    about = "a folder to continue from, and to save to"
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help=about)
    parser.add_argument("--coordinator", help="host:port of the first process; see --process-id")
    parser.add_argument("--process-id", type=int, help="which of the processes this is")
    options = parser.parse_args()
    if options.checkpoint is not None:
        options.checkpoint = options.checkpoint.absolute()
    if options.processes > 1 and options.coordinator is None:
        raise SystemExit(start_processes(options, sys.argv[1:]))
    jax.config.update("jax_num_cpu_devices", DEVICES // options.processes)
    if options.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.coordinator, options.processes, options.process_id)
    train(options)
    if options.processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
