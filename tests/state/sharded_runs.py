"""A network whose optimizer state is split over eight devices, for the tests of that."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adamx

__all__ = [
    "BATCH",
    "DIVIDED",
    "SHAPES",
    "TRANSFORMATIONS",
    "WIDTH",
    "P",
    "alone",
    "apply",
    "batches",
    "bytes_per_device",
    "data_mesh",
    "farthest",
    "loss",
    "on_mesh",
    "split_run",
    "two_axes",
    "values",
]

P = PartitionSpec
WIDTH, BATCH = 64, 128

# No dimension of "odd" is divided by 8, 4 or 2; a scalar has none.
SHAPES = {"first": (WIDTH, 96), "bias": (96,), "last": (96, 24), "odd": (5, 3), "scale": ()}
DIVIDED = {"first", "bias", "last"}


def labels(params):
    return {name: "adam" if name in DIVIDED else "frozen" for name in params}


def masked(params):
    return {name: name != "bias" for name in params}


TRANSFORMATIONS: dict[str, Any] = {
    "adam": adamx.adam(1e-2),
    "adamw": adamx.adamw(1e-2, mask=masked),
    "amsgrad": adamx.adam(1e-2, amsgrad=True),
    "keras": adamx.AdamConfig(learning_rate=1e-2, convention="keras").transformation(),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0), adamx.adam(optax.cosine_decay_schedule(1e-2, 10))
    ),
    "partition": optax.partition({"adam": adamx.adam(1e-2), "frozen": optax.set_to_zero()}, labels),
    "masked": optax.masked(adamx.adam(1e-2), masked),
    "inject": optax.inject_hyperparams(adamx.adam)(learning_rate=1e-2),
    "multi_steps": optax.MultiSteps(adamx.adam(1e-2), 1).gradient_transformation(),
    "if_finite": optax.apply_if_finite(adamx.adam(1e-2), 3),
    "nonnegative": optax.chain(adamx.adam(1e-2), optax.keep_params_nonnegative()),
    "optax": optax.adam(1e-2),
    "fused": adamx.fused_adam(1e-2),
    "fused_amsgrad": adamx.fused_adamw(1e-2, amsgrad=True, clip_global_norm=1.0),
}


def loss(params, batch):
    """A network in which every parameter has a gradient."""
    x = jnp.tanh(batch @ params["first"] + params["bias"][None])
    return jnp.mean((x @ params["last"]) ** 2 * params["scale"]) + jnp.sum(params["odd"] ** 2)


def values(seed=0):
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(s) / 3, np.float32) for k, s in SHAPES.items()}


def batches(count):
    rng = np.random.default_rng(1)
    return [np.asarray(rng.standard_normal((BATCH, WIDTH)), np.float32) for _ in range(count)]


def data_mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def two_axes(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def on_mesh(mesh: Mesh, params):
    """The parameters, replicated over "data" and, where there is one, split over "model"."""
    specs = dict.fromkeys(params, P())
    if mesh.axis_types[-1] == AxisType.Explicit and "model" in mesh.axis_names:
        specs["last"] = P(None, "model")
    elif "model" in mesh.axis_names:
        specs |= {"first": P(None, "model"), "bias": P("model"), "last": P("model")}
    shardings = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    return jax.tree.map(jax.device_put, params, shardings), shardings


def apply(tx, grads, state, params):
    """One step of a transformation or of a fused optimizer."""
    if isinstance(tx, adamx.FusedOptimizer):
        return tx.step(grads, params, state)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def value_and_scattered_grads(mesh: Mesh, shardings):
    """The gradients by `jax.shard_map` and `adamx.reduce_scatter`."""

    def local(params, batch):
        params = jax.lax.pcast(params, "data", to="varying")
        value, grads = jax.value_and_grad(loss)(params, batch)
        return jax.lax.pmean(value, "data"), adamx.reduce_scatter(grads, shardings, "data")

    specs = jax.tree.map(lambda s: s.spec, shardings)
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), specs))


def split_run(tx, mesh: Mesh, *, scattered=False):
    """The compiled step on `mesh`, and the parameters and the state that it begins with."""
    params, param_shardings = on_mesh(mesh, values())
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    of_loss = jax.value_and_grad(loss)
    if scattered:
        of_loss = value_and_scattered_grads(mesh, adamx.zero_sharding(params, mesh, "data"))

    def step(params, state, batch):
        value, grads = of_loss(params, batch)
        return *apply(tx, grads, state, params), value

    replicated = NamedSharding(mesh, P())
    jitted = jax.jit(
        step, out_shardings=(param_shardings, shardings, replicated), donate_argnums=(0, 1)
    )
    batch = jax.ShapeDtypeStruct(
        (BATCH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P("data"))
    )
    return jitted.lower(params, state, batch).compile(), params, state


def bytes_per_device(state):
    held = Counter()
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    return held


def alone(tx, count):
    """The parameters after `count` steps on one device."""
    params = jax.tree.map(jnp.asarray, values())
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        return apply(tx, jax.grad(loss)(params, batch), state, params)

    for batch in batches(count):
        params, state = step(params, state, batch)
    return params, state


def farthest(tree, other):
    """The largest difference in any leaf, in parts of the leaf's largest entry."""

    def of(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-300)

    return max(jax.tree.leaves(jax.tree.map(of, tree, other)))
