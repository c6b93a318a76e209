"""Training that may be killed at any moment, and continues when it is started again.

The digits network of train_digits.py. Whatever the next step depends on is one tree, `Run`:
parameters, Adam's state with its schedule's count, the random key, the order of the images and the
place in it. Orbax saves that tree while training continues. Killed (kill -9, a machine taken away,
a disk that fills up) and started again with the same command line, it takes the last whole
checkpoint and ends with the parameters of an uninterrupted run, bit for bit. On another number of
devices it continues from the same bits, too; from there on, sums over the batch are rounded
differently.

    python examples/preemptible.py --out build/run
    python examples/preemptible.py --out build/run --devices 4

In the folder: run.json, the settings that must not change; checkpoints/STEP; in the end params.npz;
and lock, which keeps a second program out as long as one is at work.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adamx

try:
    import fcntl
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: this program needs the file locks of POSIX") from error


# ---- The run -------------------------------------------------------------------------------------


class Run(NamedTuple):
    """All that the next step depends on: what is not in here would not come back."""

    params: common.Params
    state: optax.OptState
    key: jax.Array  # what is random from here on
    order: jax.Array  # the rows of the training set, (n,), shuffled anew each epoch
    position: jax.Array  # where in `order` the next batch begins
    epoch: jax.Array


def make_start(tx: optax.GradientTransformation, mesh: Mesh, images: int, seed: int) -> Any:
    """Compiled: the run before its first step, with the moments split over the devices."""

    def start() -> Run:
        init, shuffle, key = jax.random.split(jax.random.key(seed), 3)
        params = common.init_params(init)
        order = jax.random.permutation(shuffle, images)
        return Run(params, tx.init(params), key, order, jnp.int32(0), jnp.int32(0))

    shapes, everywhere = jax.eval_shape(start), NamedSharding(mesh, PartitionSpec())
    split = adamx.zero_sharding(shapes.params, mesh, "data", transformation=tx)
    shardings: Any = jax.tree.map(lambda _: everywhere, shapes)._replace(state=split)
    return jax.jit(start, out_shardings=shardings)


def advance(tx: optax.GradientTransformation, mesh: Mesh, run: Run, data: common.Data) -> Run:
    """The run one batch later. An epoch is over where no whole batch is left."""
    key, move, shuffle = jax.random.split(run.key, 3)
    rows = jax.lax.dynamic_slice(run.order, (run.position,), (common.BATCH,))
    batch = common.Data(common.shift(move, data.images[rows]), data.digits[rows])
    batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))
    grads = jax.grad(common.loss)(run.params, batch)
    updates, state = tx.update(grads, run.state, run.params)
    params: Any = optax.apply_updates(run.params, updates)
    over = run.position + 2 * common.BATCH > run.order.size
    order = jax.lax.cond(
        over, lambda: jax.random.permutation(shuffle, run.order), lambda: run.order
    )
    position = jnp.where(over, 0, run.position + common.BATCH)
    return Run(params, state, key, order, position, run.epoch + over.astype(jnp.int32))


# ---- Checkpoints ---------------------------------------------------------------------------------


@jax.jit
def checksums(run: Run) -> dict[str, jax.Array]:
    """For each array, by its path, a checksum of its bits modulo 2^32.

    Each element is scrambled together with its place (as at the end of MurmurHash3) and all are
    added: integers, whose sum is the same on any number of devices. One changed element of
    32 bits or less always changes the sum; several do but for one time in 2^32.
    """
    sums = {}
    for path, x in jax.tree_util.tree_leaves_with_path(run):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        word = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
        bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
        place = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
        h = bits ^ (place * np.uint32(0x9E3779B1))
        h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
        sums[jax.tree_util.keystr(path)] = jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)
    return sums


def describe(step: int, run: Run) -> dict[str, Any]:
    """What is saved beside the arrays, as JSON."""
    return {"step": step, "checksums": jax.tree.map(int, checksums(run))}


def save(manager: ocp.CheckpointManager, step: int, run: Run) -> None:
    """Begin to save. The arrays are copied when this returns, and may be donated."""
    args = ocp.args.Composite(
        run=ocp.args.StandardSave(run), record=ocp.args.JsonSave(describe(step, run))
    )
    with explaining(Path(manager.directory)):  # raises as well if the save before this one failed
        manager.save(step, args=args)


def restore(manager: ocp.CheckpointManager, step: int, like: Run) -> Run:
    """One checkpoint, laid out on the devices as `like` is; an error if it is not whole.

    Orbax notices files that are missing or cut off, but not flipped bits in an array.
    """
    args = ocp.args.Composite(run=ocp.args.StandardRestore(like), record=ocp.args.JsonRestore())
    found = manager.restore(step, args=args)
    if found["record"] != describe(step, found["run"]):
        raise ValueError("the arrays have other checksums than were recorded")
    return found["run"]


def restore_last(manager: ocp.CheckpointManager, like: Run) -> tuple[int, Run]:
    """The last whole checkpoint, and its step; damaged ones after it are moved aside."""
    folder, damaged = Path(manager.directory), {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            run = restore(manager, step, like)
        except Exception as error:  # Orbax and tensorstore raise many kinds
            damaged[step] = f"checkpoint {step} is not whole: {summarise(error)}"
            continue
        for bad, message in damaged.items():
            aside = folder / f"corrupt-{bad}"  # a name that Orbax takes no notice of
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(bad)).replace(aside)
            print(f"{message}\nmoved to {aside}; step {bad} will be saved again")
        manager.reload()
        return step, run
    reasons = "".join(f"{message}\n" for message in damaged.values())
    raise SystemExit(
        f"{reasons}expected a whole checkpoint in {folder}, since run.json says that there is one; "
        f"found {len(damaged)}, none of them whole. Nothing was changed. Put one back from a copy, "
        "or start anew in another folder (--out)."
    )


def begin(manager: ocp.CheckpointManager, path: Path, settings: Any, start: Any) -> tuple[int, Run]:
    """The step to continue from, and the run there: from zero only if nothing was begun."""
    expected = json.dumps(settings)
    if path.exists():
        found = path.read_text(errors="replace").strip()
        if found != expected:
            raise SystemExit(
                f"{path}: expected the settings of this run, {expected}; found {found}. Give "
                "those, or start anew in another folder (--out)."
            )
        step, run = restore_last(manager, jax.eval_shape(start))
        print(f"went on from step {step}", flush=True)
        return step, run
    steps, results = sorted(manager.all_steps()), [x.name for x in path.parent.glob("params.npz")]
    if steps not in ([], [0]) or results:
        raise SystemExit(
            f"{path}: expected the settings of the run whose checkpoints or results are there, "
            f"{[*steps, *results]}; found no such file. Put it back, or start anew in another "
            "folder (--out)."
        )
    if steps:  # killed before run.json was written
        manager.delete(0)
    run = start()
    save(manager, 0, run)
    with explaining(path.parent):
        manager.wait_until_finished()
    write(path, expected.encode())  # so where this is, there is a checkpoint
    print("started anew", flush=True)
    return 0, run


# ---- Files ---------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> None:
    """The whole file or, killed in between, what was there before."""
    partial = path.with_name(f"{path.name}.partial")
    with explaining(path.parent):
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


@contextlib.contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Whatever keeps a file from being written ends the program, with a message."""
    try:
        yield
    except Exception as error:  # of the operating system, of tensorstore, of Orbax
        free = shutil.disk_usage(folder).free / 2**20
        raise SystemExit(
            f"could not write to {folder}, where {free:.1f} MiB are free: {summarise(error)}\n"
            "If it is full, make room. Start the same command again: it continues from the last "
            "whole checkpoint."
        ) from error


