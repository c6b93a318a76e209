"""Optax states that hold an Adam state, and parameters for them."""

import jax
import jax.numpy as jnp
import optax

import adamx

PARAMS = {
    "activation": None,
    "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3, jnp.bfloat16)},
    "heads": [jnp.ones(2), None, jnp.float32(1)],
}
PATHS = ["dense/bias", "dense/kernel", "heads/0", "heads/2"]

SCHEDULE = optax.linear_schedule(1e-2, 0.0, 100)
LABELS = {"activation": None, "dense": {"kernel": "a", "bias": "b"}, "heads": "a"}
HOLDERS = {
    "scale_by_adam": adamx.scale_by_adam(),
    "optax": optax.adam(1e-2),
    "schedule": adamx.adam(SCHEDULE),
    "amsgrad": adamx.adam(1e-2, amsgrad=True),
    "adamw": adamx.adamw(SCHEDULE, weight_decay=SCHEDULE),
    "chain": optax.chain(optax.clip(1.0), adamx.adam(SCHEDULE), optax.ema(0.9)),
    "inject": optax.inject_hyperparams(adamx.adam)(learning_rate=SCHEDULE),
    "MultiSteps": optax.MultiSteps(adamx.adam(SCHEDULE), 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(adamx.adam(SCHEDULE), 3),
    "partition": optax.partition({"a": adamx.adam(SCHEDULE), "b": adamx.adam(1e-3)}, LABELS),
    "none": optax.partition(
        {"a": adamx.adam(SCHEDULE), "b": adamx.adam(1e-3)},
        lambda tree: jax.tree.map(lambda x: "a" if x.ndim == 1 else "b", tree),
    ),
    "one_part": optax.partition({"a": adamx.adam(SCHEDULE), "b": optax.sgd(1e-3)}, LABELS),
}


def trained(tx, steps=4, params=PARAMS):
    state = tx.init(params)
    for t in range(steps):
        grads = jax.tree.map(lambda p, t=t: jnp.full_like(p, 0.5 + t), params)
        _, state = tx.update(grads, state, params)
    return state


def mapping(**leaves):
    """The same as `nnx.state` has it."""
    return {"count": jnp.int32(0), "mu": leaves, "nu": leaves}