def summarise(error: BaseException) -> str:
    """What began it, without the pages of details that tensorstore adds in brackets."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.split(r" \[[^']*='", str(error))[0]
    return f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Ends the program if another one is at work in this folder; the system frees it at a kill."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"{folder}: expected no other program at work there, found one that is; wait for "
                "its end, end it, or give another folder (--out). Nothing was changed"
            ) from None
        yield


# ---- The program ---------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> None:
    """The whole run, or what is left of it."""
    mesh = jax.make_mesh((options.devices,), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    data, test = jax.device_put(common.load_data(options.seed), everywhere)
    schedule = common.make_schedule(options.learning_rate, options.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamx.adam(schedule))
    start = make_start(tx, mesh, data.digits.size, options.seed)
    shardings = jax.tree.map(lambda x: x.sharding, jax.eval_shape(start))
    step = jax.jit(functools.partial(advance, tx, mesh), out_shardings=shardings, donate_argnums=0)

    # Orbax writes into STEP.orbax-checkpoint-tmp, and renames that when all is written.
    keep = ocp.CheckpointManagerOptions(max_to_keep=options.keep, cleanup_tmp_directories=True)
    manager = ocp.CheckpointManager(options.out.absolute() / "checkpoints", options=keep)
    settings = {name: vars(options)[name] for name in ("steps", "seed", "learning_rate")}
    begun, run = begin(manager, options.out / "run.json", settings, start)
    for t in range(begun + 1, options.steps + 1):
        # Waited for, since steps that run ahead of each other can block on virtual devices.
        run = jax.block_until_ready(step(run, data))
        if t % options.save_every == 0 or t == options.steps:
            save(manager, t, run)
    with explaining(options.out):
        manager.close()

    arrays, path = common.name_arrays(run.params), options.out / "params.npz"
    content = io.BytesIO()
    np.savez(content, **arrays)
    write(path, content.getvalue())
    digest = hashlib.sha256(b"".join(x.tobytes() for x in arrays.values())).hexdigest()
    print(f"parameters: {path}, SHA-256 {digest}")
    accuracy = float(common.evaluate(run.params, test)[1])
    print(f"held-out accuracy: {accuracy:.2%} of {test.digits.size}")


def main() -> None:
    parser = common.make_parser(__doc__, out=True, steps=1500, seed=0, learning_rate=3e-3)
    parser.add_argument("--save-every", type=int, default=100, help="steps (default: 100)")
    about = "checkpoints, at least 2 (default: 3)"
    parser.add_argument("--keep", type=int, default=3, help=about)
    about = f"a divisor of {common.BATCH}, the batch (default: 1)"
    parser.add_argument("--devices", type=int, default=1, help=about)
    options = parser.parse_args()
    if min(options.steps, options.save_every, options.keep, options.devices) < 1:
        parser.error("steps, save-every, keep and devices: expected numbers above 0")
    if options.keep < 2:
        parser.error("keep: expected at least 2, so that one is left if the last one is damaged")
    if common.BATCH % options.devices:
        parser.error(f"devices: expected a divisor of {common.BATCH}, found {options.devices}")
    jax.config.update("jax_num_cpu_devices", options.devices)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax raises what it logs
    with alone(options.out):
        train(options)


if __name__ == "__main__":
    main()
